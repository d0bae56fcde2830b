//! One worker: its own thread, runtime, socket, connections and stack.

use std::{cell::RefCell, collections::HashSet, io, rc::Rc, sync::Arc};

use hyper::service::Service;
use tokio::{
    runtime::{Builder, LocalOptions},
    sync::{mpsc, oneshot, watch},
};

use super::{Refresh, Shared};
use crate::{
    admin,
    body::Upload,
    client::{self, Client, Counters, Resolver},
    config::{AdminAt, Config},
    listener::{self, Answering, Peer, Socket, Stats},
    proxy::{
        EdgeService, Inbound,
        cache::{Cache, Counters as CacheCounters, form},
        compress::{Compress, Pool},
        headers::Forwarded,
        local::Local,
        normalize::{Counters as PayloadCounters, Images, Rules, Settings, edit},
        observe::{Ids, Metrics, Observe},
        resume::{Counters as ResumeCounters, Forms, Moves, Resume},
        route,
        slim::Slim,
        stack::{self, Pieces},
        transcript::Desk,
        upstream::{Counters as OwnCounters, Own, Targets, Upstream},
    },
    runtime::{drain::Phase, ticker::Ticker},
    telemetry::{
        access::{self, AccessLog},
        metrics::{Name, Table},
    },
};

/// What outlives a reload on this worker.
struct Worker {
    shared: Arc<Shared>,
    ticker: Ticker,
    table: Table,
    metrics: Rc<Metrics>,
    ids: Rc<Ids>,
    access_log: Rc<AccessLog>,
    retries: route::Counters,
    /// Where news of shared answers arrive.
    desk: Rc<Desk>,
    cached: Rc<CacheCounters>,
    encoders: Rc<Pool>,
    edited: Rc<edit::Counters>,
    own: OwnCounters,
    /// The streams under way.
    moves: Rc<Moves>,
    resumes: Rc<ResumeCounters>,
    payloads: Rc<PayloadCounters>,
    /// Ids of backends that refuse to tell token ids.
    mute: Rc<RefCell<HashSet<u64>>>,
    /// They and their connections survive a reload.
    targets: Rc<RefCell<Targets>>,
    resolver: Rc<Resolver>,
    /// The client, and what it was made of.
    client: RefCell<(client::Settings, Client)>,
    config: RefCell<Arc<Config>>,
    edge: RefCell<EdgeService>,
}

/// Serves `socket` until the drain lets go.
pub(super) fn run(
    shared: &Arc<Shared>,
    configs: watch::Receiver<Arc<Config>>,
    socket: Socket,
    index: usize,
) -> io::Result<()> {
    let runtime = Builder::new_current_thread().enable_io().enable_time().build_local(LocalOptions::default())?;
    runtime.block_on(serve(Arc::clone(shared), configs, socket, index))
}

async fn serve(
    shared: Arc<Shared>,
    mut configs: watch::Receiver<Arc<Config>>,
    socket: Socket,
    index: usize,
) -> io::Result<()> {
    let ticker = Ticker::default();
    let config = Arc::clone(&configs.borrow_and_update());
    let settings = Rc::new(listener::Settings::new(&config.limits, shared.limit.clone(), shared.tls.clone()));
    let worker = Rc::new(Worker::new(Arc::clone(&shared), ticker.clone(), config, index));
    let stats = stats(&worker.table);
    spawn(Rc::clone(&worker).follow(configs));
    let desk = Rc::clone(&worker.desk);
    spawn(Rc::clone(&desk).run());
    spawn(Rc::clone(&worker.moves).run(shared.fleet.interruptions()));
    let mut drain = shared.drain.clone();
    let clock = ticker.clone();
    let serving = async {
        let make = move |peer| Connection::new(&worker, peer);
        listener::serve(socket, settings, clock, drain.clone(), stats, make).await?;
        // Answers that clients of other workers still read.
        tokio::select! {
            () = desk.idle() => {}
            () = drain.reached(Phase::Ending) => {}
        }
        Ok(())
    };
    tokio::select! {
        served = serving => served,
        // It never ends; should a chore of its panic, the worker goes down with it, and the process is told.
        () = ticker.run() => Err(io::Error::other("the worker's clock stopped")),
    }
}

#[expect(clippy::disallowed_methods, reason = "the reload of a worker ends with its runtime")]
fn spawn(task: impl Future<Output = ()> + 'static) {
    tokio::task::spawn_local(task);
}

