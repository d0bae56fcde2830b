//! The metadata services of three clouds, with their quirks, for who watches them.
//!
//! | cloud | quirks |
//! |---|---|
//! | AWS | tokens that end, are forgotten, or are not given; 404 until there is a notice; a time that moves at every look |
//! | GCP | 403 without its header; a poll is held until the value changes; `TRUE` may become `FALSE` again |
//! | Azure | 400 without its header; a first call that takes its time; RFC 1123; events of other machines |
//!
//! Each tells its own `Date`, which may be wrong by [`Config::skew`], and times by that.

use std::{
    collections::HashMap,
    io::Result,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::{Duration, SystemTime},
};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::{oneshot, watch},
    task::JoinSet,
    time::Instant,
};

use super::{Request, bind, engine::Engine, wire::Wire};
use crate::telemetry::time::{http_date, rfc3339};

/// Whose service it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Cloud {
    Aws,
    Gcp,
    Azure,
}

impl Cloud {
    /// A usual notice: what happens, and how long before.
    pub fn notice(self) -> (&'static str, Duration) {
        match self {
            Self::Aws => ("terminate", Duration::from_secs(120)),
            Self::Gcp => ("terminate", Duration::from_secs(30)),
            Self::Azure => ("Preempt", Duration::from_secs(30)),
        }
    }
}

/// What a service is like.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where it listens; port 0 = any free one.
    pub listen: SocketAddr,
    pub cloud: Cloud,
    /// How far its clock is ahead of this machine's, in seconds.
    pub skew: i64,
    /// AWS: without a token there is nothing.
    pub strict: bool,
    /// AWS: there are tokens.
    pub tokens: bool,
    /// AWS: the time of a notice is told anew at every look.
    pub moving: bool,
    /// Azure: how long the first call takes.
    pub first: Duration,
    /// Azure: this machine.
    pub name: String,
}

impl Config {
    /// As the cloud's own is, where that is not slow.
    pub fn of(cloud: Cloud) -> Self {
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let first = Duration::ZERO;
        Self { listen, cloud, skew: 0, strict: true, tokens: true, moving: false, first, name: "vm-1".into() }
    }
}

/// A running service, steered from any thread. Dropped, it ends.
#[derive(Debug)]
pub struct Metadata {
    shared: Arc<Shared>,
    addr: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    config: Config,
    state: Mutex<State>,
    /// Grows with every change.
    changes: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    /// What happens, when, and to which machine.
    notice: Option<(String, Duration, SystemTime)>,
    others: Option<SystemTime>,
    hint: Option<SystemTime>,
    tokens: HashMap<String, Instant>,
    given: u64,
    woken: bool,
    asked: Vec<String>,
}

/// Requests that are remembered.
const ASKED: usize = 10_000;
const IDLE: Duration = Duration::from_secs(60);

impl Metadata {
    /// Starts one on a thread of its own.
    ///
    /// # Errors
    /// When it cannot listen on its address, or has no thread or runtime to run on.
    pub fn start(config: Config) -> Result<Self> {
        let socket = bind(config.listen)?;
        let addr = socket.local_addr()?;
        let shared = Arc::new(Shared { config, state: Mutex::default(), changes: watch::Sender::new(1) });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let served = Arc::clone(&shared);
        let run = move || tokio::task::LocalSet::new().block_on(&runtime, serve(served, socket, stopped));
        let thread = std::thread::Builder::new().name("metadata".into()).spawn(run)?;
        Ok(Self { shared, addr, stop: Some(stop), thread: Some(thread) })
    }

    /// `http://address`.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// The machine goes in so long; `action` as the cloud calls it.
    pub fn notice(&self, action: &str, lead: Duration) {
        self.change(|state, now| state.notice = Some((action.to_owned(), lead, now + lead)));
    }

    /// AWS: it may go. Azure: another machine of the set goes.
    pub fn hint(&self) {
        self.change(|state, now| (state.hint, state.others) = (Some(now), Some(now + Duration::from_secs(30))));
    }

    /// Nothing of it is true any more.
    pub fn take_back(&self) {
        self.change(|state, _| (state.notice, state.hint, state.others) = (None, None, None));
    }

