//! The control plane's thread: probes, signals, reload, the admin plane, and the order in which all ends.

use std::{cell::RefCell, convert::Infallible, future::pending, net::SocketAddr, rc::Rc, sync::Arc, time::Duration};

use serde_json::json;
use tokio::{
    runtime::{Builder, LocalOptions},
    sync::{Mutex, mpsc, watch},
    time::{sleep, timeout},
};

use super::{
    AppError, Options, Refresh, Shared, Source, Stop, cache, interruption, level,
    probe::{Asker, ENGINES},
    remote,
};
use crate::{
    admin::{Admin, Pieces, access::Rules},
    body::{Body, Upload},
    config::{self, AdminAt, Config, Problem},
    control::{
        self, Ask,
        health::{Prober, Refresher},
        reload::{self, Applied, Reload},
    },
    listener::{self, Answering, Limit, Socket, Stats, tls::Checked},
    proxy::cache::remote::Waiting,
    runtime::{
        drain::{Drain, DrainHandle, Phase},
        signal::Signal,
        supervisor::{OnFailure, Supervisor},
        ticker::Ticker,
    },
    telemetry::{logging::LevelHandle, metrics::Name},
};

/// How long workers may take to drop what they have once the grace is over.
const DROP_WITHIN: Duration = Duration::from_secs(2);
/// How long the control plane's own tasks may take.
const TASKS_END_WITHIN: Duration = Duration::from_secs(1);
const CERTIFICATES_EVERY: Duration = Duration::from_secs(1);
/// Of the admin plane, which nobody but operators and scrapers uses.
const ADMIN_CONNECTIONS: usize = 100;

pub(super) struct Control {
    pub(super) shared: Arc<Shared>,
    pub(super) configs: watch::Sender<Arc<Config>>,
    pub(super) drain: DrainHandle,
    pub(super) orders: mpsc::Receiver<Signal>,
    pub(super) refreshes: mpsc::Receiver<Refresh>,
    /// For the second tier of the cache.
    pub(super) remote: Option<Waiting>,
    /// Workers that ended before they were told to.
    pub(super) deaths: mpsc::Receiver<&'static str>,
    pub(super) stop: Stop,
    pub(super) options: Options,
}

impl Control {
    /// Runs until all workers have ended.
    pub(super) fn run(self, admin: Option<Socket>) -> Result<(), AppError> {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build_local(LocalOptions::default())
            .map_err(AppError::Runtime)?;
        runtime.block_on(self.serve(admin))
    }

    async fn serve(mut self, admin: Option<Socket>) -> Result<(), AppError> {
        let shared = Arc::clone(&self.shared);
        let ticker = Ticker::default();
        spawn(ticker.clone().run());
        // The admin plane outlives the data plane: it tells how the drain goes.
        let (admin_drain, admin_phase) = DrainHandle::new();
        if let Some(socket) = admin {
            spawn(serve_admin(Arc::clone(&shared), socket, ticker.clone(), admin_phase));
        }
        let (reloads_in, reloads) = mpsc::channel(1);
        let mut tasks = Supervisor::new(shared.drain.clone());
        self.start_tasks(&mut tasks, ticker, reloads);
        if self.options.signals {
            spawn(self.stop.clone().on_signals());
        }
        let failed = loop {
            tokio::select! {
                order = self.orders.recv() => match order {
                    Some(Signal::Reload) => {
                        // One that waits already will read what there is.
                        let _ = reloads_in.try_send(());
                    }
                    _ => break None,
                },
                task = tasks.failure() => break Some(task),
                Some(worker) = self.deaths.recv() => break Some(worker),
            }
        };
        let drain = self.configs.borrow().drain;
        interruption::ending(&shared, drain);
        end(&self.drain, &mut self.orders, drain.delay, drain.grace).await;
        // It names those that do not.
        tasks.finish(TASKS_END_WITHIN).await;
        admin_drain.set(Phase::Ending);
        failed.map_or(Ok(()), |task| Err(AppError::Died(task)))
    }

