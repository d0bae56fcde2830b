//! What is written: the mirror of the YAML, unknown fields denied, every default in one place.
//!
//! No field means more than it says; `validate.rs` turns this into [`super::Config`]. The doc comments are the
//! descriptions of `sluicegate schema` and of the table in docs/configuration.md.

use std::{borrow::Cow, collections::BTreeMap, fmt};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::{Value, json};

use super::{
    secret::Secret,
    units::{Period, Size},
};

/// A section: its fields, and the one place of their defaults.
macro_rules! section {
    (
        $(#[$meta:meta])*
        $name:ident {
            $($(#[$doc:meta])* $field:ident : $type:ty = $default:expr,)*
        }
    ) => {
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
        #[serde(deny_unknown_fields, default)]
        $(#[$meta])*
        pub struct $name {
            $($(#[$doc])* pub $field: $type,)*
        }

        impl $name {
            /// The names of its fields, in the order of the file.
            pub const FIELDS: &[&str] = &[$(stringify!($field)),*];
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)* }
            }
        }
    };
}

/// A field with a fixed set of words.
macro_rules! words {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $word:ident,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
        #[serde(rename_all = "snake_case")]
        pub enum $name {
            $($(#[$doc])* $word,)*
        }
    };
}

section! {
    /// The configuration of Sluicegate.
    #[schemars(title = "Sluicegate")]
    FileConfig {
        /// The format of this file.
        version: u32 = 1,
        /// Address of the data plane, `host:port` or `unix:/path`. HTTP/1.1 and HTTP/2, by TLS when `tls` is set.
        listen: String = "0.0.0.0:8080".into(),
        /// Address of the admin plane, `off`, or `same` (under `/-/sluicegate/` of the data plane).
        admin: String = "127.0.0.1:9090".into(),
        /// Opens the admin plane. Needed off loopback and with `admin: same`.
        #[serde(skip_serializing_if = "Option::is_none")]
        admin_token: Option<Secret> = None,
        /// File that holds `admin_token`.
        #[serde(skip_serializing_if = "Option::is_none")]
        admin_token_file: Option<String> = None,
        /// TLS of the admin plane.
        #[serde(skip_serializing_if = "Option::is_none")]
        admin_tls: Option<AdminTls> = None,
        /// Opens the notices of interruption of all backends, and nothing else.
        #[serde(skip_serializing_if = "Option::is_none")]
        interruption_token: Option<Secret> = None,
        /// File that holds `interruption_token`.
        #[serde(skip_serializing_if = "Option::is_none")]
        interruption_token_file: Option<String> = None,
        /// Threads of the data plane; `auto` = one per CPU that this process may use.
        workers: AutoOr = AutoOr::Auto,
        /// `serverless`: no background probes, small buffers.
        profile: Profile = Profile::Default,
        /// TLS of the data plane.
        #[serde(skip_serializing_if = "Option::is_none")]
        tls: Option<ServerTls> = None,
        /// Networks (CIDR) whose `X-Forwarded-*` and `Forwarded` are believed.
        trusted_proxies: Vec<String> = Vec::new(),
        /// Answers say which backend gave them, after how many tries and why.
        debug_headers: bool = false,
        /// Calls from browsers.
        cors: Cors = Cors::default(),
        /// The inference servers.
        backends: Vec<Backend> = Vec::new(),
        /// Zone that this gateway runs in.
        #[serde(skip_serializing_if = "Option::is_none")]
        zone: Option<String> = None,
        /// Which backend a call goes to.
        routing: Routing = Routing::default(),
        /// When a call is sent again.
        retry: Retry = Retry::default(),
        /// How long to wait.
        timeouts: Timeouts = Timeouts::default(),
        /// How backends are probed.
        health: Health = Health::default(),
        /// How streams are kept alive.
        stream: Stream = Stream::default(),
        /// How cut streams go on.
        resume: Resume = Resume::default(),
        /// How the interruption of this machine is noticed.
        interruption: Interruption = Interruption::default(),
        /// Answers that are kept.
        cache: Cache = Cache::default(),
        /// Compression of answers.
        compression: Compression = Compression::default(),
        /// Edits of answers.
        egress: Egress = Egress::default(),
        /// Checks and edits of requests.
        normalize: Normalize = Normalize::default(),
        /// Bounds of this gateway.
        limits: Limits = Limits::default(),
        /// Who may call.
        #[serde(skip_serializing_if = "Option::is_none")]
        auth: Option<Auth> = None,
        /// How this gateway ends.
        drain: Drain = Drain::default(),
        /// What is logged.
        log: Log = Log::default(),
    }
}

words! {
    /// Trade-offs as a set.
    Profile { Default, Serverless, }
}

section! {
    /// Certificate of the admin plane.
    #[schemars(extend("required" = ["cert", "key"]))]
    AdminTls {
        /// PEM file of the certificate chain.
        #[serde(skip_serializing_if = "Option::is_none")]
        cert: Option<String> = None,
        /// PEM file of the private key.
        #[serde(skip_serializing_if = "Option::is_none")]
        key: Option<String> = None,
    }
}

section! {
    /// Certificate of the data plane; the files are read again when they change.
    #[schemars(extend("required" = ["cert", "key"]))]
    ServerTls {
        /// PEM file of the certificate chain.
        #[serde(skip_serializing_if = "Option::is_none")]
        cert: Option<String> = None,
        /// PEM file of the private key.
        #[serde(skip_serializing_if = "Option::is_none")]
        key: Option<String> = None,
        /// PEM file of authorities; with it, clients must show a certificate of theirs.
        #[serde(skip_serializing_if = "Option::is_none")]
        client_ca: Option<String> = None,
    }
}

section! {
    /// Calls from browsers.
    Cors {
        /// Origins that may call, such as `https://chat.example.org`; `*` = any.
        origins: Vec<String> = Vec::new(),
    }
}

section! {
    /// One inference server.
    #[schemars(extend("required" = ["url"]))]
    Backend {
        /// Its name in logs, metrics and the admin plane. Default: `host:port`.
        #[serde(skip_serializing_if = "Option::is_none")]
        name: Option<String> = None,
        /// Where it is: `http://`, `https://`, `h2c://` (HTTP/2 in clear) or `unix:/path`.
        #[serde(skip_serializing_if = "Option::is_none")]
        url: Option<String> = None,
        /// Its software; `auto` = found by asking.
        engine: Engine = Engine::Auto,
        /// What it costs and how long it may stay. `reserved` is paid for in any case and filled first.
        capacity: Capacity = Capacity::OnDemand,
        /// Zone that it runs in.
        #[serde(skip_serializing_if = "Option::is_none")]
        zone: Option<String> = None,
        /// Models that it serves: `auto` (asked for at `/v1/models`), `any`, or a list.
        models: Models = Models::Auto,
        /// Calls that it may run at once; above, the next backend is tried, then calls queue. A number, or `auto` =
        /// learnt from the engine and its first-token time. Unset = no limit.
        #[serde(skip_serializing_if = "Option::is_none")]
        max_concurrency: Option<AutoOr> = None,
        /// What it costs, for reports.
        #[serde(skip_serializing_if = "Option::is_none")]
        price: Option<Price> = None,
        /// Credential sent to it in place of the client's.
        #[serde(skip_serializing_if = "Option::is_none")]
        api_key: Option<Secret> = None,
        /// File that holds `api_key`.
        #[serde(skip_serializing_if = "Option::is_none")]
        api_key_file: Option<String> = None,
        /// Opens this backend's notices of interruption alone.
        #[serde(skip_serializing_if = "Option::is_none")]
        interruption_token: Option<Secret> = None,
        /// File that holds `interruption_token`.
        #[serde(skip_serializing_if = "Option::is_none")]
        interruption_token_file: Option<String> = None,
        /// TLS towards it.
        #[serde(skip_serializing_if = "Option::is_none")]
        tls: Option<ClientTls> = None,
    }
}

/// The software of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    Auto,
    Vllm,
    Sglang,
    LlamaCpp,
    Tgi,
    Ollama,
    Triton,
    OpenAi,
}

words! {
    /// What a backend costs and how long it may stay.
    Capacity { Spot, OnDemand, Reserved, }
}

section! {
    /// What a backend costs, in any one currency.
    Price {
        /// Per hour.
        #[serde(skip_serializing_if = "Option::is_none")]
        per_hour: Option<f64> = None,
        /// Per hour, were it on demand.
        #[serde(skip_serializing_if = "Option::is_none")]
        on_demand_per_hour: Option<f64> = None,
    }
}

section! {
    /// TLS towards a backend.
    ClientTls {
        /// PEM file of authorities, in place of the system's.
        #[serde(skip_serializing_if = "Option::is_none")]
        ca: Option<String> = None,
        /// PEM file of the certificate that this gateway shows.
        #[serde(skip_serializing_if = "Option::is_none")]
        client_cert: Option<String> = None,
        /// PEM file of its private key.
        #[serde(skip_serializing_if = "Option::is_none")]
        client_key: Option<String> = None,
        /// Name that the backend's certificate must have, in place of the URL's host.
        #[serde(skip_serializing_if = "Option::is_none")]
        server_name: Option<String> = None,
    }
}

section! {
    /// Which backend a call goes to.
    Routing {
        /// Class that is filled first while its load is below `spill_at`; `none` = by load over all.
        prefer: Prefer = Prefer::Spot,
        /// Load of the preferred class, from 0 to 1, at which the others join.
        spill_at: f64 = 0.7,
        /// Share of calls, from 0 to 1, that on-demand backends get at least, so that they stay warm and known good.
        on_demand_share: f64 = 0.05,
        /// Calls that belong together go to one backend.
        affinity: Affinity = Affinity::default(),
        /// Paths that pass: `all`, `known` (the endpoints that Sluicegate knows), or a list of path prefixes beside
        /// these. With `auth` the default is `known`.
        passthrough: Passthrough = Passthrough::All,
        /// Names that clients may use for models: alias → model.
        #[serde(skip_serializing_if = "BTreeMap::is_empty")]
        aliases: BTreeMap<String, String> = BTreeMap::new(),
    }
}

words! {
    /// The class of capacity that is filled first.
    Prefer { Spot, OnDemand, None, }
}

section! {
    /// Calls that belong together go to one backend.
    Affinity {
        /// By conversation.
        session: Session = Session::Auto,
        /// By the beginning of the prompt, which the backend has in its cache.
        prefix: bool = true,
    }
}

words! {
    /// How conversations are told apart.
    Session { Auto, Off, }
}

section! {
    /// When a call is sent again.
    Retry {
        /// Tries in all, the first included.
        attempts: u32 = 3,
        /// Share of traffic, from 0 to 1, that retries may add.
        budget: f64 = 0.2,
        /// Retries a second that are allowed in any case.
        min_per_second: u32 = 10,
    }
}

section! {
    /// How long to wait.
    Timeouts {
        /// For a connection, TLS included.
        connect: Period = Period::secs(1),
        /// For the first byte of a stream. A plain answer has `total` alone.
        first_byte: Period = Period::secs(600),
        /// Silence after which the backend is probed: dead → cut at once, busy → wait.
        suspect: Period = Period::secs(10),
        /// Silence after which an answer is given up in any case.
        between_bytes: Period = Period::secs(300),
        /// For the whole of a call.
        total: Period = Period::secs(30 * 60),
    }
}

section! {
    /// How backends are probed.
    Health {
        /// Path that is asked; `auto` = by engine.
        path: String = "auto".into(),
        /// Time between probes.
        interval: Period = Period::secs(1),
        /// Time that a probe may take.
        timeout: Period = Period::secs(5),
        /// Failed probes in a row that take a backend out.
        unhealthy_after: u32 = 2,
        /// Good probes in a row that bring it back.
        healthy_after: u32 = 1,
    }
}

section! {
    /// How streams are kept alive.
    Stream {
        /// Silence after which a comment is sent to the client; 0 = never.
        keepalive: Period = Period::secs(15),
        /// Wait after which the head is sent while the backend still reads the prompt; 0 = never.
        headers_after: Period = Period::secs(30),
    }
}

section! {
    /// How cut streams go on.
    Resume {
        /// `auto` = token-exact where the engine can, else by text.
        mode: ResumeMode = ResumeMode::Auto,
        /// Continuations of one answer.
        attempts: u32 = 3,
        /// Memory for what was delivered, over all streams.
        memory: Size = Size::mib(128),
        /// The stream says where it was joined.
        report: bool = false,
        /// Plain answers are asked for as streams, so that they survive a cut too.
        plain_as_stream: bool = false,
    }
}

words! {
    /// How a continuation is asked for.
    ResumeMode { Auto, Text, Off, }
}

section! {
    /// How the interruption of this machine is noticed.
    Interruption {
        /// Cloud whose notices this gateway polls; pushed notices are acted on in any case.
        source: InterruptionSource = InterruptionSource::Off,
        /// Replaces the address of the cloud's metadata service, `http://169.254.169.254`.
        #[serde(skip_serializing_if = "Option::is_none")]
        endpoint: Option<String> = None,
        /// Gateways that a local notice is passed on to: the admin address of each, and behind the last `/` what it calls
        /// the backend on this machine. They are sent this gateway's own `interruption_token`.
        notify: Vec<String> = Vec::new(),
    }
}

words! {
    /// A cloud.
    InterruptionSource { Off, Aws, Gcp, Azure, Auto, }
}

section! {
    /// Answers that are kept.
    Cache {
        /// Memory; 0 = off.
        capacity: Size = Size::mib(256),
        /// How long an answer is kept.
        ttl: Period = Period::secs(3600),
        /// `deterministic` = requests that ask for one answer (temperature 0, a seed, embeddings…); `all` = any
        /// identical request.
        mode: CacheMode = CacheMode::Deterministic,
        /// `tenant` = never across credentials; `shared` = across all.
        scope: CacheScope = CacheScope::Tenant,
        /// Greatest answer that is kept.
        max_entry: Size = Size::mib(8),
        /// Further body fields that cannot change the answer.
        ignore: Vec<String> = Vec::new(),
        /// Request headers that change answers.
        vary: Vec<String> = Vec::new(),
        /// How long a running answer goes on after its last reader left.
        linger: Period = Period::secs(0),
        /// How long an expired answer may stand in for an error.
        stale_if_error: Period = Period::secs(0),
        /// What caches below us may do.
        downstream: Downstream = Downstream::Private,
        /// URL of a Redis that gateways share, `redis://` or `rediss://`.
        #[serde(skip_serializing_if = "Option::is_none")]
        redis: Option<Secret> = None,
        /// File of the key that entries in Redis are sealed with. Needed with `redis`.
        #[serde(skip_serializing_if = "Option::is_none")]
        key_file: Option<String> = None,
    }
}

words! {
    /// Which answers are kept.
    CacheMode { Deterministic, All, Off, }
}

words! {
    /// Who shares kept answers.
    CacheScope { Tenant, Shared, }
}

words! {
    /// What caches below us may do.
    Downstream { Private, Public, }
}

section! {
    /// Compression of answers.
    Compression {
        /// Codings, the most wanted first: `gzip`, `zstd`, `br`. Empty = off.
        algorithms: Vec<Algorithm> = vec![Algorithm::Gzip, Algorithm::Zstd, Algorithm::Br],
        /// Plain answers below this are left as they are.
        min_size: Size = Size(256),
        /// When streams are flushed: with each `event`, or after a duration.
        flush: Flush = Flush::Event,
        /// Memory of all encoders.
        memory: Size = Size::mib(256),
        /// Networks whose clients get answers as they are, such as `10.0.0.0/8`.
        exclude: Vec<String> = Vec::new(),
    }
}

words! {
    /// A content coding.
    Algorithm { Gzip, Zstd, Br, }
}

section! {
    /// Edits of answers.
    Egress {
        /// Parts of stream events that repeat or say nothing are left out.
        slim: bool = false,
    }
}

section! {
    /// Checks and edits of requests.
    Normalize {
        /// How bodies are checked.
        validate: Validate = Validate::Light,
        /// White space outside strings is taken out.
        minify: bool = false,
        /// Null fields that are optional are taken out.
        nulls: bool = false,
        /// Has no effect: no engine can be told that an image is an earlier one (docs/payload.md).
        dedupe_images: bool = false,
        /// Most tokens that a request may ask for.
        #[serde(skip_serializing_if = "Option::is_none")]
        max_tokens_cap: Option<u32> = None,
        /// Tokens of a request that names no limit.
        #[serde(skip_serializing_if = "Option::is_none")]
        default_max_tokens: Option<u32> = None,
        /// Fields that are taken out.
        strip: Vec<String> = Vec::new(),
        /// System prompts that requests may name: name → text.
        #[serde(skip_serializing_if = "Option::is_none")]
        system_prompts: Option<BTreeMap<String, String>> = None,
        /// How inline images are made smaller.
        #[serde(skip_serializing_if = "Option::is_none")]
        images: Option<Images> = None,
        /// Tenants do not share a backend's prefix cache.
        isolate_prefix_cache: bool = false,
    }
}

words! {
    /// How bodies are checked.
    Validate { Off, Light, Strict, }
}

section! {
    /// How inline images are made smaller.
    Images {
        /// Pixels above which an image is scaled down.
        #[serde(skip_serializing_if = "Option::is_none")]
        max_pixels: Option<u64> = None,
    }
}

section! {
    /// Bounds of this gateway.
    Limits {
        /// Greatest body of a request, decoded.
        request_body: Size = Size::mib(32),
        /// Memory for bodies that are held for retries, over all calls.
        body_memory: Size = Size::mib(512),
        /// Greatest head of a request.
        header_bytes: Size = Size(64 << 10),
        /// Time that a head may take to come.
        header_timeout: Period = Period::secs(10),
        /// Connections of clients, over all workers.
        connections: u32 = 10_000,
        /// Calls that wait for a backend; 0 = none waits.
        queue: u32 = 1024,
        /// How long a call waits, unless the client says less.
        queue_timeout: Period = Period::secs(120),
        /// Where rates are counted: in this process, or in `cache.redis` for several gateways.
        rate_store: RateStore = RateStore::Local,
        /// What happens to calls when that store is away.
        on_store_failure: OnStoreFailure = OnStoreFailure::Open,
    }
}

words! {
    /// Where rates are counted.
    RateStore { Local, Redis, }
}

words! {
    /// What happens to calls when the store of rates is away.
    OnStoreFailure { Open, Closed, }
}

section! {
    /// Who may call.
    Auth {
        /// Keys of this gateway.
        keys: Vec<Key> = Vec::new(),
    }
}

section! {
    /// A key of this gateway, and what it may do.
    #[schemars(extend("required" = ["name"]))]
    Key {
        /// Name of the tenant, in logs and metrics.
        #[serde(skip_serializing_if = "Option::is_none")]
        name: Option<String> = None,
        /// The key.
        #[serde(skip_serializing_if = "Option::is_none")]
        key: Option<Secret> = None,
        /// File that holds `key`.
        #[serde(skip_serializing_if = "Option::is_none")]
        key_file: Option<String> = None,
        /// Models that it may use. Unset = all.
        #[serde(skip_serializing_if = "Option::is_none")]
        models: Option<Vec<String>> = None,
        /// Calls a minute. Unset = no limit.
        #[serde(skip_serializing_if = "Option::is_none")]
        requests_per_minute: Option<u32> = None,
        /// Tokens a minute, in and out. Unset = no limit.
        #[serde(skip_serializing_if = "Option::is_none")]
        tokens_per_minute: Option<u64> = None,
        /// Calls at once. Unset = no limit.
        #[serde(skip_serializing_if = "Option::is_none")]
        max_concurrency: Option<u32> = None,
        /// Class under overload.
        priority: Priority = Priority::Normal,
        /// As `egress.slim`, for this key.
        slim: bool = false,
    }
}

words! {
    /// Class under overload.
    Priority { High, Normal, Low, }
}

section! {
    /// How this gateway ends.
    Drain {
        /// Time in which it says not ready and still accepts.
        delay: Period = Period::secs(0),
        /// Time in which running answers may finish.
        grace: Period = Period::secs(25),
    }
}

section! {
    /// What is logged, to stderr.
    Log {
        /// For people or for programs.
        format: LogFormat = LogFormat::Text,
        /// Least weight that is logged.
        level: Level = Level::Info,
        /// One line a request.
        access: bool = true,
    }
}

words! {
    /// Form of log lines.
    LogFormat { Text, Json, }
}

words! {
    /// Weight of log lines.
    Level { Error, Warn, Info, Debug, Trace, }
}

/// A field that is a word, or something else.
macro_rules! word_or {
    ($type:ident, $expecting:literal, $schema:tt, |$text:ident| $parse:expr, |$items:ident| $list:expr, |$value:ident| $show:expr) => {
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Visitor;
                impl<'de> de::Visitor<'de> for Visitor {
                    type Value = $type;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($expecting)
                    }

                    fn visit_str<E: de::Error>(self, $text: &str) -> Result<$type, E> {
                        let parsed: Option<$type> = $parse;
                        parsed.ok_or_else(|| E::invalid_value(de::Unexpected::Str(""), &self))
                    }

                    fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<$type, A::Error> {
                        let mut $items: Vec<String> = Vec::new();
                        while let Some(item) = seq.next_element()? {
                            $items.push(item);
                        }
                        let parsed: Option<$type> = $list;
                        parsed.ok_or_else(|| de::Error::invalid_type(de::Unexpected::Seq, &self))
                    }
                }
                deserializer.deserialize_any(Visitor)
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let $value = self;
                let shown: serde_json::Value = $show;
                shown.serialize(serializer)
            }
        }

        impl JsonSchema for $type {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!($schema)
            }
        }
    };
}

