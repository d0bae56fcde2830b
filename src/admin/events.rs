//! `/api/v1/events`: every change in the fleet, as server-sent events.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Response, header};
use http_body::{Body as HttpBody, Frame};
use serde_json::json;
use tokio::{
    sync::broadcast::{Receiver, error::RecvError},
    time::timeout,
};

use crate::{
    body::Body,
    error::Error,
    fleet::{Change, Fleet, FleetEvent},
    runtime::drain::{Drain, Phase},
};

/// A comment goes out after this silence, so that nobody in between thinks the connection dead.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// The feed from now on; it ends when the gateway drains.
pub(super) fn feed(fleet: &Arc<Fleet>, drain: Drain) -> Response<Body> {
    let next = Box::pin(next(fleet.subscribe(), drain));
    let mut response = Response::new(Body::stream(Feed { next: Some(next) }));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

type Next = Pin<Box<dyn Future<Output = Option<(Bytes, Receiver<FleetEvent>, Drain)>>>>;

struct Feed {
    next: Option<Next>,
}

async fn next(mut events: Receiver<FleetEvent>, mut drain: Drain) -> Option<(Bytes, Receiver<FleetEvent>, Drain)> {
    let event = tokio::select! {
        event = timeout(KEEPALIVE, events.recv()) => event,
        () = drain.reached(Phase::Draining) => return None,
    };
    let text = match event {
        Err(_) => ": keep-alive\n\n".to_owned(),
        Ok(Ok(event)) => told(&event),
        Ok(Err(RecvError::Lagged(lost))) => format!("event: lost\ndata: {}\n\n", json!({"events": lost})),
        Ok(Err(RecvError::Closed)) => return None,
    };
    Some((text.into(), events, drain))
}

fn told(event: &FleetEvent) -> String {
    let (name, detail) = match &event.change {
        Change::Joined => ("joined", json!({})),
        Change::Left => ("left", json!({})),
        Change::State { from, to } => ("state", json!({"from": from.name(), "to": to.name()})),
        Change::Engine(engine) => ("engine", json!({"engine": engine.name()})),
        Change::Models(count) => ("models", json!({"count": count})),
        Change::Interruption { action, left } => {
            let left = left.map(|left| left.as_secs());
            ("interruption", json!({"action": action.name(), "seconds_left": left}))
        }
        Change::Wary(wary) => ("wary", json!({"wary": wary})),
        Change::Withdrawn => ("withdrawn", json!({})),
    };
    let mut data = json!({"backend": &*event.backend, "reason": &*event.reason});
    if let (Some(data), serde_json::Value::Object(detail)) = (data.as_object_mut(), detail) {
        data.extend(detail);
    }
    format!("event: {name}\ndata: {data}\n\n")
}

impl HttpBody for Feed {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let Some(waiting) = &mut self.next else { return Poll::Ready(None) };
        let Poll::Ready(came) = waiting.as_mut().poll(cx) else { return Poll::Pending };
        self.next = None;
        Poll::Ready(came.map(|(data, events, drain)| {
            self.next = Some(Box::pin(next(events, drain)));
            Ok(Frame::data(data))
        }))
    }
}
