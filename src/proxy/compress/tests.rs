//! The stage, by its two halves: what a request wants, and what becomes of the answer.

use std::cell::RefCell;

use flate2::{Decompress, FlushDecompress};
use http::{Request, StatusCode};
use tokio::time::Instant;
use zstd::stream::raw::Operation as _;

use super::*;
use crate::{
    error::{Error, Kind as Fault},
    listener::Peer,
    telemetry::metrics::{Name, Registry},
};

/// All that can be decoded of what came so far.
pub(super) fn decoded(coding: Coding, coded: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    match coding {
        Coding::Gzip => {
            let mut decoder = Decompress::new_gzip(15);
            loop {
                out.reserve(64 * 1024);
                let (read, had) = (decoder.total_in() as usize, out.len());
                decoder.decompress_vec(&coded[read..], &mut out, FlushDecompress::None).unwrap();
                if out.len() == had && decoder.total_in() as usize == read {
                    return out;
                }
            }
        }
        Coding::Zstd => {
            let mut decoder = zstd::stream::raw::Decoder::new().unwrap();
            let (mut rest, mut room) = (coded, vec![0; 64 * 1024]);
            loop {
                let step = decoder.run_on_buffers(rest, &mut room).unwrap();
                out.extend_from_slice(&room[..step.bytes_written]);
                rest = &rest[step.bytes_read..];
                if step.bytes_written == 0 && step.bytes_read == 0 {
                    return out;
                }
            }
        }
        Coding::Br => {
            let (mut decoder, mut room) = (brotli::Decompressor::new(coded, 4096), [0; 4096]);
            // What is missing is an error at the end.
            while let Ok(read @ 1..) = std::io::Read::read(&mut decoder, &mut room) {
                out.extend_from_slice(&room[..read]);
            }
            out
        }
    }
}

fn net(address: [u8; 4], prefix: u8) -> Cidr {
    Cidr { address: address.into(), prefix }
}

struct Kit {
    stage: Rc<Compress>,
    registry: Registry,
    budget: Budget,
}

fn kit(change: impl FnOnce(&mut config::Compression)) -> Kit {
    let mut config = config::Compression {
        algorithms: vec![Algorithm::Gzip, Algorithm::Zstd, Algorithm::Br],
        min_size: 256,
        flush: None,
        memory: 16 << 20,
        exclude: Vec::new(),
    };
    change(&mut config);
    let (registry, budget) = (Registry::new(), Budget::new(config.memory));
    let pool = Pool::new(budget.clone(), &registry.table());
    Kit { stage: Compress::new(&config, pool), registry, budget }
}

fn record(method: &str, path: &str) -> Rc<Record> {
    let request = Request::builder().method(method).uri(path).body(()).unwrap();
    let peer = Rc::new(Peer::new(Some("10.1.2.3:9".parse().unwrap()), None));
    Rc::new(Record::new(Instant::now(), HeaderValue::from_static("id"), &request, peer))
}

fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
    let field = |(name, value): &(&'static str, &str)| (header::HeaderName::from_static(name), value.parse().unwrap());
    fields.iter().map(field).collect()
}