impl Worker {
    fn new(shared: Arc<Shared>, ticker: Ticker, config: Arc<Config>, index: usize) -> Self {
        let table = shared.registry.table();
        let metrics = Rc::new(Metrics::new(table.clone()));
        let ids = Rc::new(Ids::new(shared.seed.wrapping_add((index as u64) << 32)));
        let resolver = Resolver::system();
        let settings = client::Settings::new(config.timeouts.connect, config.limits.header_bytes);
        let client = Client::new(settings.clone(), ticker.clone(), Rc::clone(&resolver), counters(&table));
        let access_log = Rc::new(access_log(&shared, &config));
        let flushed = Rc::downgrade(&access_log);
        ticker.every_tick(move || {
            if let Some(log) = flushed.upgrade() {
                log.flush();
            }
        });
        let retries = retries(&table);
        let (desk, cached) = (Desk::new(), CacheCounters::new(table.clone()));
        let encoders = Pool::new(shared.encoders.clone(), &table);
        encoders.tidy(&ticker);
        let (edited, own) = (Rc::new(edit::Counters::new(&table)), OwnCounters::new(&table));
        let targets = Rc::default();
        let payloads = Rc::new(PayloadCounters::new(&table));
        let (moves, resumes, mute) = (Moves::new(), Rc::new(ResumeCounters::new(&table)), Rc::default());
        let client = RefCell::new((settings, client));
        let parts = Parts {
            shared: &shared,
            ticker: &ticker,
            table: &table,
            metrics: &metrics,
            ids: &ids,
            access_log: &access_log,
            retries: &retries,
            desk: &desk,
            cached: &cached,
            encoders: &encoders,
            edited: &edited,
            own: &own,
            moves: &moves,
            resumes: &resumes,
            payloads: &payloads,
            mute: &mute,
            targets: &targets,
        };
        let edge = RefCell::new(parts.edge(&config, &client.borrow().1));
        Self {
            shared,
            ticker,
            table,
            metrics,
            ids,
            access_log,
            retries,
            desk,
            cached,
            encoders,
            edited,
            own,
            moves,
            resumes,
            payloads,
            mute,
            targets,
            resolver,
            client,
            config: RefCell::new(config),
            edge,
        }
    }

    /// Takes every new configuration: requests under way keep the old stack until they end.
    async fn follow(self: Rc<Self>, mut configs: watch::Receiver<Arc<Config>>) {
        while configs.changed().await.is_ok() {
            let config = Arc::clone(&configs.borrow_and_update());
            let settings = client::Settings::new(config.timeouts.connect, config.limits.header_bytes);
            if settings != self.client.borrow().0 {
                let client = Client::new(
                    settings.clone(),
                    self.ticker.clone(),
                    Rc::clone(&self.resolver),
                    counters(&self.table),
                );
                self.client.replace((settings, client));
            }
            self.targets.borrow_mut().keep(&config.backends, &self.client.borrow().1);
            let parts = Parts {
                shared: &self.shared,
                ticker: &self.ticker,
                table: &self.table,
                metrics: &self.metrics,
                ids: &self.ids,
                access_log: &self.access_log,
                retries: &self.retries,
                desk: &self.desk,
                cached: &self.cached,
                encoders: &self.encoders,
                edited: &self.edited,
                own: &self.own,
                moves: &self.moves,
                resumes: &self.resumes,
                payloads: &self.payloads,
                mute: &self.mute,
                targets: &self.targets,
            };
            self.edge.replace(parts.edge(&config, &self.client.borrow().1));
            self.config.replace(config);
        }
    }
}

/// What a stack is made of, beside its configuration.
struct Parts<'a> {
    shared: &'a Arc<Shared>,
    ticker: &'a Ticker,
    table: &'a Table,
    metrics: &'a Rc<Metrics>,
    ids: &'a Rc<Ids>,
    access_log: &'a Rc<AccessLog>,
    retries: &'a route::Counters,
    desk: &'a Rc<Desk>,
    cached: &'a Rc<CacheCounters>,
    encoders: &'a Rc<Pool>,
    edited: &'a Rc<edit::Counters>,
    own: &'a OwnCounters,
    moves: &'a Rc<Moves>,
    resumes: &'a Rc<ResumeCounters>,
    payloads: &'a Rc<PayloadCounters>,
    mute: &'a Rc<RefCell<HashSet<u64>>>,
    targets: &'a Rc<RefCell<Targets>>,
}

