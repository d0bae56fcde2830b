//! Requests that two servers may read differently, as raw bytes, and what of each a service may see.
//!
//! Every case stands with the rule it comes from. `Refused`: an error answer, the connection closed, nothing seen.
//! `Seen`: exactly these requests reach the service, each as `METHOD target [body]`, and nothing else of the bytes.
//! Behind every case follows, in the same connection, what an attacker wants to be taken for a request of its own:
//! [`CANARY`]. It may be seen only where the case says so.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::{cell::RefCell, collections::BTreeMap, convert::Infallible, net::SocketAddr, rc::Rc, time::Duration};

use http::{Request, Response, header};
use sluicegate::{
    body::{Body, Upload},
    config::Listen,
    listener::{Answering, Limit, Peer, Settings, Stats, bind, serve},
    runtime::{drain::DrainHandle, ticker::Ticker},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::LocalSet,
};

const CANARY: &str = "GET /canary HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";

enum May {
    /// Nothing is seen, the answer has this status, and the connection is closed.
    Refused(u16),
    /// These are seen, and the canary behind them, since all agree on where they end.
    Seen(&'static [&'static str]),
    /// These are seen, and the connection is closed before the canary.
    SeenThenClosed(&'static [&'static str]),
}
use May::{Refused, Seen, SeenThenClosed};

/// What a service saw: a line per request, and every head it was given.
#[derive(Default)]
struct Witness {
    lines: RefCell<Vec<String>>,
    heads: RefCell<Vec<http::request::Parts>>,
}

fn witness(seen: Rc<Witness>, request: Request<Upload>) -> Answering {
    Box::pin(async move {
        let (head, upload) = request.into_parts();
        let body = Body::upload(upload).read(1 << 20).await;
        let body = body.map_or_else(|_| "(cut)".to_owned(), |body| String::from_utf8_lossy(&body).into_owned());
        seen.lines.borrow_mut().push(format!("{} {} [{body}]", head.method, head.uri));
        seen.heads.borrow_mut().push(head);
        Ok::<_, Infallible>(Response::new(Body::whole("ok")))
    })
}

/// Sends `wire` to a fresh listener, in pieces of `piece` bytes; what was seen, and all that came back.
async fn exchange(address: SocketAddr, wire: &[u8], piece: usize) -> String {
    let stream = TcpStream::connect(address).await.unwrap();
    // Time stands still in these tests, but not for the kernel: it must hold nothing back.
    stream.set_nodelay(true).unwrap();
    let (mut reading, mut writing) = stream.into_split();
    for piece in wire.chunks(piece) {
        // The other side may have closed at once.
        if writing.write_all(piece).await.is_err() {
            break;
        }
        tokio::task::yield_now().await;
    }
    let mut answer = Vec::new();
    while let Ok(1..) = reading.read_buf(&mut answer).await {}
    String::from_utf8_lossy(&answer).into_owned()
}

fn with_listener<F: Future<Output = ()>>(test: impl FnOnce(SocketAddr, Rc<Witness>) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        let socket = bind(&Listen::Tcp(([127, 0, 0, 1], 0).into()), 1).unwrap().remove(0);
        let address = socket.address().unwrap();
        let seen = Rc::new(Witness::default());
        let (_handle, drain) = DrainHandle::new();
        let ticker = Ticker::default();
        let settings = Settings {
            header_bytes: 16 * 1024,
            max_headers: 100,
            header_timeout: Duration::from_secs(10),
            idle: Duration::from_secs(75),
            limit: Limit::new(100),
            tls: None,
        };
        let witnessed = Rc::clone(&seen);
        let make = move |_: Rc<Peer>| {
            let seen = Rc::clone(&witnessed);
            hyper::service::service_fn(move |request| witness(Rc::clone(&seen), request))
        };
        let served = serve(socket, Rc::new(settings), ticker.clone(), drain, Stats::noop(), make);
        tokio::select! {
            () = test(address, seen) => {}
            ended = served => panic!("the listener ended: {ended:?}"),
            () = ticker.run() => {}
        }
    });
}

