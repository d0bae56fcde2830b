//! Answers in a coding, through the whole gateway: each event when it was produced, memory that ends, kept answers.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::mpsc,
    time::Duration,
};

use flate2::{Decompress, FlushDecompress};

use crate::support::{Answer, Gateway, sim};

const PATH: &str = "/v1/chat/completions";
const CODINGS: [&str; 3] = ["gzip", "zstd", "br"];

fn chat(text: &str, stream: bool) -> String {
    format!(
        r#"{{"model":"sim","messages":[{{"role":"user","content":"{text}"}}],"max_tokens":40,"temperature":0,"stream":{stream}}}"#
    )
}

/// All that can be decoded of what came so far.
fn decoded(coding: &str, coded: &[u8]) -> String {
    let mut out = Vec::new();
    match coding {
        "gzip" => {
            let mut decoder = Decompress::new_gzip(15);
            loop {
                out.reserve(64 * 1024);
                let (read, had) = (decoder.total_in(), out.len());
                decoder.decompress_vec(&coded[read as usize..], &mut out, FlushDecompress::None).unwrap();
                if out.len() == had && decoder.total_in() == read {
                    break;
                }
            }
        }
        "zstd" => {
            let mut decoder = zstd::stream::read::Decoder::new(coded).unwrap();
            let mut buffer = [0; 4096];
            // What is missing is an error at the end.
            while let Ok(read @ 1..) = decoder.read(&mut buffer) {
                out.extend_from_slice(&buffer[..read]);
            }
        }
        "br" => {
            let (mut decoder, mut buffer) = (brotli::Decompressor::new(coded, 4096), [0; 4096]);
            while let Ok(read @ 1..) = decoder.read(&mut buffer) {
                out.extend_from_slice(&buffer[..read]);
            }
        }
        _ => out.extend_from_slice(coded),
    }
    String::from_utf8(out).unwrap()
}

fn ask(gate: &Gateway, accept: &str, body: &str, more: &[(&str, &str)]) -> Answer {
    let headers = [&[("content-type", "application/json"), ("accept-encoding", accept)], more].concat();
    gate.request("POST", PATH, &headers, body)
}

fn text(answer: &Answer) -> String {
    decoded(answer.header("content-encoding").unwrap_or_default(), &answer.body)
}

/// A backend that sends what the test says, when the test says it.
struct Backend {
    addr: SocketAddr,
    /// Chunks of the answer that is under way; dropped = the connection is cut.
    sends: Option<mpsc::Sender<String>>,
    /// The head of the request.
    came: mpsc::Receiver<String>,
}

impl Backend {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let (sends, chunks) = mpsc::channel();
        let (told, came) = mpsc::channel();
        std::thread::spawn(move || {
            let mut answer = Some((chunks, told));
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                let head = head(&mut stream);
                match answer.take_if(|_| head.starts_with("POST")) {
                    Some((chunks, told)) => drop(std::thread::spawn(move || serve(stream, head, &chunks, &told))),
                    None => models(&mut stream),
                }
            }
        });
        Self { addr, sends: Some(sends), came }
    }

    fn gateway(&self, extra: &str) -> Gateway {
        Gateway::with_config(&format!("backends:\n  - {{name: b, url: 'http://{}'}}\n{extra}", self.addr)).healthy()
    }

    fn send(&self, chunk: &str) {
        self.sends.as_ref().unwrap().send(chunk.to_owned()).unwrap();
    }
}

/// The head of a request. Its body is read too: a connection that is closed with bytes unread is reset, and what was sent
/// may be lost.
fn head(stream: &mut TcpStream) -> String {
    let mut read = Vec::new();
    let mut byte = [0];
    while !read.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap_or(0) == 1 {
        read.push(byte[0]);
    }
    let head = String::from_utf8(read).unwrap();
    let length = head.to_ascii_lowercase().lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    // Whoever asked may be gone.
    let _gone = stream.read_exact(&mut vec![0; length.unwrap_or(0)]);
    head
}

fn models(stream: &mut TcpStream) {
    let body = r#"{"object":"list","data":[{"id":"sim","object":"model"}]}"#;
    let length = body.len();
    // Whoever asked may be gone.
    let _gone = write!(
        stream,
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
    );
}

fn serve(mut stream: TcpStream, head: String, chunks: &mpsc::Receiver<String>, told: &mpsc::Sender<String>) {
    told.send(head).unwrap();
    write!(stream, "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n").unwrap();
    for chunk in chunks {
        if write!(stream, "{:x}\r\n{chunk}\r\n", chunk.len()).is_err() {
            return;
        }
        if chunk.is_empty() {
            return;
        }
    }
}

