//! HTTP/1.1 by hand: nothing between a fault and the bytes it wants, and no code in common with the gateway's own.
//!
//! Reads one request at a time (content-length and chunked bodies, Expect), writes heads as the engine's server
//! writes them, and watches for the client's FIN while an answer is made.

use std::{io, time::Duration};

use bytes::{Buf, Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, timeout},
};

use super::{engine::Engine, state::Request};

/// Why an answer stops before its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leave {
    /// The client is gone, or the socket failed.
    Gone,
    /// FIN here.
    Fin,
    /// RST here.
    Reset,
    /// The whole backend dies here.
    Die,
}

impl From<io::Error> for Leave {
    fn from(_: io::Error) -> Self {
        Self::Gone
    }
}

/// A head to be written.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    pub(crate) status: u16,
    pub(crate) content_type: &'static str,
    pub(crate) extra: Vec<(&'static str, String)>,
}

impl Head {
    pub(crate) fn new(status: u16, content_type: &'static str) -> Self {
        Self { status, content_type, extra: Vec::new() }
    }

    pub(crate) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.extra.push((name, value.into()));
        self
    }
}

/// How a body's end is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    Length(u64),
    Chunked,
    /// 101, 204, 304 and answers to HEAD.
    None,
}

/// One HTTP/1 connection.
#[derive(Debug)]
pub(crate) struct Wire {
    stream: TcpStream,
    read: BytesMut,
    out: Vec<u8>,
    engine: Engine,
    chunked: bool,
    /// Ends after this answer.
    pub(crate) close: bool,
    /// Ends without an answer when the next request comes.
    pub(crate) silent: bool,
    /// The request in hand was HEAD: heads only.
    head_only: bool,
    /// The request in hand is HTTP/1.0: no chunks, and closed unless asked otherwise.
    old: bool,
}

/// What stood on a connection in place of a request.
#[derive(Debug)]
pub(crate) enum NoRequest {
    /// FIN, RST or silence for too long.
    End,
    /// The preface of HTTP/2 (RFC 9113 §3.4).
    Http2,
    /// Not HTTP, or more than a sim takes.
    Bad(&'static str),
}

/// The most a head may have; a gateway that sends more has a fault worth seeing.
const MOST_HEAD: usize = 256 * 1024;
/// The most a body may have.
const MOST_BODY: usize = 256 * 1024 * 1024;
/// What is read ahead while an answer is made.
const MOST_AHEAD: usize = 64 * 1024;
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

impl Wire {
    pub(crate) fn new(stream: TcpStream, engine: Engine) -> Self {
        Self {
            stream,
            read: BytesMut::with_capacity(8 * 1024),
            out: Vec::new(),
            engine,
            chunked: false,
            close: false,
            silent: false,
            head_only: false,
            old: false,
        }
    }

    /// The socket and what was read of it.
    pub(crate) fn into_parts(self) -> (TcpStream, Bytes) {
        (self.stream, self.read.freeze())
    }

    /// Closes with RST in place of FIN.
    pub(crate) fn reset(self) {
        // An error means that the socket is gone already.
        let _ = socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
    }

    // === reading ===

    /// Waits up to `idle` for a request and reads its head.
    pub(crate) async fn request(&mut self, idle: Duration) -> Result<Request, NoRequest> {
        if !self.arrived(idle).await {
            return Err(NoRequest::End);
        }
        loop {
            if self.read.starts_with(b"PRI * HTTP/2.0") {
                // Shorter reads of the preface go on below as an unfinished head.
                if self.read.len() >= PREFACE.len() {
                    return Err(NoRequest::Http2);
                }
            } else if let Some(request) = self.parse_head()? {
                return Ok(request);
            }
            if self.read.len() > MOST_HEAD {
                return Err(NoRequest::Bad("a head of more than 256 KiB"));
            }
            if !self.fill().await {
                return Err(NoRequest::End);
            }
        }
    }

    /// Whether the first byte of a request came in time.
    pub(crate) async fn arrived(&mut self, idle: Duration) -> bool {
        !self.read.is_empty() || timeout(idle, self.fill()).await.unwrap_or(false)
    }