    /// AWS: no token is known any more.
    pub fn forget_tokens(&self) {
        self.shared.state().tokens.clear();
    }

    /// What it was asked, such as `GET /latest/meta-data/`.
    pub fn asked(&self) -> Vec<String> {
        self.shared.state().asked.clone()
    }

    fn change(&self, change: impl FnOnce(&mut State, SystemTime)) {
        change(&mut self.shared.state(), self.shared.now());
        self.shared.changes.send_modify(|changes| *changes += 1);
    }
}

impl Drop for Metadata {
    fn drop(&mut self) {
        // One that has ended already hears nothing.
        let _ = self.stop.take().map(|stop| stop.send(()));
        if let Some(thread) = self.thread.take() {
            // A panic has been printed by its own thread.
            let _ = thread.join();
        }
    }
}

async fn serve(shared: Arc<Shared>, socket: std::net::TcpListener, mut stopped: oneshot::Receiver<()>) {
    let Ok(listener) = TcpListener::from_std(socket) else { return };
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => if let Ok((stream, _)) = accepted {
                connections.spawn_local(connection(Arc::clone(&shared), stream));
            },
            Some(_) = connections.join_next() => {}
            _ = &mut stopped => return,
        }
    }
}

async fn connection(shared: Arc<Shared>, stream: TcpStream) {
    let mut wire = Wire::new(stream, Engine::Vllm);
    while let Ok(request) = wire.request(IDLE).await {
        let Ok(framing) = Wire::framing(&request) else { return };
        if wire.body(framing).await.is_err() {
            return;
        }
        let reply = shared.reply(&request).await;
        let status = http::StatusCode::from_u16(reply.status).ok().and_then(|s| s.canonical_reason()).unwrap_or("?");
        let mut head = format!("HTTP/1.1 {} {status}\r\ndate: {}\r\n", reply.status, http_date(shared.now()));
        for (name, value) in &reply.fields {
            head += &format!("{name}: {value}\r\n");
        }
        head += &format!("content-length: {}\r\n\r\n{}", reply.text.len(), reply.text);
        if wire.raw(head.as_bytes()).await.is_err() {
            return;
        }
    }
}

struct Reply {
    status: u16,
    fields: Vec<(&'static str, String)>,
    text: String,
}

impl Reply {
    fn status(status: u16) -> Self {
        Self { status, fields: Vec::new(), text: String::new() }
    }

    fn text(text: impl Into<String>) -> Self {
        Self { text: text.into(), ..Self::status(200) }
    }

    fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.fields.push((name, value.into()));
        self
    }

