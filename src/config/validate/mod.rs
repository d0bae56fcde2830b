//! What was written → what it means. Collects every problem; a value that is wrong counts as its default until the
//! end, so that one mistake hides no other.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use super::{
    Admin, AdminAt, Capacity, Config, Drain, Health, Interruption, InterruptionSource, Level, Limits, Listen, Log,
    Passthrough, Problem, Profile, Resume, Retry, Routing, Secret, ServerTls, Severity, Stream, Timeouts,
    de::nearest,
    file::{self, FileConfig},
    load::Source,
    secret::{is_pem, short},
    units::{Period, Size},
    url::{self, Wrong},
};

mod backends;
mod cache;
mod later;
mod payload;

/// A secret in a file is a line.
const MAX_SECRET: u64 = 64 << 10;
/// Aliases of aliases that are followed.
const MAX_ALIASES: usize = 16;

/// The outcome; `config` is of use only if no problem is an error.
pub(super) struct Checked {
    pub(super) config: Config,
    pub(super) problems: Vec<Problem>,
    /// Files that were named.
    pub(super) files: Vec<PathBuf>,
}

/// Checks all of it.
pub(super) fn validate(written: &FileConfig, source: &Source) -> Checked {
    let mut v = Validator { source, problems: Vec::new(), files: Vec::new() };
    if written.version != 1 {
        v.error("version", format!("format {} is not known to this version", written.version), "write `version: 1`");
    }
    let listen = v.parsed("listen", &written.listen, url::listen).unwrap_or(default_listen());
    let admin = v.admin(written, &listen);
    let backends = v.backends(&written.backends);
    let config = Config {
        admin,
        workers: v.workers(written.workers),
        profile: match written.profile {
            file::Profile::Default => Profile::Default,
            file::Profile::Serverless => Profile::Serverless,
        },
        tls: written
            .tls
            .as_ref()
            .and_then(|tls| v.server_tls("tls", tls.cert.as_deref(), tls.key.as_deref(), tls.client_ca.as_deref())),
        trusted_proxies: v.networks("trusted_proxies", &written.trusted_proxies),
        debug_headers: written.debug_headers,
        cors: v.origins(&written.cors.origins),
        backends,
        zone: v.name("zone", written.zone.as_deref()),
        routing: v.routing(&written.routing),
        retry: v.retry(&written.retry),
        timeouts: v.timeouts(&written.timeouts),
        health: v.health(&written.health),
        stream: Stream { keepalive: written.stream.keepalive.0, headers_after: written.stream.headers_after.0 },
        resume: v.resume(&written.resume),
        interruption: v.interruption(&written.interruption),
        cache: v.cache(&written.cache, &written.resume),
        compression: v.compression(&written.compression),
        egress: payload::egress(&written.egress),
        normalize: v.normalize(&written.normalize),
        limits: v.limits(&written.limits),
        drain: v.drain(&written.drain, &written.timeouts),
        log: log(&written.log),
        listen,
    };
    v.zones(config.zone.as_deref(), &config.backends);
    v.shared_keys(&config.cache, &config.backends, written.auth.is_some());
    v.later(written);
    Checked { config, problems: v.problems, files: v.files }
}

fn default_listen() -> Listen {
    Listen::Tcp(SocketAddr::from(([0, 0, 0, 0], 8080)))
}

struct Validator<'s> {
    source: &'s Source,
    problems: Vec<Problem>,
    files: Vec<PathBuf>,
}

