//! HTTP/2 by prior knowledge (h2c), through hyper: the engines have none, gRPC servers and proxies in front of them do.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::{Bytes, BytesMut};
use http_body::{Body as _, Frame};
use hyper::{body::Incoming, service::service_fn};
use tokio::{
    net::TcpStream,
    sync::{mpsc, oneshot},
};

use super::{
    connection::die,
    io::Io,
    server::{self, Sink},
    state::{Request, Shared},
    wire::{Head, Leave},
};

/// The most a body may have.
const MOST_BODY: usize = 256 * 1024 * 1024;
/// Frames that wait for a slow reader.
const FRAMES: usize = 8;

/// Serves the connection until it ends.
pub(crate) async fn serve(shared: Arc<Shared>, stream: TcpStream, before: Bytes) {
    let service = service_fn(move |request| call(Arc::clone(&shared), request));
    let served = hyper::server::conn::http2::Builder::new(Local).serve_connection(Io::new(stream, before), service);
    // How the client ended it is its own affair.
    let _ = served.await;
}

/// Runs hyper's tasks, and answers, on this thread.
#[derive(Clone, Copy)]
struct Local;

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for Local {
    #[expect(clippy::disallowed_methods, reason = "streams of a connection end with it: their channels close")]
    fn execute(&self, task: F) {
        tokio::task::spawn_local(task);
    }
}

async fn call(shared: Arc<Shared>, request: http::Request<Incoming>) -> Result<http::Response<Answer>, Broken> {
    shared.add(&shared.counters.requests, 1);
    let (parts, incoming) = request.into_parts();
    if parts.uri.path() == "/sim/echo" {
        return Ok(http::Response::new(Answer::Echo(incoming)));
    }
    let request = Request {
        method: parts.method.to_string(),
        target: parts.uri.path_and_query().map_or_else(|| "/".to_owned(), ToString::to_string),
        version: "HTTP/2",
        headers: parts.headers.iter().map(|(n, v)| (n.to_string(), v.as_bytes().to_vec())).collect(),
        head: Bytes::new(),
        body: read(incoming).await?,
    };
    let (head, answered) = oneshot::channel();
    let (frames, body) = mpsc::channel(FRAMES);
    let reply = Reply { head: Some(head), frames: frames.clone() };
    hyper::rt::Executor::execute(&Local, async move {
        match server::respond(&shared, Arc::new(request), Sink::Two(reply)).await {
            Ok(()) | Err(Leave::Gone) => {}
            Err(Leave::Fin | Leave::Reset) => drop(frames.send(Err(Broken)).await),
            Err(Leave::Die) => die(&shared).await,
        }
    });
    let head = answered.await.map_err(|_| Broken)?;
    Ok(head.map(|()| Answer::Frames(body)))
}

async fn read(mut incoming: Incoming) -> Result<Bytes, Broken> {
    let mut whole = BytesMut::new();
    while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut incoming).poll_frame(cx)).await {
        let Ok(data) = frame.map_err(|_| Broken)?.into_data() else { continue };
        whole.extend_from_slice(&data);
        if whole.len() > MOST_BODY {
            return Err(Broken);
        }
    }
    Ok(whole.freeze())
}

/// Where the answer to one HTTP/2 request goes.
#[derive(Debug)]
pub(crate) struct Reply {
    head: Option<oneshot::Sender<http::Response<()>>>,
    frames: mpsc::Sender<Result<Frame<Bytes>, Broken>>,
}

impl Reply {
    pub(crate) fn begin(&mut self, head: &Head) -> Result<(), Leave> {
        let mut response = http::Response::builder().status(head.status);
        if !head.content_type.is_empty() {
            response = response.header("content-type", head.content_type);
        }
        for (name, value) in &head.extra {
            response = response.header(*name, value.as_str());
        }
        let response = response.body(()).map_err(|_| Leave::Reset)?;
        let sent = self.head.take().is_some_and(|to| to.send(response).is_ok());
        if sent { Ok(()) } else { Err(Leave::Gone) }
    }

    pub(crate) async fn data(&mut self, bytes: &[u8]) -> Result<(), Leave> {
        self.frame(Frame::data(Bytes::copy_from_slice(bytes))).await
    }

    pub(crate) async fn end(&mut self, trailers: &[(&str, &str)]) -> Result<(), Leave> {
        if trailers.is_empty() {
            return Ok(());
        }
        let mut map = http::HeaderMap::new();
        for (name, value) in trailers {
            let name = http::HeaderName::try_from(*name).map_err(|_| Leave::Reset)?;
            map.insert(name, http::HeaderValue::try_from(*value).map_err(|_| Leave::Reset)?);
        }
        self.frame(Frame::trailers(map)).await
    }

    pub(crate) async fn gone(&mut self) -> Leave {
        match &mut self.head {
            Some(head) => head.closed().await,
            None => self.frames.closed().await,
        }
        Leave::Gone
    }

    async fn frame(&mut self, frame: Frame<Bytes>) -> Result<(), Leave> {
        self.frames.send(Ok(frame)).await.map_err(|_| Leave::Gone)
    }
}

/// The stream is reset.
#[derive(Debug)]
pub(crate) struct Broken;

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("cut as asked")
    }
}

impl std::error::Error for Broken {}

enum Answer {
    Frames(mpsc::Receiver<Result<Frame<Bytes>, Broken>>),
    Echo(Incoming),
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        match &mut *self {
            Self::Frames(frames) => frames.poll_recv(cx),
            Self::Echo(incoming) => Pin::new(incoming).poll_frame(cx).map_err(|_| Broken),
        }
    }
}
