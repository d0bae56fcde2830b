//! Malformed, hostile and odd answers, each with what must come of it.

use super::*;

pub(super) struct Case {
    pub(super) name: &'static str,
    pub(super) method: Method,
    pub(super) answer: Vec<u8>,
    /// The backend closes after it.
    pub(super) eof: bool,
    pub(super) want: Want,
}

#[derive(Debug)]
pub(super) enum Want {
    /// Whole, the connection free for the next.
    Pooled(u16, &'static str),
    /// Whole, the connection closed.
    Closed(u16, &'static str),
    /// A head and some content, then this error.
    Cut(u16, &'static str, Kind),
    /// No answer at all.
    Failed(Stage),
}

use Want::{Closed, Cut, Failed, Pooled};

const OPEN: bool = false;
const EOF: bool = true;
const BAD: Want = Failed(Stage::Protocol);

fn case(name: &'static str, answer: impl AsRef<[u8]>, eof: bool, want: Want) -> Case {
    Case { name, method: Method::GET, answer: answer.as_ref().to_vec(), eof, want }
}

fn chunked(rest: &str) -> String {
    format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{rest}")
}

fn headed(fields: &str, rest: &str) -> String {
    format!("HTTP/1.1 200 OK\r\n{fields}\r\n{rest}")
}

pub(super) fn all() -> Vec<Case> {
    let mut all = lengths();
    all.extend(codings());
    all.extend(chunks());
    all.extend(heads());
    all.extend(bodiless());
    all.extend(keep_alive());
    all
}

fn lengths() -> Vec<Case> {
    vec![
        case("a length", headed("content-length: 5\r\n", "hello"), OPEN, Pooled(200, "hello")),
        case("length 0", headed("content-length: 0\r\n", ""), OPEN, Pooled(200, "")),
        case("shorter than its length", headed("content-length: 5\r\n", "hel"), EOF, Cut(200, "hel", Kind::StreamCut)),
        case("no content at all", headed("content-length: 5\r\n", ""), EOF, Cut(200, "", Kind::StreamCut)),
        case("surplus after the body", headed("content-length: 2\r\n", "okHTTP/1.1 200"), OPEN, Closed(200, "ok")),
        case(
            "the same length twice",
            headed("content-length: 2\r\ncontent-length: 2\r\n", "ok"),
            OPEN,
            Pooled(200, "ok"),
        ),
        case("the same length in a list", headed("content-length: 2, 2\r\n", "ok"), OPEN, Pooled(200, "ok")),
        case("two lengths", headed("content-length: 2\r\ncontent-length: 3\r\n", "ok"), OPEN, BAD),
        case("two lengths in a list", headed("content-length: 2, 3\r\n", "ok"), OPEN, BAD),
        case("an empty length", headed("content-length:\r\n", ""), OPEN, BAD),
        case("a signed length", headed("content-length: +2\r\n", "ok"), OPEN, BAD),
        case("a negative length", headed("content-length: -2\r\n", "ok"), OPEN, BAD),
        case("a length with a space in it", headed("content-length: 1 2\r\n", "ok"), OPEN, BAD),
        case("a hexadecimal length", headed("content-length: 0x2\r\n", "ok"), OPEN, BAD),
        case("a length beyond 64 bits", headed("content-length: 99999999999999999999\r\n", ""), OPEN, BAD),
        case("until the connection closes", headed("", "all of it"), EOF, Closed(200, "all of it")),
        case(
            "until close, although it says keep-alive",
            headed("connection: keep-alive\r\n", "x"),
            EOF,
            Closed(200, "x"),
        ),
    ]
}

fn codings() -> Vec<Case> {
    let te = |value: &str| headed(&format!("transfer-encoding: {value}\r\n"), "2\r\nok\r\n0\r\n\r\n");
    vec![
        case("chunked", te("chunked"), OPEN, Pooled(200, "ok")),
        case("chunked in capitals", te("CHUNKED"), OPEN, Pooled(200, "ok")),
        case("gzip, chunked", te("gzip, chunked"), OPEN, BAD),
        case("chunked twice in a list", te("chunked, chunked"), OPEN, BAD),
        case("chunked twice", te("chunked\r\ntransfer-encoding: chunked"), OPEN, BAD),
        case("identity", te("identity"), OPEN, BAD),
        case("xchunked", te("xchunked"), OPEN, BAD),
        case("chunked with a parameter", te("chunked;q=1"), OPEN, BAD),
        case("chunked behind a vertical tab", te("\x0bchunked"), OPEN, BAD),
        case("an empty coding", te(""), OPEN, BAD),
        case(
            "coding and length",
            headed("transfer-encoding: chunked\r\ncontent-length: 2\r\n", "0\r\n\r\n"),
            OPEN,
            BAD,
        ),
        case(
            "length and coding",
            headed("content-length: 2\r\ntransfer-encoding: chunked\r\n", "0\r\n\r\n"),
            OPEN,
            BAD,
        ),
        case("chunked in HTTP/1.0", "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", OPEN, BAD),
    ]
}

fn chunks() -> Vec<Case> {
    let broken = |name, rest: &str| case(name, chunked(rest), OPEN, Cut(200, "", Kind::UpstreamProtocol));
    let torn = |name, rest: &str| case(name, chunked(rest), OPEN, Cut(200, "ok", Kind::UpstreamProtocol));
    let long_extension = format!("2;{}\r\nok\r\n0\r\n\r\n", "x".repeat(17 * 1024));
    let long_trailer = format!("2\r\nok\r\n0\r\nx: {}\r\n\r\n", "x".repeat(5000));
    let many_trailers = format!("2\r\nok\r\n0\r\n{}\r\n", "a:b\r\n".repeat(200));
    vec![
        case("several chunks", chunked("1\r\no\r\n1\r\nk\r\n0\r\n\r\n"), OPEN, Pooled(200, "ok")),
        case("a size with zeros before it", chunked("0002\r\nok\r\n000\r\n\r\n"), OPEN, Pooled(200, "ok")),
        case("extensions", chunked("2;a=b ; c=\"d\"\r\nok\r\n0;e\r\n\r\n"), OPEN, Pooled(200, "ok")),
        case("surplus after the last chunk", chunked("2\r\nok\r\n0\r\n\r\nHTTP/1.1"), OPEN, Closed(200, "ok")),
        case("trailers", chunked("2\r\nok\r\n0\r\nx-sum: 1\r\nx-more: 2\r\n\r\n"), OPEN, Pooled(200, "ok")),
        case("no last chunk", chunked("2\r\nok\r\n"), EOF, Cut(200, "ok", Kind::StreamCut)),
        case("no empty line after the last chunk", chunked("2\r\nok\r\n0\r\n"), EOF, Cut(200, "ok", Kind::StreamCut)),
        case("cut in a chunk", chunked("5\r\nok"), EOF, Cut(200, "ok", Kind::StreamCut)),
        case("cut in a size", chunked("2\r\nok\r\n1"), EOF, Cut(200, "ok", Kind::StreamCut)),
        case("cut in the trailers", chunked("2\r\nok\r\n0\r\nx: y\r\n"), EOF, Cut(200, "ok", Kind::StreamCut)),
        broken("no size", "\r\nok\r\n0\r\n\r\n"),
        broken("an extension without a size", ";a\r\nok\r\n0\r\n\r\n"),
        broken("a signed size", "+2\r\nok\r\n0\r\n\r\n"),
        broken("a size with 0x", "0x2\r\nok\r\n0\r\n\r\n"),
        broken("a size with an underscore", "1_0\r\nok\r\n0\r\n\r\n"),
        broken("a size beyond 64 bits", "ffffffffffffffff1\r\nok\r\n0\r\n\r\n"),
        broken("a space before the size", " 2\r\nok\r\n0\r\n\r\n"),
        broken("a space after the size", "2 \r\nok\r\n0\r\n\r\n"),
        broken("a size that ends with LF", "2\nok\r\n0\r\n\r\n"),
        broken("a size that ends with CR", "2\rok\r\n0\r\n\r\n"),
        broken("an extension that ends with LF", "2;a\nok\r\n0\r\n\r\n"),
        broken("NUL in an extension", "2;a\0b\r\nok\r\n0\r\n\r\n"),
        broken("a bomb of extensions", &long_extension),
        torn("a chunk longer than its size", "2\r\nokay\r\n0\r\n\r\n"),
        torn("a chunk that ends with LF", "2\r\nok\n0\r\n\r\n"),
        torn("a trailer that ends with LF", "2\r\nok\r\n0\r\nx: y\n\r\n"),
        torn("a folded trailer", "2\r\nok\r\n0\r\nx: y\r\n z\r\n\r\n"),
        torn("a trailer without a colon", "2\r\nok\r\n0\r\nxy\r\n\r\n"),
        torn("a bomb of trailer bytes", &long_trailer),
        torn("a bomb of trailers", &many_trailers),
    ]
}

fn heads() -> Vec<Case> {
    let ok = "content-length: 2\r\n";
    let bad = |name, answer: &str| case(name, answer, EOF, BAD);
    let interim =
        |count| format!("{}{}", "HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n".repeat(count), headed(ok, "ok"));
    vec![
        case(
            "a reason of several words",
            "HTTP/1.1 200 All is well\r\ncontent-length: 2\r\n\r\nok",
            OPEN,
            Pooled(200, "ok"),
        ),
        case("no reason", "HTTP/1.1 200 \r\ncontent-length: 2\r\n\r\nok", OPEN, Pooled(200, "ok")),
        case("spaces around a value", headed("content-length: \t 2 \t\r\n", "ok"), OPEN, Pooled(200, "ok")),
        case("16 interim answers", interim(16), OPEN, Pooled(200, "ok")),
        case("100 before it", format!("HTTP/1.1 100 Continue\r\n\r\n{}", headed(ok, "ok")), OPEN, Pooled(200, "ok")),
        bad("a bomb of interim answers", &interim(17)),
        bad("unasked 101", "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n"),
        bad("not HTTP", "SSH-2.0-OpenSSH_9.2\r\n\r\n"),
        bad("HTTP/2.0", "HTTP/2.0 200 OK\r\n\r\n"),
        bad("HTTP/1.2", "HTTP/1.2 200 OK\r\ncontent-length: 0\r\n\r\n"),
        bad("an empty line first", &format!("\r\n{}", headed(ok, "ok"))),
        bad("status 99", "HTTP/1.1 099 X\r\ncontent-length: 0\r\n\r\n"),
        bad("status 600", "HTTP/1.1 600 X\r\ncontent-length: 0\r\n\r\n"),
        bad("status of two digits", "HTTP/1.1 20 X\r\ncontent-length: 0\r\n\r\n"),
        bad("lines that end with LF", "HTTP/1.1 200 OK\ncontent-length: 2\n\nok"),
        bad("one line that ends with LF", "HTTP/1.1 200 OK\r\nx: y\ncontent-length: 2\r\n\r\nok"),
        bad("CR alone in a value", &headed("x: a\rcontent-length: 9\r\ncontent-length: 2\r\n", "ok")),
        bad("NUL in a value", &headed("x: a\0b\r\ncontent-length: 2\r\n", "ok")),
        bad("a folded line", &headed("x: a\r\n b\r\ncontent-length: 2\r\n", "ok")),
        bad("a line that begins with white space", &headed(" x: a\r\ncontent-length: 2\r\n", "ok")),
        bad("a space before the colon", &headed("content-length : 2\r\n", "ok")),
        bad("a line without a colon", &headed("xy\r\ncontent-length: 2\r\n", "ok")),
        bad("an empty name", &headed(": x\r\ncontent-length: 2\r\n", "ok")),
        bad("129 headers", &headed(&format!("{}{ok}", "a: b\r\n".repeat(128)), "ok")),
        bad("a head over the limit", &headed(&format!("x: {}\r\n{ok}", "x".repeat(4096)), "ok")),
        bad("a head without an end", &format!("HTTP/1.1 200 OK\r\nx: {}", "x".repeat(5000))),
        case("closed before an answer", "", EOF, Failed(Stage::Reset)),
        case("closed in the head", "HTTP/1.1 200 OK\r\nx: y\r\n", EOF, Failed(Stage::Reset)),
        case("closed after 100", "HTTP/1.1 100 Continue\r\n\r\n", EOF, Failed(Stage::Reset)),
    ]
}

fn bodiless() -> Vec<Case> {
    let of = |status: &str, fields: &str| format!("HTTP/1.1 {status}\r\n{fields}\r\n");
    let to_head = |name, answer: String, eof, want| Case { method: Method::HEAD, ..case(name, answer, eof, want) };
    vec![
        case("204", of("204 No Content", ""), OPEN, Pooled(204, "")),
        case("204 that says a length", of("204 No Content", "content-length: 0\r\n"), OPEN, Pooled(204, "")),
        case("204 with a body", of("204 No Content", "content-length: 2\r\n") + "ok", OPEN, Closed(204, "")),
        case("304", of("304 Not Modified", "content-length: 9\r\n"), OPEN, Pooled(304, "")),
        case("304 that says chunked", of("304 Not Modified", "transfer-encoding: chunked\r\n"), OPEN, Pooled(304, "")),
        to_head("HEAD with a length", headed("content-length: 9\r\n", ""), OPEN, Pooled(200, "")),
        to_head("HEAD with chunked", headed("transfer-encoding: chunked\r\n", ""), OPEN, Pooled(200, "")),
        to_head("HEAD without framing", headed("", ""), OPEN, Pooled(200, "")),
        to_head("HEAD with a body", headed("content-length: 2\r\n", "ok"), OPEN, Closed(200, "")),
    ]
}

fn keep_alive() -> Vec<Case> {
    let with = |fields: &str| headed(&format!("{fields}content-length: 2\r\n"), "ok");
    vec![
        case("connection: close", with("connection: close\r\n"), OPEN, Closed(200, "ok")),
        case("close among others", with("connection: x-a, Close\r\n"), OPEN, Closed(200, "ok")),
        case("close and keep-alive", with("connection: keep-alive, close\r\n"), OPEN, Closed(200, "ok")),
        case("keep-alive of 1 s", with("keep-alive: timeout=1\r\n"), OPEN, Closed(200, "ok")),
        case("keep-alive of 5 s", with("keep-alive: timeout=5, max=100\r\n"), OPEN, Pooled(200, "ok")),
        case("the last request", with("keep-alive: max=0\r\n"), OPEN, Closed(200, "ok")),
        case("HTTP/1.0", "HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok", OPEN, Closed(200, "ok")),
        case(
            "HTTP/1.0 with keep-alive",
            "HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 2\r\n\r\nok",
            OPEN,
            Pooled(200, "ok"),
        ),
    ]
}

#[tokio::test]
async fn every_answer_ends_as_the_table_says() {
    for case in all() {
        let (client, _) = client();
        let target = nowhere();
        let mut backend = plug(&client, &target, 0);
        let serve = async {
            answer(&mut backend, &case.answer).await;
            if case.eof {
                backend.shutdown().await.unwrap();
            }
        };
        let fetched = fetch(&client, &target, case.method.clone(), Body::empty());
        let seen = tokio::join!(fetched, serve).0;
        check(&case, &seen, client.idle(&target) == 1);
    }
}

fn check(case: &Case, seen: &Seen, pooled: bool) {
    let name = case.name;
    let (want, content, fault) = match case.want {
        Failed(stage) => return assert_eq!(*seen, Seen::Failed(stage), "{name}"),
        Pooled(status, content) | Closed(status, content) => (status, content, None),
        Cut(status, content, kind) => (status, content, Some(kind)),
    };
    let Seen::Answered { status, data, error, .. } = seen else { panic!("{name}: {seen:?}") };
    assert_eq!((*status, &*String::from_utf8_lossy(data), *error), (want, content, fault), "{name}");
    assert_eq!(pooled, matches!(case.want, Pooled(..)), "{name}: in the pool afterwards");
}

#[tokio::test]
async fn fields_of_the_connection_end_here() {
    let (client, _) = client();
    let target = nowhere();
    let mut backend = plug(&client, &target, 0);
    let sent = b"HTTP/1.1 200 OK\r\nconnection: keep-alive, x-hop, content-length\r\nx-hop: 1\r\nkeep-alive: timeout=5\r\n\
        te: x\r\nproxy-connection: x\r\nupgrade: h2c\r\nSet-Cookie: a\r\nset-cookie: b\r\ncontent-length: 1, 1\r\n\r\n.";
    let (seen, _) = tokio::join!(get(&client, &target), answer(&mut backend, sent));
    let Seen::Answered { mut headers, .. } = seen else { panic!("{seen:?}") };
    headers.sort();
    let want = [("content-length", "1"), ("set-cookie", "a"), ("set-cookie", "b")];
    assert_eq!(headers, want.map(|(name, value)| (name.to_owned(), value.to_owned())));
}

#[tokio::test]
async fn trailers_pass_but_for_those_that_would_frame_or_route() {
    let (client, _) = client();
    let target = nowhere();
    let mut backend = plug(&client, &target, 0);
    let sent =
        chunked("2\r\nok\r\n0\r\ngrpc-status: 0\r\ncontent-length: 9\r\ntransfer-encoding: chunked\r\nhost: x\r\n\r\n");
    let (seen, _) = tokio::join!(get(&client, &target), answer(&mut backend, sent.as_bytes()));
    let Seen::Answered { trailers, .. } = &seen else { panic!("{seen:?}") };
    assert!(seen.is(b"ok"));
    assert_eq!(*trailers, [("grpc-status".to_owned(), "0".to_owned())]);
}

#[tokio::test]
async fn large_lengths_are_read_without_the_scratch_and_to_the_byte() {
    let content: Vec<u8> = (0..300_000_u32).map(|n| n as u8).collect();
    let mut sent = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", content.len()).into_bytes();
    sent.extend_from_slice(&content);
    let (client, _) = client();
    let target = nowhere();
    let mut backend = plug(&client, &target, 0);
    let (seen, _) = tokio::join!(get(&client, &target), answer(&mut backend, &sent));
    assert!(seen.is(&content));
    assert_eq!(client.idle(&target), 1);
}
