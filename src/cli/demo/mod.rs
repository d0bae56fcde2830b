//! `sluicegate demo`: two simulated spot backends and one on demand behind a gateway; clients talk through it, and every
//! so often a spot backend is killed outright, or gets its notice first. What is printed is what clients saw, and what the
//! gateway says of their streams.
//!
//! ```text
//! clients (this thread) ─► gateway (started by the closure that `run` is given) ─► three sims (a thread each)
//! ```
//!
//! The clients know what each answer must be ([`crate::sim::expected`]), so a lost, doubled or wrong token is seen.

mod admin;
mod client;
mod crowd;
mod gateway;
mod story;

#[cfg(test)]
mod tests;

use std::{
    cell::RefCell,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    process::ExitCode,
    rc::Rc,
    time::Duration,
};

use tokio::{
    sync::watch,
    task::{JoinSet, LocalSet},
    time::Instant,
};

use self::{
    admin::Resumed,
    client::{Answered, Outcome, Question, ask},
    story::Story,
};
use crate::sim::{Config, Handle, Pace, Sim};

/// The model of the demo.
const MODEL: &str = "demo";
/// Clients that read streams, and clients that ask for plain answers.
const CLIENTS: (u64, u64) = (4, 4);
/// Prefill and speed of the sims: an answer takes 0.4 to 2 s.
const PACE: Pace = Pace { ttft: Duration::from_millis(150), tokens_per_second: 40.0, jitter: 0.2 };
/// Ports that are tried above the one asked for.
const PORTS: u16 = 50;

/// Shows what happens when spot backends are taken away, with a notice and without.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Where the gateway listens; the next free port if that one is taken
    #[arg(long, default_value = "127.0.0.1:8080", value_name = "ADDRESS")]
    pub listen: SocketAddr,
    /// Time between two interruptions: 5s, 1m
    #[arg(long, default_value = "20s", value_parser = super::sim::duration, value_name = "TIME")]
    pub interval: Duration,
    /// Ends after so many interruptions; unset: at Ctrl-C
    #[arg(long, value_name = "N")]
    pub cycles: Option<u64>,
}

const EXAMPLES: &str = "\
Examples:
  sluicegate demo
  sluicegate demo --interval 5s --cycles 3

Exit code 0: nothing was lost without a word; 1: something was.";

/// What the gateway of a demo is started with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayOptions {
    pub backends: Vec<DemoBackend>,
    /// Was free a moment ago.
    pub listen: SocketAddr,
    /// Answers should carry `x-sluicegate-attempts`, from which retries are counted.
    pub debug_headers: bool,
}

/// One simulated backend as the gateway is told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DemoBackend {
    pub name: &'static str,
    pub url: String,
    /// Else on demand.
    pub spot: bool,
}

/// A gateway that runs.
pub struct GatewayHandle {
    /// Where it listens.
    pub addr: SocketAddr,
    /// Where its admin plane listens.
    pub admin_addr: Option<SocketAddr>,
    /// Ends it, and returns when it has ended.
    pub stop: Box<dyn FnOnce()>,
}

impl std::fmt::Debug for GatewayHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GatewayHandle").field("addr", &self.addr).finish_non_exhaustive()
    }
}

/// Runs the demo with the real gateway.
pub fn start(args: Args) -> ExitCode {
    run(args, gateway::start)
}

/// Runs the demo; `start_gateway` returns when the gateway listens, or says why it cannot.
pub fn run<E: std::fmt::Display>(
    args: Args,
    start_gateway: impl FnOnce(GatewayOptions) -> Result<GatewayHandle, E>,
) -> ExitCode {
    let started = Instant::now();
    let story = Story::new(started);
    match play(&args, &story, start_gateway) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(reason) => {
            story.error(&reason);
            ExitCode::from(1)
        }
    }
}

