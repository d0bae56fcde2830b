//! The client against backends that are a few lines of raw bytes each.
//!
//! Most run in memory: one end of a duplex stream lies in the pool, the test holds the other.

mod answers;
mod http2;
mod pool;
mod requests;
mod splits;
mod tls;
mod uploads;

use std::{cell::RefCell, collections::VecDeque, future::poll_fn, pin::Pin, rc::Rc, sync::Arc, task::Poll};

use bytes::Bytes;
use http::{HeaderMap, Method, uri::PathAndQuery};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream},
    net::{TcpListener, TcpStream},
};

use super::*;
use crate::config::{BackendUrl, ClientTls, Scheme};

/// A client of its own, with a clock that stands still unless the test ticks it.
pub(super) fn client() -> (Client, Ticker) {
    let ticker = Ticker::default();
    let settings = Settings::new(Duration::from_secs(1), 4096);
    (Client::new(settings, ticker.clone(), Resolver::system(), Counters::noop()), ticker)
}

pub(super) fn url(scheme: Scheme, host: &str, port: u16) -> BackendUrl {
    BackendUrl { scheme, host: host.into(), port, unix: None, base_path: "".into() }
}

pub(super) fn target(url: &BackendUrl) -> Arc<Target> {
    Target::new(url, &ClientTls::default()).unwrap()
}

/// A target that nothing dials.
pub(super) fn nowhere() -> Arc<Target> {
    target(&url(Scheme::Http, "192.0.2.1", 9))
}

/// A listening backend and its target.
pub(super) async fn listen(scheme: Scheme) -> (TcpListener, Arc<Target>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = target(&url(scheme, "127.0.0.1", listener.local_addr().unwrap().port()));
    (listener, target)
}

pub(super) async fn accept(listener: &TcpListener) -> TcpStream {
    listener.accept().await.unwrap().0
}

/// A connection that lies in the pool as a new one (`uses` 0) or a used one; the backend's end of it.
pub(super) fn plug(client: &Client, target: &Arc<Target>, uses: u32) -> DuplexStream {
    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    client.0.adopt(target, wire::Wire::Boxed(Box::new(ours)), uses);
    theirs
}

/// Reads up to the end of a request's head.
pub(super) async fn read_head(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8(head).unwrap()
}

/// Reads one request without a body and answers it with `bytes`.
pub(super) async fn answer(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), bytes: &[u8]) -> String {
    let head = read_head(stream).await;
    stream.write_all(bytes).await.unwrap();
    head
}

/// What the sender of a request saw.
#[derive(Debug, PartialEq)]
pub(super) enum Seen {
    Failed(Stage),
    Answered {
        status: u16,
        headers: Vec<(String, String)>,
        data: Vec<u8>,
        trailers: Vec<(String, String)>,
        error: Option<Kind>,
    },
}

pub(super) fn fields(map: &HeaderMap) -> Vec<(String, String)> {
    map.iter().map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned())).collect()
}

pub(super) async fn fetch(client: &Client, target: &Arc<Target>, method: Method, body: Body) -> Seen {
    let path = PathAndQuery::from_static("/x");
    let headers = HeaderMap::new();
    let head = Head { method: &method, path: &path, headers: &headers, extra: &[], repeatable: true };
    match client.send(target, head, body).await {
        Err(failure) => Seen::Failed(failure.stage),
        Ok(response) => see(response).await,
    }
}

pub(super) async fn get(client: &Client, target: &Arc<Target>) -> Seen {
    fetch(client, target, Method::GET, Body::empty()).await
}

/// Reads an answer to its end.
pub(super) async fn see(response: Response<Body>) -> Seen {
    let (parts, mut body) = response.into_parts();
    let (mut data, mut trailers, mut error) = (Vec::new(), Vec::new(), None);
    while let Some(frame) = next(&mut body).await {
        match frame {
            Err(failed) => error = Some(failed.kind()),
            Ok(frame) => match frame.into_data() {
                Ok(bytes) => data.extend_from_slice(&bytes),
                Err(frame) => trailers = fields(&frame.into_trailers().unwrap()),
            },
        }
    }
    Seen::Answered { status: parts.status.as_u16(), headers: fields(&parts.headers), data, trailers, error }
}

pub(super) async fn next(body: &mut Body) -> Option<Result<Frame<Bytes>, Error>> {
    poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await
}

impl Seen {
    /// An answer of 200 with this content, whole.
    pub(super) fn is(&self, content: &[u8]) -> bool {
        matches!(self, Self::Answered { status: 200, data, error: None, .. } if data == content)
    }
}

/// A streamed body of prepared frames; waits for ever at its end if told so.
pub(super) struct Script {
    frames: VecDeque<Result<Frame<Bytes>, Error>>,
    stays_open: bool,
    hint: SizeHint,
    /// Frames handed over.
    taken: Rc<RefCell<usize>>,
}

impl Script {
    pub(super) fn new(frames: impl IntoIterator<Item = Result<Frame<Bytes>, Error>>) -> Self {
        let frames = frames.into_iter().collect();
        Self { frames, stays_open: false, hint: SizeHint::default(), taken: Rc::default() }
    }

    pub(super) fn data(frames: &[&'static [u8]]) -> Self {
        Self::new(frames.iter().map(|data| Ok(Frame::data(Bytes::from_static(data)))))
    }

    pub(super) fn with_length(mut self, length: u64) -> Self {
        self.hint = SizeHint::with_exact(length);
        self
    }

    pub(super) fn stays_open(mut self) -> Self {
        self.stays_open = true;
        self
    }

    pub(super) fn taken(&self) -> Rc<RefCell<usize>> {
        Rc::clone(&self.taken)
    }
}

impl HttpBody for Script {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match self.frames.pop_front() {
            None if self.stays_open => Poll::Pending,
            None => Poll::Ready(None),
            Some(frame) => {
                *self.taken.borrow_mut() += 1;
                Poll::Ready(Some(frame))
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        self.hint
    }
}