fn event(n: usize) -> String {
    format!(
        "data: {{\"id\":\"c\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"sim\",\"choices\":[{{\"index\":0,\
         \"delta\":{{\"content\":\"word {n}\"}},\"finish_reason\":null}}]}}\n\n"
    )
}

const LAST: &str = "data: {\"id\":\"c\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"sim\",\"choices\":[{\"index\":0,\"delta\":{},\
                    \"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n";

/// A client that reads a chunked answer by hand.
struct Client {
    stream: TcpStream,
    read: Vec<u8>,
}

impl Client {
    fn start(gate: &Gateway, accept: &str, body: &str) -> Self {
        let mut stream = TcpStream::connect(gate.addr).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        write!(
            stream,
            "POST {PATH} HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\naccept-encoding: {accept}\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        Self { stream, read: Vec::new() }
    }

    /// Reads on; whether more came.
    fn more(&mut self) -> bool {
        let mut buffer = [0; 4096];
        let read = self.stream.read(&mut buffer).unwrap_or(0);
        self.read.extend_from_slice(&buffer[..read]);
        read > 0
    }

    /// The head, once it is there.
    fn head(&mut self) -> String {
        loop {
            if let Some(end) = memchr::memmem::find(&self.read, b"\r\n\r\n") {
                return String::from_utf8(self.read[..end].to_vec()).unwrap();
            }
            assert!(self.more(), "no head");
        }
    }

    /// The bytes of the body so far, out of their chunks; and whether the last chunk came.
    fn body(&self) -> (Vec<u8>, bool) {
        let Some(at) = memchr::memmem::find(&self.read, b"\r\n\r\n") else { return (Vec::new(), false) };
        let (mut rest, mut body) = (&self.read[at + 4..], Vec::new());
        while let Some(end) = memchr::memmem::find(rest, b"\r\n") {
            let size = usize::from_str_radix(std::str::from_utf8(&rest[..end]).unwrap(), 16).unwrap();
            if size == 0 {
                return (body, true);
            }
            let Some(chunk) = rest.get(end + 2..end + 2 + size) else { break };
            body.extend_from_slice(chunk);
            rest = rest.get(end + 4 + size..).unwrap_or_default();
        }
        (body, false)
    }

    /// Reads until what decodes ends with `text`.
    fn until(&mut self, coding: &str, text: &str) -> String {
        loop {
            let so_far = decoded(coding, &self.body().0);
            if so_far.ends_with(text) {
                return so_far;
            }
            assert!(self.more(), "the end came too early: {so_far}");
        }
    }
}

#[test]
fn each_event_decodes_before_the_next_is_produced() {
    for coding in CODINGS {
        let backend = Backend::start();
        let gate = backend.gateway("");
        let mut client = Client::start(&gate, coding, &chat("events", true));
        let asked = backend.came.recv().unwrap().to_ascii_lowercase();
        assert!(!asked.contains("accept-encoding"), "backends are asked for no coding: {asked}");
        let mut all = String::new();
        for n in 0..20 {
            backend.send(&event(n));
            all += &event(n);
            // Only then the next one.
            assert_eq!(client.until(coding, &event(n)), all);
        }
        let head = client.head().to_ascii_lowercase();
        assert!(
            head.contains(&format!("content-encoding: {coding}")) && head.contains("vary: accept-encoding"),
            "{head}"
        );
        assert!(!head.contains("content-length"), "{head}");
        backend.send(LAST);
        backend.send("");
        assert_eq!(client.until(coding, LAST), all + LAST);
        while !client.body().1 {
            assert!(client.more());
        }
        assert!(client.body().0.len() < 20 * event(0).len() / 3);
    }
}

#[test]
fn a_client_that_leaves_frees_its_encoder() {
    let backend = Backend::start();
    let gate = backend.gateway("");
    let mut client = Client::start(&gate, "gzip", &chat("leaves", true));
    backend.send(&event(1));
    client.until("gzip", &event(1));
    gate.until("/metrics", |text| text.contains("\nsluicegate_compression_encoders 1\n"));
    assert!(gate.metric("sluicegate_compression_memory_bytes") > 0.0);
    drop(client);
    gate.until("/metrics", |text| text.contains("\nsluicegate_compression_encoders 0\n"));
}

#[test]
fn a_failed_stream_says_so_in_its_coding_and_never_ends() {
    for coding in CODINGS {
        let mut backend = Backend::start();
        let gate = backend.gateway("resume: {mode: off}\n");
        let mut client = Client::start(&gate, coding, &chat("cut", true));
        backend.send(&event(1));
        client.until(coding, &event(1));
        backend.sends = None;
        while client.more() {}
        let (coded, ended) = client.body();
        let text = decoded(coding, &coded);
        assert!(text.starts_with(&event(1)) && text.contains("\"code\":\"stream_cut\"") && !ended, "{text}");
    }
}

#[test]
fn a_kept_answer_is_encoded_once_for_each_coding() {
    let backend = sim(|_| {});
    let gate = Gateway::new(&[&backend], "").healthy();
    for stream in [false, true] {
        let body = chat("a kept answer that is long enough to be worth a coding of its own", stream);
        // The first in one coding, the hits in all of them.
        let first = ask(&gate, "br", &body, &[]);
        let plain = text(&first);
        assert_eq!(first.header("content-encoding"), Some("br"));
        let twins = || gate.metric("sluicegate_compression_twins_total");
        let before = twins();
        for round in 0..2 {
            for coding in CODINGS {
                let hit = ask(&gate, coding, &body, &[]);
                assert!(hit.header("cache-status").unwrap().contains(";hit;"));
                assert_eq!((hit.header("content-encoding"), hit.whole), (Some(coding), true));
                assert_eq!(hit.header("content-length"), Some(hit.body.len().to_string().as_str()));
                assert_eq!(text(&hit), plain);
                assert!(hit.body.len() < plain.len() / 2 || !stream);
            }
            assert_eq!(twins(), before + f64::from(round * 3));
        }
        let hit = ask(&gate, "identity", &body, &[]);
        assert_eq!((hit.header("content-encoding"), hit.text()), (None, plain));
    }
}

#[test]
fn what_must_stay_as_it_is_does() {
    let backend = sim(|_| {});
    let gate = Gateway::new(&[&backend], "cache: {mode: off}\n").healthy();
    let body = chat("a plain answer that is long enough to be worth a coding", false);
    let coded = ask(&gate, "gzip", &body, &[]);
    assert_eq!((coded.header("content-encoding"), coded.header("vary")), (Some("gzip"), Some("Accept-Encoding")));
    assert!(text(&coded).contains("chat.completion"));
    for (accept, more) in
        [("identity", &[][..]), ("gzip;q=0, *;q=0", &[]), ("gzip", &[("cache-control", "no-transform")])]
    {
        let answer = ask(&gate, accept, &body, more);
        assert_eq!((answer.status, answer.header("content-encoding")), (200, None), "{accept} {more:?}");
        assert!(answer.text().contains("chat.completion"));
    }
    let accept = [("accept-encoding", "gzip")];
    let head = gate.request("HEAD", "/v1/models", &accept, "");
    assert_eq!((head.header("content-encoding"), head.body.len()), (None, 0));
    // An error of ours.
    let wrong = gate.request(
        "POST",
        PATH,
        &[("content-type", "application/json"), ("accept-encoding", "gzip")],
        r#"{"model":"other","messages":[{"role":"user","content":"x"}]}"#,
    );
    assert_eq!((wrong.status, wrong.header("content-encoding"), wrong.code().as_str()), (404, None, "model_not_found"));
}

#[test]
fn nobody_is_refused_for_want_of_memory() {
    let backend = sim(|_| {});
    let gate = Gateway::new(&[&backend], "compression: {memory: 64KiB}\ncache: {mode: off}\n").healthy();
    for stream in [false, true] {
        let answer = ask(&gate, "gzip, zstd, br", &chat("no memory for an encoder of this answer", stream), &[]);
        assert_eq!((answer.status, answer.whole, answer.header("content-encoding")), (200, true, None));
    }
    assert!(gate.metric("sluicegate_compression_refused_total{reason=\"memory\"}") >= 2.0);
    assert_eq!(gate.metric("sluicegate_compression_memory_bytes"), 0.0);
}

#[test]
fn without_algorithms_nothing_is_touched() {
    let backend = sim(|_| {});
    let gate = Gateway::new(&[&backend], "compression: {algorithms: []}\n").healthy();
    let answer = ask(&gate, "gzip", &chat("off", false), &[]);
    assert_eq!((answer.header("content-encoding"), answer.header("vary")), (None, None));
    let excluded = Gateway::new(&[&backend], "compression: {exclude: [127.0.0.0/8]}\n").healthy();
    let answer = ask(&excluded, "gzip", &chat("a client whose network is near: bytes cost nothing", false), &[]);
    assert_eq!((answer.header("content-encoding"), answer.header("vary")), (None, Some("Accept-Encoding")));
}