fn answer(fields: &[(&'static str, &str)], body: Body) -> Response {
    let mut response = Response::new(body);
    *response.headers_mut() = headers(fields);
    response
}

fn json(length: usize) -> Bytes {
    let text = (0..).map(|n| format!(r#"{{"index":{n},"object":"embedding"}},"#)).scan(0, |sum, piece| {
        *sum += piece.len();
        Some((*sum - piece.len(), piece))
    });
    let all: String = text.take_while(|(before, _)| *before < length).map(|(_, piece)| piece).collect();
    Bytes::from(all).slice(..length)
}

const JSON: (&str, &str) = ("content-type", "application/json");
const EVENTS: (&str, &str) = ("content-type", "text/event-stream");
const CHAT: &str = "/v1/chat/completions";

impl Kit {
    /// `answer`, as a client that sent `fields` gets it.
    async fn sent(&self, method: &str, fields: &[(&'static str, &str)], answer: Response) -> Response {
        let record = record(method, CHAT);
        let wish = self.stage.wish(&mut headers(fields), &record);
        self.stage.answer(answer, wish, &record).await.unwrap()
    }

    async fn coding(&self, method: &str, accept: &str, answer: Response) -> Option<String> {
        let sent = self.sent(method, &[("accept-encoding", accept)], answer).await;
        sent.headers().get("content-encoding").map(|value| value.to_str().unwrap().to_owned())
    }

    fn refused(&self, reason: &str) -> u64 {
        self.registry.counts(Name::CompressionRefused)[&Box::from([Box::from(reason)])]
    }
}

#[tokio::test]
async fn a_whole_body_is_coded_at_once() {
    let kit = kit(|_| {});
    let body = json(5000);
    for coding in Coding::ALL {
        let fields = [JSON, ("content-length", "5000"), ("etag", "\"x\""), ("vary", "Origin")];
        let sent =
            kit.sent("POST", &[("accept-encoding", coding.name())], answer(&fields, Body::whole(body.clone()))).await;
        assert_eq!(sent.headers()["content-encoding"], coding.name());
        assert_eq!(
            (&sent.headers()["vary"], &sent.headers()["etag"]),
            (&"Origin, Accept-Encoding".parse().unwrap(), &"W/\"x\"".parse().unwrap())
        );
        assert!(!sent.headers().contains_key("content-length"), "the server sets what is right");
        let coded = sent.into_body().as_whole().unwrap().clone();
        assert!(coded.len() < 1000, "{}", coded.len());
        assert_eq!(decoded(coding, &coded), body);
    }
}

#[tokio::test]
async fn a_large_body_comes_in_pieces() {
    let kit = kit(|_| {});
    let body = json(1 << 20);
    for coding in Coding::ALL {
        let sent =
            kit.sent("POST", &[("accept-encoding", coding.name())], answer(&[JSON], Body::whole(body.clone()))).await;
        assert_eq!(sent.headers()["content-encoding"], coding.name());
        assert!(sent.body().as_whole().is_none() && kit.budget.used() > 0);
        let coded = sent.into_body().read(1 << 20).await.unwrap();
        assert!(decoded(coding, &coded) == body);
    }
    assert_eq!(kit.stage.pool.idle(), 0);
    assert_eq!(kit.budget.used(), 0);
}

#[tokio::test]
async fn what_must_not_be_coded_is_not() {
    let kit = kit(|config| config.exclude = vec![net([10, 9, 0, 0], 16)]);
    let body = || Body::whole(json(5000));
    assert_eq!(kit.coding("POST", "gzip", answer(&[JSON], body())).await.as_deref(), Some("gzip"));
    for (method, accept, fields, body) in [
        ("POST", "", &[JSON][..], body()),
        ("POST", "identity", &[JSON], body()),
        ("POST", "deflate", &[JSON], body()),
        ("HEAD", "gzip", &[JSON, ("content-length", "5000")], body()),
        ("POST", "gzip", &[JSON], Body::whole(json(255))),
        ("POST", "gzip", &[JSON], Body::empty()),
        ("POST", "gzip", &[("content-type", "audio/mpeg")], body()),
        ("POST", "gzip", &[JSON, ("cache-control", "no-transform")], body()),
        ("POST", "gzip", &[JSON, ("content-encoding", "zstd")], body()),
    ] {
        let coding = kit.coding(method, accept, answer(fields, body)).await;
        assert!(
            coding.is_none_or(|coding| fields.contains(&("content-encoding", &coding))),
            "{method} {accept} {fields:?}"
        );
    }
    let no_transform = [("accept-encoding", "gzip"), ("cache-control", "max-age=0, no-transform")];
    let sent = kit.sent("POST", &no_transform, answer(&[JSON], body())).await;
    assert!(!sent.headers().contains_key("content-encoding") && !sent.headers().contains_key("vary"));
    for status in [StatusCode::NO_CONTENT, StatusCode::NOT_MODIFIED, StatusCode::PARTIAL_CONTENT] {
        let mut partial = answer(&[JSON], body());
        *partial.status_mut() = status;
        assert_eq!(kit.coding("GET", "gzip", partial).await, None);
    }
    assert_eq!(kit.budget.used(), Kind::GzipWhole.cost());
}

#[tokio::test]
async fn vary_is_said_to_all_who_might_have_got_another_coding() {
    let kit = kit(|config| config.exclude = vec![net([10, 0, 0, 0], 8)]);
    for accept in ["", "gzip"] {
        let sent = kit.sent("POST", &[("accept-encoding", accept)], answer(&[JSON], Body::whole(json(5000)))).await;
        assert_eq!(sent.headers().get("content-encoding"), None, "its network is excluded");
        assert_eq!(sent.headers()["vary"], "Accept-Encoding");
    }
    let small = kit.sent("POST", &[], answer(&[JSON], Body::whole(json(20)))).await;
    assert!(!small.headers().contains_key("vary"));
    let head = kit.sent("HEAD", &[], answer(&[JSON, ("content-length", "5000")], Body::empty())).await;
    assert_eq!(
        (&head.headers()["vary"], &head.headers()["content-length"]),
        (&"Accept-Encoding".parse().unwrap(), &"5000".parse().unwrap())
    );
}

#[tokio::test]
async fn backends_of_known_endpoints_are_asked_for_no_coding() {
    let kit = kit(|_| {});
    for (path, left) in [(CHAT, false), ("/other", true)] {
        let mut fields = headers(&[("accept-encoding", "br")]);
        let wish = kit.stage.wish(&mut fields, &record("POST", path));
        assert_eq!(wish.codings.first(), Some(Coding::Br));
        assert_eq!(fields.contains_key("accept-encoding"), left);
    }
}

#[tokio::test]
async fn a_body_of_known_length_that_is_there_becomes_whole() {
    let kit = kit(|_| {});
    let body = json(20_000);
    let pieces = || [body.slice(..9000), body.slice(9000..)].into_iter().map(|piece| Some(Ok(piece)));
    let there = Script::new(pieces().collect(), Some(20_000));
    let sent = kit.sent("POST", &[("accept-encoding", "gzip")], answer(&[JSON], Body::stream(there))).await;
    let coded = sent.into_body().as_whole().expect("all of it was there").clone();
    assert_eq!(decoded(Coding::Gzip, &coded), body);
    // One that is not is encoded as it comes, and not flushed.
    let mut steps: Vec<_> = pieces().collect();
    steps.insert(1, None);
    let sent = kit
        .sent("POST", &[("accept-encoding", "gzip")], answer(&[JSON], Body::stream(Script::new(steps, Some(20_000)))))
        .await;
    assert!(sent.body().as_whole().is_none());
    let piecewise = sent.into_body().read(1 << 20).await.unwrap();
    assert_eq!(decoded(Coding::Gzip, &piecewise), body);
    assert!(piecewise.len() <= coded.len() + 8);
}

/// Steps: data, nothing yet, or a failure.
type Steps = Vec<Option<Result<Bytes, Error>>>;

struct Script(RefCell<std::vec::IntoIter<Option<Result<Bytes, Error>>>>, Option<u64>);

impl Script {
    fn new(steps: Steps, length: Option<u64>) -> Self {
        Self(RefCell::new(steps.into_iter()), length)
    }
}

impl http_body::Body for Script {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, Error>>> {
        match self.0.borrow_mut().next() {
            Some(Some(step)) => std::task::Poll::Ready(Some(step.map(http_body::Frame::data))),
            Some(None) => {
                cx.waker().wake_by_ref();
                std::task::Poll::Pending
            }
            None => std::task::Poll::Ready(None),
        }
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.1.map_or_else(http_body::SizeHint::default, http_body::SizeHint::with_exact)
    }
}

#[tokio::test]
async fn a_failure_is_told_inside_the_coding() {
    let kit = kit(|_| {});
    for coding in Coding::ALL {
        let steps = vec![
            Some(Ok(Bytes::from_static(b"data: 1\n\n"))),
            None,
            Some(Err(Error::new(Fault::StreamCut, "it was cut"))),
        ];
        let events = answer(&[EVENTS], Body::stream(Script::new(steps, None)));
        let sent = kit.sent("POST", &[("accept-encoding", coding.name())], events).await;
        let (mut coded, mut body) = (Vec::new(), sent.into_body());
        let error = loop {
            match std::future::poll_fn(|cx| http_body::Body::poll_frame(std::pin::Pin::new(&mut body), cx)).await {
                Some(Ok(frame)) => coded.extend_from_slice(&frame.into_data().unwrap()),
                Some(Err(error)) => break error,
                None => panic!("it looks whole"),
            }
        };
        assert_eq!(error.kind(), Fault::StreamCut);
        let text = String::from_utf8(decoded(coding, &coded)).unwrap();
        assert!(text.starts_with("data: 1\n\ndata: {\"error\":") && text.ends_with("\n\n"), "{text}");
    }
}

#[tokio::test]
async fn without_memory_a_cheaper_coding_and_then_none() {
    let kit = kit(|config| config.memory = Kind::Zstd.cost() + 1000);
    let events =
        || answer(&[EVENTS], Body::stream(Script::new(vec![Some(Ok(Bytes::from_static(b"data: 1\n\n")))], None)));
    let fields = [("accept-encoding", "gzip, zstd;q=0.1, br")];
    let first = kit.sent("POST", &fields, events()).await;
    assert_eq!(first.headers()["content-encoding"], "zstd");
    let second = kit.sent("POST", &fields, events()).await;
    assert_eq!(
        (second.headers().get("content-encoding"), &second.headers()["vary"]),
        (None, &"Accept-Encoding".parse().unwrap())
    );
    assert_eq!(second.into_body().read(100).await.unwrap(), "data: 1\n\n");
    // Who takes nothing cheaper, likewise.
    assert_eq!(kit.coding("POST", "gzip", events()).await, None);
    assert_eq!((kit.refused("cheaper"), kit.refused("memory")), (1, 2));
    let whole = kit.sent("POST", &[("accept-encoding", "gzip")], answer(&[JSON], Body::whole(json(300_000)))).await;
    assert_eq!(whole.headers().get("content-encoding"), None);
    drop(first);
    assert_eq!(kit.coding("POST", "zstd", events()).await.as_deref(), Some("zstd"), "its place is free");
}

#[tokio::test]
async fn a_kept_answer_is_encoded_once() {
    #[derive(Default)]
    struct Shelf(RefCell<Vec<(Coding, Bytes)>>);
    impl Representation for Shelf {
        fn twin(&self, coding: Coding) -> Option<Bytes> {
            self.0.borrow().iter().find(|(of, _)| *of == coding).map(|(_, twin)| twin.clone())
        }
        fn offer(&self, coding: Coding, bytes: &Bytes) {
            self.0.borrow_mut().push((coding, bytes.clone()));
        }
    }
    let kit = kit(|_| {});
    for length in [5000, 100_000] {
        let (body, shelf) = (json(length), Rc::<Shelf>::default());
        for _ in 0..3 {
            for coding in Coding::ALL {
                let kept = answer(&[JSON], Body::kept(body.clone(), Rc::clone(&shelf) as _));
                let sent = kit.sent("POST", &[("accept-encoding", coding.name())], kept).await;
                let coded = sent.into_body().read(1 << 20).await.unwrap();
                assert!(decoded(coding, &coded) == body);
            }
        }
        assert_eq!(shelf.0.borrow().len(), 3, "each once");
    }
    assert_eq!(kit.registry.counts(Name::CompressionTwins).values().sum::<u64>(), 12);
}
