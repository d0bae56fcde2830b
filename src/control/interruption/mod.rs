//! Watches for the interruption of this machine, and passes it on.
//!
//! ```text
//!  metadata service ◄── Source (aws | gcp | azure) ◄── watch: remembers, takes back ──► Option<Notice>
//!                                                                                         │      │
//!                                                            this gateway's own doing ◄───┘      └──► herald, one per
//!                                                                                                     gateway: until told
//! ```
//!
//! * A source says what the service says now, and in how long the machine goes by the service's own clock (its `Date`):
//!   that of this machine may be wrong.
//! * What is known changes for news only: a service that moves its time at every look (as mocks of it do) is believed
//!   the first time, a look that fails changes nothing.
//! * The gateway and `sluicegate agent` use the same two halves.

mod aws;
mod azure;
mod gcp;
mod herald;

#[cfg(test)]
mod tests;

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until, timeout},
};

pub use self::herald::{Herald, herald};
use self::{aws::Aws, azure::Azure, gcp::Gcp};
use super::{Answer, Fault};
use crate::{
    config::InterruptionSource,
    fleet::{Action, Notice},
    telemetry::time,
};

/// The address that every cloud gives its metadata service.
pub const METADATA: &str = "http://169.254.169.254";
/// How long it may take to find out where this runs.
const DETECT: Duration = Duration::from_secs(2);
/// It is tried again: a machine that boots may have no network yet.
const DETECT_AGAIN: Duration = Duration::from_secs(30);
/// For an answer that should come at once.
const PROMPT: Duration = Duration::from_secs(2);

/// One request to a metadata service or to a gateway; whoever sends it knows where.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: Method,
    pub path: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// What a service says now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    Quiet,
    /// It goes in so long; `None` = not said.
    Notice(Action, Option<Duration>),
}

/// Where notices come from.
trait Source {
    const NAME: &'static str;
    /// From the start of one look to that of the next.
    const EVERY: Duration;
    /// Quiet looks in a row that take a notice back.
    const QUIET: u32;
    /// Whether a later time is meant; else the first that was said stays.
    const MOVES: bool;

    /// Asks once. The error is for people.
    async fn look<F>(&mut self, fetch: &F) -> Result<Look, String>
    where
        F: AsyncFn(Request) -> Result<Answer, Fault>;
}

/// What is known.
#[derive(Debug, Default)]
struct Known {
    notice: Option<Notice>,
    quiet: u32,
}

/// Watches what `source` names until dropped; what is known is in `known`. `every` = in place of the source's own
/// pace.
pub async fn watch<F>(
    source: InterruptionSource,
    every: Option<Duration>,
    fetch: &F,
    known: &watch::Sender<Option<Notice>>,
) where
    F: AsyncFn(Request) -> Result<Answer, Fault>,
{
    match source {
        InterruptionSource::Off => std::future::pending().await,
        InterruptionSource::Aws => attend(Aws::default(), every, fetch, known).await,
        InterruptionSource::Gcp => attend(Gcp::default(), every, fetch, known).await,
        InterruptionSource::Azure => attend(Azure::default(), every, fetch, known).await,
        InterruptionSource::Auto => {
            let found = settle(fetch).await;
            Box::pin(watch(found, every, fetch, known)).await;
        }
    }
}

async fn attend<S: Source, F>(mut source: S, every: Option<Duration>, fetch: &F, sender: &watch::Sender<Option<Notice>>)
where
    F: AsyncFn(Request) -> Result<Answer, Fault>,
{
    tracing::info!(source = S::NAME, "watching for the interruption of this machine");
    let mut known = Known { notice: sender.borrow().clone(), quiet: 0 };
    let mut trouble = String::new();
    loop {
        let start = Instant::now();
        match source.look(fetch).await {
            Ok(look) => {
                if !std::mem::take(&mut trouble).is_empty() {
                    tracing::info!(source = S::NAME, "the metadata service answers again");
                }
                if known.hear::<S>(Instant::now(), look) {
                    tell::<S>(known.notice.as_ref());
                    sender.send_replace(known.notice.clone());
                }
            }
            // Once, not every second.
            Err(reason) if reason != trouble => {
                tracing::warn!(source = S::NAME, %reason, "cannot look for notices");
                trouble = reason;
            }
            Err(_) => {}
        }
        sleep_until(start + every.unwrap_or(S::EVERY)).await;
    }
}

