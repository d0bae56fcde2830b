//! Every metric of the process, in one table. `docs/metrics.md` is generated from it and tested against it.

use metrics::Unit;

/// What a metric is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts per bucket; the upper bounds, growing, without `+Inf`.
    Histogram(&'static [f64]),
}

/// The fixed facts of a metric.
#[derive(Clone, Copy, Debug)]
pub struct Spec {
    /// As Prometheus sees it.
    pub name: &'static str,
    pub kind: Kind,
    /// Of the value; base units only.
    pub unit: Unit,
    /// Names of its labels, in the order they are printed.
    pub labels: &'static [&'static str],
    /// One sentence.
    pub help: &'static str,
}

/// Whole requests: 5 ms to 10 min.
const DURATION: &[f64] =
    &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0];
/// What the gateway itself adds: 10 µs to 10 ms.
const OVERHEAD: &[f64] =
    &[0.00001, 0.00002, 0.00003, 0.00005, 0.000_075, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01];
const FIRST_TOKEN: &[f64] =
    &[0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 30.0, 60.0];
/// OpenTelemetry's semantic conventions for `gen_ai.server.time_per_output_token`.
const PER_TOKEN: &[f64] = &[0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5];
/// A stream that stands still: 1 ms to 1 min.
const GAP: &[f64] = &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
const QUEUE: &[f64] = &[0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 120.0];

macro_rules! names {
    ($($variant:ident = $kind:expr, $unit:ident, $name:literal [$($label:literal),*] $help:literal;)*) => {
        /// A metric of the process.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Name {
            $(#[doc = $help] $variant,)*
        }

        impl Name {
            /// All of them, in the order they are printed.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// Its fixed facts.
            pub const fn spec(self) -> &'static Spec {
                match self {
                    $(Self::$variant => &Spec {
                        name: concat!("sluicegate_", $name),
                        kind: $kind,
                        unit: Unit::$unit,
                        labels: &[$($label),*],
                        help: $help,
                    },)*
                }
            }
        }
    };
}

