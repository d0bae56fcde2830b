//! The orderly end, the end at once, and starts that fail.

use std::{
    io::{BufRead, BufReader},
    net::{TcpListener, TcpStream},
    process::Stdio,
};

use crate::{
    kit::{Folder, Gate, Process, Sim, alone, until},
    support::{Answer, Exchange},
};

const STREAM: &str = r#"{"model":"sim","messages":[{"role":"user","content":"hi"}],"max_tokens":8,"stream":true}"#;
const PLAIN: &str = r#"{"model":"sim","messages":[{"role":"user","content":"hi"}],"max_tokens":8}"#;

fn gate(sim: &Sim, more: &str) -> Gate {
    Gate::start(&format!("backends: [{{name: a, url: 'http://{}'}}]\n{more}", sim.addr)).healthy()
}

/// Streams that have begun and go on when the sim is told to.
fn streams(gate: &Gate, n: usize) -> Vec<Exchange> {
    let mut streams: Vec<_> = (0..n).map(|_| gate.start_post("/v1/chat/completions", STREAM)).collect();
    for stream in &mut streams {
        stream.until("content\":\"");
    }
    streams
}

fn is_whole(answer: &Answer) -> bool {
    answer.whole && answer.text().ends_with("data: [DONE]\n\n")
}

#[test]
fn sigterm_with_a_hundred_streams_loses_none() {
    let _turn = alone();
    let sim = Sim::start(&["--fault", "stall,after=3"]);
    let mut gate = gate(&sim, "drain: {grace: 300s}\n");
    let streams = streams(&gate, 100);
    gate.process.signal("TERM");
    until("not ready", || (gate.admin("/readyz").status == 503).then_some(()));
    assert!(gate.admin("/readyz").text().contains("draining"));
    assert!(gate.process.runs());
    let releasing = gate.process.id();
    sim.post("/sim/release", "");
    let whole = streams.into_iter().map(Exchange::finish).filter(is_whole).count();
    assert_eq!(whole, 100, "of process {releasing}");
    assert_eq!(gate.process.ended().code(), Some(0), "{}", gate.process.said());
    assert!(TcpStream::connect(gate.addr).is_err(), "nobody listens any more");
}

#[test]
fn during_the_delay_new_clients_are_served() {
    let sim = Sim::start(&["--fault", "stall,after=3,times=1"]);
    let mut gate = gate(&sim, "drain: {delay: 3s, grace: 300s}\n");
    let mut streams = streams(&gate, 1);
    gate.process.signal("TERM");
    until("not ready", || (gate.admin("/readyz").status == 503).then_some(()));
    // Whoever sends here has not looked at the readiness yet.
    let mut late = crate::kit::Kept::to(gate.addr);
    assert_eq!(late.ask("POST", "/v1/chat/completions", PLAIN).unwrap().0, 200);
    // Then nobody is let in, and who is idle is let go; the stream may go on.
    until("nobody listens any more", || TcpStream::connect(gate.addr).is_err().then_some(()));
    until("idle connections are closed", || late.ask("POST", "/v1/chat/completions", PLAIN).err());
    drop(late);
    assert!(gate.process.runs());
    sim.post("/sim/release", "");
    assert!(is_whole(&streams.pop().unwrap().finish()));
    assert_eq!(gate.process.ended().code(), Some(0));
}

#[test]
fn a_client_that_says_nothing_does_not_hold_the_drain() {
    let sim = Sim::start(&[]);
    // Longer than this test waits for anything.
    let mut gate = gate(&sim, "drain: {grace: 600s}\nlimits: {header_timeout: 600s}\n");
    let mute: Vec<_> = (0..10).map(|_| TcpStream::connect(gate.addr).unwrap()).collect();
    gate.until_metric("sluicegate_connections_open", |n| n == 10.0);
    gate.process.signal("TERM");
    assert_eq!(gate.process.ended().code(), Some(0));
    drop(mute);
}

