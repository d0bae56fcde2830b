//! The control plane's thread: probes, signals, reload, the admin plane, and the order in which all ends.

use std::{future::pending, sync::Arc, time::Duration};

use tokio::{
    runtime::{Builder, LocalOptions},
    sync::{mpsc, watch},
    time::{sleep, timeout},
};

use super::{
    AppError, Options, Refresh, Shared, Stop,
    probe::{Asker, ENGINES},
};
use crate::{
    client::{self, Client, Counters, Resolver},
    config::Config,
    control::health::{Prober, Refresher},
    listener::Socket,
    runtime::{
        drain::{DrainHandle, Phase},
        signal::Signal,
        ticker::Ticker,
    },
};

/// How long workers may take to drop what they have once the grace is over.
const DROP_WITHIN: Duration = Duration::from_secs(2);

pub(super) struct Control {
    pub(super) shared: Arc<Shared>,
    pub(super) configs: watch::Sender<Arc<Config>>,
    pub(super) drain: DrainHandle,
    pub(super) orders: mpsc::Receiver<Signal>,
    pub(super) refreshes: mpsc::Receiver<Refresh>,
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
        let ticker = Ticker::default();
        spawn(ticker.clone().run());
        spawn(probe(Arc::clone(&self.shared), ticker.clone(), self.refreshes, self.configs.subscribe()));
        if self.options.signals {
            spawn(self.stop.clone().on_signals());
        }
        let config = Arc::clone(&self.configs.borrow());
        // Until the first order to end.
        while let Some(order) = self.orders.recv().await {
            match order {
                Signal::Terminate => break,
                Signal::Reload => {}
            }
        }
        end(&self.drain, &mut self.orders, config.drain.delay, config.drain.grace).await;
        let _ = admin;
        Ok(())
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
            () = drain.dry() => return,
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

/// Probes backends, and reads their lists when a call asks for it. A new `health` section starts anew.
async fn probe(
    shared: Arc<Shared>,
    ticker: Ticker,
    mut refreshes: mpsc::Receiver<Refresh>,
    mut configs: watch::Receiver<Arc<Config>>,
) {
    let config = Arc::clone(&configs.borrow_and_update());
    let settings = client::Settings::new(config.health.timeout, config.limits.header_bytes);
    let asker = Asker::new(Client::new(settings, ticker, Resolver::system(), Counters::noop()));
    let ask = async move |question| asker.ask(question).await;
    let Some(prober) = Prober::new(Arc::clone(&shared.fleet), config.health.clone(), config.profile, ENGINES, ask)
    else {
        return;
    };
    let refresher = prober.refresher();
    tokio::join!(prober.run(), async {
        while let Some(refresh) = refreshes.recv().await {
            spawn(answer(refresher.clone(), refresh));
        }
    });
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