names! {
    Requests = Kind::Counter, Count, "requests_total" ["endpoint", "code"]
        "Requests by endpoint and status; `499` when the client left before an answer, `other` for rare statuses.";
    RequestDuration = Kind::Histogram(DURATION), Seconds, "request_duration_seconds" ["endpoint"]
        "From the head of a request to the last byte of its answer.";
    Overhead = Kind::Histogram(OVERHEAD), Seconds, "overhead_seconds" []
        "Time that the gateway itself added to a request: neither waiting for a backend, nor for the client, nor queued.";
    FirstToken = Kind::Histogram(FIRST_TOKEN), Seconds, "time_to_first_token_seconds" ["model"]
        "From the head of a request to the first byte of its answer's body, streams only.";
    PerToken = Kind::Histogram(PER_TOKEN), Seconds, "time_per_output_token_seconds" ["model"]
        "Time between output tokens of a stream, averaged over the stream.";
    InFlight = Kind::Gauge, Count, "requests_in_flight" []
        "Requests under way.";
    RequestBytes = Kind::Counter, Bytes, "request_bytes_total" []
        "Bytes of request bodies read from clients.";
    ResponseBytes = Kind::Counter, Bytes, "response_bytes_total" []
        "Bytes of answer bodies handed to clients.";
    EgressSaved = Kind::Counter, Bytes, "egress_saved_bytes_total" ["cause"]
        "Bytes that answers did not take on their way to clients: `slim` by what events and JSON lost, `merge` by deltas that share an event, `compression` by their coding.";
    InputTokens = Kind::Counter, Count, "input_tokens_total" ["model"]
        "Prompt tokens, as the backends report them.";
    OutputTokens = Kind::Counter, Count, "output_tokens_total" ["model"]
        "Generated tokens, as the backends report them.";
    CachedTokens = Kind::Counter, Count, "cached_tokens_total" ["model"]
        "Prompt tokens that a backend took from its prefix cache.";
    CacheRequests = Kind::Counter, Count, "cache_requests_total" ["outcome", "reason"]
        "Requests of known endpoints by what the response cache did for them, a `bypass` also by its reason.";
    CacheStored = Kind::Counter, Count, "cache_stored_total" []
        "Answers that were computed and kept.";
    CacheNotStored = Kind::Counter, Count, "cache_not_stored_total" ["reason"]
        "Answers that were computed for the cache and not kept, by reason.";
    CacheTokensSaved = Kind::Counter, Count, "cache_tokens_saved_total" ["kind"]
        "Tokens of answers that were kept or shared: no backend computed them again.";
    CacheSecondsSaved = Kind::Counter, Seconds, "cache_saved_seconds_total" []
        "Backend time of answers that were kept or shared: for each, what it took when it was computed.";
    CacheUnderWay = Kind::Gauge, Count, "cache_answers_under_way" []
        "Answers under way that others may join.";
    CacheLive = Kind::Gauge, Bytes, "cache_live_bytes" []
        "Memory of the answers under way; bounded by resume.memory.";
    StreamsCut = Kind::Counter, Count, "streams_cut_total" ["reason"]
        "Answers that ended early after their first byte, by what cut them.";
    Resumes = Kind::Counter, Count, "resumes_total" ["cause", "mode"]
        "Streams that went on at another backend, by what made them and by how: from token ids (`tokens`), from `text`, by a `restart` before any text, or with only the `end` missing.";
    ResumesRefused = Kind::Counter, Count, "resumes_refused_total" ["reason"]
        "Streams that ended where they were cut, by why they did not go on.";
    ResumeTokensKept = Kind::Counter, Count, "resume_tokens_kept_total" []
        "Tokens that did not have to be computed again because their stream went on.";
    ResumeGap = Kind::Histogram(GAP), Seconds, "resume_gap_seconds" []
        "From the moment a stream was found cut, or told to move, to the first bytes of its continuation.";
    ClientsGone = Kind::Counter, Count, "clients_gone_total" []
        "Requests whose client left before the end of the answer; the backend was told to stop.";
    QueueLength = Kind::Gauge, Count, "queue_length" []
        "Requests waiting for a place at a backend.";
    QueueWait = Kind::Histogram(QUEUE), Seconds, "queue_wait_seconds" []
        "Time that requests waited for a place at a backend, those that waited only.";
    PayloadEdits = Kind::Counter, Count, "payload_edits_total" ["edit"]
        "Edits of request bodies, by the setting that asks for them; `limit_name` and `cache_salt` per try at a backend.";
    PayloadSaved = Kind::Counter, Bytes, "payload_saved_bytes_total" ["edit"]
        "Bytes that request bodies became shorter by before they were sent, by edit.";
    Retries = Kind::Counter, Count, "retries_total" ["reason"]
        "Tries after the first, by what failed before.";
    BodyMemory = Kind::Gauge, Bytes, "body_memory_bytes" []
        "Request bodies held in memory so that they can be sent again; bounded by limits.body_memory.";
    CacheEntries = Kind::Gauge, Count, "cache_entries" []
        "Answers kept in memory.";
    CacheBytes = Kind::Gauge, Bytes, "cache_bytes" []
        "Memory of kept answers, keys and order included; bounded by cache.capacity.";
    CacheRemoved = Kind::Counter, Count, "cache_removed_total" ["reason"]
        "Kept answers that went: `evicted` for want of room, `replaced` by a newer one, `expired`, `purged`.";
    CacheRemoteConnected = Kind::Gauge, Count, "cache_remote_connected" []
        "1 while the second tier of the cache is asked; 0 while it is away, or if there is none.";
    CacheRemoteReads = Kind::Counter, Count, "cache_remote_reads_total" ["outcome"]
        "Look-ups in the second tier: `hit`, `miss`, `away` when it was not asked, `late`, `failed`, `refused` for entries whose seal or time was wrong.";
    CacheRemoteWrites = Kind::Counter, Count, "cache_remote_writes_total" ["outcome"]
        "Answers for the second tier: `written`, `dropped` when it was away or too many waited, `failed`.";
    CacheRemoteLost = Kind::Counter, Count, "cache_remote_lost_total" []
        "Times that the second tier went away.";
    CompressionBytes = Kind::Counter, Bytes, "compression_bytes_total" ["coding", "side"]
        "Bytes of answers that were encoded, `before` and `after`; those that were encoded when they were kept are not among them.";
    CompressionEncoders = Kind::Gauge, Count, "compression_encoders" []
        "Encoders of streams at work.";
    CompressionMemory = Kind::Gauge, Bytes, "compression_memory_bytes" []
        "Memory of all encoders, at work or idle; bounded by compression.memory.";
    CompressionRefused = Kind::Counter, Count, "compression_refused_total" ["reason"]
        "Answers that did not leave in the coding their client wants most, as compression.memory was used up: in a `cheaper` one, or (`memory`) in none.";
    CompressionTwins = Kind::Counter, Count, "compression_twins_total" []
        "Kept answers that left in a form that was encoded before.";
    BackendRequests = Kind::Counter, Count, "backend_requests_total" ["backend", "outcome"]
        "Tries at a backend, by how they ended.";
    BackendState = Kind::Gauge, Count, "backend_state" ["backend", "state"]
        "1 for the state a backend is in, 0 for the others.";
    BackendSeconds = Kind::Counter, Seconds, "backend_seconds_total" ["backend", "capacity"]
        "Time that tries at a backend took, added up, by what kind of machine it is: `spot` against `on_demand` is where the work was done.";
    BackendBytes = Kind::Counter, Bytes, "backend_bytes_total" ["backend", "zone", "hop", "direction"]
        "Bytes of request bodies `sent` to a backend and of answer bodies `received` from it, by its zone; `hop` says whether that is this gateway's own: `same`, `cross` (clouds charge for it), or `unknown`.";
    BackendInFlight = Kind::Gauge, Count, "backend_in_flight" ["backend"]
        "Tries under way at a backend.";
    BackendLeavesIn = Kind::Gauge, Seconds, "backend_leaves_in_seconds" ["backend"]
        "Time until a backend's machine goes, by its interruption notice; -1 without one.";
    InterruptionNotices = Kind::Counter, Count, "interruption_notices_total" ["source", "action"]
        "Interruption notices of backends, by who gave them and what they said; one that is repeated counts once.";
    UpstreamOpened = Kind::Counter, Count, "upstream_connections_opened_total" []
        "Connections opened to backends.";
    UpstreamReused = Kind::Counter, Count, "upstream_connections_reused_total" []
        "Tries that took an idle connection to a backend.";
    UpstreamStale = Kind::Counter, Count, "upstream_connections_stale_total" []
        "Idle connections that were found dead when they were taken; the request went over a fresh one.";
    ConnectionsAccepted = Kind::Counter, Count, "connections_accepted_total" []
        "Client connections accepted, the refused ones among them.";
    ConnectionsRefused = Kind::Counter, Count, "connections_refused_total" []
        "Client connections refused over limits.connections.";
    ConnectionsOpen = Kind::Gauge, Count, "connections_open" []
        "Client connections open.";
    ConnectionsFolded = Kind::Counter, Count, "connections_folded_total" []
        "Times that an idle client connection was folded up to its bare socket.";
    ConnectionsStalled = Kind::Counter, Count, "connections_stalled_total" []
        "Client connections and streams cut because the client took no bytes.";
    AcceptFailures = Kind::Counter, Count, "accept_failures_total" []
        "Times that accepting failed for want of descriptors or memory.";
    HeaderTimeouts = Kind::Counter, Count, "header_timeouts_total" []
        "Client connections closed because the head of a request came too slowly.";
    Floods = Kind::Counter, Count, "connection_floods_total" []
        "HTTP/2 connections ended because their requests were taken back too fast.";
    TlsFailures = Kind::Counter, Count, "tls_failures_total" []
        "TLS handshakes of clients that failed or took too long.";
    CertificateExpiry = Kind::Gauge, Seconds, "tls_certificate_expiry_timestamp_seconds" ["plane"]
        "Unix time at which the certificate in use ends, of the data or the admin plane.";
    Panics = Kind::Counter, Count, "panics_total" []
        "Requests that met a fault of the gateway's own; each was answered with 500.";
    Reloads = Kind::Counter, Count, "config_reloads_total" ["result"]
        "Configuration reloads; `refused` kept the old configuration.";
    BuildInfo = Kind::Gauge, Count, "build_info" ["version"]
        "Always 1; the version of this program.";
    LogDropped = Kind::Counter, Count, "log_lines_dropped_total" ["log"]
        "Log lines thrown away because their reader was gone or too slow.";
}

impl Name {
    /// The metric that Prometheus knows as `name`.
    pub fn find(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|known| known.spec().name == name)
    }
}
