//! The stage over an answer that the test gives piece by piece, on a paused clock.

use std::{
    pin::Pin,
    task::{Context, Poll, Waker},
};

use http::{HeaderMap, HeaderValue, Method, Request, Response as HttpResponse};
use http_body::{Body as HttpBody, Frame};
use tokio::{sync::mpsc, time::Instant};

use super::*;
use crate::{error::Kind as Failure, fleet::testing, listener::Peer, telemetry::metrics::Registry};

const WINDOW: Duration = Duration::from_millis(50);

type Piece = Result<Frame<Bytes>, Failure>;

struct Given(mpsc::Receiver<Piece>);

impl HttpBody for Given {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        self.0.poll_recv(cx).map(|next| Some(next?.map_err(|kind| Error::new(kind, "the backend broke off"))))
    }
}

/// The stage, as configured; and what it counted.
struct World {
    stage: Slim,
    registry: Registry,
}

fn world(on: bool, window: Option<Duration>) -> World {
    let registry = Registry::new();
    let mut config = testing::config([]);
    config.egress.slim = on;
    config.compression.flush = window;
    World { stage: Slim::new(&config, &registry.table()), registry }
}

impl World {
    fn spared(&self, cause: &str) -> u64 {
        let name = format!("sluicegate_egress_saved_bytes_total{{cause=\"{cause}\"}} ");
        self.registry.render().lines().find_map(|line| line.strip_prefix(&name)?.parse().ok()).unwrap()
    }

    fn answer(&self, path: &str, headers: &[(&'static str, &'static str)], body: Body) -> Response {
        let mut response = HttpResponse::new(body);
        for (name, value) in headers {
            response.headers_mut().append(*name, HeaderValue::from_static(value));
        }
        let request = Request::builder().method(Method::POST).uri(path).body(()).unwrap();
        let record = Record::new(Instant::now(), HeaderValue::from_static("id"), &request, Rc::new(Peer::default()));
        self.stage.answer(response, &record)
    }
}

const SSE: (&str, &str) = ("content-type", "text/event-stream");
const JSON: (&str, &str) = ("content-type", "application/json; charset=utf-8");
const CHAT: &str = "/v1/chat/completions";

fn event(delta: &str, finish: &str) -> String {
    format!("data: {{\"id\":\"c\",\"choices\":[{{\"index\":0,\"delta\":{{{delta}}},\"finish_reason\":{finish}}}]}}\n\n")
}

fn text(text: &str) -> String {
    event(&format!("\"content\":\"{text}\""), "null")
}

/// A stream under way: both of its ends.
struct Live {
    give: Option<mpsc::Sender<Piece>>,
    body: Body,
}

fn live(world: &World) -> Live {
    let (give, frames) = mpsc::channel(64);
    let body = world.answer(CHAT, &[SSE], Body::stream(Given(frames))).into_body();
    Live { give: Some(give), body }
}

impl Live {
    fn give(&self, text: impl Into<Bytes>) {
        self.piece(Ok(Frame::data(text.into())));
    }

    fn piece(&self, piece: Piece) {
        self.give.as_ref().unwrap().try_send(piece).unwrap();
    }

    /// What is out at this moment.
    fn ready(&mut self) -> String {
        let mut out = Vec::new();
        let mut cx = Context::from_waker(Waker::noop());
        while let Poll::Ready(Some(Ok(frame))) = Pin::new(&mut self.body).poll_frame(&mut cx) {
            out.extend_from_slice(frame.data_ref().unwrap());
        }
        String::from_utf8(out).unwrap()
    }

    async fn next(&mut self) -> Option<Result<Frame<Bytes>, Error>> {
        std::future::poll_fn(|cx| Pin::new(&mut self.body).poll_frame(cx)).await
    }

    async fn data(&mut self) -> String {
        String::from_utf8(self.next().await.unwrap().unwrap().into_data().unwrap().to_vec()).unwrap()
    }
}

