//! Whether a try that failed is made again, and what the client gets when none is left.
//!
//! Everything here lies before the first byte of a body. `first_byte`, `between_bytes` and `total` running out are not
//! tried again: the next backend would start the same work anew, and the client has waited long enough.

use std::{fmt::Write, pin::Pin, sync::Arc, time::Duration};

use bytes::BytesMut;
use http::{HeaderName, HeaderValue, Response, StatusCode, header};
use http_body::Body as _;

use super::balance::Rng;
use crate::{
    body::Body,
    error::{Error, Kind, Retry},
    proxy::call::Call,
};

/// Tells client libraries that we have tried for them.
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");
/// An error answer kept while another try is made: this much, this long.
const KEPT: (usize, Duration) = (64 * 1024, Duration::from_secs(1));
/// Between two tries at the same backend: at first, and at most.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));

/// Why another try may help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Again {
    /// This backend failed: elsewhere.
    Failed,
    /// It is full: elsewhere, else when it has room.
    Full,
}

/// What one try came to.
pub(super) type Answer = Result<Response<Body>, Error>;

/// Whether `call` may be tried again after `answer`, as far as these two say.
pub(super) fn judge(answer: &Answer, call: &Call) -> Option<Again> {
    match answer {
        Ok(response) if call.repeatable => match response.status() {
            StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => {
                Some(Again::Failed)
            }
            // vLLM answers so when its engine has died; a 500 with a body is about the request.
            StatusCode::INTERNAL_SERVER_ERROR if is_empty(response) => Some(Again::Failed),
            StatusCode::TOO_MANY_REQUESTS => Some(Again::Full),
            _ => None,
        },
        Ok(_) => None,
        Err(error) => may_repeat(error, call).then_some(Again::Failed),
    }
}

/// Whether the error itself allows another try.
pub(super) fn may_repeat(error: &Error, call: &Call) -> bool {
    if matches!(error.kind(), Kind::UpstreamTimeout | Kind::DeadlineExceeded | Kind::ClientGone) {
        return false;
    }
    match error.may_retry() {
        Retry::Never => false,
        Retry::Safe => call.repeatable,
        Retry::Unsent => true,
    }
}

/// The last answer, when others were tried too: as it came, but for the advice not to try yet again.
pub(super) fn give_up(answer: Answer, tried: &[Arc<str>]) -> Answer {
    if tried.len() < 2 {
        return answer;
    }
    match answer {
        Ok(mut response) => {
            response.headers_mut().insert(SHOULD_RETRY, HeaderValue::from_static("false"));
            Ok(response)
        }
        Err(error) => Err(told(error, tried)),
    }
}

/// An answer that frees its backend's place while another try is made: read whole if it is small, else an error that
/// says what it was.
pub(super) async fn keep(answer: Answer, backend: &Arc<str>) -> Answer {
    let (parts, body) = answer?.into_parts();
    match tokio::time::timeout(KEPT.1, read(body)).await {
        Ok(Some(body)) => Ok(Response::from_parts(parts, body)),
        _ => {
            let text = format!("backend {backend} answered {}, with a body that did not come", parts.status);
            Err(Error::new(Kind::UpstreamFailed, text).at(backend))
        }
    }
}

/// How long to wait before try `number + 1` at the same backend: doubling, with jitter, so that calls that failed
/// together do not come back together.
pub(super) fn backoff(number: u32, rng: &Rng) -> Duration {
    let doubled = BACKOFF.0.saturating_mul(1 << number.saturating_sub(1).min(10));
    doubled.min(BACKOFF.1).mul_f64(0.5 + rng.unit())
}

fn told(error: Error, tried: &[Arc<str>]) -> Error {
    let mut text = format!("{} ({} tries: ", error.message(), tried.len());
    for (i, name) in tried.iter().enumerate() {
        // Writing to a string cannot fail.
        let _ = write!(text, "{}{name}", if i == 0 { "" } else { ", " });
    }
    text.push(')');
    let mut all = Error::new(error.kind(), text);
    if let Some(backend) = error.backend() {
        all = all.at(backend);
    }
    if let Some(wait) = error.retry_after() {
        all = all.after(wait);
    }
    all.with_source(error)
}

fn is_empty(response: &Response<Body>) -> bool {
    response.body().is_end_stream()
        || response.headers().get(header::CONTENT_LENGTH).is_some_and(|length| length.as_bytes() == b"0")
}

/// To the end, frame by frame, so that the body's tail sees it end; `None` when it is too long or fails.
async fn read(mut body: Body) -> Option<Body> {
    let mut whole = BytesMut::new();
    while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        if let Ok(data) = frame.ok()?.into_data() {
            if whole.len() + data.len() > KEPT.0 {
                return None;
            }
            whole.extend_from_slice(&data);
        }
    }
    Some(Body::whole(whole.freeze()))
}
