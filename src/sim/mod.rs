//! One simulated backend: shipped, and the only fake in the repository. Tests, benches and the demo use this one.
//!
//! It speaks like vLLM, SGLang or llama.cpp (shapes, headers, keep-alive habits, metrics, errors), says tokens that
//! anybody can work out again ([`expected`]), takes time as it is told ([`Pace`]), and goes wrong on cue ([`Fault`]):
//! by flag, by [`Handle::fault`], or at `POST /sim/fault`. It shares no wire code with the gateway: HTTP/1.1 and all
//! bodies are written by hand, so that one mistake cannot hide on both sides.
//!
//! ```text
//! connection ─► server ─► script (which fault strikes?) ─► state (a slot) ─► pace ─► generate ─► wire
//! ```
//!
//! Beside the engines' endpoints there are, for tests: `/sim/last` (the last request as it came), `/sim/state`,
//! `/sim/fault`, `/sim/model`, `/sim/release`, `/sim/echo`, `/sim/bytes?n=`, `/sim/status?code=`, `/sim/raw`.

mod coding;
mod connection;
mod engine;
mod generate;
mod http2;
pub(crate) mod io;
pub mod metadata;
mod pace;
mod script;
mod server;
mod state;
mod vocabulary;
mod websocket;
mod wire;

#[cfg(test)]
mod tests;

use std::{
    io::{Error, Result},
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, mpsc::sync_channel},
    thread::JoinHandle,
    time::Duration,
};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinSet,
    time::Instant,
};

use self::state::{Done, Order, Shared};
pub use self::{
    engine::Engine,
    generate::{Source, expected},
    pace::Pace,
    script::{Fault, Kind, Once, Point},
    state::{Request, Snapshot},
};

/// What a sim is like.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Where it listens; port 0 = any free one.
    pub listen: SocketAddr,
    pub engine: Engine,
    /// Models it has from the start; the first is the default.
    pub models: Vec<String>,
    /// Models that appear later.
    pub late_models: Vec<LateModel>,
    pub pace: Pace,
    /// Requests that run at the same time, others wait; 0 = no bound.
    pub slots: usize,
    /// Of tokens (unless the request has one), jitter and chance.
    pub seed: u64,
    /// Length in tokens at which every answer stops by itself; unset = by prompt, 8 to 71.
    pub length: Option<u64>,
    /// How long an idle connection is kept; unset = as the engine does.
    pub idle: Option<Duration>,
    /// Requests on one connection before it is closed; unset = as the engine does.
    pub requests_per_connection: Option<u64>,
    /// Tokens end inside characters: a word that ends in a character of several bytes is shown only with the token
    /// after it, as by a byte-level tokenizer. Its id is told at once.
    pub split_utf8: bool,
    /// Whether `return_token_ids` is known; an older vLLM answers 400.
    pub token_ids: bool,
    pub faults: Vec<Fault>,
}

/// A model, such as a LoRA adapter, that is there after so many reads of the model list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LateModel {
    pub name: String,
    pub after: u64,
}

impl std::str::FromStr for LateModel {
    type Err = String;

    fn from_str(written: &str) -> std::result::Result<Self, String> {
        let (name, after) = written.split_once('=').ok_or("write NAME=N: there after N reads of the model list")?;
        let after = after.parse().map_err(|_| format!("`{after}` is not a whole number"))?;
        Ok(Self { name: name.to_owned(), after })
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            engine: Engine::Vllm,
            models: vec!["sim".to_owned()],
            late_models: Vec::new(),
            pace: Pace::default(),
            slots: 0,
            seed: 0,
            length: None,
            idle: None,
            requests_per_connection: None,
            split_utf8: false,
            token_ids: true,
            faults: Vec::new(),
        }
    }
}

impl Config {
    fn idle(&self) -> Duration {
        self.idle.unwrap_or_else(|| self.engine.idle())
    }