#[test]
fn who_wants_it() {
    let headers = |all: &[(&'static str, &'static str)]| -> HeaderMap {
        all.iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value))).collect()
    };
    for (on, all, wanted) in [
        (false, &[][..], false),
        (true, &[], true),
        (false, &[("x-sluicegate-slim", "1")], true),
        (true, &[("x-sluicegate-slim", "0")], false),
        (false, &[("x-sluicegate-slim", "yes")], false),
        (true, &[("cache-control", "no-cache, No-Transform")], false),
        (false, &[("x-sluicegate-slim", "1"), ("cache-control", "no-transform")], false),
    ] {
        let mut headers = headers(all);
        assert_eq!(world(on, None).stage.wanted(&mut headers), wanted, "{on} {all:?}");
        assert!(!headers.contains_key(WISH), "a backend does not see it");
    }
}

#[test]
fn what_is_made_smaller() {
    let world = world(true, None);
    let chunk = "data: {\"choices\":[],\"usage\":null}\n\n";
    let json = "{ \"a\" : \"b c\" }\n";
    let run = |path: &str, headers: &[(&'static str, &'static str)], body: &'static str| {
        let headers: Vec<_> = headers.iter().copied().chain([("content-length", "999")]).collect();
        let response = world.answer(path, &headers, Body::whole(body));
        let body = String::from_utf8(response.body().as_whole().unwrap().to_vec()).unwrap();
        assert_eq!(response.headers().contains_key("content-length"), body == *headers_body(&body, chunk, json));
        body
    };
    assert_eq!(run(CHAT, &[SSE], chunk), "data: {\"choices\":[]}\n\n");
    assert_eq!(run("/v1/completions", &[SSE], chunk), "data: {\"choices\":[]}\n\n");
    for path in [CHAT, "/v1/embeddings", "/v1/messages", "/v1/responses"] {
        assert_eq!(run(path, &[JSON], json), "{\"a\":\"b c\"}\n");
    }
    assert_eq!(run(CHAT, &[JSON, ("etag", "W/\"a\""), ("content-encoding", "identity")], json), "{\"a\":\"b c\"}\n");
    for path in ["/v1/messages", "/v1/responses", "/other"] {
        assert_eq!(run(path, &[SSE], chunk), chunk);
    }
    assert_eq!(run("/other", &[JSON], json), json);
    assert_eq!(run(CHAT, &[("content-type", "text/plain")], json), json);
    assert_eq!(run(CHAT, &[], json), json);
    for header in [
        ("content-encoding", "gzip"),
        ("content-range", "bytes 0-9/99"),
        ("etag", "\"a\""),
        ("content-digest", "sha-256=:x:"),
        ("cache-control", "private, no-transform"),
    ] {
        assert_eq!(run(CHAT, &[JSON, header], json), json, "{header:?}");
        assert_eq!(run(CHAT, &[SSE, header], chunk), chunk, "{header:?}");
    }
    assert_eq!((world.spared("slim"), world.spared("merge")), (2 * 13 + 5 * 4, 0));
}

/// The text that came out untouched, if it did.
fn headers_body<'a>(body: &str, chunk: &'a str, json: &'a str) -> &'a str {
    if body == chunk { chunk } else { json }
}

#[tokio::test(start_paused = true)]
async fn without_a_window_each_event_goes_when_it_came() {
    let world = world(true, None);
    let mut live = live(&world);
    for word in ["a", "b"] {
        live.give(text(word).replace("null", "null,\"logprobs\":null"));
        assert_eq!(live.ready(), text(word));
    }
    // Half an event waits for the rest of it.
    let event = text("c");
    live.give(event[..20].to_owned());
    assert_eq!(live.ready(), "");
    live.give(event[20..].to_owned());
    assert_eq!(live.ready(), event);
    live.give(event[..20].to_owned());
    live.give = None;
    assert_eq!(live.data().await, event[..20]);
    assert!(live.next().await.is_none());
    assert_eq!((world.spared("slim"), world.spared("merge")), (2 * 16, 0));
}