    fn parse_head(&mut self) -> Result<Option<Request>, NoRequest> {
        let mut fields = [httparse::EMPTY_HEADER; 256];
        let mut parsed = httparse::Request::new(&mut fields);
        let end = match parsed.parse(&self.read) {
            Ok(httparse::Status::Complete(end)) => end,
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(_) => return Err(NoRequest::Bad("not an HTTP/1.1 request")),
        };
        let mut request = Request {
            method: parsed.method.unwrap_or_default().to_owned(),
            target: parsed.path.unwrap_or_default().to_owned(),
            version: if parsed.version == Some(0) { "HTTP/1.0" } else { "HTTP/1.1" },
            headers: parsed.headers.iter().map(|h| (h.name.to_owned(), h.value.to_vec())).collect(),
            head: Bytes::new(),
            body: Bytes::new(),
        };
        request.head = self.read.split_to(end).freeze();
        self.head_only = request.method == "HEAD";
        self.old = request.version == "HTTP/1.0";
        let asked = request.header("connection").unwrap_or_default().to_ascii_lowercase();
        self.close = asked.contains("close") || (self.old && !asked.contains("keep-alive"));
        Ok(Some(request))
    }

    /// How the body of `request` is framed; both framings at once are refused (RFC 9112 §6.1).
    pub(crate) fn framing(request: &Request) -> Result<Framing, NoRequest> {
        let lengths: Vec<_> =
            request.headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case("content-length")).collect();
        let coded = request.header("transfer-encoding");
        match (lengths.as_slice(), coded) {
            ([], None) => Ok(Framing::Length(0)),
            ([], Some(coding)) if coding.eq_ignore_ascii_case("chunked") => Ok(Framing::Chunked),
            ([(_, length)], None) => {
                let length = std::str::from_utf8(length).ok().and_then(|text| text.parse().ok());
                length.map(Framing::Length).ok_or(NoRequest::Bad("content-length is not a number"))
            }
            _ => Err(NoRequest::Bad("ambiguous framing")),
        }
    }

    /// Answers `Expect: 100-continue`.
    pub(crate) async fn go_on(&mut self, request: &Request) -> Result<(), NoRequest> {
        let waits = request.header("expect").is_some_and(|value| value.eq_ignore_ascii_case("100-continue"));
        if waits && self.read.is_empty() {
            self.stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.map_err(|_| NoRequest::End)?;
        }
        Ok(())
    }

    /// Reads the whole body.
    pub(crate) async fn body(&mut self, framing: Framing) -> Result<Bytes, NoRequest> {
        match framing {
            Framing::None => Ok(Bytes::new()),
            Framing::Length(length) => {
                let length = usize::try_from(length).unwrap_or(usize::MAX);
                if length > MOST_BODY {
                    return Err(NoRequest::Bad("a body of more than 256 MiB"));
                }
                while self.read.len() < length {
                    self.more().await?;
                }
                Ok(self.read.split_to(length).freeze())
            }
            Framing::Chunked => {
                let mut whole = BytesMut::new();
                while let Some(piece) = self.chunk().await? {
                    whole.extend_from_slice(&piece);
                    if whole.len() > MOST_BODY {
                        return Err(NoRequest::Bad("a body of more than 256 MiB"));
                    }
                }
                Ok(whole.freeze())
            }
        }
    }

    /// The next piece of a body of which `left` bytes are to come (chunked: `None`), for streaming it.
    pub(crate) async fn piece(&mut self, left: Option<u64>) -> Result<Option<Bytes>, NoRequest> {
        let Some(left) = left else { return self.chunk().await };
        if left == 0 {
            return Ok(None);
        }
        if self.read.is_empty() {
            self.more().await?;
        }
        let n = self.read.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        Ok(Some(self.read.split_to(n).freeze()))
    }

    /// The next chunk (RFC 9112 §7.1); `None` after the last, its trailers read and dropped.
    async fn chunk(&mut self) -> Result<Option<Bytes>, NoRequest> {
        let line = self.line().await?;
        let size = line.split(';').next().unwrap_or_default().trim();
        let size = usize::from_str_radix(size, 16).map_err(|_| NoRequest::Bad("a chunk without a size"))?;
        if size == 0 {
            while !self.line().await?.is_empty() {}
            return Ok(None);
        }
        if size > MOST_BODY {
            return Err(NoRequest::Bad("a chunk of more than 256 MiB"));
        }
        while self.read.len() < size + 2 {
            self.more().await?;
        }
        let piece = self.read.split_to(size).freeze();
        if !self.read.starts_with(b"\r\n") {
            return Err(NoRequest::Bad("a chunk longer than its size"));
        }
        self.read.advance(2);
        Ok(Some(piece))
    }

    async fn line(&mut self) -> Result<String, NoRequest> {
        loop {
            if let Some(end) = self.read.windows(2).position(|pair| pair == b"\r\n") {
                let line = self.read.split_to(end + 2);
                return Ok(String::from_utf8_lossy(&line[..end]).into_owned());
            }
            if self.read.len() > MOST_AHEAD {
                return Err(NoRequest::Bad("a line of more than 64 KiB"));
            }
            self.more().await?;
        }
    }