fn run(cases: &[(&str, &str, May)]) {
    with_listener(async |address, seen| {
        for (rule, wire, may) in cases {
            for piece in [usize::MAX, 1] {
                let answer = exchange(address, format!("{wire}{CANARY}").as_bytes(), piece).await;
                let lines: Vec<_> = seen.lines.borrow_mut().drain(..).collect();
                let status = answer.get(9..12).and_then(|status| status.parse::<u16>().ok());
                let tell = || format!("{rule}\nsent {wire:?} in pieces of {piece}\nseen {lines:?}\nanswer {answer:?}");
                match may {
                    Refused(expected) => {
                        assert_eq!(lines, [""; 0], "{}", tell());
                        assert_eq!(status, Some(*expected), "{}", tell());
                    }
                    Seen(expected) => {
                        assert_eq!(lines[..lines.len().saturating_sub(1)], **expected, "{}", tell());
                        assert_eq!(lines.last().map(String::as_str), Some("GET /canary []"), "{}", tell());
                    }
                    SeenThenClosed(expected) => assert_eq!(lines, **expected, "{}", tell()),
                }
            }
        }
    });
}

#[test]
fn framing() {
    run(&[
        (
            "RFC 9112 §6.3 item 3: both lengths; chunked wins and the connection closes",
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
            SeenThenClosed(&["POST / [x]"]),
        ),
        (
            "the same in the other order",
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n1\r\nx\r\n0\r\n\r\n",
            SeenThenClosed(&["POST / [x]"]),
        ),
        (
            "§6.3 item 5: lengths that differ",
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabc",
            Refused(400),
        ),
        (
            "§6.3 item 5: lengths that differ in one field",
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3, 4\r\n\r\nabc",
            Refused(400),
        ),
        (
            "§6.3 item 5: equal lengths may be taken as one",
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\ncontent-length: 3\r\n\r\nabc",
            Seen(&["POST / [abc]"]),
        ),
        ("RFC 9110 §8.6: digits only", "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: +3\r\n\r\nabc", Refused(400)),
        ("the same: negative", "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: -3\r\n\r\nabc", Refused(400)),
        ("the same: hexadecimal", "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0x3\r\n\r\nabc", Refused(400)),
        ("the same: empty", "POST / HTTP/1.1\r\nhost: a\r\ncontent-length:\r\n\r\n", Refused(400)),
        ("the same: blank inside", "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3 3\r\n\r\nabc", Refused(400)),
        (
            "the same: more than fits",
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 36893488147419103235\r\n\r\nabc",
            Refused(400),
        ),
        (
            "§6.1: a last coding that is not chunked",
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
            Refused(400),
        ),
        (
            "§6.1: a coding before chunked that we cannot take off",
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            Refused(400),
        ),
        (
            "§6.1: chunked twice",
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
            Refused(400),
        ),
        (
            "§6.1: chunked twice, in two fields",
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            Refused(400),
        ),
        (
            "§6.1: two fields that disagree",
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ntransfer-encoding: x\r\n\r\n0\r\n\r\n",
            Refused(400),
        ),
        (
            "§7: names of codings have no case",
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: CHUNKED\r\n\r\n1\r\nx\r\n0\r\n\r\n",
            Seen(&["POST / [x]"]),
        ),
        (
            "a spelling that some servers take for chunked",
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
            Refused(400),
        ),
        (
            "the same: a quoted one",
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: \"chunked\"\r\n\r\n0\r\n\r\n",
            Refused(400),
        ),
        (
            "the same: vertical tab before it",
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
            Refused(400),
        ),
        (
            "§6.1: Transfer-Encoding in HTTP/1.0",
            "POST / HTTP/1.0\r\nhost: a\r\nconnection: keep-alive\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            Refused(400),
        ),
        (
            "§6.3 item 7: no length, no body: what follows is the next request",
            "POST / HTTP/1.1\r\nhost: a\r\n\r\n",
            Seen(&["POST / []"]),
        ),
        (
            "a GET may have a body (GET smuggling)",
            "GET / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc",
            Seen(&["GET / [abc]"]),
        ),
        ("HTTP/1.0 without keep-alive: one request", "GET / HTTP/1.0\r\n\r\n", SeenThenClosed(&["GET / []"])),
    ]);
}

