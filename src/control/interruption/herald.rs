//! Tells one gateway what is known of this machine, until it says that it heard.

use std::{
    hash::{BuildHasher, RandomState},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use serde_json::json;
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use super::{Answer, Fault, PROMPT, Request, send};
use crate::{fleet::Notice, telemetry::time};

/// Between two tries: doubled from the first to the last. A notice may be no longer than 30 s.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// It is said again so often, so that a gateway that was started again knows it too.
const AGAIN: Duration = Duration::from_secs(15);

/// Which gateway, and as whom it is told.
#[derive(Clone, Debug)]
pub struct Herald {
    /// The gateway, in logs.
    pub gateway: String,
    /// What it calls the backend on this machine.
    pub backend: String,
    pub token: Option<HeaderValue>,
}

/// Runs until dropped. `heard` is what the gateway has acknowledged.
pub async fn herald<F>(
    herald: &Herald,
    fetch: &F,
    mut known: watch::Receiver<Option<Notice>>,
    heard: &watch::Sender<Option<Notice>>,
) where
    F: AsyncFn(Request) -> Result<Answer, Fault>,
{
    loop {
        let notice = known.borrow_and_update().clone();
        if *heard.borrow() != notice {
            tokio::select! {
                () = herald.until_heard(fetch, notice.as_ref()) => drop(heard.send_replace(notice)),
                // Something newer is to be said.
                changed = known.changed() => if changed.is_err() { return },
            }
            continue;
        }
        tokio::select! {
            changed = known.changed() => if changed.is_err() { return },
            () = sleep(AGAIN), if notice.is_some() => {
                // It was told: this is for one that has forgotten.
                let _ = herald.say(fetch, notice.as_ref()).await;
            }
        }
    }
}

impl Herald {
    async fn until_heard<F>(&self, fetch: &F, notice: Option<&Notice>)
    where
        F: AsyncFn(Request) -> Result<Answer, Fault>,
    {
        let Self { gateway, backend, .. } = self;
        let action = notice.map_or("none", |notice| notice.action.name());
        let (mut pause, mut trouble) = (PAUSE.0, String::new());
        loop {
            match self.say(fetch, notice).await {
                Ok(()) => return tracing::info!(%gateway, %backend, action, "the gateway knows"),
                Err(reason) if reason != trouble => {
                    tracing::warn!(%gateway, %backend, action, %reason, "cannot tell the gateway; trying on");
                    trouble = reason;
                }
                Err(_) => {}
            }
            sleep(jitter(pause)).await;
            pause = (pause * 2).min(PAUSE.1);
        }
    }

    pub(super) async fn say<F>(&self, fetch: &F, notice: Option<&Notice>) -> Result<(), String>
    where
        F: AsyncFn(Request) -> Result<Answer, Fault>,
    {
        let answer = send(fetch, self.request(notice), PROMPT).await.map_err(|fault| fault.to_string())?;
        if answer.status.is_success() {
            return Ok(());
        }
        let help = match answer.status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => ": the token is not its interruption_token",
            StatusCode::NOT_FOUND => ": it has no backend of this name, or no admin plane at this address",
            _ => "",
        };
        Err(format!("it answered {}{help}", answer.status))
    }

    /// With `Date`, so that the time is right whatever this machine's clock says.
    fn request(&self, notice: Option<&Notice>) -> Request {
        let now = SystemTime::now();
        let said = match notice {
            Some(Notice { action, at, .. }) => {
                let time = at.map(|at| time::rfc3339(now + at.saturating_duration_since(Instant::now())));
                json!({"action": action.name(), "time": time})
            }
            None => json!({"action": "none"}),
        };
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Ok(date) = HeaderValue::try_from(time::http_date(now)) {
            headers.insert(header::DATE, date);
        }
        if let Some(token) = &self.token {
            headers.insert(header::AUTHORIZATION, token.clone());
        }
        let path = format!("/api/v1/backends/{}/interruption", self.backend);
        Request { method: Method::POST, path, headers, body: Bytes::from(said.to_string()) }
    }
}

/// Many machines go at the same time.
fn jitter(pause: Duration) -> Duration {
    let chance = RandomState::new().hash_one(0) as u32;
    pause.mul_f64(0.75 + 0.5 * f64::from(chance) / f64::from(u32::MAX))
}