/// Builds the stage, plays, and takes it down. `false`: a promise was broken.
fn play<E: std::fmt::Display>(
    args: &Args,
    story: &Story,
    start_gateway: impl FnOnce(GatewayOptions) -> Result<GatewayHandle, E>,
) -> Result<bool, String> {
    let cast = Cast::start().map_err(|error| format!("the simulated backends cannot start: {error}"))?;
    let listen = free(args.listen)?;
    let options = GatewayOptions { backends: cast.backends(), listen, debug_headers: true };
    let gateway = start_gateway(options).map_err(|error| format!("the gateway cannot start: {error}"))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("no runtime for the clients: {error}"))?;
    // Heard from the first line on: who reads it may stop the demo at once.
    let stop = {
        let _within = runtime.enter();
        interrupted()
    };
    story.welcome(gateway.addr, gateway.admin_addr, args.interval);
    let stage = Rc::new(Stage {
        gateway: gateway.addr,
        admin: gateway.admin_addr,
        tally: RefCell::default(),
        story: story.clone(),
    });
    LocalSet::new().block_on(&runtime, show(args, &cast, &stage, stop));
    (gateway.stop)();
    story.farewell(&stage.tally.borrow());
    let tally = stage.tally.borrow();
    Ok(tally.failed == 0 && tally.wrong == 0)
}

/// The simulated backends.
struct Cast {
    sims: Vec<(&'static str, bool, Handle)>,
}

impl Cast {
    fn start() -> std::io::Result<Self> {
        let config = || Config { models: vec![MODEL.to_owned()], pace: PACE, ..Config::default() };
        let sims = [("spot-a", true), ("spot-b", true), ("on-demand", false)]
            .into_iter()
            .map(|(name, spot)| Ok((name, spot, Sim::start(config())?)))
            .collect::<std::io::Result<_>>()?;
        Ok(Self { sims })
    }

    fn backends(&self) -> Vec<DemoBackend> {
        self.sims.iter().map(|(name, spot, sim)| DemoBackend { name, url: sim.url(), spot: *spot }).collect()
    }

    /// The spot backend whose turn it is.
    fn victim(&self, cycle: u64) -> (&'static str, &Handle) {
        let spots: Vec<_> = self.sims.iter().filter(|(_, spot, _)| *spot).collect();
        let (name, _, sim) = spots[cycle as usize % spots.len()];
        (name, sim)
    }
}

/// What the clients have seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    plain: u64,
    streams: u64,
    tokens: u64,
    /// Whole answers that took more than one try.
    retried: u64,
    /// Streams that ended in an error event.
    cut: u64,
    /// Requests that failed, or streams that ended without a word.
    failed: u64,
    /// Answers with other tokens than they must have.
    wrong: u64,
}

impl Tally {
    fn add(&mut self, streamed: bool, answered: &Answered) {
        match &answered.outcome {
            Outcome::Whole { tokens } => {
                *(if streamed { &mut self.streams } else { &mut self.plain }) += 1;
                self.tokens += tokens;
                self.retried += u64::from(answered.attempts > 1);
            }
            Outcome::Cut { tokens, .. } => {
                self.tokens += tokens;
                self.cut += 1;
            }
            Outcome::Failed { .. } => self.failed += 1,
            Outcome::Wrong { .. } => self.wrong += 1,
        }
    }
}

struct Stage {
    gateway: SocketAddr,
    admin: Option<SocketAddr>,
    tally: RefCell<Tally>,
    story: Story,
}

impl Stage {
    /// What the gateway has counted of streams that went on.
    async fn resumed(&self) -> Resumed {
        match self.admin {
            Some(admin) => Resumed::of(admin).await.unwrap_or_default(),
            None => Resumed::default(),
        }
    }

    /// Tells the gateway that a backend will go after `lead`, and waits for that; `false` when it was not told.
    async fn notice(&self, name: &str, sim: &Handle, lead: Duration) -> bool {
        let Some(admin) = self.admin else { return false };
        match admin::notice(admin, name, lead).await {
            Ok(()) => {
                self.story.noticed(name, sim.state().running, lead);
                tokio::time::sleep(lead).await;
                true
            }
            Err(error) => {
                self.story.error(&format!("no notice could be given: {error}"));
                false
            }
        }
    }
}

