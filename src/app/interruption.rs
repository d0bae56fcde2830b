//! The interruption of this machine: who is asked for it, what follows from it here, and who is told. The agent is the
//! same without a gateway.

use std::{sync::Arc, time::Duration};

use http::{HeaderValue, uri::PathAndQuery};
use tokio::{
    runtime::{Builder, LocalOptions},
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};

use super::{AppError, Shared, control::until_end};
use crate::{
    body::Body,
    client::{self, Client, Counters, Head, Resolver, Stage, Target},
    config::{self, BackendUrl, ClientTls, Config, InterruptionSource, Notify, Secret},
    control::{
        Answer, Fault,
        interruption::{Herald, METADATA, Request, herald, watch as watch_machine},
    },
    fleet::{Action, Backend, Notice},
    runtime::{
        signal::{Signal, Signals},
        supervisor::{OnFailure, Supervisor},
        ticker::Ticker,
    },
};

/// For a connection to a metadata service or a gateway.
const CONNECT: Duration = Duration::from_secs(2);
/// Of an answer's head.
const HEADER_BYTES: usize = 16 * 1024;
/// Of its body: Azure tells of every machine of a set.
const LARGEST: usize = 256 * 1024;
/// The notice of a process that was told to end.
const TERMINATED: &str = "sigterm";

/// What is known of this machine; it outlives failures of who watches.
pub(super) type Known = watch::Sender<Option<Notice>>;

// === the gateway ===

/// Starts what watches this machine, and what ends notices that were false alarms.
pub(super) fn start(
    shared: &Arc<Shared>,
    configs: &watch::Sender<Arc<Config>>,
    ticker: Ticker,
    tasks: &mut Supervisor,
) {
    let (of_run, configs) = (Arc::clone(shared), configs.subscribe());
    tasks.start("interruption", OnFailure::Restart, move || {
        let client = client(&ticker);
        until_end(of_run.drain.clone(), run(Arc::clone(&of_run), client, configs.clone()))
    });
    let of_lapse = Arc::clone(shared);
    tasks.start("notices", OnFailure::Restart, move || until_end(of_lapse.drain.clone(), lapse(Arc::clone(&of_lapse))));
}

/// This process ends: outer gateways are told, in answers and by `notify`, so that they move what they have here.
pub(super) fn ending(shared: &Shared, drain: config::Drain) {
    terminate(&shared.known, drain.delay + drain.grace);
    if !shared.own.is_set() {
        shared.own.set(shared.known.borrow().clone());
    }
}

/// Unless it goes sooner already. Who said before that it goes stays the one who said it.
fn terminate(known: &Known, lead: Duration) {
    known.send_if_modified(|known| {
        let by = Instant::now() + lead;
        match known.as_mut().filter(|notice| notice.action.leaves()) {
            None => *known = Some(terminated(lead)),
            Some(notice) if notice.at.is_none_or(|at| at > by) => notice.at = Some(by),
            Some(_) => return false,
        }
        true
    });
}

fn terminated(lead: Duration) -> Notice {
    Notice { action: Action::Terminate, at: Some(Instant::now() + lead), source: TERMINATED.into() }
}

async fn run(shared: Arc<Shared>, client: Client, mut configs: watch::Receiver<Arc<Config>>) {
    loop {
        let config = Arc::clone(&configs.borrow_and_update());
        if config.interruption.source == InterruptionSource::Off {
            shared.known.send_if_modified(|known| known.take_if(|notice| *notice.source != *TERMINATED).is_some());
        }
        tokio::select! {
            () = attend(&shared, &client, &config, configs.clone()) => {}
            () = reconfigured(&mut configs, &config) => {}
        }
    }
}

/// Waits for a configuration that has other interruptions in it.
async fn reconfigured(configs: &mut watch::Receiver<Arc<Config>>, old: &Config) {
    while configs.changed().await.is_ok() {
        let new = configs.borrow_and_update();
        if (&new.interruption, &new.admin.interruption_token) != (&old.interruption, &old.admin.interruption_token) {
            return;
        }
    }
    std::future::pending().await
}

