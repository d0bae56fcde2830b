//! Fields that this version reads, checks, and does not act on. A stage that is built takes its line out.

use super::{
    Problem, Severity,
    file::{Backend, FileConfig},
    load::Source,
};

/// Fields of later versions.
const LATER: [&str; 4] = ["profile", "cors", "routing.affinity", "stream"];

/// The like, of each backend.
const LATER_OF_BACKENDS: [&str; 1] = ["price"];

/// The like, of `limits`.
const LATER_LIMITS: [&str; 2] = ["limits.rate_store", "limits.on_store_failure"];

/// What was given a value other than its default, but has no effect yet. `auth` is an error: a gateway that ignored
/// it would let everybody in.
pub(super) fn unsupported(written: &FileConfig, source: &Source) -> Vec<Problem> {
    let is = serde_json::to_value(written).unwrap_or_default();
    let default = serde_json::to_value(FileConfig::default()).unwrap_or_default();
    let mut out = Vec::new();
    for path in LATER.iter().chain(&LATER_LIMITS) {
        let pointer = format!("/{}", path.replace('.', "/"));
        if is.pointer(&pointer) != default.pointer(&pointer) {
            out.push(note(Severity::Warning, path, source));
        }
    }
    let default = serde_json::to_value(Backend::default()).unwrap_or_default();
    for (i, backend) in written.backends.iter().enumerate() {
        let is = serde_json::to_value(backend).unwrap_or_default();
        for field in LATER_OF_BACKENDS.iter().filter(|field| is.get(field) != default.get(field)) {
            out.push(note(Severity::Warning, &format!("backends[{i}].{field}"), source));
        }
    }
    if written.auth.is_some() {
        out.push(note(Severity::Error, "auth", source));
    }
    out
}

fn note(severity: Severity, path: &str, source: &Source) -> Problem {
    let help = match severity {
        Severity::Error => "without it anybody could call: `serve` does not start until it is taken out",
        Severity::Warning => "it is checked, and has no effect",
    };
    source.at(severity, path, format!("`{path}` is not in this version"), Some(help.to_owned()))
}
