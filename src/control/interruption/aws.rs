//! EC2: the instance metadata service, second version by a token, first where that is not to be had.
//!
//! `spot/instance-action` is 404 until there is a notice, two minutes before the end (none for `hibernate`); the
//! rebalance recommendation comes before or with it; a scaling group that takes the instance down says so without a time.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use serde_json::Value;
use tokio::time::Instant;

use super::{Answer, DETECT, Fault, Look, PROMPT, Request, Source, odd, send, until};
use crate::{fleet::Action, telemetry::time};

const TOKEN: &str = "/latest/api/token";
const ACTION: &str = "/latest/meta-data/spot/instance-action";
const REBALANCE: &str = "/latest/meta-data/events/recommendations/rebalance";
const TARGET: &str = "/latest/meta-data/autoscaling/target-lifecycle-state";

const X_TOKEN: HeaderName = HeaderName::from_static("x-aws-ec2-metadata-token");
const X_TTL: HeaderName = HeaderName::from_static("x-aws-ec2-metadata-token-ttl-seconds");
/// How long a token is wished to be good.
const TTL: u64 = 3600;
/// It is renewed so long before its end.
const RENEW: Duration = Duration::from_secs(15);
/// Where there was no token, none is asked for so long.
const NO_TOKEN: Duration = Duration::from_secs(60);
/// The longest notice there is.
const LEAD: Duration = Duration::from_secs(120);

/// The source.
#[derive(Debug, Default)]
pub(super) struct Aws {
    token: Option<Token>,
    /// Until then it is asked without.
    without: Option<Instant>,
}

#[derive(Debug)]
struct Token {
    value: HeaderValue,
    ends: Instant,
}

impl Source for Aws {
    const NAME: &'static str = "aws";
    // Recommended are 5 s; half of a minute may be all there is.
    const EVERY: Duration = Duration::from_secs(2);
    const QUIET: u32 = 3;
    const MOVES: bool = false;

    async fn look<F>(&mut self, fetch: &F) -> Result<Look, String>
    where
        F: AsyncFn(Request) -> Result<Answer, Fault>,
    {
        if let Some(answer) = self.read(fetch, ACTION).await? {
            return Ok(action(&answer));
        }
        if let Some(answer) = self.read(fetch, TARGET).await?
            && answer.body.trim_ascii() == b"Terminated"
        {
            return Ok(Look::Notice(Action::Terminate, None));
        }
        let hint = self.read(fetch, REBALANCE).await?;
        Ok(hint.map_or(Look::Quiet, |_| Look::Notice(Action::Rebalance, None)))
    }
}

impl Aws {
    /// What lies at `path`; `None` = nothing.
    async fn read<F>(&mut self, fetch: &F, path: &str) -> Result<Option<Answer>, String>
    where
        F: AsyncFn(Request) -> Result<Answer, Fault>,
    {
        let mut again = true;
        loop {
            let headers = self.token(fetch).await.map(|token| (X_TOKEN, token)).into_iter().collect();
            let request = Request { method: Method::GET, path: path.to_owned(), headers, body: Bytes::new() };
            let answer = send(fetch, request, PROMPT).await.map_err(|fault| format!("{path}: {fault}"))?;
            match answer.status {
                StatusCode::OK => return Ok(Some(answer)),
                StatusCode::NOT_FOUND => return Ok(None),
                // The token is not known any more.
                StatusCode::UNAUTHORIZED if std::mem::take(&mut again) => (self.token, self.without) = (None, None),
                StatusCode::UNAUTHORIZED => {
                    let help = "tokens are enforced and none was given: in a container, raise the hop limit to 2";
                    return Err(format!("{}; {help}", odd(path, &answer)));
                }
                _ => return Err(odd(path, &answer)),
            }
        }
    }

    /// A token that is good; `None` = it is tried without.
    async fn token<F>(&mut self, fetch: &F) -> Option<HeaderValue>
    where
        F: AsyncFn(Request) -> Result<Answer, Fault>,
    {
        let now = Instant::now();
        let good = self.token.as_ref().filter(|token| token.ends > now);
        let is_due = good.is_none_or(|token| token.ends <= now + RENEW);
        if is_due && self.without.is_none_or(|until| until <= now) {
            match new_token(fetch).await {
                Some(token) => self.token = Some(token),
                None => self.without = Some(now + NO_TOKEN),
            }
        }
        self.token.as_ref().filter(|token| token.ends > now).map(|token| token.value.clone())
    }
}

async fn new_token<F>(fetch: &F) -> Option<Token>
where
    F: AsyncFn(Request) -> Result<Answer, Fault>,
{
    let headers = HeaderMap::from_iter([(X_TTL, HeaderValue::from(TTL))]);
    let request = Request { method: Method::PUT, path: TOKEN.to_owned(), headers, body: Bytes::new() };
    let answer = send(fetch, request, PROMPT).await.ok().filter(|answer| answer.status == StatusCode::OK)?;
    let mut value = HeaderValue::from_bytes(answer.body.trim_ascii()).ok().filter(|value| !value.is_empty())?;
    value.set_sensitive(true);
    let ttl = answer.headers.get(X_TTL).and_then(|ttl| ttl.to_str().ok()?.parse().ok()).unwrap_or(TTL);
    Some(Token { value, ends: Instant::now() + Duration::from_secs(ttl.min(21_600)) })
}

/// `{"action":"terminate","time":"2026-01-07T01:03:47Z"}`. That it is there is the notice, whatever it says.
fn action(answer: &Answer) -> Look {
    let said: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    let text = |name: &str| said.get(name).and_then(Value::as_str);
    let action = text("action").and_then(Action::named).filter(|action| action.leaves()).unwrap_or(Action::Terminate);
    let left = text("time").and_then(time::parse_rfc3339).map(|at| until(answer, at).min(LEAD));
    // It begins with its notice.
    let left = if action == Action::Hibernate { Some(Duration::ZERO) } else { left };
    Look::Notice(action, left)
}

/// Whether this service answers: with a token, or with the list of what it has.
pub(super) async fn is_here<F>(fetch: &F) -> bool
where
    F: AsyncFn(Request) -> Result<Answer, Fault>,
{
    let request = Request {
        method: Method::GET,
        path: "/latest/meta-data/".to_owned(),
        headers: HeaderMap::new(),
        body: Bytes::new(),
    };
    let (token, list) = tokio::join!(new_token(fetch), send(fetch, request, DETECT));
    token.is_some() || list.is_ok_and(|answer| answer.body.windows(11).any(|window| window == b"instance-id"))
}
