//! Azure: scheduled events of this machine's own name. The others of its set are told of it too.
//!
//! The first call switches the service on and may take two minutes; an event that is taken back, or is over, is just
//! no longer there. Nothing is acknowledged: that would let Azure begin at once, with every machine of the event.

use std::time::Duration;

use http::{HeaderName, HeaderValue, StatusCode};
use serde::Deserialize;

use super::{Answer, DETECT, Fault, Look, PROMPT, Request, Source, odd, send, until};
use crate::{fleet::Action, telemetry::time};

const EVENTS: &str = "/metadata/scheduledevents?api-version=2020-07-01";
const NAME: &str = "/metadata/instance/compute/name?api-version=2021-02-01&format=text";
const METADATA: HeaderName = HeaderName::from_static("metadata");
/// For the first call.
const FIRST: Duration = Duration::from_secs(150);
/// A user may set so long a notice for a scale set.
const LEAD: Duration = Duration::from_secs(15 * 60);

/// The source.
#[derive(Debug, Default)]
pub(super) struct Azure {
    /// This machine, as events name it.
    name: Option<String>,
    /// The service is on.
    woken: bool,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Document {
    #[serde(default)]
    events: Vec<Event>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[derive(Default)]
struct Event {
    event_type: String,
    resources: Vec<String>,
    not_before: String,
}

impl Source for Azure {
    const NAME: &'static str = "azure";
    // Thirty seconds are all there is.
    const EVERY: Duration = Duration::from_secs(1);
    const QUIET: u32 = 1;
    const MOVES: bool = true;

    async fn look<F>(&mut self, fetch: &F) -> Result<Look, String>
    where
        F: AsyncFn(Request) -> Result<Answer, Fault>,
    {
        let name = match &self.name {
            Some(name) => name,
            None => self.name.insert(own_name(fetch).await?),
        };
        let patience = if self.woken { PROMPT } else { FIRST };
        let answer = send(fetch, get(EVENTS), patience).await.map_err(|fault| format!("scheduledevents: {fault}"))?;
        if answer.status != StatusCode::OK {
            return Err(odd("scheduledevents", &answer));
        }
        self.woken = true;
        let document: Document =
            serde_json::from_slice(&answer.body).map_err(|error| format!("scheduledevents: {error}"))?;
        let own = document.events.iter().filter(|event| event.resources.iter().any(|r| r.eq_ignore_ascii_case(name)));
        let soonest =
            own.filter_map(|event| Some((event.left(&answer), event.action()?))).min_by_key(|(left, _)| *left);
        Ok(soonest.map_or(Look::Quiet, |(left, action)| Look::Notice(action, Some(left))))
    }
}

impl Event {
    /// What becomes of the machine; `None` = it stays (it stands still for some seconds).
    fn action(&self) -> Option<Action> {
        match &*self.event_type {
            "Preempt" | "Terminate" => Some(Action::Terminate),
            "Reboot" | "Redeploy" => Some(Action::Stop),
            _ => None,
        }
    }

    /// Without a time it has begun.
    fn left(&self, answer: &Answer) -> Duration {
        time::parse_http_date(&self.not_before).map_or(Duration::ZERO, |at| until(answer, at).min(LEAD))
    }
}

fn get(path: &str) -> Request {
    Request::get(path, (METADATA, HeaderValue::from_static("true")))
}

async fn own_name<F>(fetch: &F) -> Result<String, String>
where
    F: AsyncFn(Request) -> Result<Answer, Fault>,
{
    let answer = send(fetch, get(NAME), PROMPT).await.map_err(|fault| format!("the name of this machine: {fault}"))?;
    let name = str::from_utf8(answer.body.trim_ascii()).unwrap_or_default();
    if answer.status != StatusCode::OK || name.is_empty() {
        return Err(odd("the name of this machine", &answer));
    }
    Ok(name.to_owned())
}

/// Whether this service answers.
pub(super) async fn is_here<F>(fetch: &F) -> bool
where
    F: AsyncFn(Request) -> Result<Answer, Fault>,
{
    let answer = send(fetch, get("/metadata/instance/compute/vmId?api-version=2021-02-01&format=text"), DETECT).await;
    // A UUID.
    answer.is_ok_and(|answer| answer.status == StatusCode::OK && answer.body.trim_ascii().len() == 36)
}
