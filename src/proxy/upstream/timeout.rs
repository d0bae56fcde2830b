//! Silence: how long a backend may send nothing, and how it is told dead from busy.
//!
//! After `timeouts.suspect` the backend is probed; dead means cut at once, busy means wait on, and probe again after
//! the same time. At the stage's own limit it is given up in any case.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use crate::{
    fleet::{Backend, Verdict},
    runtime::ticker::{Deadline, Ticker},
};

/// Watches one upstream answer, first for its head, then between its bytes.
pub(super) struct Silence {
    deadline: Deadline,
    suspect: Duration,
    limit: Duration,
    /// How long nothing came, when the deadline that is set now ends.
    reached: Duration,
    backend: Arc<Backend>,
    probe: Option<Pin<Box<dyn Future<Output = Verdict>>>>,
}

/// Why the wait is over.
#[derive(Debug)]
pub(super) enum Over {
    /// The limit ran out.
    Limit(Duration),
    /// The probe found the backend dead.
    Dead(String),
}

impl Silence {
    pub(super) fn new(ticker: &Ticker, suspect: Duration, limit: Duration, backend: Arc<Backend>) -> Self {
        let silence =
            Self { deadline: ticker.deadline(), suspect, limit, reached: suspect.min(limit), backend, probe: None };
        silence.deadline.set(silence.reached);
        silence
    }

    /// Something came: from now on `limit` counts between bytes.
    pub(super) fn heard(&mut self, limit: Duration) {
        self.limit = limit;
        self.reached = self.suspect.min(limit);
        self.deadline.set(self.reached);
        self.probe = None;
    }

    /// Ready once the wait is over.
    pub(super) fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<Over> {
        loop {
            if let Some(probe) = &mut self.probe
                && let Poll::Ready(verdict) = probe.as_mut().poll(cx)
            {
                self.probe = None;
                if let Verdict::Dead(reason) = verdict {
                    return Poll::Ready(Over::Dead(reason));
                }
            }
            if self.deadline.poll_over(cx).is_pending() {
                return Poll::Pending;
            }
            if self.reached >= self.limit {
                return Poll::Ready(Over::Limit(self.limit));
            }
            if self.probe.is_none() {
                let backend = Arc::clone(&self.backend);
                self.probe = Some(Box::pin(async move { backend.suspect().await }));
            }
            let next = self.limit.min(self.reached.saturating_add(self.suspect.max(Duration::from_secs(1))));
            self.deadline.set(next - self.reached);
            self.reached = next;
        }
    }
}