    fn requests_per_connection(&self) -> u64 {
        self.requests_per_connection.unwrap_or_else(|| self.engine.requests_per_connection())
    }
}

/// Starts simulated backends.
#[derive(Debug)]
pub struct Sim;

impl Sim {
    /// Starts one on a thread of its own.
    ///
    /// # Errors
    /// When it cannot listen on its address, or has no thread or runtime to run on.
    pub fn start(config: Config) -> Result<Handle> {
        let socket = bind(config.listen)?;
        let addr = socket.local_addr()?;
        let (orders, received) = mpsc::channel(ORDERS);
        let shared = Arc::new(Shared::new(config, orders));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let main = Main { shared: Arc::clone(&shared), addr, connections: JoinSet::new(), reopen: None };
        let run = move || {
            tokio::task::LocalSet::new().block_on(&runtime, main.run(socket, received));
        };
        let thread = std::thread::Builder::new().name(format!("sim:{}", addr.port())).spawn(run)?;
        Ok(Handle { shared, addr, thread: Some(thread) })
    }
}

/// Orders under way at most.
const ORDERS: usize = 64;

/// Steers a running sim, from any thread. Dropped, the sim ends.
#[derive(Debug)]
pub struct Handle {
    shared: Arc<Shared>,
    addr: SocketAddr,
    thread: Option<JoinHandle<()>>,
}

impl Handle {
    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// `http://address`.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Its counters now.
    pub fn state(&self) -> Snapshot {
        self.shared.snapshot()
    }

    /// Waits until its counters are as `wanted` says. Works on any runtime.
    pub async fn until(&self, wanted: impl Fn(&Snapshot) -> bool) -> Snapshot {
        self.shared.until(wanted).await
    }

    /// Adds a fault; dropped when 1024 are waiting.
    pub fn fault(&self, fault: Fault) {
        self.shared.script.add(fault);
    }

    /// Removes all faults that have not struck.
    pub fn clear_faults(&self) {
        self.shared.script.clear();
    }

    /// Lets requests that a hang or a stall holds go on.
    pub fn release(&self) {
        self.shared.released.send_modify(|times| *times += 1);
    }

    /// Adds a model.
    pub fn add_model(&self, name: &str) {
        self.shared.add_model(name);
    }

    /// Removes a model.
    pub fn remove_model(&self, name: &str) {
        self.shared.remove_model(name);
    }

    /// The last request as it came: of this path, or of any but health, metrics, model lists and `/sim/`.
    pub fn last(&self, path: Option<&str>) -> Option<Arc<Request>> {
        self.shared.last(path)
    }

    /// Closes every socket at once, as the kernel does after SIGKILL: nothing listens until [`Handle::revive`].
    pub fn kill(&self) {
        // A sim that has ended is as dead as was asked.
        let _ = self.order(Order::Kill);
    }

    /// Listens again on the same port, with the same counters.
    ///
    /// # Errors
    /// When the port cannot be had again.
    pub fn revive(&self) -> Result<()> {
        self.order(Order::Revive)
    }

    /// Stands still, as after SIGSTOP: connections stay open, the kernel accepts more, nothing is read or written until
    /// [`Handle::thaw`]. A kill or a revival waits for that too.
    pub fn freeze(&self) {
        self.shared.set_frozen(true);
        // Full: it has orders to read, stands still once it has, and reads this one later.
        let _ = self.shared.orders.try_send(Order::Freeze);
    }

    /// Goes on after [`Handle::freeze`] or a fault that froze it.
    pub fn thaw(&self) {
        self.shared.set_frozen(false);
    }

    /// Whether it is alive: not killed, and not dead by a fault.
    pub fn is_alive(&self) -> bool {
        *self.shared.alive.borrow()
    }

    /// Waits until it is killed or dies by a fault.
    pub async fn died(&self) {
        let mut alive = self.shared.alive.subscribe();
        // The sender lives in `shared`, so this ends by death alone.
        let _ = alive.wait_for(|alive| !alive).await;
    }

