//! `POST /api/v1/backends/{name}/interruption`: a machine says that it goes.

use std::time::Duration;

use http::{HeaderMap, Response, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{answer, problem, view};
use crate::{
    body::Body,
    error::Kind,
    fleet::{Action, Fleet, Interrupted, Notice, interruption::clock},
    telemetry::time,
};

/// A notice has some 60 bytes.
const LARGEST: usize = 4 * 1024;
/// How long its body may take to come.
const WITHIN: Duration = Duration::from_secs(5);
/// Who gives these.
const SOURCE: &str = "push";

/// `{"action": "terminate", "time": "2026-01-07T01:03:47Z"}`. What else is in it is not looked at.
#[derive(Debug, Deserialize)]
struct Said {
    action: String,
    #[serde(default)]
    time: Option<String>,
}

/// Reads the notice and acts on it.
pub(super) async fn take(fleet: &Fleet, name: &str, headers: &HeaderMap, body: Body) -> Response<Body> {
    let body = match tokio::time::timeout(WITHIN, body.read(LARGEST)).await {
        Ok(Ok(body)) => body,
        Ok(Err(error)) if error.kind() == Kind::PayloadTooLarge => {
            let text = format!("a notice has {LARGEST} bytes at most");
            return problem(StatusCode::PAYLOAD_TOO_LARGE, "too_large", &text);
        }
        Ok(Err(error)) => return problem(StatusCode::BAD_REQUEST, "bad_body", error.message()),
        Err(_) => return problem(StatusCode::REQUEST_TIMEOUT, "too_slow", "the notice did not come in time"),
    };
    let notice = match read(&body, headers) {
        Ok(notice) => notice,
        Err(reason) => return problem(StatusCode::BAD_REQUEST, "bad_notice", &reason),
    };
    let outcome = match notice {
        Some(notice) => fleet.interrupt(name, notice).map(outcome),
        None => fleet.withdraw(name).map(|had| if had { "withdrawn" } else { "known" }),
    };
    match outcome {
        Ok(outcome) => answer(StatusCode::OK, &told(fleet, name, outcome)),
        Err(unknown) => problem(StatusCode::NOT_FOUND, "no_such_backend", &unknown.to_string()),
    }
}

/// The notice; `None` = the one before is taken back.
fn read(body: &[u8], headers: &HeaderMap) -> Result<Option<Notice>, String> {
    const FORM: &str = r#"send {"action": "terminate", "time": "2026-01-07T01:03:47Z"}"#;
    let said: Said = serde_json::from_slice(body).map_err(|error| format!("{error}; {FORM}"))?;
    if said.action == "none" {
        return Ok(None);
    }
    let action = Action::named(&said.action).ok_or_else(|| {
        let names = Action::ALL.map(Action::name).join(", ");
        format!("the action is one of {names}, or none to take a notice back; {FORM}")
    })?;
    let time = match &said.time {
        None => None,
        Some(text) => Some(time::parse_rfc3339(text).ok_or_else(|| format!("the time is not RFC 3339; {FORM}"))?),
    };
    Ok(Some(Notice::new(action, time, clock(headers), SOURCE)))
}

fn outcome(interrupted: Interrupted) -> &'static str {
    match interrupted {
        Interrupted::Draining => "draining",
        Interrupted::Hinted => "hinted",
        Interrupted::Last => "last",
        Interrupted::Known => "known",
    }
}

/// Little: who may give notices may not see the backend's counters.
fn told(fleet: &Fleet, name: &str, outcome: &str) -> Value {
    let seen = view::backend(fleet, name);
    json!({"name": name, "outcome": outcome, "state": seen["state"], "interruption": seen["interruption"]})
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    fn dated(date: &str) -> HeaderMap {
        HeaderMap::from_iter([(http::header::DATE, date.parse().unwrap())])
    }

    #[tokio::test(start_paused = true)]
    async fn times_are_by_the_clock_of_who_sends_them() {
        let headers = dated("Wed, 07 Jan 2026 01:01:47 GMT");
        let read = |body: &str| read(body.as_bytes(), &headers);
        let notice = read(r#"{"action":"terminate","time":"2026-01-07T01:03:47Z","more":1}"#).unwrap().unwrap();
        assert_eq!((notice.action, notice.at), (Action::Terminate, Some(Instant::now() + Duration::from_secs(120))));
        let far = read(r#"{"action":"stop","time":"2036-01-07T01:03:47Z"}"#).unwrap().unwrap();
        assert_eq!(far.at, Some(Instant::now() + Duration::from_secs(3600)), "bounded");
        let over = read(r#"{"action":"stop","time":"2016-01-07T01:03:47+02:00"}"#).unwrap().unwrap();
        assert_eq!(over.at, Some(Instant::now()));
        assert_eq!(read(r#"{"action":"rebalance"}"#).unwrap().unwrap().at, None);
        assert_eq!(read(r#"{"action":"none"}"#), Ok(None));
        for bad in ["", "[]", "{}", r#"{"action":"vanish"}"#, r#"{"action":"stop","time":"soon"}"#, r#"{"action":1}"#] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