fn tell<S: Source>(notice: Option<&Notice>) {
    match notice {
        Some(Notice { action, at, .. }) => {
            let seconds = at.map(|at| at.saturating_duration_since(Instant::now()).as_secs());
            tracing::warn!(source = S::NAME, %action, seconds, "this machine has notice");
        }
        None => tracing::warn!(source = S::NAME, "the notice of this machine was taken back"),
    }
}

/// Finds out where this runs, however long that takes.
async fn settle<F>(fetch: &F) -> InterruptionSource
where
    F: AsyncFn(Request) -> Result<Answer, Fault>,
{
    let mut told = false;
    loop {
        if let Some(found) = detect(fetch).await {
            return found;
        }
        if !std::mem::replace(&mut told, true) {
            tracing::warn!("no cloud's metadata service answers here: nothing to watch so far; trying on");
        }
        sleep(DETECT_AGAIN).await;
    }
}

/// Asks for all at once.
async fn detect<F>(fetch: &F) -> Option<InterruptionSource>
where
    F: AsyncFn(Request) -> Result<Answer, Fault>,
{
    let (aws, gcp, azure) = tokio::join!(aws::is_here(fetch), gcp::is_here(fetch), azure::is_here(fetch));
    let found = [
        (gcp, InterruptionSource::Gcp),
        (azure, InterruptionSource::Azure),
        // Last: the others know nothing of its path, but a proxy in between may say yes to anything.
        (aws, InterruptionSource::Aws),
    ];
    found.into_iter().find(|(here, _)| *here).map(|(_, cloud)| cloud)
}

// === impl Known ===

impl Known {
    /// Takes what was seen; whether that changes what is known.
    fn hear<S: Source>(&mut self, now: Instant, look: Look) -> bool {
        let Look::Notice(action, left) = look else { return self.hear_quiet::<S>() };
        if let Some(old) = &self.notice
            && old.action.leaves()
            && !action.leaves()
        {
            // What is left of it is a hint: first the notice has to be taken back.
            self.hear_quiet::<S>();
            if self.notice.is_some() {
                return false;
            }
        }
        self.quiet = 0;
        let notice = Notice { action, at: left.map(|left| now + left), source: Arc::from(S::NAME) };
        let news = self.notice.as_ref().is_none_or(|old| is_news::<S>(old, &notice));
        if news {
            self.notice = Some(notice);
        }
        news
    }

    fn hear_quiet<S: Source>(&mut self) -> bool {
        self.quiet += 1;
        self.quiet >= S::QUIET && self.notice.take().is_some()
    }
}

fn is_news<S: Source>(old: &Notice, new: &Notice) -> bool {
    /// Services tell whole seconds.
    const SAME: Duration = Duration::from_secs(2);
    let (Some(was), Some(is)) = (old.at, new.at) else { return old.action != new.action || new.at.is_some() };
    old.action != new.action || was > is + SAME || S::MOVES && is > was + SAME
}

// === requests ===

impl Request {
    fn get(path: &str, header: (HeaderName, HeaderValue)) -> Self {
        Self { method: Method::GET, path: path.to_owned(), headers: HeaderMap::from_iter([header]), body: Bytes::new() }
    }
}

/// Sends `request`, and waits so long for the answer.
async fn send<F>(fetch: &F, request: Request, patience: Duration) -> Result<Answer, Fault>
where
    F: AsyncFn(Request) -> Result<Answer, Fault>,
{
    timeout(patience, fetch(request)).await.unwrap_or(Err(Fault::Timeout(patience)))
}

/// From now to `at` by the clock of who answered; nothing when it is over.
fn until(answer: &Answer, at: SystemTime) -> Duration {
    let date = answer.headers.get(header::DATE).and_then(|date| date.to_str().ok());
    let now = date.and_then(time::parse_http_date).unwrap_or_else(SystemTime::now);
    at.duration_since(now).unwrap_or_default()
}

/// What an answer that should not have come says, in few words.
fn odd(path: &str, answer: &Answer) -> String {
    format!("{path} answered {}", answer.status)
}