    /// Sends an order and waits, without a runtime, until it is carried out.
    fn order(&self, order: impl Fn(Done) -> Order) -> Result<()> {
        let (done, carried_out) = sync_channel(1);
        let mut order = order(Some(done));
        while let Err(refused) = self.shared.orders.try_send(order) {
            match refused {
                mpsc::error::TrySendError::Full(back) => order = back,
                mpsc::error::TrySendError::Closed(_) => return Err(ended()),
            }
            std::thread::yield_now();
        }
        carried_out.recv().unwrap_or_else(|_| Err(ended()))
    }
}

fn ended() -> Error {
    Error::other("the sim has ended")
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.thaw();
        // Full means that orders are being read: try until there is room, or nobody to tell.
        while let Err(mpsc::error::TrySendError::Full(_)) = self.shared.orders.try_send(Order::Stop) {
            std::thread::yield_now();
        }
        if let Some(thread) = self.thread.take() {
            // A panic of the sim has been printed by its own thread.
            let _ = thread.join();
        }
    }
}

fn bind(addr: SocketAddr) -> Result<std::net::TcpListener> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(addr), socket2::Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    socket.listen(1024)?;
    Ok(socket.into())
}

/// The task that owns all sockets of a sim.
struct Main {
    shared: Arc<Shared>,
    addr: SocketAddr,
    connections: JoinSet<()>,
    /// When a refusing sim listens again.
    reopen: Option<Instant>,
}

impl Main {
    async fn run(mut self, socket: std::net::TcpListener, mut orders: mpsc::Receiver<Order>) {
        let mut listener = TcpListener::from_std(socket).ok();
        loop {
            tokio::select! {
                order = orders.recv() => match order {
                    None | Some(Order::Stop) => return,
                    Some(order) => self.obey(order, &mut listener).await,
                },
                stream = accept(&listener) => self.connect(stream),
                () = until(self.reopen) => {
                    self.reopen = None;
                    // A port lost meanwhile stays refused; whoever tests it sees exactly that.
                    let _ = self.listen(&mut listener);
                }
                Some(_) = self.connections.join_next() => {}
            }
        }
    }

    async fn obey(&mut self, order: Order, listener: &mut Option<TcpListener>) {
        let (done, result) = match order {
            Order::Kill(done) => {
                *listener = None;
                self.reopen = None;
                self.shared.set_dying(true);
                self.connections.shutdown().await;
                self.shared.set_dying(false);
                self.shared.alive.send_replace(false);
                (done, Ok(()))
            }
            Order::Revive(done) => (done, self.listen(listener)),
            Order::Refuse(time) => {
                *listener = None;
                self.reopen = Some(Instant::now() + time);
                (None, Ok(()))
            }
            Order::Freeze => {
                self.shared.stand_still();
                (None, Ok(()))
            }
            Order::Stop => (None, Ok(())),
        };
        if let Some(done) = done {
            // Who asked has stopped waiting.
            let _ = done.send(result);
        }
    }

    fn listen(&mut self, listener: &mut Option<TcpListener>) -> Result<()> {
        if listener.is_none() {
            *listener = Some(TcpListener::from_std(bind(self.addr)?)?);
        }
        self.shared.alive.send_replace(true);
        Ok(())
    }

    fn connect(&mut self, stream: TcpStream) {
        // Without it small events wait for the acknowledgement of the one before.
        let _ = stream.set_nodelay(true);
        self.connections.spawn_local(connection::serve(Arc::clone(&self.shared), stream));
    }
}

/// The next connection; none ever while nothing listens.
async fn accept(listener: &Option<TcpListener>) -> TcpStream {
    let Some(listener) = listener else { return std::future::pending().await };
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            // Out of descriptors, or a connection that was reset in the queue: the next may do.
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