#[test]
fn chunks() {
    fn chunked(body: &str) -> String {
        format!("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n{body}")
    }
    // A body that breaks its framing is cut for the service: it never looks whole.
    let cut: &[(&str, &str)] = &[
        ("RFC 9112 §7.1: a size that is no number", "g\r\nx\r\n0\r\n\r\n"),
        ("the same: signed", "+1\r\nx\r\n0\r\n\r\n"),
        ("the same: 0x", "0x1\r\nx\r\n0\r\n\r\n"),
        ("the same: none", "\r\nx\r\n0\r\n\r\n"),
        ("the same: more than fits", "fffffffffffffffff\r\nx\r\n0\r\n\r\n"),
        ("the same: a chunk longer than its size", "1\r\nxyz\r\n0\r\n\r\n"),
        ("the same: LF alone behind the size", "1\nx\r\n0\r\n\r\n"),
        ("the same: LF alone behind the data", "1\r\nx\n0\r\n\r\n"),
        ("the same: CR alone behind the size", "1\rx\r\n0\r\n\r\n"),
        ("§7.1.1: LF in an extension (the TERM.EXT attack)", "1;a\nx\r\n0\r\n\r\n"),
        ("§7.1.2: a trailer with white space before the colon", "1\r\nx\r\n0\r\na : b\r\n\r\n"),
        ("the same: LF alone behind the last size", "1\r\nx\r\n0\n\r\n"),
    ];
    let whole: &[(&str, &str)] = &[
        ("§7.1.1: extensions are dropped", "1;a=b\r\nx\r\n0;c\r\n\r\n"),
        ("§7.1: leading zeros", "0001\r\nx\r\n000\r\n\r\n"),
        ("§7.1.2: trailers end where they end", "1\r\nx\r\n0\r\na: b\r\n\r\n"),
    ];
    with_listener(async |address, seen| {
        for (rule, body) in cut {
            for piece in [usize::MAX, 1] {
                let answer = exchange(address, format!("{}{CANARY}", chunked(body)).as_bytes(), piece).await;
                let lines: Vec<_> = seen.lines.borrow_mut().drain(..).collect();
                assert_eq!(lines, ["POST / [(cut)]"], "{rule}: {body:?} in pieces of {piece}: {answer:?}");
            }
        }
        for (rule, body) in whole {
            for piece in [usize::MAX, 1] {
                exchange(address, format!("{}{CANARY}", chunked(body)).as_bytes(), piece).await;
                let lines: Vec<_> = seen.lines.borrow_mut().drain(..).collect();
                assert_eq!(lines, ["POST / [x]", "GET /canary []"], "{rule}: {body:?} in pieces of {piece}");
            }
        }
    });
}

#[test]
fn lines_and_fields() {
    run(&[
        (
            "RFC 9112 §2.2: empty lines before a request",
            "\r\n\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n",
            Seen(&["GET / []"]),
        ),
        ("§2.2: LF alone may end a line", "GET / HTTP/1.1\nhost: a\n\n", Seen(&["GET / []"])),
        ("§2.2: CR alone in a value", "GET / HTTP/1.1\r\nhost: a\r\nx: y\rz: 1\r\n\r\n", Refused(400)),
        ("§2.2: CR alone ends no line", "GET / HTTP/1.1\rhost: a\r\n\r\n", Refused(400)),
        ("§2.2: white space before the first field", "GET / HTTP/1.1\r\n host: a\r\n\r\n", Refused(400)),
        ("§5.1: white space before the colon", "GET / HTTP/1.1\r\nhost : a\r\n\r\n", Refused(400)),
        (
            "§5.1: the same on the field that smuggles",
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding : chunked\r\ncontent-length: 3\r\n\r\nabc",
            Refused(400),
        ),
        ("§5.2: a folded line", "GET / HTTP/1.1\r\nhost: a\r\nx: y\r\n z\r\n\r\n", Refused(400)),
        (
            "§5.2: a folded framing field",
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
            Refused(400),
        ),
        ("RFC 9110 §5.5: NUL in a value", "GET / HTTP/1.1\r\nhost: a\r\nx: y\0z\r\n\r\n", Refused(400)),
        ("RFC 9110 §5.1: NUL in a name", "GET / HTTP/1.1\r\nhost: a\r\nx\0: y\r\n\r\n", Refused(400)),
        ("RFC 9110 §5.1: an empty name", "GET / HTTP/1.1\r\nhost: a\r\n: y\r\n\r\n", Refused(400)),
        ("§5: a line without a colon", "GET / HTTP/1.1\r\nhost: a\r\nhello\r\n\r\n", Refused(400)),
        ("§3: two blanks in the request line", "GET  / HTTP/1.1\r\nhost: a\r\n\r\n", Refused(400)),
        ("§3: a blank in the target", "GET /a b HTTP/1.1\r\nhost: a\r\n\r\n", Refused(400)),
        ("§2.3: no such version", "GET / HTTP/1.2\r\nhost: a\r\n\r\n", Refused(400)),
        ("§2.3: HTTP/0.9", "GET /\r\n", Refused(400)),
        ("RFC 9110 §9.1: a method that is no token", "G(T / HTTP/1.1\r\nhost: a\r\n\r\n", Refused(400)),
    ]);
}