    /// Takes what has been read, waiting for at least one byte.
    pub(crate) async fn more_raw(&mut self) -> Result<Bytes, NoRequest> {
        if self.read.is_empty() {
            self.more().await?;
        }
        Ok(self.read.split().freeze())
    }

    async fn more(&mut self) -> Result<(), NoRequest> {
        if self.fill().await { Ok(()) } else { Err(NoRequest::End) }
    }

    async fn fill(&mut self) -> bool {
        matches!(self.stream.read_buf(&mut self.read).await, Ok(n) if n > 0)
    }

    /// Returns when the client closed its side; a next request that comes meanwhile is kept.
    pub(crate) async fn gone(&mut self) -> Leave {
        while self.read.len() < MOST_AHEAD {
            if !self.fill().await {
                return Leave::Gone;
            }
        }
        std::future::pending().await
    }

    /// Waits until `at`, or until the client is gone.
    pub(crate) async fn wait(&mut self, at: Instant) -> Result<(), Leave> {
        if at <= Instant::now() {
            return Ok(());
        }
        tokio::select! {
            leave = self.gone() => Err(leave),
            () = tokio::time::sleep_until(at) => Ok(()),
        }
    }

    // === writing ===

    /// Bytes as they are.
    pub(crate) async fn raw(&mut self, bytes: &[u8]) -> Result<(), Leave> {
        Ok(self.stream.write_all(bytes).await?)
    }

    /// A head and a whole body in one write.
    pub(crate) async fn whole(&mut self, head: &Head, body: &[u8]) -> Result<(), Leave> {
        self.out.clear();
        self.put_head(head, Framing::Length(body.len() as u64));
        if !self.head_only {
            self.out.extend_from_slice(body);
        }
        self.send().await
    }

    /// A head alone.
    pub(crate) async fn begin(&mut self, head: &Head, framing: Framing) -> Result<(), Leave> {
        self.out.clear();
        self.put_head(head, framing);
        self.send().await
    }

    /// A piece of a body that [`Wire::begin`] started.
    pub(crate) async fn data(&mut self, bytes: &[u8]) -> Result<(), Leave> {
        if bytes.is_empty() || self.head_only {
            return Ok(());
        }
        self.out.clear();
        if self.chunked {
            self.out.extend_from_slice(format!("{:x}\r\n", bytes.len()).as_bytes());
        }
        self.out.extend_from_slice(bytes);
        if self.chunked {
            self.out.extend_from_slice(b"\r\n");
        }
        self.send().await
    }

    /// The end of a body, with trailers.
    pub(crate) async fn end(&mut self, trailers: &[(&str, &str)]) -> Result<(), Leave> {
        if !self.chunked || self.head_only {
            return Ok(());
        }
        let fields: String = trailers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        self.out.clear();
        self.out.extend_from_slice(format!("0\r\n{fields}\r\n").as_bytes());
        self.send().await
    }

    async fn send(&mut self) -> Result<(), Leave> {
        Ok(self.stream.write_all(&self.out).await?)
    }

    fn put_head(&mut self, head: &Head, framing: Framing) {
        self.chunked = framing == Framing::Chunked && !self.old;
        // A body without a length and without chunks ends with the connection.
        self.close |= framing == Framing::Chunked && self.old;
        let mut text = format!("HTTP/1.1 {} {}\r\n", head.status, reason(head.status));
        for (name, value) in self.engine.headers(self.close) {
            text.push_str(&format!("{}: {value}\r\n", self.engine.cased(name)));
        }
        let mut field = |name: &str, value: &str| text.push_str(&format!("{}: {value}\r\n", self.engine.cased(name)));
        for (name, value) in &head.extra {
            field(name, value);
        }
        if !head.content_type.is_empty() {
            field("content-type", head.content_type);
        }
        match framing {
            Framing::Length(length) => field("content-length", &length.to_string()),
            Framing::Chunked if self.chunked => field("transfer-encoding", "chunked"),
            Framing::Chunked | Framing::None => {}
        }
        if self.close && framing != Framing::None {
            field("connection", "close");
        }
        self.out.extend_from_slice(text.as_bytes());
        self.out.extend_from_slice(b"\r\n");
    }
}

/// The reason phrases a sim's answers need.
fn reason(status: u16) -> &'static str {
    http::StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason()).unwrap_or("Unknown")
}