    fn start_tasks(&mut self, tasks: &mut Supervisor, ticker: Ticker, reloads: mpsc::Receiver<()>) {
        let (shared, configs) = (Arc::clone(&self.shared), self.configs.subscribe());
        let refreshes = Rc::new(Mutex::new(std::mem::replace(&mut self.refreshes, mpsc::channel(1).1)));
        let asker = Asker::of(&configs.borrow(), ticker.clone()).through(&shared.via);
        let Some(prober) = prober(&shared, &configs.borrow(), asker) else { return };
        let prober = Rc::new(prober);
        let drain = shared.drain.clone();
        tasks.start("health", OnFailure::Restart, move || {
            until_end(drain.clone(), probe(Rc::clone(&prober), Rc::clone(&refreshes), configs.clone()))
        });

        let certificates = Arc::clone(&self.shared);
        tasks.start("certificates", OnFailure::Restart, move || {
            until_end(certificates.drain.clone(), watch_certificates(Arc::clone(&certificates)))
        });

        interruption::start(&self.shared, &self.configs, ticker.clone(), tasks);

        if let Some(waiting) = self.remote.take() {
            remote::keep(waiting, &self.shared, tasks);
        }

        let Some(source) = self.options.source.clone() else { return };
        let table = self.shared.registry.table();
        let counts = reload::Counts {
            applied: table.counter(Name::Reloads, &[("result", "applied")]),
            refused: table.counter(Name::Reloads, &[("result", "refused")]),
        };
        let applier = Rc::new(Applier {
            shared: Arc::clone(&self.shared),
            configs: self.configs.clone(),
            source,
            log: self.options.log.clone(),
        });
        let reloads = Rc::new(RefCell::new(Some(reloads)));
        tasks.start("reload", OnFailure::Restart, move || {
            // Started again after a failure it hears files only, not signals: those went with the first.
            let requests = reloads.take().unwrap_or_else(|| mpsc::channel(1).1);
            let (applier, status) = (Rc::clone(&applier), applier.shared.reload.clone());
            let files = applier.source.watch.clone();
            let apply = move || {
                let applier = Rc::clone(&applier);
                async move { applier.apply() }
            };
            let drain = shared.drain.clone();
            Reload::new(files, requests, status, counts.clone(), apply).run(drain)
        });
    }
}

/// Runs a task that knows no end of its own: running answers may need it until the last has ended.
pub(super) async fn until_end(mut drain: Drain, task: impl Future<Output = ()>) {
    tokio::select! {
        () = task => {}
        () = drain.reached(Phase::Ending) => {}
    }
}

/// Reads the configuration again and swaps it in.
struct Applier {
    shared: Arc<Shared>,
    configs: watch::Sender<Arc<Config>>,
    source: Source,
    log: Option<LevelHandle>,
}

impl Applier {
    fn apply(&self) -> Result<Applied, Vec<String>> {
        let Source { file, env, flags, .. } = &self.source;
        let loaded = config::load(file.as_deref(), env, flags).map_err(told)?;
        if !loaded.may_serve() {
            return Err(told(loaded.unsupported));
        }
        let new = Arc::new(loaded.config);
        let old = self.shared.config.load_full();
        let changes = config::diff(&old, &new)
            .map_err(|fields| vec![format!("a change of {} needs a restart", fields.join(", "))])?;
        let shared = &self.shared;
        shared.fleet.apply(&new);
        shared.limit.set(super::connections(&new));
        shared.memory.set_limit(new.limits.body_memory);
        shared.cache.live.set_limit(new.cache.live_memory);
        shared.encoders.set_limit(new.compression.memory);
        if let Some(log) = &self.log {
            log.set(level(new.log.level));
        }
        shared.config.store(Arc::clone(&new));
        self.configs.send_replace(new);
        Ok(Applied { changes: names(&changes), files: loaded.watch })
    }
}

fn told(problems: Vec<Problem>) -> Vec<String> {
    problems.iter().filter(|problem| problem.is_error()).map(Problem::to_string).collect()
}

fn names(changes: &config::Changes) -> Vec<String> {
    let all = [
        ("backends", changes.backends),
        ("routing", changes.routing),
        ("log", changes.log),
        ("access", changes.access),
        ("other", changes.other),
    ];
    all.iter().filter(|(_, changed)| *changed).map(|(name, _)| (*name).to_owned()).collect()
}

/// What the admin plane reads and sets off.
pub(super) fn admin(shared: &Arc<Shared>, stop: &Stop, address: Option<SocketAddr>) -> Admin {
    add_checks(shared);
    let (rules, shown, status) = (Arc::clone(&shared.config), Arc::clone(&shared.config), shared.reload.clone());
    let stop = stop.clone();
    Admin::new(Pieces {
        fleet: Arc::clone(&shared.fleet),
        registry: shared.registry.clone(),
        readiness: shared.readiness.clone(),
        drain: shared.drain.clone(),
        rules: Box::new(move || {
            let config = rules.load();
            let admin = &config.admin;
            let own = config.backends.iter();
            Rules {
                token: admin.token.clone(),
                notices: admin.interruption_token.clone(),
                notices_of: own.filter_map(|b| Some((Arc::clone(&b.name), b.interruption_token.clone()?))).collect(),
                shared: admin.at == AdminAt::Same,
                address,
            }
        }),
        config: Box::new(move || json!({"config": shown.load().view(), "reload": status.get()})),
        cache: cache::handles(shared),
        terminate: Box::new(move || stop.terminate()),
    })
}

fn add_checks(shared: &Shared) {
    let (drain, fleet, status) = (shared.drain.clone(), Arc::clone(&shared.fleet), shared.reload.clone());
    shared.readiness.check("draining", move || match drain.phase() {
        Phase::Serving => Ok(String::new()),
        _ => Err("draining: this gateway is shutting down".into()),
    });
    let own = Arc::clone(&shared.own);
    shared.readiness.check("interruption", move || match own.get().filter(|notice| notice.action.leaves()) {
        None => Ok(String::new()),
        Some(notice) => Err(format!("this machine goes ({}), says {}", notice.told(), notice.source)),
    });
    shared.readiness.check("backends", move || {
        let snapshot = fleet.snapshot();
        let usable = snapshot.backends.iter().filter(|backend| backend.is_usable()).count();
        let said = format!("{usable} of {} may get calls", snapshot.backends.len());
        if snapshot.may_serve() { Ok(said) } else { Err(said) }
    });
    // A refused reload leaves the old configuration at work: worth a look, no reason to take traffic away.
    shared.readiness.check("config", move || match status.get().problems.first() {
        None => Ok(String::new()),
        Some(problem) => Ok(format!("the newest reload was refused: {problem}")),
    });
}