#[test]
fn targets_and_hosts() {
    run(&[
        ("RFC 9112 §3.2: no Host", "GET / HTTP/1.1\r\n\r\n", Refused(400)),
        ("§3.2: two", "GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", Refused(400)),
        ("§3.2: two of the same", "GET / HTTP/1.1\r\nhost: a\r\nHost: a\r\n\r\n", Refused(400)),
        ("§3.2: not a host", "GET / HTTP/1.1\r\nhost: a b\r\n\r\n", Refused(400)),
        ("§3.2: a list", "GET / HTTP/1.1\r\nhost: a,b\r\n\r\n", Refused(400)),
        ("§3.2: a path in it", "GET / HTTP/1.1\r\nhost: a/b\r\n\r\n", Refused(400)),
        ("§3.2.2: another host in the target", "GET http://b/ HTTP/1.1\r\nhost: a\r\n\r\n", Refused(400)),
        ("§3.2.2: the same host", "GET http://a/x HTTP/1.1\r\nhost: a\r\n\r\n", Seen(&["GET http://a/x []"])),
        ("RFC 9110 §4.2.4: a user", "GET http://u@a/ HTTP/1.1\r\nhost: a\r\n\r\n", Refused(400)),
        ("§3.2.4: * goes with OPTIONS", "GET * HTTP/1.1\r\nhost: a\r\n\r\n", Refused(400)),
        ("§3.2.4: and there it is fine", "OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n", Seen(&["OPTIONS * []"])),
        ("§3.2.3: a host goes with CONNECT", "GET a:80 HTTP/1.1\r\nhost: a:80\r\n\r\n", Refused(400)),
        ("§3.2.3: and CONNECT with a host", "CONNECT /x HTTP/1.1\r\nhost: a\r\n\r\n", Refused(400)),
        ("§3.2: a relative path", "GET x HTTP/1.1\r\nhost: a\r\n\r\n", Refused(400)),
        ("a scheme that is not HTTP", "GET file://a/x HTTP/1.1\r\nhost: a\r\n\r\n", Refused(400)),
    ]);
}

#[test]
fn one_length_at_most_is_left_to_see() {
    let wire = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n";
    with_listener(async |address, seen| {
        exchange(address, wire.as_bytes(), usize::MAX).await;
        let heads = seen.heads.borrow();
        let names: BTreeMap<_, _> = heads[0].headers.iter().map(|(name, value)| (name.as_str(), value)).collect();
        assert!(!names.contains_key(header::CONTENT_LENGTH.as_str()), "{names:?}");
        assert_eq!(names[header::TRANSFER_ENCODING.as_str()], "chunked");
    });
}

/// An HTTP/2 frame.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// HPACK without any compression: fields as they are, also those that no library would write.
fn fields(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).unwrap());
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}

/// One request of `head` and `body` over HTTP/2, and the connection's end; what came back.
async fn exchange_h2(address: SocketAddr, head: &[(&str, &str)], body: Option<&str>) {
    let mut wire = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    wire.extend(frame(4, 0, 0, &[]));
    wire.extend(frame(1, if body.is_some() { 4 } else { 5 }, 1, &fields(head)));
    if let Some(body) = body {
        wire.extend(frame(0, 1, 1, body.as_bytes()));
    }
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(&wire).await.unwrap();
    // Time moves on only when all is done.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let _ = stream.shutdown().await;
    let mut answer = Vec::new();
    while let Ok(1..) = stream.read_buf(&mut answer).await {}
}

