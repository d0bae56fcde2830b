//! A listener on a loopback socket, its clients on the same thread, and time that stands still until all wait.

use std::{
    cell::RefCell,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, atomic::AtomicU64},
    task::Context,
};

use bytes::Bytes;
use http_body::Frame;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::LocalSet,
};

use super::*;
use crate::runtime::drain::DrainHandle;

mod drain;
mod http1;
mod http2;
mod socket;

/// A served listener and what it counted.
struct Bench {
    address: SocketAddr,
    counts: Counts,
    limit: Limit,
    drain: DrainHandle,
    served: tokio::task::JoinHandle<std::io::Result<()>>,
}

#[derive(Clone, Default)]
struct Counts {
    accepted: Arc<AtomicU64>,
    refused: Arc<AtomicU64>,
    accept_failures: Arc<AtomicU64>,
    late_heads: Arc<AtomicU64>,
    stalled: Arc<AtomicU64>,
    tls_failures: Arc<AtomicU64>,
    folded: Arc<AtomicU64>,
    panics: Arc<AtomicU64>,
}

fn count(counter: &Arc<AtomicU64>) -> u64 {
    counter.load(Ordering::Relaxed)
}

impl Counts {
    fn stats(&self) -> Stats {
        let counter = |cell: &Arc<AtomicU64>| metrics::Counter::from_arc(Arc::clone(cell));
        Stats {
            accepted: counter(&self.accepted),
            refused: counter(&self.refused),
            accept_failures: counter(&self.accept_failures),
            late_heads: counter(&self.late_heads),
            stalled: counter(&self.stalled),
            tls_failures: counter(&self.tls_failures),
            folded: counter(&self.folded),
            panics: counter(&self.panics),
            ..Stats::noop()
        }
    }
}

/// Runs `test` with paused time on a thread of its own runtime.
fn paused<F: Future<Output = ()>>(test: F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    LocalSet::new().block_on(&runtime, test);
}

fn settings() -> Settings {
    Settings {
        header_bytes: 64 * 1024,
        max_headers: MAX_HEADERS,
        header_timeout: Duration::from_secs(10),
        idle: IDLE,
        limit: Limit::new(10_000),
        tls: None,
    }
}

#[expect(clippy::disallowed_methods, reason = "a test's own tasks")]
fn start<F: Future + 'static>(task: F) -> tokio::task::JoinHandle<F::Output> {
    tokio::task::spawn_local(task)
}

impl Bench {
    /// Serves `answer`.
    fn new<A>(settings: Settings, answer: A) -> Self
    where
        A: Fn(Rc<Peer>, Request<Upload>) -> Answering + 'static,
    {
        let ticker = Ticker::default();
        start(ticker.clone().run());
        Self::timed(settings, ticker, answer)
    }

    /// The same, by a clock that the test moves.
    fn timed<A>(settings: Settings, ticker: Ticker, answer: A) -> Self
    where
        A: Fn(Rc<Peer>, Request<Upload>) -> Answering + 'static,
    {
        let socket = bind(&crate::config::Listen::Tcp(([127, 0, 0, 1], 0).into()), 1).unwrap().remove(0);
        let address = socket.address().unwrap();
        let counts = Counts::default();
        let (handle, drain) = DrainHandle::new();
        let limit = settings.limit.clone();
        let answer = Rc::new(answer);
        let make = move |peer: Rc<Peer>| {
            let answer = Rc::clone(&answer);
            hyper::service::service_fn(move |request| answer(Rc::clone(&peer), request))
        };
        let served = start(serve(socket, Rc::new(settings), ticker, drain, counts.stats(), make));
        Self { address, counts, limit, drain: handle, served }
    }

    /// Serves [`echo`].
    fn echo() -> Self {
        Self::new(settings(), |_, request| Box::pin(echo(request)))
    }

    async fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).await.unwrap();
        // Time stands still here, but not for the kernel: it must hold nothing back.
        stream.set_nodelay(true).unwrap();
        stream
    }
}

/// Answers with method, path and body.
async fn echo(request: Request<Upload>) -> Result<Response<Body>, Infallible> {
    let (head, upload) = request.into_parts();
    let body = Body::upload(upload).read(1 << 20).await;
    let text = match body {
        Ok(body) => format!("{} {} {}", head.method, head.uri.path(), String::from_utf8_lossy(&body)),
        Err(error) => format!("{:?}", error.kind()),
    };
    Ok(Response::new(Body::whole(text)))
}

/// A service that does not answer before it is told to.
#[derive(Clone, Default)]
struct Hold(Rc<RefCell<Vec<tokio::sync::oneshot::Sender<()>>>>, Rc<Notify>);

impl Hold {
    fn answer(&self) -> Answering {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        self.0.borrow_mut().push(sender);
        self.1.notify_one();
        Box::pin(async move {
            let _ = receiver.await;
            Ok(Response::new(Body::whole("held")))
        })
    }

    /// Waits until a request is held.
    async fn held(&self) {
        while self.0.borrow().is_empty() {
            self.1.notified().await;
        }
    }

    fn release(&self) {
        self.0.borrow_mut().drain(..).for_each(|sender| {
            let _ = sender.send(());
        });
    }
}

/// Zeros without end.
struct Endless;

impl http_body::Body for Endless {
    type Data = Bytes;
    type Error = crate::error::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, crate::error::Error>>> {
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&[0; 16384])))))
    }
}

const GET: &[u8] = b"GET /x HTTP/1.1\r\nhost: a\r\n\r\n";

/// Reads until `end` was seen; all that came.
async fn until(stream: &mut TcpStream, end: &str) -> String {
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains(end) {
        let n = stream.read_buf(&mut seen).await.unwrap();
        assert!(n > 0, "ended after {:?}", String::from_utf8_lossy(&seen));
    }
    String::from_utf8_lossy(&seen).into_owned()
}

/// Reads to the end; all that came. A reset counts as an end.
async fn rest(stream: &mut TcpStream) -> String {
    let mut seen = Vec::new();
    while let Ok(1..) = stream.read_buf(&mut seen).await {}
    String::from_utf8_lossy(&seen).into_owned()
}

async fn secs(n: u64) {
    tokio::time::sleep(Duration::from_secs(n)).await;
}
