//! What the configuration means: valid by construction, no `Option` that stands for a default.
//!
//! What was *written* is `FileConfig` in `file.rs`; `validate.rs` turns it into these types and collects every
//! problem. Each stage is given its own section, never the whole.

mod de;
mod diff;
mod env;
mod error;
pub mod file;
mod later;
mod load;
mod secret;
mod tree;
pub mod units;
mod url;
mod validate;
mod view;

pub use diff::{Changes, diff};
pub use env::Env;
pub use error::{Format, Problem, Severity, Snippet, render};
pub use file::{Algorithm, CacheMode, CacheScope, Downstream, InterruptionSource, ResumeMode, Validate};
pub use load::{Flags, Loaded, from_text, load};
pub use secret::{MASK, Secret};

use std::{collections::HashMap, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

/// The whole of it.
#[derive(Clone, Debug)]
pub struct Config {
    pub listen: Listen,
    pub admin: Admin,
    /// Worker threads; `auto` is resolved to the CPUs this process may use.
    pub workers: usize,
    pub profile: Profile,
    pub tls: Option<ServerTls>,
    pub trusted_proxies: Vec<Cidr>,
    pub debug_headers: bool,
    pub cors: Vec<String>,
    pub backends: Vec<Arc<Backend>>,
    pub zone: Option<Arc<str>>,
    pub routing: Routing,
    pub retry: Retry,
    pub timeouts: Timeouts,
    pub health: Health,
    pub stream: Stream,
    pub resume: Resume,
    pub interruption: Interruption,
    pub cache: Cache,
    pub compression: Compression,
    pub egress: Egress,
    pub normalize: Normalize,
    pub limits: Limits,
    pub drain: Drain,
    pub log: Log,
}

/// Where the data plane listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// The admin plane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    pub at: AdminAt,
    pub token: Option<Secret>,
    pub interruption_token: Option<Secret>,
    pub tls: Option<ServerTls>,
}

/// Where the admin plane is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdminAt {
    Off,
    /// On the data plane, under `/-/sluicegate/`.
    Same,
    Tcp(SocketAddr),
}

/// Trade-offs as a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    Default,
    /// No background probes, small buffers.
    Serverless,
}

/// Certificates of a listener, re-read when the files change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerTls {
    pub cert: PathBuf,
    pub key: PathBuf,
    pub client_ca: Option<PathBuf>,
}

/// A network in CIDR notation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    pub address: std::net::IpAddr,
    pub prefix: u8,
}

impl Cidr {
    /// Whether `ip` lies in this network. An IPv4 address mapped into IPv6 counts as the IPv4 address it is.
    pub fn contains(&self, ip: std::net::IpAddr) -> bool {
        use std::net::IpAddr::{V4, V6};
        let beyond = |bits: u32| bits.saturating_sub(u32::from(self.prefix));
        match (self.address, ip.to_canonical()) {
            (V4(net), V4(ip)) => u32::from(net).checked_shr(beyond(32)) == u32::from(ip).checked_shr(beyond(32)),
            (V6(net), V6(ip)) => u128::from(net).checked_shr(beyond(128)) == u128::from(ip).checked_shr(beyond(128)),
            _ => false,
        }
    }
}

/// One inference server.
#[derive(Clone, Debug, PartialEq)]
pub struct Backend {
    pub name: Arc<str>,
    pub url: BackendUrl,
    /// `None` = found by asking.
    pub engine: Option<crate::protocol::engine::Engine>,
    pub capacity: Capacity,
    pub zone: Option<Arc<str>>,
    pub models: Models,
    pub max_concurrency: Concurrency,
    pub api_key: Option<Secret>,
    /// Opens the notices of this backend alone.
    pub interruption_token: Option<Secret>,
    pub tls: ClientTls,
}

/// `http`, `https`, `h2c` or `unix:` address of a backend, with an optional base path (no trailing slash).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BackendUrl {
    pub scheme: Scheme,
    /// Host name or IP literal (brackets removed); empty for unix sockets.
    pub host: Arc<str>,
    pub port: u16,
    pub unix: Option<PathBuf>,
    /// Prefix put before every path, `""` or `/like/this`.
    pub base_path: Arc<str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    Http,
    Https,
    /// HTTP/2 by prior knowledge, in clear.
    H2c,
    /// HTTP/1.1 over a unix socket.
    Unix,
}

/// What a backend costs and how long it may stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Capacity {
    Spot,
    OnDemand,
    /// Paid for in any case: filled first.
    Reserved,
}

impl Capacity {
    /// As it is written in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Spot => "spot",
            Self::OnDemand => "on_demand",
            Self::Reserved => "reserved",
        }
    }
}

/// Which models a backend serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Models {
    /// Its `/v1/models` is asked.
    Auto,
    Any,
    List(Vec<Arc<str>>),
}

/// How many calls a backend may run at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Concurrency {
    Unlimited,
    /// Learnt from the engine and first-token time.
    Auto,
    Limit(u32),
}

