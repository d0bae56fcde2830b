//! Many connections, slow readers and large bodies: memory stays bounded, everything is counted, and both come back.
//!
//! In the ordinary suite most slow readers leave before the end, and the cache is filled little more than once; with
//! `SLUICEGATE_SIEGE=full` (`make siege`) all of them read on: 3 GiB, and 100,000 answers go through the cache.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    thread,
    time::Duration,
};

use crate::{
    kit::{Gate, Kept, Peak, Sim, alone, descriptors, until},
    support::{Answer, Exchange, at_once},
};

const MIB: usize = 1 << 20;
/// Of body bytes that one connection may have under way, both sides and the codecs' buffers together.
const PER_STREAM: f64 = 0.5;
/// What an allocator may keep of what was freed.
const LEFT: f64 = 8.0;

const CHAT: &str = r#"{"model":"sim","messages":[{"role":"user","content":"hi"}],"max_tokens":2}"#;

const IDLE: usize = 5_000;
const AT_ONCE: usize = 1_000;
const SLOW_READERS: usize = 50;
/// Bytes of one slowly read answer.
const ANSWER: usize = 64 * MIB;
const UPLOADS: usize = 20;
/// Bytes of one upload.
const UPLOAD: usize = 30 * MIB;
/// Bodies that may be held at the same time.
const HELD: usize = 3;
/// Of the response cache.
const CAPACITY: usize = 64 * MIB;
/// What the whole gateway may have beside its kept answers, MiB.
const BESIDE: f64 = 40.0;
/// Clients that each have one answer computed after the other.
const ASKERS: usize = 8;
/// Followers of one live stream that never read.
const DEAF: usize = 50;
/// Events of that stream, some 200 bytes each: more than a transcript holds by default.
const EVENTS: usize = 80_000;

/// The long form.
fn full() -> bool {
    std::env::var_os("SLUICEGATE_SIEGE").is_some_and(|size| size == "full")
}

/// Slow readers that read to the end.
fn patient() -> usize {
    if full() { SLOW_READERS } else { 2 }
}

/// Distinct answers that are kept one after the other: 18 KiB each in the mean.
fn distinct() -> usize {
    if full() { 100_000 } else { 5_000 }
}

/// A gateway in front of one backend, and its memory after its first requests.
fn besieged(more: &str) -> (Gate, Sim, f64) {
    let sim = Sim::start(&[]);
    let config = format!("backends: [{{name: a, url: 'http://{}'}}]\nlog: {{access: false}}\n{more}", sim.addr);
    let gate = Gate::start(&config).healthy();
    at_once(16, {
        let addr = gate.addr;
        move |_| assert_eq!(upload(addr, "/sim/status", "text/plain", b"warm").status, 200)
    });
    quiet(&gate);
    let before = gate.process.resident();
    (gate, sim, before)
}

/// Waits until nobody is connected and nothing is under way.
fn quiet(gate: &Gate) {
    for series in ["connections_open", "requests_in_flight", "body_memory_bytes", "queue_length"] {
        gate.until_metric(&format!("sluicegate_{series}"), |n| n == 0.0);
    }
}

/// Waits until the memory is near what it was; gives what it is then.
fn back(gate: &Gate, before: f64) -> f64 {
    quiet(gate);
    let mut now = 0.0;
    until("memory back near the start", || {
        now = gate.process.resident();
        (now <= before + LEFT).then_some(now)
    })
}

fn upload(gate: SocketAddr, path: &str, media: &str, body: &[u8]) -> Answer {
    Exchange::start(gate, "POST", path, &[("content-type", media)], body).finish()
}