/// Watches, acts and tells by one configuration. Never ends.
async fn attend(shared: &Arc<Shared>, client: &Client, config: &Config, configs: watch::Receiver<Arc<Config>>) {
    let known = &shared.known;
    let interruption = &config.interruption;
    let mut heralds = JoinSet::new();
    for notify in &interruption.notify {
        let token = config.admin.interruption_token.as_ref();
        match Place::new(client, &notify.gateway, &ClientTls::default()) {
            Ok(place) => {
                let told = watch::Sender::new(None);
                heralds.spawn_local(tell(notify.clone(), token.and_then(bearer), place, known.subscribe(), told));
            }
            Err(reason) => tracing::error!(gateway = %notify.gateway, %reason, "cannot be told of an interruption"),
        }
    }
    let watching = async {
        match metadata(client, interruption.endpoint.as_ref()) {
            Ok(place) => {
                watch_machine(interruption.source, None, &async |request| place.fetch(request).await, known).await;
            }
            Err(reason) => tracing::error!(%reason, "the metadata service cannot be asked"),
        }
        std::future::pending::<()>().await;
    };
    tokio::join!(watching, act(shared, known.subscribe(), configs));
}

/// Readiness, what outer gateways are told, and the backends on this machine follow what is known of it.
async fn act(shared: &Shared, mut known: watch::Receiver<Option<Notice>>, mut configs: watch::Receiver<Arc<Config>>) {
    let mut before: Option<Notice> = None;
    loop {
        let notice = known.borrow_and_update().clone();
        if notice != before || notice.is_some() {
            shared.own.set(notice.clone());
            // The end of this process alone says nothing of its backends.
            let machine = |notice: &&Notice| *notice.source != *TERMINATED;
            let (now, was) = (notice.as_ref().filter(machine), before.as_ref().filter(machine));
            let backends = shared.fleet.snapshot().backends.clone();
            for backend in backends.iter().filter(|backend| is_here(&backend.spec.url)) {
                follow(backend, now, was);
            }
        }
        before = notice;
        // Backends may have come.
        let changed = tokio::select! {
            changed = known.changed() => changed,
            changed = configs.changed() => changed,
        };
        if changed.is_err() {
            return;
        }
    }
}

fn follow(backend: &Backend, notice: Option<&Notice>, before: Option<&Notice>) {
    if let Some(notice) = notice {
        backend.interrupted(notice.clone());
        return;
    }
    // What others said of it stays.
    let ours = |held: &Notice| before.is_some_and(|before| before.source == held.source);
    if backend.notice().as_ref().is_some_and(ours) {
        backend.withdraw();
    }
}