#[tokio::test(start_paused = true)]
async fn deltas_within_the_window_are_one_event() {
    let world = world(true, Some(WINDOW));
    let mut live = live(&world);
    let start = Instant::now();
    live.give(event("\"role\":\"assistant\",\"content\":\"\"", "null"));
    assert_eq!(live.ready(), event("\"role\":\"assistant\",\"content\":\"\"", "null"));
    // The first text waits for nobody.
    live.give(text("a"));
    assert_eq!(live.ready(), text("a"));
    // What follows waits for the end of the window that it opened.
    for word in ["b", "c"] {
        tokio::time::advance(WINDOW / 5).await;
        live.give(text(word));
        assert_eq!(live.ready(), "");
    }
    assert_eq!(live.data().await, text("bc"));
    assert_eq!(start.elapsed(), WINDOW);
    // And what comes when it has long been closed, at once: all that is there.
    tokio::time::advance(WINDOW * 2).await;
    live.give(text("d"));
    live.give(text("e"));
    assert_eq!(live.ready(), text("de"));
    assert_eq!(world.spared("merge"), 2 * (text("").len() as u64));
}

#[tokio::test(start_paused = true)]
async fn nothing_overtakes_the_delta_that_waits() {
    let world = world(true, Some(WINDOW));
    for last in [
        "data: [DONE]\n\n".to_owned(),
        ": ping\n\n".to_owned(),
        event("", "\"stop\""),
        "data: {\"error\":1}\n\n".to_owned(),
    ] {
        let mut live = live(&world);
        live.give(text("a"));
        assert_eq!(live.ready(), text("a"));
        live.give(text("b"));
        assert_eq!(live.ready(), "");
        live.give(last.clone());
        assert_eq!(live.ready(), text("b") + &last);
    }
}

#[tokio::test(start_paused = true)]
async fn the_end_however_it_comes_lets_the_delta_go_first() {
    let world = world(true, Some(WINDOW));
    let waiting = || {
        let mut live = live(&world);
        live.give(text("a"));
        assert_eq!(live.ready(), text("a"));
        live.give(text("b"));
        assert_eq!(live.ready(), "");
        live
    };
    let mut whole = waiting();
    whole.give = None;
    assert_eq!(whole.data().await, text("b"));
    assert!(whole.next().await.is_none());

    let mut cut = waiting();
    cut.give("data: {\"cho");
    cut.piece(Err(Failure::StreamCut));
    assert_eq!(cut.data().await, text("b"));
    assert_eq!(cut.next().await.unwrap().unwrap_err().kind(), Failure::StreamCut);
    assert!(cut.next().await.is_none());

    let mut trailed = waiting();
    trailed.piece(Ok(Frame::trailers(HeaderMap::new())));
    assert_eq!(trailed.data().await, text("b"));
    assert!(trailed.next().await.unwrap().unwrap().is_trailers());
    assert!(trailed.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_sleeps_is_woken_when_the_window_closes() {
    let world = world(true, Some(WINDOW));
    let mut live = live(&world);
    live.give(text("a"));
    live.give(text("b"));
    assert_eq!(live.data().await, text("ab"));
    let start = Instant::now();
    live.give(text("c"));
    // Nothing else wakes it: the time that passes is the window's.
    assert_eq!(live.data().await, text("c"));
    assert_eq!(start.elapsed(), WINDOW);
}

#[tokio::test(start_paused = true)]
async fn a_fast_backend_is_read_in_bounded_pieces() {
    let world = world(true, Some(WINDOW));
    let mut live = live(&world);
    let burst = text(&"x".repeat(1000)).repeat(40);
    for _ in 0..8 {
        live.give(burst.clone());
    }
    let first = live.data().await;
    assert!(first.len() < (64 << 10) + 2 * burst.len(), "{}", first.len());
}

#[tokio::test(start_paused = true)]
async fn json_that_comes_in_pieces() {
    let world = world(true, None);
    let (give, frames) = mpsc::channel(64);
    let headers = [JSON, ("content-length", "22")];
    let response = world.answer(CHAT, &headers, Body::stream(Given(frames)));
    assert!(!response.headers().contains_key("content-length"));
    for piece in ["{ \"a\"", " : ", "\"b \\", "\" c\" ", "\n}"] {
        give.try_send(Ok(Frame::data(Bytes::from(piece)))).unwrap();
    }
    drop(give);
    let body = response.into_body().read(99).await.unwrap();
    assert_eq!(body, "{\"a\":\"b \\\" c\"}");
    assert_eq!(world.spared("slim"), 5);
}
