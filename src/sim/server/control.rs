//! `/sim/…`: what a test or a person asks of the sim itself.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{super::coding::base64, Fault, Framing, Head, JSON, Leave, Order, Request, Shared, Sink};

/// Bytes of one piece of `/sim/bytes`.
const PIECE: usize = 16 * 1024;

pub(super) async fn respond(shared: &Arc<Shared>, request: &Request, sink: &mut Sink<'_>) -> Result<(), Leave> {
    match (request.method.as_str(), request.path()) {
        ("GET" | "HEAD", "/sim/bytes") => return bytes(request, sink).await,
        ("POST", "/sim/raw") => {
            sink.raw(&request.body).await?;
            return Err(Leave::Fin);
        }
        ("POST", "/sim/kill") => return Err(Leave::Die),
        ("POST", "/sim/refuse") => {
            let time = number(request, "ms").unwrap_or(1000);
            // A sim that is ending refuses as well.
            let _ = shared.orders.send(Order::Refuse(std::time::Duration::from_millis(time))).await;
        }
        _ => {}
    }
    let (status, body) = order(shared, request);
    sink.whole(&Head::new(status, JSON), body.to_string().as_bytes()).await
}

fn order(shared: &Shared, request: &Request) -> (u16, Value) {
    let body = || serde_json::from_slice::<Value>(&request.body).unwrap_or_default();
    match (request.method.as_str(), request.path()) {
        ("GET", "/sim/state") => (200, state(shared)),
        ("GET", "/sim/last") => match shared.last(request.query("path")) {
            Some(last) => (200, last_request(&last)),
            None => (404, json!({"error": "no such request has come"})),
        },
        ("GET", "/sim/fault") => (200, json!({"faults": shared.script.written()})),
        ("POST", "/sim/fault") => match Fault::from_json(&body()) {
            Ok(fault) => match shared.script.add(fault) {
                true => (200, json!({"faults": shared.script.written()})),
                false => (429, json!({"error": "1024 faults are waiting; DELETE /sim/fault clears them"})),
            },
            Err(what) => (400, json!({"error": what})),
        },
        ("DELETE", "/sim/fault") => {
            shared.script.clear();
            (200, json!({"faults": []}))
        }
        ("POST", "/sim/release") => {
            shared.released.send_modify(|times| *times += 1);
            (200, json!({"released": true}))
        }
        ("POST", "/sim/model") => {
            let body = body();
            if let Some(name) = body["add"].as_str() {
                shared.add_model(name);
            }
            if let Some(name) = body["remove"].as_str() {
                shared.remove_model(name);
            }
            (200, json!({"models": shared.models()}))
        }
        ("POST", "/sim/refuse") => (200, json!({"refusing": true})),
        (_, "/sim/status") => {
            let code = number(request, "code").and_then(|code| u16::try_from(code).ok()).unwrap_or(200);
            (code.clamp(200, 999), json!({"status": code}))
        }
        _ => (404, json!({"error": "unknown; see the documentation of `sluicegate sim`"})),
    }
}

fn state(shared: &Shared) -> Value {
    let now = shared.snapshot();
    json!({"running": now.running, "waiting": now.waiting, "served": now.served, "cancelled": now.cancelled,
        "failed": now.failed, "tokens": now.tokens, "prompt_tokens": now.prompt_tokens, "requests": now.requests,
        "accepted": now.accepted, "open": now.open, "health": now.health, "models": shared.models(),
        "faults": shared.script.written()})
}

fn last_request(last: &Request) -> Value {
    let latin1 = |bytes: &[u8]| bytes.iter().map(|byte| char::from(*byte)).collect::<String>();
    let headers: Vec<_> = last.headers.iter().map(|(name, value)| json!([name, latin1(value)])).collect();
    json!({"method": last.method, "target": last.target, "path": last.path(), "version": last.version,
        "headers": headers, "head": latin1(&last.head), "body_base64": base64(&last.body),
        "body": std::str::from_utf8(&last.body).ok()})
}

fn number(request: &Request, name: &str) -> Option<u64> {
    request.query(name)?.parse().ok()
}

/// `n` bytes, each its own place modulo 251; chunked, or with a length when asked for `length=1`.
async fn bytes(request: &Request, sink: &mut Sink<'_>) -> Result<(), Leave> {
    let n = number(request, "n").unwrap_or(1024);
    let framing = if number(request, "length") == Some(1) { Framing::Length(n) } else { Framing::Chunked };
    sink.begin(&Head::new(200, "application/octet-stream"), framing).await?;
    let mut at = 0;
    while at < n {
        let end = n.min(at + PIECE as u64);
        let piece: Vec<u8> = (at..end).map(|place| (place % 251) as u8).collect();
        sink.data(&piece).await?;
        at = end;
    }
    sink.end(&[]).await
}