#[test]
fn http2_heads_that_would_mean_something_else_in_http1() {
    const PLAIN: [(&str, &str); 4] = [(":method", "POST"), (":scheme", "http"), (":authority", "a"), (":path", "/")];
    // Each is added to a plain request, or takes the place of its field of that name.
    let refused: &[(&str, (&str, &str))] = &[
        ("RFC 9113 §8.2.2: Transfer-Encoding (H2.TE)", ("transfer-encoding", "chunked")),
        ("§8.2.2: Connection", ("connection", "keep-alive")),
        ("§8.2.2: Upgrade", ("upgrade", "h2c")),
        ("§8.2.2: TE other than trailers", ("te", "gzip")),
        ("§8.2.1: CR LF in a value", ("x", "y\r\ntransfer-encoding: chunked")),
        ("§8.2.1: LF in a value", ("x", "y\nz: 1")),
        ("§8.2.1: NUL in a value", ("x", "y\0")),
        ("§8.2.1: white space around a value", ("x", " y")),
        ("§8.2.1: upper case in a name", ("Transfer-Encoding", "chunked")),
        ("§8.2.1: a colon in a name", ("transfer-encoding:", "chunked")),
        ("§8.2.1: CR LF in a name", ("x\r\ny", "z")),
        ("§8.2.1: a blank in a name", ("transfer-encoding ", "chunked")),
        ("§8.3.1: a blank in the path", (":path", "/ HTTP/1.1\r\nx: y")),
        ("§8.3.1: a path that does not begin with /", (":path", "x")),
        ("§8.3.1: an empty path", (":path", "")),
        ("§8.3.1: CR LF in the method", (":method", "GET / HTTP/1.1\r\nx:")),
        ("§8.3.1: a user in the authority", (":authority", "u@a")),
        ("§8.3.1: Host says something else", ("host", "b")),
        ("§8.3: a pseudo-field for answers", (":status", "200")),
        ("§8.1.1: a length that is no number", ("content-length", "+3")),
    ];
    with_listener(async |address, seen| {
        for (rule, (name, value)) in refused {
            let mut head = PLAIN.to_vec();
            match head.iter_mut().find(|field| field.0 == *name) {
                Some(field) => field.1 = value,
                None => head.push((name, value)),
            }
            exchange_h2(address, &head, Some("abc")).await;
            assert_eq!(*seen.lines.borrow(), [""; 0], "{rule}: {name:?}: {value:?}");
        }
        let orders: &[(&str, Vec<(&str, &str)>)] = &[
            ("§8.3: a pseudo-field behind a field", vec![PLAIN[0], PLAIN[1], PLAIN[2], ("x", "y"), PLAIN[3]]),
            ("§8.3: two paths", [&PLAIN[..], &[(":path", "/b")]].concat()),
            ("§8.3.1: no path", PLAIN[..3].to_vec()),
            ("§8.3.1: no method", PLAIN[1..].to_vec()),
            ("two lengths", [&PLAIN[..], &[("content-length", "3"), ("content-length", "3")]].concat()),
            ("two hosts", [&PLAIN[..], &[("host", "a"), ("host", "a")]].concat()),
        ];
        for (rule, head) in orders {
            exchange_h2(address, head, Some("abc")).await;
            assert_eq!(*seen.lines.borrow(), [""; 0], "{rule}");
        }
        // §8.1.1: a length that is not that of the DATA (H2.CL): the body never looks whole.
        for length in ["2", "4"] {
            exchange_h2(address, &[&PLAIN[..], &[("content-length", length)]].concat(), Some("abc")).await;
            let lines: Vec<_> = seen.lines.borrow_mut().drain(..).collect();
            assert!(lines.iter().all(|line| line.ends_with("[(cut)]")), "{length}: {lines:?}");
        }
        exchange_h2(address, &[&PLAIN[..], &[("content-length", "3"), ("host", "a")]].concat(), Some("abc")).await;
        assert_eq!(*seen.lines.borrow(), ["POST http://a/ [abc]"]);
    });
}