/// A number, or `auto`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AutoOr {
    Auto,
    Number(u32),
}

word_or!(
    AutoOr,
    "a whole number or `auto`",
    { "anyOf": [{ "const": "auto" }, { "type": "integer", "minimum": 1 }, { "type": "string", "pattern": r"\$\{" }] },
    |text| if text == "auto" { Some(AutoOr::Auto) } else { text.parse().ok().map(AutoOr::Number) },
    |_items| None,
    |value| match value {
        AutoOr::Auto => "auto".into(),
        AutoOr::Number(n) => (*n).into(),
    }
);

/// Models of a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Models {
    Auto,
    Any,
    List(Vec<String>),
}

word_or!(
    Models,
    "`auto`, `any` or a list of models",
    { "anyOf": [{ "enum": ["auto", "any"] }, { "type": "array", "items": { "type": "string" } }] },
    |text| match text {
        "auto" => Some(Models::Auto),
        "any" => Some(Models::Any),
        _ => None,
    },
    |items| Some(Models::List(items)),
    |value| match value {
        Models::Auto => "auto".into(),
        Models::Any => "any".into(),
        Models::List(models) => models.clone().into(),
    }
);

/// Paths that pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Passthrough {
    All,
    Known,
    Paths(Vec<String>),
}

word_or!(
    Passthrough,
    "`all`, `known` or a list of paths",
    { "anyOf": [{ "enum": ["all", "known"] }, { "type": "array", "items": { "type": "string", "pattern": "^/" } }] },
    |text| match text {
        "all" => Some(Passthrough::All),
        "known" => Some(Passthrough::Known),
        _ => None,
    },
    |items| Some(Passthrough::Paths(items)),
    |value| match value {
        Passthrough::All => "all".into(),
        Passthrough::Known => "known".into(),
        Passthrough::Paths(paths) => paths.clone().into(),
    }
);