#[test]
fn a_second_sigterm_ends_it_at_once() {
    let sim = Sim::start(&["--fault", "stall,after=3"]);
    let mut gate = gate(&sim, "drain: {grace: 300s}\n");
    let streams = streams(&gate, 10);
    gate.process.signal("TERM");
    until("not ready", || (gate.admin("/readyz").status == 503).then_some(()));
    gate.process.signal("TERM");
    assert!(gate.process.ended().code().is_some(), "not by the signal itself");
    for stream in streams {
        let answer = stream.finish();
        assert!(!answer.whole && !answer.text().contains("[DONE]"));
    }
}

#[test]
fn an_address_that_is_taken_is_said() {
    let holder = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = holder.local_addr().unwrap().to_string();
    for (listen, admin, option) in [(&*taken, "127.0.0.1:0", "--listen"), ("127.0.0.1:0", &*taken, "--admin")] {
        let mut process = Process::start(
            &["serve", "--backend", "http://127.0.0.1:1", "--listen", listen, "--admin", admin],
            Stdio::null(),
        );
        assert_eq!(process.ended().code(), Some(1));
        until("the reason", || process.said().contains(&taken).then_some(()));
        let said = process.said();
        assert!(said.contains("another process listens there already") && said.contains(option), "{said}");
    }
}

#[test]
fn auth_that_is_not_there_yet_is_not_left_open() {
    let folder = Folder::new();
    let text = "backends: [{url: 'http://127.0.0.1:1'}]\nauth: {keys: [{name: t, key: sk-secret}]}\n";
    let file = folder.write("sluicegate.yaml", &Gate::whole(text));
    let mut process = Process::start(&["serve", "--config", file.to_str().unwrap()], Stdio::null());
    assert_eq!(process.ended().code(), Some(2));
    until("the reason", || process.said().contains("auth").then_some(()));
    assert!(!process.said().contains("sk-secret"), "{}", process.said());
}

/// Started with an access log that goes to a pipe.
fn logging(sim: &Sim) -> Gate {
    let folder = Folder::new();
    let text = format!("backends: [{{name: a, url: 'http://{}'}}]\nlog: {{access: true}}\n", sim.addr);
    let file = folder.write("sluicegate.yaml", &Gate::whole(&text));
    let process = Process::start(&["serve", "--config", file.to_str().unwrap()], Stdio::piped());
    Gate::of(process, folder).healthy()
}

#[test]
fn an_access_log_whose_reader_is_gone_stops_nothing() {
    let sim = Sim::start(&[]);
    let mut gate = logging(&sim);
    let mut lines = BufReader::new(gate.process.stdout());
    assert_eq!(gate.post("/v1/chat/completions", PLAIN).status, 200);
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    assert!(line.contains("status=200") && line.contains("path=/v1/chat/completions"), "{line}");
    drop(lines);
    let dropped = r#"sluicegate_log_lines_dropped_total{log="access"}"#;
    until("lines are dropped", || {
        assert_eq!(gate.post("/v1/chat/completions", PLAIN).status, 200);
        (gate.metric(dropped) > 0.0).then_some(())
    });
    gate.process.signal("TERM");
    assert_eq!(gate.process.ended().code(), Some(0), "{}", gate.process.said());
}

#[test]
fn an_access_log_that_nobody_reads_stops_nothing() {
    let _turn = alone();
    let sim = Sim::start(&[]);
    let mut gate = logging(&sim);
    let unread = gate.process.stdout();
    let dropped = r#"sluicegate_log_lines_dropped_total{log="access"}"#;
    let mut kept = crate::kit::Kept::to(gate.addr);
    until("lines are dropped", || {
        for _ in 0..200 {
            assert_eq!(kept.ask("POST", "/v1/chat/completions", PLAIN).unwrap().0, 200);
        }
        (gate.metric(dropped) > 0.0).then_some(())
    });
    gate.process.signal("TERM");
    assert_eq!(gate.process.ended().code(), Some(0), "{}", gate.process.said());
    drop(unread);
}