    fn found(text: Option<String>) -> Self {
        text.map_or(Self::status(404), Self::text)
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// By its own clock.
    fn now(&self) -> SystemTime {
        let skew = Duration::from_secs(self.config.skew.unsigned_abs());
        if self.config.skew < 0 { SystemTime::now() - skew } else { SystemTime::now() + skew }
    }

    async fn reply(&self, request: &Request) -> Reply {
        let path = request.path().to_owned();
        {
            let asked = &mut self.state().asked;
            if asked.len() < ASKED {
                asked.push(format!("{} {path}", request.method));
            }
        }
        match self.config.cloud {
            Cloud::Aws => self.aws(request, &path),
            Cloud::Gcp => self.gcp(request, &path).await,
            Cloud::Azure => self.azure(request, &path).await,
        }
    }

    fn aws(&self, request: &Request, path: &str) -> Reply {
        let mut state = self.state();
        if path == "/latest/api/token" {
            return self.token(&mut state, request);
        }
        let good = request
            .header("x-aws-ec2-metadata-token")
            .is_some_and(|token| state.tokens.get(token).is_some_and(|ends| *ends > Instant::now()));
        // A token that is wrong is wrong where none is needed, too.
        let given = request.header("x-aws-ec2-metadata-token").is_some();
        if !good && (self.config.strict || given) {
            return Reply::status(401);
        }
        match path {
            "/latest/meta-data/" => Reply::text("ami-id\nhostname\ninstance-id\ninstance-life-cycle"),
            "/latest/meta-data/spot/instance-action" => {
                Reply::found(state.notice.as_ref().map(|(action, lead, at)| {
                    let at = if self.config.moving { self.now() + *lead } else { *at };
                    format!(r#"{{"action":"{action}","time":"{}"}}"#, rfc3339(at))
                }))
            }
            "/latest/meta-data/events/recommendations/rebalance" => {
                Reply::found(state.hint.map(|at| format!(r#"{{"noticeTime":"{}"}}"#, rfc3339(at))))
            }
            "/latest/meta-data/autoscaling/target-lifecycle-state" => Reply::text("InService"),
            _ => Reply::status(404),
        }
    }

    fn token(&self, state: &mut State, request: &Request) -> Reply {
        let ttl = request.header("x-aws-ec2-metadata-token-ttl-seconds").and_then(|ttl| ttl.parse::<u64>().ok());
        let ttl = ttl.filter(|ttl| (1..=21_600).contains(ttl));
        match ttl {
            _ if !self.config.tokens => Reply::status(403),
            _ if request.method != "PUT" => Reply::status(405),
            None => Reply::status(400),
            Some(ttl) => {
                state.given += 1;
                let token = format!("token-{}==", state.given);
                state.tokens.insert(token.clone(), Instant::now() + Duration::from_secs(ttl));
                Reply::text(token).with("x-aws-ec2-metadata-token-ttl-seconds", ttl.to_string())
            }
        }
    }

    async fn gcp(&self, request: &Request, path: &str) -> Reply {
        if request.header("metadata-flavor") != Some("Google") {
            return Reply::status(403);
        }
        let reply = match path {
            "/computeMetadata/v1/instance/id" => Reply::text("4711"),
            "/computeMetadata/v1/instance/preempted" => self.preempted(request).await,
            _ => Reply::status(404),
        };
        reply.with("metadata-flavor", "Google")
    }

    async fn preempted(&self, request: &Request) -> Reply {
        let query = request.target.split_once('?').map_or("", |(_, query)| query);
        let parameter = |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
        let etag = |changes: u64| format!("{changes:016x}");
        if parameter("wait_for_change") == Some("true") {
            let last = parameter("last_etag").map_or_else(|| etag(*self.changes.borrow()), str::to_owned);
            let most = parameter("timeout_sec").and_then(|most| most.parse().ok()).map_or(IDLE, Duration::from_secs);
            let mut changes = self.changes.subscribe();
            // Time may run out: then it says what is.
            let _ = tokio::time::timeout(most, changes.wait_for(|now| etag(*now) != last)).await;
        }
        let etag = etag(*self.changes.borrow());
        Reply::text(if self.state().notice.is_some() { "TRUE" } else { "FALSE" }).with("etag", etag)
    }

    async fn azure(&self, request: &Request, path: &str) -> Reply {
        if request.header("metadata") != Some("true") || !request.target.contains("api-version=") {
            return Reply::status(400);
        }
        match path {
            "/metadata/instance/compute/name" => Reply::text(&*self.config.name),
            "/metadata/instance/compute/vmId" => Reply::text("02aab8a4-74ef-476e-8182-f6d2ba4166a6"),
            "/metadata/scheduledevents" => {
                let woken = std::mem::replace(&mut self.state().woken, true);
                if !woken {
                    tokio::time::sleep(self.config.first).await;
                }
                self.events()
            }
            _ => Reply::status(404),
        }
    }

    fn events(&self) -> Reply {
        let state = self.state();
        let event = |kind: &str, who: &str, at: SystemTime| {
            format!(
                "{{\"EventId\":\"602d9444-d2cd-49c7-8624-8643e7171297\",\"EventType\":\"{kind}\",\"ResourceType\":\
                 \"VirtualMachine\",\"Resources\":[\"{who}\"],\"EventStatus\":\"Scheduled\",\"NotBefore\":\"{}\",\
                 \"Description\":\"\",\"EventSource\":\"Platform\",\"DurationInSeconds\":-1}}",
                http_date(at)
            )
        };
        let own = state.notice.as_ref().map(|(action, _, at)| event(action, &self.config.name, *at));
        let other = state.others.map(|at| event("Preempt", "vm-2", at));
        let events: Vec<_> = own.into_iter().chain(other).collect();
        let number = *self.changes.borrow();
        Reply::text(format!(r#"{{"DocumentIncarnation":{number},"Events":[{}]}}"#, events.join(",")))
            .with("content-type", "application/json; charset=utf-8")
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::TcpStream,
    };

    use super::*;

    /// Status and text.
    fn ask(service: &Metadata, method: &str, target: &str, field: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(service.addr).unwrap();
        stream.write_all(format!("{method} {target} HTTP/1.1\r\nhost: m\r\n{field}\r\n\r\n").as_bytes()).unwrap();
        let (mut read, mut piece) = (Vec::new(), [0; 1024]);
        loop {
            let n = stream.read(&mut piece).unwrap();
            read.extend_from_slice(&piece[..n]);
            let text = String::from_utf8_lossy(&read).into_owned();
            if let Some((head, body)) = text.split_once("\r\n\r\n") {
                let length = head.rsplit("content-length: ").next().unwrap().trim().parse::<usize>().unwrap();
                if body.len() == length {
                    return (head[9..12].parse().unwrap(), body.to_owned());
                }
            }
            assert!(n > 0, "{text}");
        }
    }

    #[test]
    fn aws_wants_a_token_and_has_nothing_until_there_is_a_notice() {
        const TTL: &str = "X-aws-ec2-metadata-token-ttl-seconds";
        let service = Metadata::start(Config { moving: true, ..Config::of(Cloud::Aws) }).unwrap();
        let get = |token: &str| {
            let field = format!("X-aws-ec2-metadata-token: {token}");
            ask(&service, "GET", "/latest/meta-data/spot/instance-action", &field)
        };
        assert_eq!(get("none").0, 401);
        for (method, ttl, status) in [("PUT", "0", 400), ("PUT", "21601", 400), ("GET", "60", 405), ("PUT", "60", 200)]
        {
            assert_eq!(ask(&service, method, "/latest/api/token", &format!("{TTL}: {ttl}")).0, status, "{ttl}");
        }
        assert_eq!(get("token-1==").0, 404);
        service.notice("stop", Duration::from_secs(120));
        let (status, text) = get("token-1==");
        assert!(status == 200 && text.starts_with(r#"{"action":"stop","time":"20"#), "{text}");
        service.forget_tokens();
        assert_eq!(get("token-1==").0, 401);
        assert_eq!(service.asked().len(), 8);
    }

    #[test]
    fn gcp_wants_its_header_and_holds_a_poll_until_the_value_changes() {
        let service = Metadata::start(Config::of(Cloud::Gcp)).unwrap();
        let get = |query: &str, field: &str| {
            ask(&service, "GET", &format!("/computeMetadata/v1/instance/preempted{query}"), field)
        };
        let own = "Metadata-Flavor: Google";
        assert_eq!(get("", "x: y").0, 403);
        assert_eq!(get("", own), (200, "FALSE".into()));
        assert_eq!(get("?wait_for_change=true&last_etag=0", own), (200, "FALSE".into()), "it has changed since");
        assert_eq!(get("?wait_for_change=true&timeout_sec=0", own), (200, "FALSE".into()), "not held longer");
        let wait = "?wait_for_change=true&last_etag=0000000000000001";
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| get(wait, own));
            service.notice("", Duration::from_secs(30));
            assert_eq!(waiting.join().unwrap(), (200, "TRUE".into()));
        });
        service.take_back();
        assert_eq!(get("", own).1, "FALSE");
    }

    #[test]
    fn azure_wants_its_header_and_tells_of_every_machine_of_the_set() {
        let service = Metadata::start(Config::of(Cloud::Azure)).unwrap();
        let target = "/metadata/scheduledevents?api-version=2020-07-01";
        assert_eq!(ask(&service, "GET", target, "x: y").0, 400);
        let get = || ask(&service, "GET", target, "Metadata: true").1;
        assert_eq!(get(), r#"{"DocumentIncarnation":1,"Events":[]}"#);
        service.hint();
        assert!(get().contains(r#""Resources":["vm-2"]"#) && !get().contains("vm-1"));
        service.notice("Preempt", Duration::from_secs(30));
        let both: serde_json::Value = serde_json::from_str(&get()).unwrap();
        assert_eq!(both["Events"].as_array().unwrap().len(), 2);
        assert!(both["Events"][0]["NotBefore"].as_str().unwrap().ends_with(" GMT"));
    }
}
