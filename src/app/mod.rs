//! Composition root: a [`Config`] becomes an [`App`]: sockets bound, both planes built, run until drained.
//!
//! Threads: one per worker (data plane), and the one that calls [`App::run`] (control and admin plane). They share
//! `Shared`: the fleet, the registry of metrics, the drain, and the configuration in force.

mod cache;
mod control;
mod gauges;
mod interruption;
mod live;
mod probe;
mod remote;
mod worker;

use std::{
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, OnceLock},
    thread,
};

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, oneshot, watch};
use tracing_subscriber::filter::LevelFilter;

use crate::{
    admin::Admin,
    body::{Body, Upload},
    config::{self, AdminAt, Config, Env, Flags, Level},
    control::reload::ReloadStatus,
    fleet::{Fleet, interruption::Own, response_ids::ResponseIds},
    listener::{self, BindError, Limit, Socket, tls},
    proxy::{
        cache::{
            self as caching, Keys, SecondTier,
            remote::{Remote, Waiting},
        },
        compress,
        headers::Via,
        memory::Memory,
        route,
        salt::Salts,
    },
    runtime::{
        descriptors,
        drain::{Drain, DrainHandle, Phase},
        readiness::Readiness,
        signal::{Signal, Signals},
    },
    telemetry::{Outlet, access, logging::LevelHandle, metrics::Registry},
};

pub use self::{
    interruption::{Agent, agent},
    live::live,
};

/// A gateway whose sockets are bound and which is not running yet.
#[derive(Debug)]
pub struct App {
    shared: Arc<Shared>,
    configs: watch::Sender<Arc<Config>>,
    drain: DrainHandle,
    sockets: Vec<Socket>,
    admin: Option<Socket>,
    orders: mpsc::Receiver<Signal>,
    refreshes: mpsc::Receiver<Refresh>,
    /// For the second tier of the cache.
    remote: Option<Waiting>,
    deaths: (mpsc::Sender<&'static str>, mpsc::Receiver<&'static str>),
    stop: Stop,
    options: Options,
}

/// What a start may want besides the configuration.
#[derive(Debug, Default)]
pub struct Options {
    /// Where the configuration came from, to be read again; `None` = it never changes.
    pub source: Option<Source>,
    /// React to SIGTERM, SIGINT and SIGHUP.
    pub signals: bool,
    /// The running log, whose level a reload may change.
    pub log: Option<LevelHandle>,
}

/// A configuration that can be read again.
#[derive(Clone, Debug)]
pub struct Source {
    pub file: Option<PathBuf>,
    pub env: Env,
    pub flags: Flags,
    /// Files whose change asks for a reload.
    pub watch: Vec<PathBuf>,
}

/// What both planes and all workers share.
#[derive(Debug)]
struct Shared {
    fleet: Arc<Fleet>,
    /// The notice of the machine this runs on.
    own: Arc<Own>,
    /// The same, for those on the control plane's thread.
    known: interruption::Known,
    registry: Registry,
    /// Where access lines go; `None` = nobody wants them.
    access: Option<Outlet>,
    drain: Drain,
    config: Arc<ArcSwap<Config>>,
    limit: Limit,
    memory: Memory,
    /// Memory of the encoders of answers.
    encoders: compress::Budget,
    response_ids: ResponseIds,
    /// The second tier of the cache.
    remote: Option<Remote>,
    queue: Arc<route::Queue>,
    budget: Arc<route::Budget>,
    cache: Arc<caching::Shared>,
    /// For backends' prefix caches.
    salts: Salts,
    /// Asks the control plane to read the model lists again.
    refresh: mpsc::Sender<Refresh>,
    via: Via,
    /// Different in every process: what request ids start from.
    seed: u64,
    tls: Option<Arc<tls::Reloading>>,
    admin_tls: Option<Arc<tls::Reloading>>,
    readiness: Readiness,
    reload: ReloadStatus,
    admin: OnceLock<Admin>,
}

impl Shared {
    async fn admin(&self, request: http::Request<Upload>, path: &str) -> http::Response<Body> {
        let (head, body) = request.into_parts();
        match self.admin.get() {
            Some(admin) => admin.answer(&head, path, Body::upload(body)).await,
            None => http::Response::new(Body::empty()),
        }
    }
}

/// A model that is on nobody's list; answered once the lists are fresh.
#[derive(Debug)]
struct Refresh {
    model: Arc<str>,
    done: oneshot::Sender<()>,
}

/// Refreshes that may wait; above, a call goes on without.
const REFRESHES: usize = 1024;

/// Ends a running gateway, from any thread.
#[derive(Clone, Debug)]
pub struct Stop(mpsc::Sender<Signal>);

/// Why it cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
    #[error("a thread or runtime cannot be made: {0}; the system's limits on threads or descriptors are too low")]
    Runtime(io::Error),
    #[error("{0}")]
    Agent(String),
    #[error("the {0} died")]
    Died(&'static str),
}