/// Whether a backend runs on this machine.
fn is_here(url: &BackendUrl) -> bool {
    url.unix.is_some()
        || url.host.eq_ignore_ascii_case("localhost")
        || url.host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

async fn lapse(shared: Arc<Shared>) {
    let mut changes = shared.fleet.interruptions();
    loop {
        let next = shared.fleet.lapse_notices(Instant::now());
        let due = async {
            match next {
                Some(next) => sleep_until(next).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = due => {}
            changed = changes.changed() => if changed.is_err() { return },
        }
    }
}

// === the agent ===

/// What an agent watches and whom it tells.
#[derive(Clone, Debug)]
pub struct Agent {
    pub source: InterruptionSource,
    pub endpoint: Option<BackendUrl>,
    pub notify: Vec<Notify>,
    /// Towards the gateways.
    pub tls: ClientTls,
    pub token: Option<Secret>,
    /// Between two looks; `None` = as the cloud's notices need it.
    pub every: Option<Duration>,
    /// When told to end, it tells that the machine goes in so long, and ends when every gateway knows.
    pub on_term: Option<Duration>,
}

/// Runs until it is told to end.
///
/// # Errors
/// A certificate that cannot be used; at the end, gateways that could not be told.
pub fn agent(agent: &Agent) -> Result<(), AppError> {
    let runtime =
        Builder::new_current_thread().enable_all().build_local(LocalOptions::default()).map_err(AppError::Runtime)?;
    runtime.block_on(agent.run())
}

impl Agent {
    async fn run(&self) -> Result<(), AppError> {
        let ticker = Ticker::default();
        let client = client(&ticker);
        let known = Known::new(None);
        let metadata = metadata(&client, self.endpoint.as_ref()).map_err(AppError::Agent)?;
        let mut heralds = JoinSet::new();
        let mut told = Vec::new();
        for notify in &self.notify {
            let place = Place::new(&client, &notify.gateway, &self.tls).map_err(AppError::Agent)?;
            let heard = watch::Sender::new(None);
            told.push((notify, heard.subscribe()));
            let token = self.token.as_ref().and_then(bearer);
            heralds.spawn_local(tell(notify.clone(), token, place, known.subscribe(), heard));
        }
        let fetch = async |request| metadata.fetch(request).await;
        let mut signals = Signals::new().map_err(AppError::Runtime)?;
        if let Some(lead) = self.on_term {
            tracing::info!(lead = ?lead, "on SIGTERM the gateways are told that this machine goes");
        }
        let ended = async { while signals.next().await != Signal::Terminate {} };
        tokio::select! {
            () = watch_machine(self.source, self.every, &fetch, &known) => {}
            () = ticker.clone().run() => {}
            () = ended => {}
        }
        match self.on_term {
            Some(lead) => {
                tokio::select! {
                    last = last_words(lead, &known, told) => last,
                    () = ticker.run() => Ok(()),
                }
            }
            None => Ok(()),
        }
    }
}

/// Tells that the machine goes, and waits until every gateway knows.
async fn last_words(
    lead: Duration,
    known: &Known,
    told: Vec<(&Notify, watch::Receiver<Option<Notice>>)>,
) -> Result<(), AppError> {
    terminate(known, lead);
    let notice = known.borrow().clone();
    let end = Instant::now() + lead;
    let mut deaf = Vec::new();
    for (notify, mut heard) in told {
        let knows = heard.wait_for(|heard| *heard == notice);
        if timeout(end.saturating_duration_since(Instant::now()), knows).await.is_err() {
            deaf.push(notify.gateway.to_string());
        }
    }
    if deaf.is_empty() { Ok(()) } else { Err(AppError::Agent(format!("could not tell {}", deaf.join(", ")))) }
}

// === requests ===

/// One service, and the client to ask it.
struct Place {
    client: Client,
    target: Arc<Target>,
}

impl Place {
    fn new(client: &Client, url: &BackendUrl, tls: &ClientTls) -> Result<Self, String> {
        let tls = if url.scheme == config::Scheme::Https { tls } else { &ClientTls::default() };
        let target = Target::new(url, tls).map_err(|error| format!("{url}: {error}"))?;
        Ok(Self { client: client.clone(), target })
    }

    async fn fetch(&self, request: Request) -> Result<Answer, Fault> {
        let Request { method, path, headers, body } = request;
        let path = PathAndQuery::try_from(path).map_err(|error| Fault::Other(error.to_string()))?;
        // Said twice is as good as once.
        let head = Head { method: &method, path: &path, headers: &headers, extra: &[], repeatable: true };
        let response = self.client.send(&self.target, head, Body::whole(body)).await.map_err(|failure| {
            let text = format!("{}: {failure}", self.target.authority());
            match failure.stage {
                Stage::Connect => Fault::Unreachable(text),
                Stage::Unsent | Stage::Reset => Fault::Reset(text),
                Stage::Protocol | Stage::Request => Fault::Other(text),
            }
        })?;
        let (head, body) = response.into_parts();
        let body = body.read(LARGEST).await.map_err(|error| Fault::Other(error.to_string()))?;
        Ok(Answer { status: head.status, headers: head.headers, body })
    }
}

async fn tell(
    notify: Notify,
    token: Option<HeaderValue>,
    place: Place,
    known: watch::Receiver<Option<Notice>>,
    heard: watch::Sender<Option<Notice>>,
) {
    let whom = Herald { gateway: notify.gateway.to_string(), backend: notify.backend.to_string(), token };
    herald(&whom, &async |request| place.fetch(request).await, known, &heard).await;
}

fn client(ticker: &Ticker) -> Client {
    let settings = client::Settings::new(CONNECT, HEADER_BYTES);
    Client::new(settings, ticker.clone(), Resolver::system(), Counters::noop())
}

fn metadata(client: &Client, endpoint: Option<&BackendUrl>) -> Result<Place, String> {
    let url = match endpoint {
        Some(endpoint) => endpoint.clone(),
        None => config::web_address(METADATA)?,
    };
    Place::new(client, &url, &ClientTls::default())
}

fn bearer(token: &Secret) -> Option<HeaderValue> {
    let mut value = HeaderValue::try_from(format!("Bearer {}", token.reveal())).ok()?;
    value.set_sensitive(true);
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_end_comes_sooner_than_what_was_said_and_never_later() {
        let at = |seconds| Some(Instant::now() + Duration::from_secs(seconds));
        let notice = |at| Notice { action: Action::Terminate, at, source: "aws".into() };
        for (before, after) in [(at(120), at(12)), (at(5), at(5)), (None, at(12))] {
            let known = Known::new(Some(notice(before)));
            terminate(&known, Duration::from_secs(12));
            assert_eq!(*known.borrow(), Some(notice(after)));
        }
        let known = Known::new(None);
        terminate(&known, Duration::from_secs(12));
        assert_eq!(known.borrow().as_ref().and_then(|notice| notice.at), at(12));
    }
}