/// Clients on one side, interruptions on the other, until the cycles are over or Ctrl-C.
async fn show(args: &Args, cast: &Cast, stage: &Rc<Stage>, stop: impl Future<Output = ()>) {
    let (curtain, _) = watch::channel(false);
    let mut clients = JoinSet::new();
    for number in 0..CLIENTS.0 + CLIENTS.1 {
        clients.spawn_local(talk(Rc::clone(stage), number, number < CLIENTS.0, curtain.subscribe()));
    }
    let ended = tokio::select! {
        () = interruptions(args, cast, stage) => true,
        () = stop => false,
    };
    curtain.send_replace(true);
    if ended {
        // Each finishes the answer it is in.
        while clients.join_next().await.is_some() {}
    }
}

/// One client: a new prompt every time, one request after the other.
async fn talk(stage: Rc<Stage>, number: u64, streamed: bool, curtain: watch::Receiver<bool>) {
    let mut turn = 0_u64;
    while !*curtain.borrow() {
        let prompt = format!("client {number}, question {turn}");
        let answered = ask(stage.gateway, Question { prompt: &prompt, streamed, greedy: false }).await;
        stage.tally.borrow_mut().add(streamed, &answered);
        stage.story.seen(number, &answered.outcome);
        if matches!(answered.outcome, Outcome::Failed { .. }) {
            // A gateway that is gone is not asked a thousand times a second.
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        turn += 1;
    }
}

async fn interruptions(args: &Args, cast: &Cast, stage: &Stage) {
    let away = (args.interval / 4).min(Duration::from_secs(5));
    let mut cycle = 0;
    crowd::gather(stage, cycle).await;
    while args.cycles.is_none_or(|cycles| cycle < cycles) {
        tokio::time::sleep(args.interval - away).await;
        let (name, sim) = cast.victim(cycle);
        let before = *stage.tally.borrow();
        let resumed = stage.resumed().await;
        // One is killed outright, the other has its notice.
        let noticed = cycle % 2 == 1 && stage.notice(name, sim, away).await;
        stage.story.killed(name, sim.state().running, noticed, away);
        sim.kill();
        tokio::time::sleep(away).await;
        let back = sim.revive();
        if noticed && let Some(admin) = stage.admin {
            // Should it stay out, the next lines show it.
            let _ = admin::undrain(admin, name).await;
        }
        let resumed = stage.resumed().await.since(&resumed);
        stage.story.revived(name, back, &before, &stage.tally.borrow());
        stage.story.resumed(&resumed);
        cycle += 1;
        crowd::gather(stage, cycle).await;
    }
}

/// Ends at Ctrl-C or SIGTERM, both of which are heard from this call on; it must be made within a runtime.
pub(super) fn interrupted() -> impl Future<Output = ()> {
    use tokio::signal::unix::{SignalKind, signal};
    let signals = signal(SignalKind::interrupt()).and_then(|int| Ok((int, signal(SignalKind::terminate())?)));
    async move {
        // Without handlers there is nothing to wait for.
        let Ok((mut interrupt, mut terminate)) = signals else { return };
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    }
}

/// `wanted`, or the next port above it that nobody has.
fn free(wanted: SocketAddr) -> Result<SocketAddr, String> {
    let ip = if wanted.ip().is_unspecified() { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { wanted.ip() };
    (wanted.port()..=wanted.port().saturating_add(PORTS))
        .map(|port| SocketAddr::new(ip, port))
        .find_map(|addr| TcpListener::bind(addr).and_then(|socket| socket.local_addr()).ok())
        .ok_or_else(|| format!("neither {wanted} nor the {PORTS} ports above it are free; choose one with --listen"))
}