/// Words of the validator.
impl Validator<'_> {
    fn error(&mut self, path: &str, reason: impl Into<String>, help: impl Into<String>) {
        let help = Some(help.into()).filter(|h| !h.is_empty());
        self.problems.push(self.source.at(Severity::Error, path, reason.into(), help));
    }

    fn warn(&mut self, path: &str, reason: impl Into<String>, help: impl Into<String>) {
        self.problems.push(self.source.at(Severity::Warning, path, reason.into(), Some(help.into())));
    }

    fn parsed<T>(&mut self, path: &str, text: &str, parse: fn(&str) -> Result<T, Wrong>) -> Option<T> {
        match parse(text) {
            Ok(value) => Some(value),
            Err((reason, help)) => {
                self.error(path, reason, help.unwrap_or_default());
                None
            }
        }
    }

    /// A number from `least` to `most`.
    fn within<T: PartialOrd + std::fmt::Display>(&mut self, path: &str, value: T, least: T, most: T) {
        let inside = value >= least && value <= most;
        if !inside {
            self.error(path, format!("{value} is out of range"), format!("from {least} to {most}"));
        }
    }

    fn positive(&mut self, path: &str, period: Period) {
        if period.0.is_zero() {
            self.error(path, "must be greater than 0", "a duration such as `1s`");
        }
    }

    /// A word without spaces or control characters, as labels and headers need.
    fn name(&mut self, path: &str, name: Option<&str>) -> Option<Arc<str>> {
        let name = name?;
        let fine = |c: char| c.is_ascii_graphic() && !"\"\\/?#%{}".contains(c);
        if name.is_empty() || name.len() > 128 || !name.chars().all(fine) {
            self.error(
                path,
                format!("`{}` cannot be a name", short(name)),
                "use up to 128 letters, digits and `-._:@`",
            );
        }
        Some(Arc::from(name))
    }

    /// Paths on this gateway.
    fn paths(&mut self, field: &str, paths: &[String]) {
        for (i, path) in paths.iter().enumerate().filter(|(_, path)| !path.starts_with('/')) {
            let help = format!("did you mean `/{}`?", short(path));
            self.error(&format!("{field}[{i}]"), format!("`{}` is not a path", short(path)), help);
        }
    }

    /// A file that must be there.
    fn file(&mut self, path: &str, file: &str) -> PathBuf {
        let resolved = self.source.resolve(file);
        if is_pem(file) {
            self.error(path, "the text of a key or certificate", "name the file that holds it");
            return resolved;
        }
        self.files.push(resolved.clone());
        let shown = resolved.display().to_string();
        match std::fs::metadata(&resolved) {
            Ok(meta) if meta.is_file() => {}
            // Reading a pipe may take for ever, and gives another answer each time.
            Ok(_) => self.error(path, format!("`{}` is not a regular file", short(&shown)), relative_help(file)),
            Err(e) => self.error(path, format!("`{}` cannot be read: {e}", short(&shown)), relative_help(file)),
        }
        resolved
    }

    /// A secret given as such or as a file; both is a mistake.
    fn secret(&mut self, section: &str, name: &str, value: Option<&Secret>, file: Option<&str>) -> Option<Secret> {
        let path = super::env::join(section, name);
        let file_path = format!("{path}_file");
        match (value, file) {
            (Some(_), Some(_)) => {
                self.error(&file_path, format!("`{name}` and `{name}_file` are both given"), "keep one of them");
                None
            }
            (Some(value), None) => {
                if value.reveal().trim().is_empty() {
                    self.error(&path, "is empty", "take the field out, or give it a value");
                } else if self.source.is_written_out(&path) {
                    let help = format!("use `${{VARIABLE}}` or `{name}_file`");
                    self.warn(&path, "a secret written in the file itself", help);
                }
                self.header_safe(&path, value);
                Some(value.clone())
            }
            (None, Some(file)) => {
                let secret = self.read_secret(&file_path, file)?;
                self.header_safe(&file_path, &secret);
                Some(secret)
            }
            (None, None) => None,
        }
    }

    /// Secrets travel in headers.
    fn header_safe(&mut self, path: &str, secret: &Secret) {
        if !secret.reveal().bytes().all(|b| (0x20..0x7f).contains(&b)) {
            self.error(path, "has characters that no header can carry", "use printable ASCII on one line");
        }
    }

    fn read_secret(&mut self, path: &str, file: &str) -> Option<Secret> {
        use std::io::Read as _;

        let resolved = self.file(path, file);
        let mut text = String::new();
        // What is not there, or no file, was reported.
        let opened = Some(&resolved).filter(|p| p.is_file()).and_then(|p| std::fs::File::open(p).ok())?;
        if opened.take(MAX_SECRET + 1).read_to_string(&mut text).is_err() || text.len() as u64 > MAX_SECRET {
            self.error(path, format!("`{}` holds no secret", short(file)), "one line of text is expected");
            return None;
        }
        let secret = text.strip_suffix('\n').unwrap_or(&text);
        let secret = secret.strip_suffix('\r').unwrap_or(secret);
        if secret.is_empty() {
            self.error(path, format!("`{}` is empty", short(file)), "one line of text is expected");
            return None;
        }
        Some(Secret::new(secret))
    }
}