#[test]
fn idle_connections_are_cheap_and_requests_on_them_are_answered() {
    let _turn = alone();
    descriptors(IDLE + 1_000);
    let (gate, sim, before) = besieged("limits: {header_timeout: 300s}\n");
    let mut clients: Vec<Kept> = (0..IDLE).map(|_| Kept::to(gate.addr)).collect();
    gate.until_metric("sluicegate_connections_open", |n| n == IDLE as f64);
    let idle = gate.process.resident();

    // All of them under way at the backend at the same time, none answered before the last is there.
    let busy = &mut clients[..AT_ONCE];
    sim.post("/sim/fault", &format!(r#"{{"fault":"hang","times":{}}}"#, AT_ONCE));
    for client in busy.iter_mut() {
        client.send("POST", "/v1/chat/completions", CHAT).unwrap();
    }
    gate.until_metric("sluicegate_requests_in_flight", |n| n == AT_ONCE as f64);
    gate.until_metric(r#"sluicegate_backend_in_flight{backend="a"}"#, |n| n == AT_ONCE as f64);
    let peak = gate.process.resident();
    until("the sim has all of them", || {
        sim.post("/sim/release", "");
        (gate.metric("sluicegate_requests_in_flight") == 0.0).then_some(())
    });
    for client in busy {
        assert_eq!(client.answer().unwrap().0, 200);
    }
    gate.until_metric("sluicegate_connections_folded_total", |n| n >= AT_ONCE as f64);
    assert_eq!(gate.metric("sluicegate_connections_open"), IDLE as f64);
    drop(clients);
    let after = back(&gate, before);
    println!(
        "{} idle connections, {} requests at once: RSS before {before:.1}, idle {idle:.1}, peak {peak:.1}, after {after:.1} MiB",
        IDLE, AT_ONCE
    );
    // 8 MiB a thousand is what the release build is held to; and 50 KiB a request of both codecs.
    assert!(idle - before <= 8.0 * IDLE as f64 / 1000.0 + 4.0, "idle: {idle} MiB, {before} before");
    assert!(peak - idle <= 0.05 * AT_ONCE as f64, "peak: {peak} MiB, {idle} idle");
}

#[test]
fn slow_readers_hold_the_backend_back_not_memory() {
    let _turn = alone();
    let (gate, sim, before) = besieged("");
    let patient = patient();
    let path = format!("/sim/bytes?n={ANSWER}");
    let mut readers: Vec<TcpStream> = (0..SLOW_READERS).map(|_| slow_reader(gate.addr, &path)).collect();
    gate.until_metric("sluicegate_requests_in_flight", |n| n == SLOW_READERS as f64);
    let mut peak = 0.0;
    let mut some = vec![0; 16 * 1024];
    // Each a little further, a while after the other: all buffers on the way are full all the time.
    for _ in 0..64 {
        for reader in &mut readers {
            reader.read_exact(&mut some).unwrap();
        }
        peak = gate.process.resident().max(peak);
    }
    let to_the_end: Vec<_> = readers.drain(..patient).map(|reader| thread::spawn(move || read_all(reader))).collect();
    for reader in to_the_end {
        let left = ANSWER - 64 * some.len();
        assert!(reader.join().unwrap() > left, "the rest came whole");
    }
    peak = gate.process.resident().max(peak);
    // The others leave, and their backend is told.
    drop(readers);
    until("the backend's connections end", || (sim.state()["running"] == 0).then_some(()));
    let after = back(&gate, before);
    println!(
        "{} slow readers of {} MiB: RSS before {before:.1}, peak {peak:.1}, after {after:.1} MiB",
        SLOW_READERS,
        ANSWER / MIB
    );
    assert!(peak - before <= PER_STREAM * SLOW_READERS as f64, "peak: {peak} MiB, {before} before");
    if patient < SLOW_READERS {
        gate.until_metric("sluicegate_clients_gone_total", |n| n == (SLOW_READERS - patient) as f64);
    }
}

/// Asks, reads the head, and waits.
fn slow_reader(gate: SocketAddr, path: &str) -> TcpStream {
    let mut stream = TcpStream::connect(gate).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream
        .write_all(format!("GET {path} HTTP/1.1\r\nhost: gate.test\r\nconnection: close\r\n\r\n").as_bytes())
        .unwrap();
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    assert!(head.starts_with(b"HTTP/1.1 200"));
    stream
}

/// To the end, which must be the last chunk; gives how many bytes that were.
fn read_all(mut stream: TcpStream) -> usize {
    let (mut read, mut last) = (0, Vec::new());
    let mut some = vec![0; 256 * 1024];
    loop {
        let n = stream.read(&mut some).unwrap();
        if n == 0 {
            assert!(last.ends_with(b"\r\n0\r\n\r\n"), "the last chunk comes last");
            return read;
        }
        read += n;
        last.extend_from_slice(&some[n.saturating_sub(7)..n]);
        last.drain(..last.len().saturating_sub(7));
    }
}

#[test]
fn uploads_stream_through() {
    let _turn = alone();
    let (gate, _sim, before) = besieged("");
    let watched = Peak::of(&gate);
    let statuses = at_once(UPLOADS, {
        let addr = gate.addr;
        move |_| upload(addr, "/sim/status", "application/octet-stream", &vec![b'x'; UPLOAD]).status
    });
    assert_eq!(statuses, vec![200; UPLOADS]);
    let sent = (UPLOADS * UPLOAD) as f64;
    assert!(gate.metric("sluicegate_request_bytes_total") >= sent);
    let peak = watched.peak();
    let after = back(&gate, before);
    println!(
        "{} uploads of {} MiB streamed: RSS before {before:.1}, peak {peak:.1}, after {after:.1} MiB",
        UPLOADS,
        UPLOAD / MIB
    );
    assert!(peak - before <= PER_STREAM * UPLOADS as f64 + 4.0, "peak: {peak} MiB, {before} before");
}

#[test]
fn bodies_that_are_held_are_bounded_and_the_rest_is_told_to_wait() {
    let _turn = alone();
    let limit = HELD * UPLOAD;
    let (gate, sim, before) = besieged(&format!("limits: {{body_memory: {limit}}}\n"));
    // What is held stays held until all have come.
    sim.post("/sim/fault", r#"{"fault":"hang","times":1000}"#);
    let watched = Peak::of(&gate);
    let addr = gate.addr;
    let uploads = thread::spawn(move || {
        at_once(UPLOADS, move |_| {
            let head = br#"{"model":"sim","messages":[{"role":"user","content":""#;
            let tail = br#""}],"max_tokens":1}"#;
            let filler = vec![b'x'; UPLOAD - head.len() - tail.len()];
            upload(addr, "/v1/chat/completions", "application/json", &[&head[..], &filler, tail].concat())
        })
    });
    let refused = (UPLOADS - HELD) as f64;
    gate.until_metric(r#"sluicegate_requests_total{endpoint="chat",code="503"}"#, |n| n == refused);
    gate.until_metric(r#"sluicegate_backend_in_flight{backend="a"}"#, |n| n == HELD as f64);
    assert_eq!(gate.metric("sluicegate_body_memory_bytes"), limit as f64);
    until("all are answered", || {
        sim.post("/sim/release", "");
        uploads.is_finished().then_some(())
    });
    let (answered, told): (Vec<_>, Vec<_>) = uploads.join().unwrap().into_iter().partition(|a| a.status == 200);
    assert_eq!((answered.len(), told.len()), (HELD, UPLOADS - HELD));
    assert!(told.iter().all(|answer| answer.status == 503 && answer.header("retry-after").is_some()));
    let peak = watched.peak();
    let after = back(&gate, before);
    println!(
        "{} bodies of {} MiB, {HELD} held: RSS before {before:.1}, peak {peak:.1}, after {after:.1} MiB",
        UPLOADS,
        UPLOAD / MIB
    );
    let bound = (limit / MIB) as f64 * 1.1 + PER_STREAM * UPLOADS as f64;
    assert!(peak - before <= bound, "peak: {peak} MiB, {before} before, {bound} allowed");
}

#[test]
fn a_full_cache_stays_within_its_capacity() {
    let _turn = alone();
    let (gate, _sim, before) = besieged(&format!("cache: {{mode: all, capacity: {CAPACITY}}}\n"));
    let asked = distinct();
    let watched = Peak::of(&gate);
    let (addr, next) = (gate.addr, AtomicUsize::new(0));
    at_once(ASKERS, move |_| {
        let mut client = Kept::to(addr);
        loop {
            let n = next.fetch_add(1, Relaxed);
            if n >= asked {
                return;
            }
            let (status, body) = client.ask("POST", "/v1/chat/completions", &question(n)).unwrap();
            assert_eq!(status, 200, "{body}");
        }
    });
    let peak = watched.peak();
    let now = gate.process.resident();
    // Every one of them was kept, and the newest are there.
    assert_eq!(gate.metric("sluicegate_cache_stored_total"), asked as f64);
    assert!(gate.metric(r#"sluicegate_cache_removed_total{reason="evicted"}"#) > 0.0);
    let mut client = Kept::to(addr);
    for n in asked - ASKERS..asked {
        assert_eq!(client.ask("POST", "/v1/chat/completions", &question(n)).unwrap().0, 200);
    }
    assert_eq!(gate.metric(r#"sluicegate_cache_requests_total{outcome="hit",reason=""}"#), ASKERS as f64);
    let kept = gate.metric("sluicegate_cache_bytes");
    println!(
        "{asked} distinct answers, {} MiB of them kept: RSS before {before:.1}, peak {peak:.1}, after {now:.1} MiB",
        kept as usize / MIB
    );
    // Full but for about one answer, and never more.
    assert!(kept <= CAPACITY as f64 && kept >= 0.95 * CAPACITY as f64, "{kept} bytes kept");
    assert!(peak <= (CAPACITY / MIB) as f64 + BESIDE, "peak: {peak} MiB, {before} before");
}

/// Number `n`, whose answer is its own; 32 to 16,384 tokens of 5.5 bytes.
fn question(n: usize) -> String {
    let tokens = 32 << (n % 10);
    format!(
        r#"{{"model":"sim","messages":[{{"role":"user","content":"number {n}"}}],"max_tokens":{tokens},"ignore_eos":true,"temperature":0}}"#
    )
}

#[test]
fn followers_that_never_read_are_bounded_and_hold_nobody_back() {
    let _turn = alone();
    let (gate, sim, before) = besieged("cache: {mode: all}\n");
    let body = format!(
        r#"{{"model":"sim","messages":[{{"role":"user","content":"go on"}}],"max_tokens":{EVENTS},"ignore_eos":true,"temperature":0,"stream":true}}"#
    );
    let watched = Peak::of(&gate);
    // The first of them leads.
    let deaf: Vec<_> = (0..DEAF).map(|_| gate.start_post("/v1/chat/completions", &body)).collect();
    gate.until_metric("sluicegate_requests_in_flight", |n| n == DEAF as f64);
    let answer = gate.post("/v1/chat/completions", &body);
    let peak = watched.peak();
    assert_eq!((answer.status, answer.whole), (200, true));
    let text = answer.text();
    assert!(text.ends_with("data: [DONE]\n\n"), "its end came");
    assert!(text.matches("\"content\"").count() >= EVENTS, "every event came");
    until("it is served", || (sim.state()["running"] == 0).then_some(()));
    assert_eq!(sim.state()["served"], 1, "one answer for all of them");
    drop(deaf);
    let after = back(&gate, before);
    println!(
        "{DEAF} followers that never read beside one of {} MiB: RSS before {before:.1}, peak {peak:.1}, after {after:.1} MiB",
        text.len() / MIB
    );
    // `cache.max_entry` and the window once, what a connection may have under way each.
    let bound = 8.0 + 1.0 + PER_STREAM * (DEAF + 1) as f64;
    assert!(peak - before <= bound, "peak: {peak} MiB, {before} before, {bound} allowed");
}
