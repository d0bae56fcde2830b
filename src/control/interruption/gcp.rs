//! Compute Engine: `instance/preempted`, `TRUE` thirty seconds before the end, waited for by a long poll.

use std::time::Duration;

use http::{HeaderName, HeaderValue, StatusCode, header};

use super::{Answer, DETECT, Fault, Look, PROMPT, Request, Source, odd, send};
use crate::fleet::Action;

const PREEMPTED: &str = "/computeMetadata/v1/instance/preempted";
const FLAVOR: HeaderName = HeaderName::from_static("metadata-flavor");
/// How long the service may hold a poll in which nothing changes, and how long it is waited for.
const HOLD: u64 = 60;
const HELD: Duration = Duration::from_secs(HOLD + 15);
/// From the notice to the end.
const LEAD: Duration = Duration::from_secs(30);

/// The source.
#[derive(Debug, Default)]
pub(super) struct Gcp {
    /// Of the value that was seen last: a change in between is not missed.
    etag: Option<String>,
}

impl Source for Gcp {
    const NAME: &'static str = "gcp";
    // A poll takes a minute; a service that does not hold it is asked every second.
    const EVERY: Duration = Duration::from_secs(1);
    const QUIET: u32 = 1;
    const MOVES: bool = false;

    async fn look<F>(&mut self, fetch: &F) -> Result<Look, String>
    where
        F: AsyncFn(Request) -> Result<Answer, Fault>,
    {
        let (path, patience) = match &self.etag {
            None => (PREEMPTED.to_owned(), PROMPT),
            Some(etag) => (format!("{PREEMPTED}?wait_for_change=true&timeout_sec={HOLD}&last_etag={etag}"), HELD),
        };
        let answer = match send(fetch, get(&path), patience).await {
            Ok(answer) if answer.status == StatusCode::OK => answer,
            Ok(answer) => return Err(self.forget(odd(PREEMPTED, &answer))),
            Err(fault) => return Err(self.forget(format!("{PREEMPTED}: {fault}"))),
        };
        self.etag = etag(&answer);
        match answer.body.trim_ascii() {
            b"TRUE" => Ok(Look::Notice(Action::Terminate, Some(LEAD))),
            b"FALSE" => Ok(Look::Quiet),
            _ => Err(format!("{PREEMPTED} says neither TRUE nor FALSE")),
        }
    }
}

impl Gcp {
    /// After trouble the next look asks for the value itself.
    fn forget(&mut self, reason: String) -> String {
        self.etag = None;
        reason
    }
}

fn get(path: &str) -> Request {
    Request::get(path, (FLAVOR, HeaderValue::from_static("Google")))
}

/// One that fits into a query as it is; without, nothing is waited for.
fn etag(answer: &Answer) -> Option<String> {
    let etag = answer.headers.get(header::ETAG)?.to_str().ok()?;
    (!etag.is_empty() && etag.bytes().all(|b| b.is_ascii_alphanumeric())).then(|| etag.to_owned())
}

/// Whether this service answers: it says its flavor with every answer.
pub(super) async fn is_here<F>(fetch: &F) -> bool
where
    F: AsyncFn(Request) -> Result<Answer, Fault>,
{
    let answer = send(fetch, get("/computeMetadata/v1/instance/id"), DETECT).await;
    answer.is_ok_and(|answer| {
        answer.status == StatusCode::OK && answer.headers.get(FLAVOR).is_some_and(|flavor| flavor == "Google")
    })
}