fn relative_help(file: &str) -> &'static str {
    if Path::new(file).is_absolute() { "" } else { "relative paths start from the folder of the configuration" }
}

/// The sections.
impl Validator<'_> {
    fn admin(&mut self, written: &FileConfig, listen: &Listen) -> Admin {
        let token = self.secret("", "admin_token", written.admin_token.as_ref(), written.admin_token_file.as_deref());
        let interruption_token = self.secret(
            "",
            "interruption_token",
            written.interruption_token.as_ref(),
            written.interruption_token_file.as_deref(),
        );
        let at = match written.admin.as_str() {
            // `false` is what tools of YAML 1.1 make of `off`.
            "off" | "false" => AdminAt::Off,
            "same" => AdminAt::Same,
            text => match self.parsed("admin", text, admin_address) {
                Some(address) => AdminAt::Tcp(address),
                None => AdminAt::Off,
            },
        };
        let has_token = written.admin_token.is_some()
            || written.admin_token_file.is_some()
            || self.source.was_given("", "admin_token")
            || self.source.was_given("", "admin_token_file");
        let help = "set `admin_token` or `admin_token_file`";
        match at {
            AdminAt::Same if !has_token => self.error("admin", "`admin: same` needs a token", help),
            AdminAt::Tcp(a) if !a.ip().is_loopback() && !has_token => {
                self.error("admin", format!("an admin address that others can reach ({a}) needs a token"), help);
            }
            _ => {}
        }
        if let (AdminAt::Tcp(admin), Listen::Tcp(data)) = (&at, listen)
            && admin.port() == data.port()
            && data.port() != 0
            && (admin.ip() == data.ip() || admin.ip().is_unspecified() || data.ip().is_unspecified())
        {
            let help = "use another port, or `admin: same`";
            self.error("admin", format!("`listen` and `admin` are both on port {}", data.port()), help);
        }
        let tls = written.admin_tls.as_ref().and_then(|tls| {
            if !matches!(at, AdminAt::Tcp(_)) {
                self.error("admin_tls", "the admin plane has no address of its own", "take `admin_tls` out");
            }
            self.server_tls("admin_tls", tls.cert.as_deref(), tls.key.as_deref(), None)
        });
        Admin { at, token, interruption_token, tls }
    }

    fn interruption(&mut self, written: &file::Interruption) -> Interruption {
        let endpoint = written.endpoint.as_ref();
        let endpoint = endpoint.and_then(|url| self.parsed("interruption.endpoint", url, url::service));
        if written.endpoint.is_some() && written.source == InterruptionSource::Off {
            self.warn("interruption.endpoint", "has no effect without `source`", "add `source: auto`, or take it out");
        }
        let notify = written.notify.iter().enumerate();
        let notify =
            notify.filter_map(|(i, url)| self.parsed(&format!("interruption.notify[{i}]"), url, url::notify)).collect();
        Interruption { source: written.source, endpoint, notify }
    }

    fn workers(&mut self, workers: file::AutoOr) -> usize {
        match workers {
            // Affinity and the cgroup's quota are in it.
            file::AutoOr::Auto => std::thread::available_parallelism().map_or(1, usize::from),
            file::AutoOr::Number(n) => {
                self.within("workers", n, 1, 1024);
                n.max(1) as usize
            }
        }
    }

    fn server_tls(
        &mut self,
        path: &str,
        cert: Option<&str>,
        key: Option<&str>,
        client_ca: Option<&str>,
    ) -> Option<ServerTls> {
        let client_ca = client_ca.map(|ca| self.file(&format!("{path}.client_ca"), ca));
        let cert = self.needed(path, "cert", cert, "name the PEM file of the certificate chain");
        let key = self.needed(path, "key", key, "name the PEM file of the private key");
        Some(ServerTls { cert: cert?, key: key?, client_ca })
    }

    fn needed(&mut self, path: &str, field: &str, file: Option<&str>, help: &str) -> Option<PathBuf> {
        if file.is_none() && !self.source.was_given(path, field) {
            self.error(path, format!("`{path}` has no `{field}`"), help);
        }
        file.map(|file| self.file(&format!("{path}.{field}"), file))
    }

    fn networks(&mut self, field: &str, written: &[String]) -> Vec<super::Cidr> {
        let mut networks = Vec::new();
        for (i, text) in written.iter().enumerate() {
            let path = format!("{field}[{i}]");
            let Some((cidr, rounded)) = self.parsed(&path, text, url::cidr) else { continue };
            if rounded {
                let help = format!("did you mean `{}/{}`?", cidr.address, cidr.prefix);
                self.warn(&path, format!("`{}` has bits behind its prefix", short(text)), help);
            }
            networks.push(cidr);
        }
        networks
    }

    fn origins(&mut self, written: &[String]) -> Vec<String> {
        for (i, text) in written.iter().enumerate() {
            self.parsed(&format!("cors.origins[{i}]"), text, url::origin);
        }
        written.to_vec()
    }

    fn routing(&mut self, written: &file::Routing) -> Routing {
        self.within("routing.spill_at", written.spill_at, 0.0, 1.0);
        self.within("routing.on_demand_share", written.on_demand_share, 0.0, 1.0);
        if let file::Passthrough::Paths(paths) = &written.passthrough {
            self.paths("routing.passthrough", paths);
        }
        Routing {
            prefer: match written.prefer {
                file::Prefer::Spot => Some(Capacity::Spot),
                file::Prefer::OnDemand => Some(Capacity::OnDemand),
                file::Prefer::None => None,
            },
            spill_at: written.spill_at,
            on_demand_share: written.on_demand_share,
            passthrough: match &written.passthrough {
                file::Passthrough::All => Passthrough::All,
                file::Passthrough::Known => Passthrough::Known,
                file::Passthrough::Paths(paths) => Passthrough::Paths(paths.clone()),
            },
            aliases: self.aliases(&written.aliases),
        }
    }

    /// Follows aliases of aliases to the model; a circle has none.
    fn aliases(&mut self, written: &BTreeMap<String, String>) -> Vec<(Arc<str>, Arc<str>)> {
        let mut aliases = Vec::new();
        for (alias, first) in written {
            let path = format!("routing.aliases.{alias}");
            let (mut model, mut steps) = (first, 0);
            while let Some(next) = written.get(model).filter(|_| steps < MAX_ALIASES) {
                (model, steps) = (next, steps + 1);
            }
            if steps == MAX_ALIASES {
                let reason = format!("alias `{}` leads back to itself, or over too many others", short(alias));
                self.error(&path, reason, "an alias names a model, in the end");
            }
            if alias.trim().is_empty() || first.trim().is_empty() {
                self.error(&path, "an alias and its model need names", "write `alias: model`");
            }
            aliases.push((Arc::from(alias.as_str()), Arc::from(model.as_str())));
        }
        aliases
    }

    fn retry(&mut self, written: &file::Retry) -> Retry {
        if written.attempts == 0 {
            self.error("retry.attempts", "0 would send nothing", "1 = the first try alone");
        }
        self.within("retry.budget", written.budget, 0.0, 1.0);
        Retry { attempts: written.attempts.max(1), budget: written.budget, min_per_second: written.min_per_second }
    }

    fn resume(&mut self, resume: &file::Resume) -> Resume {
        self.within("resume.attempts", resume.attempts, 1, 100);
        let file::Resume { mode, attempts, report, plain_as_stream, .. } = *resume;
        Resume { mode, attempts, report, plain_as_stream }
    }

    fn timeouts(&mut self, t: &file::Timeouts) -> Timeouts {
        let all = [
            ("connect", t.connect),
            ("first_byte", t.first_byte),
            ("suspect", t.suspect),
            ("between_bytes", t.between_bytes),
            ("total", t.total),
        ];
        for (field, period) in all {
            self.positive(&format!("timeouts.{field}"), period);
        }
        let later = [
            ("connect", t.connect, "total", t.total),
            ("first_byte", t.first_byte, "total", t.total),
            ("between_bytes", t.between_bytes, "total", t.total),
            ("suspect", t.suspect, "between_bytes", t.between_bytes),
        ];
        for (field, period, other, bound) in later {
            // The field that was written is the one that is meant, even if the other is the greater one's default.
            let own = format!("timeouts.{field}");
            let path = if self.source.is_set(&own) { own } else { format!("timeouts.{other}") };
            if period > bound {
                let reason = format!("`{field}` ({period}) never runs out before `{other}` ({bound})");
                self.warn(&path, reason, format!("`{other}` decides alone"));
            }
        }
        Timeouts {
            connect: t.connect.0,
            first_byte: t.first_byte.0,
            suspect: t.suspect.0,
            between_bytes: t.between_bytes.0,
            total: t.total.0,
        }
    }

    fn health(&mut self, written: &file::Health) -> Health {
        let path = match written.path.as_str() {
            "auto" => None,
            path => {
                if !path.starts_with('/') {
                    let help = format!("did you mean `/{}`?", short(path));
                    self.error("health.path", format!("`{}` is neither `auto` nor a path", short(path)), help);
                } else if path.bytes().any(|b| !(0x21..0x7f).contains(&b)) {
                    self.error("health.path", "has characters that a path cannot have", "write them as %XX");
                }
                Some(path.to_owned())
            }
        };
        self.positive("health.interval", written.interval);
        self.positive("health.timeout", written.timeout);
        self.within("health.unhealthy_after", written.unhealthy_after, 1, 1000);
        self.within("health.healthy_after", written.healthy_after, 1, 1000);
        Health {
            path,
            interval: written.interval.0,
            timeout: written.timeout.0,
            unhealthy_after: written.unhealthy_after.max(1),
            healthy_after: written.healthy_after.max(1),
        }
    }

    fn limits(&mut self, l: &file::Limits) -> Limits {
        self.within("limits.request_body", l.request_body, Size(1), Size(64 << 30));
        self.within("limits.body_memory", l.body_memory, Size(1), Size(1 << 50));
        self.within("limits.header_bytes", l.header_bytes, Size(1 << 10), Size(1 << 20));
        self.positive("limits.header_timeout", l.header_timeout);
        self.within("limits.connections", l.connections, 1, 10_000_000);
        self.within("limits.queue", l.queue, 0, 10_000_000);
        if l.queue > 0 {
            self.positive("limits.queue_timeout", l.queue_timeout);
        }
        if l.body_memory < l.request_body {
            let field = if self.source.is_set("limits.body_memory") { "body_memory" } else { "request_body" };
            let reason =
                format!("`body_memory` ({}) holds no whole `request_body` ({})", l.body_memory, l.request_body);
            self.warn(&format!("limits.{field}"), reason, "the greatest bodies will be refused");
        }
        Limits {
            request_body: bytes(l.request_body),
            body_memory: bytes(l.body_memory),
            header_bytes: bytes(l.header_bytes),
            header_timeout: l.header_timeout.0,
            connections: l.connections as usize,
            queue: l.queue as usize,
            queue_timeout: l.queue_timeout.0,
        }
    }

    fn drain(&mut self, written: &file::Drain, timeouts: &file::Timeouts) -> Drain {
        if written.grace.0.is_zero() {
            self.warn("drain.grace", "running answers are cut at once when this gateway ends", "25s is the default");
        }
        if written.grace > timeouts.total {
            let reason = format!("`grace` ({}) is longer than any call (`total`, {})", written.grace, timeouts.total);
            self.warn("drain.grace", reason, "the wait ends with the last call");
        }
        if written.delay.0 > Duration::from_secs(600) {
            self.warn(
                "drain.delay",
                "for this long the gateway takes new calls after it was told to end",
                "5s will do",
            );
        }
        Drain { delay: written.delay.0, grace: written.grace.0 }
    }
}

/// As [`url::socket`], with the words that `admin` knows.
fn admin_address(text: &str) -> Result<SocketAddr, Wrong> {
    match nearest(text, ["off", "same"]) {
        Some(word) if !text.contains(':') => {
            Err((format!("`{}` is not an admin address", short(text)), Some(format!("did you mean `{word}`?"))))
        }
        _ if text.starts_with("unix:") => {
            Err(("the admin plane listens on TCP only".to_owned(), Some("such as `127.0.0.1:9090`".to_owned())))
        }
        _ => url::socket(text),
    }
}

fn log(written: &file::Log) -> Log {
    Log {
        json: written.format == file::LogFormat::Json,
        level: match written.level {
            file::Level::Error => Level::Error,
            file::Level::Warn => Level::Warn,
            file::Level::Info => Level::Info,
            file::Level::Debug => Level::Debug,
            file::Level::Trace => Level::Trace,
        },
        access: written.access,
    }
}

fn bytes(size: Size) -> usize {
    usize::try_from(size.0).unwrap_or(usize::MAX)
}