impl App {
    /// Binds every socket and builds what is shared.
    ///
    /// # Errors
    /// An address that is taken, a certificate that cannot be read.
    pub fn bind(config: Config, options: Options) -> Result<Self, AppError> {
        let sockets = listener::bind(&config.listen, config.workers)?;
        let admin = match &config.admin.at {
            AdminAt::Tcp(address) => {
                listener::bind(&config::Listen::Tcp(*address), 1).map_err(|error| error.by("`admin` or --admin"))?.pop()
            }
            AdminAt::Off | AdminAt::Same => None,
        };
        let reloading = |files: &Option<_>| files.as_ref().map(tls::Reloading::new).transpose();
        let (drain, watched) = DrainHandle::new();
        let (orders_in, orders) = mpsc::channel(8);
        let (refresh, refreshes) = mpsc::channel(REFRESHES);
        let seed = random();
        let fleet = Fleet::new(&config);
        let (remote, waiting) = remote::build(&config).unzip();
        let shared = Shared {
            queue: route::Queue::new(&fleet),
            budget: route::Budget::new(),
            cache: Arc::new(caching::Shared::new(
                &config.cache,
                Keys::new(config.cache.key.as_ref()),
                remote.clone().map(|remote| Box::new(remote) as Box<dyn SecondTier>),
            )),
            salts: Salts::new(config.cache.key.as_ref()),
            refresh,
            fleet,
            own: Arc::default(),
            known: interruption::Known::new(None),
            registry: Registry::new(),
            access: if config.log.access { Some(access::stdout().map_err(AppError::Runtime)?) } else { None },
            drain: watched,
            limit: Limit::new(connections(&config)),
            memory: Memory::new(config.limits.body_memory),
            encoders: compress::Budget::new(config.compression.memory),
            response_ids: ResponseIds::default(),
            remote,
            via: Via::new(&format!("{:08x}", seed as u32)),
            seed,
            tls: reloading(&config.tls)?,
            admin_tls: reloading(&config.admin.tls)?,
            config: Arc::new(ArcSwap::from_pointee(config.clone())),
            readiness: Readiness::new(),
            reload: ReloadStatus::default(),
            admin: OnceLock::new(),
        };
        let shared = Arc::new(shared);
        gauges::collect(&shared);
        let stop = Stop(orders_in);
        // Set here and nowhere else.
        let _ = shared.admin.set(control::admin(&shared, &stop, admin.as_ref().and_then(Socket::address)));
        let (configs, _) = watch::channel(Arc::new(config));
        Ok(Self {
            shared,
            configs,
            drain,
            sockets,
            admin,
            orders,
            refreshes,
            remote: waiting,
            deaths: mpsc::channel(1),
            stop,
            options,
        })
    }

    /// The data plane's address; `None` for a unix socket.
    pub fn listens_at(&self) -> Option<SocketAddr> {
        self.sockets.first().and_then(Socket::address)
    }

    /// The admin plane's own address, if it has one.
    pub fn admin_at(&self) -> Option<SocketAddr> {
        self.admin.as_ref().and_then(Socket::address)
    }

    /// Ends the app once it runs.
    pub fn stop(&self) -> Stop {
        self.stop.clone()
    }

    /// Runs both planes on this thread and the workers' until the last request has ended.
    ///
    /// # Errors
    /// When a thread cannot be made, or one of them died.
    pub fn run(self) -> Result<(), AppError> {
        let workers = self
            .sockets
            .into_iter()
            .enumerate()
            .map(|(index, socket)| {
                let (shared, configs) = (Arc::clone(&self.shared), self.configs.subscribe());
                let guard = self.shared.drain.guard();
                let alive = Alive { drain: self.shared.drain.clone(), told: self.deaths.0.clone() };
                thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
                    let ended = worker::run(&shared, configs, socket, index);
                    drop((alive, guard));
                    ended
                })
            })
            .collect::<Result<Vec<_>, _>>()
            .map_err(AppError::Runtime)?;
        let control = control::Control {
            shared: Arc::clone(&self.shared),
            configs: self.configs,
            drain: self.drain,
            orders: self.orders,
            refreshes: self.refreshes,
            remote: self.remote,
            deaths: self.deaths.1,
            stop: self.stop,
            options: self.options,
        };
        control.run(self.admin)?;
        for worker in workers {
            worker.join().map_err(|_| AppError::Died("worker"))?.map_err(AppError::Runtime)?;
        }
        Ok(())
    }
}

/// Tells, when it is dropped before the drain began, that its worker died: by return or by panic.
struct Alive {
    drain: Drain,
    told: mpsc::Sender<&'static str>,
}

impl Drop for Alive {
    fn drop(&mut self) {
        if self.drain.phase() < Phase::Draining {
            // Full: another has died already.
            let _ = self.told.try_send("worker");
        }
    }
}

impl Stop {
    /// As SIGTERM: readiness off, finish what runs, end.
    pub fn terminate(&self) {
        self.give(Signal::Terminate);
    }

    /// As a second SIGTERM.
    pub fn at_once(&self) {
        self.give(Signal::Terminate);
        self.give(Signal::Terminate);
    }

    /// As SIGHUP.
    pub fn reload(&self) {
        self.give(Signal::Reload);
    }

    async fn on_signals(self) {
        let mut signals = match Signals::new() {
            Ok(signals) => signals,
            Err(error) => return tracing::error!(%error, "cannot listen to signals"),
        };
        loop {
            self.give(signals.next().await);
        }
    }

    fn give(&self, signal: Signal) {
        // Full or closed: it is ending already.
        let _ = self.0.try_send(signal);
    }
}

/// `limits.connections`, or as many as there are descriptors for.
fn connections(config: &Config) -> usize {
    let (wanted, room) = (config.limits.connections, descriptors::for_clients(config.workers));
    if wanted > room {
        tracing::warn!(
            wanted,
            room,
            "limits.connections is more than this process may have; over `room` clients are refused: raise the limit of \
             open files (ulimit -n, LimitNOFILE=)"
        );
    }
    wanted.min(room)
}

/// The configured level in the words of the log.
pub fn level(level: Level) -> LevelFilter {
    match level {
        Level::Error => LevelFilter::ERROR,
        Level::Warn => LevelFilter::WARN,
        Level::Info => LevelFilter::INFO,
        Level::Debug => LevelFilter::DEBUG,
        Level::Trace => LevelFilter::TRACE,
    }
}

/// The keys of the standard library's hasher are random in every process.
fn random() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::process::id())
}