/// When streams are flushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flush {
    Event,
    After(Period),
}

word_or!(
    Flush,
    "`event` or a duration such as `50ms`",
    { "type": "string" },
    |text| if text == "event" { Some(Flush::Event) } else { Period::parse(text).ok().map(Flush::After) },
    |_items| None,
    |value| match value {
        Flush::Event => "event".into(),
        Flush::After(period) => period.to_string().into(),
    }
);

/// The JSON Schema of the file, stable in order. Numbers and words may be given as `${VAR}` too.
pub fn schema() -> Schema {
    let mut root = schemars::schema_for!(FileConfig).to_value();
    let words = words_of(&root);
    admit_variables(&mut root, &words);
    let sections = root.get_mut("$defs").and_then(Value::as_object_mut);
    sections.into_iter().flatten().for_each(|(_, section)| admit_variables(section, &words));
    // What was a schema is one still; `true` would admit everything.
    Schema::try_from(root).unwrap_or_default()
}

/// References to definitions that are a set of words.
fn words_of(root: &Value) -> Vec<String> {
    let definitions = root.get("$defs").and_then(Value::as_object);
    let words = definitions.into_iter().flatten().filter(|(_, d)| d.get("enum").is_some() || d.get("oneOf").is_some());
    words.map(|(name, _)| format!("#/$defs/{name}")).collect()
}

/// Lets each field of a section that is no text be a text with a variable.
fn admit_variables(section: &mut Value, words: &[String]) {
    let fields = section.get_mut("properties").and_then(Value::as_object_mut);
    for (_, field) in fields.into_iter().flatten() {
        let Some(own) = field.as_object_mut() else { continue };
        let plain = match own.get("type") {
            Some(Value::Array(types)) => types.first().and_then(Value::as_str),
            other => other.and_then(Value::as_str),
        };
        let is_word = own.get("$ref").and_then(Value::as_str).is_some_and(|r| words.iter().any(|w| w == r));
        if !is_word && !matches!(plain, Some("boolean" | "integer" | "number")) {
            continue;
        }
        let mut outer = serde_json::Map::new();
        for name in ["description", "default"] {
            outer.extend(own.remove_entry(name));
        }
        outer.insert("anyOf".to_owned(), json!([own, { "type": "string", "pattern": r"\$\{" }]));
        *field = Value::Object(outer);
    }
}