/// Serves the admin plane's own address.
async fn serve_admin(shared: Arc<Shared>, socket: Socket, ticker: Ticker, drain: Drain) {
    let limits = shared.config.load().limits;
    let limit = Limit::new(ADMIN_CONNECTIONS);
    let settings = Rc::new(listener::Settings::new(&limits, limit, shared.admin_tls.clone()));
    let served =
        listener::serve(socket, settings, ticker, drain, Stats::noop(), move |_| AdminService(Arc::clone(&shared)));
    if let Err(error) = served.await {
        tracing::error!(%error, "the admin plane cannot be served");
    }
}

struct AdminService(Arc<Shared>);

impl hyper::service::Service<http::Request<Upload>> for AdminService {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answering;

    fn call(&self, request: http::Request<Upload>) -> Answering {
        let shared = Arc::clone(&self.0);
        let path = request.uri().path().to_owned();
        Box::pin(async move { Ok(shared.admin(request, &path).await) })
    }
}

/// Certificates are read again when their files change.
async fn watch_certificates(shared: Arc<Shared>) {
    let planes = [("data", &shared.tls), ("admin", &shared.admin_tls)];
    loop {
        sleep(CERTIFICATES_EVERY).await;
        for (plane, tls) in &planes {
            match tls.as_ref().map(|tls| tls.check()) {
                Some(Checked::Reloaded) => tracing::info!(plane, "new certificates are in use"),
                Some(Checked::Failed(error)) => {
                    tracing::error!(plane, %error, "the certificates that changed cannot be used; the old ones stay");
                }
                Some(Checked::Unchanged) | None => {}
            }
        }
    }
}

/// The orderly end; a second order skips what is left of it.
async fn end(drain: &DrainHandle, orders: &mut mpsc::Receiver<Signal>, delay: Duration, grace: Duration) {
    tracing::info!(delay = ?delay, grace = ?grace, "ending: not ready any more");
    drain.set(Phase::Delaying);
    let hurried = tokio::select! {
        () = sleep(delay) => false,
        () = again(orders) => true,
    };
    drain.set(Phase::Draining);
    if !hurried {
        tokio::select! {
            () = drain.dry() => return drain.set(Phase::Ending),
            () = sleep(grace) => tracing::warn!("drain.grace is over: what still runs is cut"),
            () = again(orders) => tracing::warn!("told to end at once: what still runs is cut"),
        }
    }
    drain.set(Phase::Ending);
    if timeout(DROP_WITHIN, drain.dry()).await.is_err() {
        tracing::warn!(workers = drain.tasks_left(), "workers left behind");
    }
}

/// Another order to end.
async fn again(orders: &mut mpsc::Receiver<Signal>) {
    while let Some(order) = orders.recv().await {
        if matches!(order, Signal::Terminate) {
            return;
        }
    }
    pending().await
}

/// Probes backends, and reads their lists when a call asks for it.
async fn probe<P>(
    prober: Rc<Prober<P>>,
    refreshes: Rc<Mutex<mpsc::Receiver<Refresh>>>,
    mut configs: watch::Receiver<Arc<Config>>,
) where
    P: AsyncFn(Ask) -> Result<control::Answer, control::Fault> + 'static,
{
    let refresher = prober.refresher();
    let mut refreshes = refreshes.lock().await;
    let refreshing = async {
        while let Some(refresh) = refreshes.recv().await {
            spawn(answer(refresher.clone(), refresh));
        }
    };
    let reconfigured = async {
        while configs.changed().await.is_ok() {
            prober.set_health(configs.borrow_and_update().health.clone());
        }
    };
    tokio::join!(prober.run(), refreshing, reconfigured);
}

fn prober(
    shared: &Shared,
    config: &Config,
    asker: Asker,
) -> Option<Prober<impl AsyncFn(Ask) -> Result<control::Answer, control::Fault> + 'static>> {
    let ask = async move |question| asker.ask(question).await;
    Prober::new(Arc::clone(&shared.fleet), config.health.clone(), config.profile, ENGINES, ask)
}

async fn answer(refresher: Refresher, refresh: Refresh) {
    tracing::debug!(model = %refresh.model, "unknown model: reading the lists again");
    refresher.refresh().await;
    // Its client may have left.
    let _ = refresh.done.send(());
}

#[expect(clippy::disallowed_methods, reason = "these end with the control thread's runtime, which ends the process")]
fn spawn(task: impl Future<Output = ()> + 'static) {
    tokio::task::spawn_local(task);
}