/// TLS towards a backend.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct ClientTls {
    pub ca: Option<PathBuf>,
    pub client_cert: Option<PathBuf>,
    pub client_key: Option<PathBuf>,
    pub server_name: Option<String>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Routing {
    /// This class first while its load is below `spill_at`; `None` = by load alone.
    pub prefer: Option<Capacity>,
    pub spill_at: f64,
    pub on_demand_share: f64,
    pub passthrough: Passthrough,
    /// alias → model
    pub aliases: Vec<(Arc<str>, Arc<str>)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Passthrough {
    All,
    /// The known endpoints of docs/configuration.md only.
    Known,
    /// The known endpoints and these path prefixes.
    Paths(Vec<String>),
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Retry {
    /// Tries in all, the first included; at least 1.
    pub attempts: u32,
    /// Share of traffic that retries may add.
    pub budget: f64,
    /// Retries a second that are always allowed.
    pub min_per_second: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    pub connect: Duration,
    pub first_byte: Duration,
    pub suspect: Duration,
    pub between_bytes: Duration,
    pub total: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// `None` = by engine.
    pub path: Option<String>,
    pub interval: Duration,
    pub timeout: Duration,
    pub unhealthy_after: u32,
    pub healthy_after: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream {
    pub keepalive: Duration,
    pub headers_after: Duration,
}

/// Cut streams that go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resume {
    pub mode: ResumeMode,
    /// Continuations of one answer, at most.
    pub attempts: u32,
    /// The stream says where it was joined.
    pub report: bool,
    /// Plain answers are asked for as streams, and put together here.
    pub plain_as_stream: bool,
}

/// How the interruption of this machine is noticed, and who is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interruption {
    pub source: InterruptionSource,
    /// In place of the metadata service's own address.
    pub endpoint: Option<BackendUrl>,
    pub notify: Vec<Notify>,
}

/// A gateway that is told of this machine's interruption, and what it calls the backend that runs here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notify {
    pub gateway: BackendUrl,
    pub backend: Arc<str>,
}

impl Notify {
    /// For a gateway's admin address that does not name the backend.
    ///
    /// # Errors
    /// What is wrong with the address, and what to do.
    pub fn of(gateway: &str, backend: &str) -> Result<Self, String> {
        Ok(Self { gateway: web_address(gateway)?, backend: backend.into() })
    }
}

/// Reads `http://…` or `https://…`.
///
/// # Errors
/// What is wrong with it, and what to do.
pub fn web_address(text: &str) -> Result<BackendUrl, String> {
    url::service(text).map_err(|(reason, help)| match help {
        Some(help) => format!("{reason}; {help}"),
        None => reason,
    })
}

/// Answers that are kept and shared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cache {
    /// Memory of kept answers in bytes; 0 = off.
    pub capacity: u64,
    pub ttl: Duration,
    pub mode: CacheMode,
    pub scope: CacheScope,
    /// Greatest answer that is kept, in bytes.
    pub max_entry: usize,
    /// Further top-level body fields that cannot change the answer.
    pub ignore: Vec<String>,
    /// Request headers that change answers.
    pub vary: Vec<http::HeaderName>,
    pub linger: Duration,
    pub stale_if_error: Duration,
    pub downstream: Downstream,
    /// The second tier.
    pub redis: Option<Redis>,
    /// Of keys and seals that several gateways share; `None` = made at start.
    pub key: Option<Secret>,
    /// Memory of running answers in bytes (`resume.memory`).
    pub live_memory: u64,
}

/// Compression of answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compression {
    /// The most wanted first; none = off.
    pub algorithms: Vec<Algorithm>,
    /// Plain answers below this many bytes stay as they are.
    pub min_size: usize,
    /// How long an event may wait for others; `None` = not at all.
    pub flush: Option<Duration>,
    /// Of all encoders, in bytes.
    pub memory: u64,
    /// Clients whose answers are not compressed.
    pub exclude: Vec<Cidr>,
}

/// Edits of answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Egress {
    /// Events lose what repeats or says nothing, whoever asks.
    pub slim: bool,
}

/// Checks and edits of requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Normalize {
    pub validate: Validate,
    pub minify: bool,
    pub nulls: bool,
    pub dedupe_images: bool,
    pub max_tokens_cap: Option<u64>,
    pub default_max_tokens: Option<u64>,
    /// Fields that are taken out.
    pub strip: Vec<String>,
    /// name → text
    pub system_prompts: HashMap<Arc<str>, Arc<str>>,
    /// Inline images of more are scaled down.
    pub max_pixels: Option<u64>,
    pub isolate_prefix_cache: bool,
}

/// A Redis or Valkey that gateways share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redis {
    pub tls: bool,
    pub host: Arc<str>,
    pub port: u16,
    pub username: Option<Arc<str>>,
    pub password: Option<Secret>,
    pub database: u32,
}

impl Cache {
    /// Whether nothing is kept or shared.
    pub fn is_off(&self) -> bool {
        self.mode == CacheMode::Off || self.capacity == 0
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub request_body: usize,
    pub body_memory: usize,
    pub header_bytes: usize,
    pub header_timeout: Duration,
    pub connections: usize,
    pub queue: usize,
    pub queue_timeout: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drain {
    pub delay: Duration,
    pub grace: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Log {
    pub json: bool,
    pub level: Level,
    pub access: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

#[cfg(test)]
mod tests;