impl Parts<'_> {
    fn edge(&self, config: &Config, client: &Client) -> EdgeService {
        let shared = self.shared;
        let cache = Cache::new(
            Arc::clone(&shared.cache),
            config.cache.clone(),
            Rc::clone(self.desk),
            self.ticker.clone(),
            Rc::clone(self.cached),
        );
        stack::edge(Pieces {
            observe: Rc::new(Observe {
                metrics: Rc::clone(self.metrics),
                access_log: config.log.access.then(|| self.access_log.clone()),
                debug_headers: config.debug_headers,
                ids: Rc::clone(self.ids),
                own: Arc::clone(&shared.own),
                scratch: RefCell::default(),
            }),
            compress: Compress::new(&config.compression, Rc::clone(self.encoders)),
            slim: Rc::new(Slim::new(config, self.table)),
            normalize: Rc::new(Settings {
                via: shared.via.clone(),
                passthrough: config.routing.passthrough.clone(),
                rules: Rules::new(config),
                edited: Rc::clone(self.edited),
                salts: config.normalize.isolate_prefix_cache.then_some(shared.salts),
                cap: config.limits.request_body,
                memory: shared.memory.clone(),
                total: config.timeouts.total,
                response_ids: shared.response_ids.clone(),
                seen: Rc::clone(&cache.seen),
                counters: Rc::clone(self.payloads),
                images: config.normalize.max_pixels.map(|most| Images::new(most, shared.memory.clone())),
            }),
            local: Rc::new(Local { fleet: Arc::clone(&shared.fleet), aliases: config.routing.aliases.clone() }),
            cache,
            resume: Rc::new(Resume {
                config: config.resume,
                fleet: Arc::clone(&shared.fleet),
                live: shared.cache.live.clone(),
                moves: Rc::clone(self.moves),
                counters: Rc::clone(self.resumes),
                mute: Rc::clone(self.mute),
                forms: Forms { alike: form::exchangeable, to_plain: form::to_plain },
            }),
            route: route::Context::new(
                Arc::clone(&shared.fleet),
                Arc::clone(&shared.queue),
                Arc::clone(&shared.budget),
                route::Settings::new(&config.routing, config.retry, &config.limits),
                refresh(shared.refresh.clone()),
                self.retries.clone(),
            ),
            upstream: Rc::new(Upstream {
                client: client.clone(),
                ticker: self.ticker.clone(),
                timeouts: config.timeouts,
                response_ids: shared.response_ids.clone(),
                targets: Rc::clone(self.targets),
                own: Own {
                    limits: config.normalize.max_tokens_cap.or(config.normalize.default_max_tokens).is_some(),
                    counters: self.own.clone(),
                },
            }),
        })
    }
}

/// Asks the control plane and waits for it.
fn refresh(orders: mpsc::Sender<Refresh>) -> route::Refresh {
    Rc::new(move |model| {
        let orders = orders.clone();
        Box::pin(async move {
            let (done, answered) = oneshot::channel();
            if orders.try_send(Refresh { model, done }).is_ok() {
                // A control plane that is gone has nothing to say either.
                let _ = answered.await;
            }
        })
    })
}

fn access_log(shared: &Shared, config: &Config) -> AccessLog {
    let format = if config.log.json { access::Format::Json } else { access::Format::Text };
    shared.access.clone().map_or_else(AccessLog::off, |outlet| AccessLog::new(outlet, format))
}

/// The service of one connection.
struct Connection {
    worker: Rc<Worker>,
    peer: Rc<Peer>,
    forwarded: Rc<Forwarded>,
}

impl Connection {
    fn new(worker: &Rc<Worker>, peer: Rc<Peer>) -> Self {
        let trusted = &worker.config.borrow().trusted_proxies;
        let forwarded = Rc::new(Forwarded::new(peer.address.map(|a| a.ip()), peer.tls, trusted));
        Self { worker: Rc::clone(worker), peer, forwarded }
    }
}

impl Service<http::Request<Upload>> for Connection {
    type Response = http::Response<crate::body::Body>;
    type Error = std::convert::Infallible;
    type Future = Answering;

    fn call(&self, request: http::Request<Upload>) -> Answering {
        if self.worker.config.borrow().admin.at == AdminAt::Same
            && let Some(path) = request.uri().path().strip_prefix(admin::PREFIX)
            && (path.is_empty() || path.starts_with('/'))
        {
            let (path, shared) = (path.to_owned(), Arc::clone(&self.worker.shared));
            return Box::pin(async move { Ok(shared.admin(request, &path).await) });
        }
        let inbound =
            Inbound { request: Box::new(request), peer: Rc::clone(&self.peer), forwarded: Rc::clone(&self.forwarded) };
        self.worker.edge.borrow().answer(inbound)
    }
}

fn stats(table: &Table) -> Stats {
    Stats {
        accepted: table.counter(Name::ConnectionsAccepted, &[]),
        refused: table.counter(Name::ConnectionsRefused, &[]),
        accept_failures: table.counter(Name::AcceptFailures, &[]),
        late_heads: table.counter(Name::HeaderTimeouts, &[]),
        stalled: table.counter(Name::ConnectionsStalled, &[]),
        tls_failures: table.counter(Name::TlsFailures, &[]),
        folded: table.counter(Name::ConnectionsFolded, &[]),
        panics: table.counter(Name::Panics, &[]),
        floods: table.counter(Name::Floods, &[]),
        open: table.gauge(Name::ConnectionsOpen, &[]),
    }
}

fn retries(table: &Table) -> route::Counters {
    let reason = |reason| table.counter(Name::Retries, &[("reason", reason)]);
    route::Counters {
        connect: reason("connect"),
        reset: reason("reset"),
        status: reason("status"),
        full: reason("full"),
        body: reason("body"),
    }
}

fn counters(table: &Table) -> Counters {
    Counters {
        opened: table.counter(Name::UpstreamOpened, &[]),
        reused: table.counter(Name::UpstreamReused, &[]),
        stale: table.counter(Name::UpstreamStale, &[]),
    }
}
