//! Documentation that is a table of the code. `UPDATE=1 cargo test` rewrites it.

use http::Method;
use sluicegate::{
    protocol::endpoint::Endpoint,
    proxy::{normalize::edit::nullable, respond::TABLE},
};

const INTRODUCTION: &str = "\
# Errors

Every error of the gateway's own. On OpenAI's paths it comes as `{\"error\":{\"message\",\"type\",\"param\",\"code\"}}`, on
Anthropic's as `{\"type\":\"error\",\"error\":{\"type\",\"message\"},\"request_id\"}` (its `type` follows from the status), on
Ollama's as `{\"error\":\"…\"}`. `code` is stable: programs may switch on it. What a backend itself answers, errors
included, passes as it is.

`x-should-retry: false` goes with errors where the client's own retry would only multiply the load; `Retry-After` and
`retry-after-ms` (at most 60 s) with those that pass. `Proxy-Status` (RFC 9209) names the type below and the backend.

A stream that fails after its head ends in an error event of the same words (`data:` on OpenAI's paths, `event: error`
on Anthropic's and `/v1/responses`, a line of NDJSON on Ollama's). Then HTTP/1.1 closes the connection without the last
chunk, and HTTP/2 resets the stream: a failed stream never looks whole. A plain answer that is cut ends the same way,
without the event.

";

fn errors() -> String {
    let mut text = INTRODUCTION.to_owned();
    text += "| code | status | type | client retry | `Proxy-Status` | meaning |\n|---|--:|---|---|---|---|\n";
    for row in TABLE {
        let retry = if row.client_retry { "may help" } else { "`x-should-retry: false`" };
        let proxy = row.proxy_status.map_or_else(String::new, |name| format!("`{name}`"));
        text += &format!(
            "| `{}` | {} | `{}` | {retry} | {proxy} | {} |\n",
            row.code,
            row.status.as_u16(),
            row.kind_name,
            row.meaning
        );
    }
    text
}

#[test]
fn errors_are_documented() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/errors.md");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(path, errors()).unwrap();
    }
    let written = std::fs::read_to_string(path).unwrap();
    assert!(
        written == errors(),
        "docs/errors.md is not the table of src/proxy/respond.rs; UPDATE=1 cargo test rewrites it"
    );
}

#[test]
fn every_kind_of_error_has_its_row() {
    for (index, row) in TABLE.iter().enumerate() {
        assert!(TABLE[..index].iter().all(|other| other.kind != row.kind && other.code != row.code), "{}", row.code);
        assert_eq!(sluicegate::proxy::respond::row_of(row.kind).code, row.code);
    }
}

#[test]
fn refusals_are_documented() {
    use sluicegate::proxy::resume::refusal::Refusal;
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/resume.md");
    let (begin, end) = ("<!-- refusals: kept true by a test -->\n", "<!-- /refusals -->");
    let mut table = String::from("| reason | it was not continued: |\n|---|---|\n");
    for refusal in Refusal::ALL {
        table += &format!("| `{}` | {} |\n", refusal.label(), refusal.why());
    }
    let written = std::fs::read_to_string(path).unwrap();
    let (head, rest) = written.split_once(begin).expect("the mark of the table");
    let (old, tail) = rest.split_once(end).expect("the mark of its end");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(path, format!("{head}{begin}{table}{end}{tail}")).unwrap();
    } else {
        assert!(old == table, "docs/resume.md is not the table of refusal.rs; UPDATE=1 cargo test rewrites it");
    }
}

const METRICS: &str = "\
# Metrics

`GET /metrics` on the admin address, Prometheus' text format. Every series without labels is there from the start, and
those of known endpoints, codes, backends and states too. Label values are bounded: models that no backend lists, and
all above 1,000 series of one name, are counted as `other`.

";

#[test]
fn metrics_are_documented() {
    use sluicegate::telemetry::metrics::{Kind, Name};
    let mut text = METRICS.to_owned() + "| metric | type | labels | meaning |\n|---|---|---|---|\n";
    for name in Name::ALL {
        let spec = name.spec();
        let kind = match spec.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram(_) => "histogram",
        };
        let labels: Vec<_> = spec.labels.iter().map(|label| format!("`{label}`")).collect();
        text += &format!("| `{}` | {kind} | {} | {} |\n", spec.name, labels.join(", "), spec.help);
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(path, &text).unwrap();
    }
    let written = std::fs::read_to_string(path).unwrap();
    assert!(
        written == text,
        "docs/metrics.md is not the table of src/telemetry/metrics/name.rs; UPDATE=1 cargo test rewrites it"
    );
}

#[test]
fn nullable_fields_are_documented() {
    let written = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/payload.md")).unwrap();
    for path in ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings"] {
        let fields = nullable(Endpoint::of(&Method::POST, path)).iter().map(|field| format!("`{field}`"));
        let row = format!("| `{path}` | {} |", fields.collect::<Vec<_>>().join(" "));
        assert!(written.lines().any(|line| line == row), "docs/payload.md needs this row:\n{row}");
    }
    assert!(nullable(Endpoint::Messages).is_empty());
}

#[test]
fn bounds_are_documented() {
    use sluicegate::protocol::request::BOUNDS;
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/payload.md");
    let (begin, end) = ("<!-- bounds: kept true by a test -->\n", "<!-- /bounds -->");
    let mut table = String::from("| what | most | why no more |\n|---|--:|---|\n");
    for bound in BOUNDS {
        table += &format!("| {} | {} | {} |\n", bound.what, bound.most, bound.why);
    }
    let written = std::fs::read_to_string(path).unwrap();
    let (head, rest) = written.split_once(begin).expect("the mark of the table");
    let (old, tail) = rest.split_once(end).expect("the mark of its end");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(path, format!("{head}{begin}{table}{end}{tail}")).unwrap();
    } else {
        assert!(old == table, "docs/payload.md is not the table of protocol/request; UPDATE=1 cargo test rewrites it");
    }
}
