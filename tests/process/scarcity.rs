//! A full table of descriptors: what is connected is served on, what waits is served once there is room.

use std::net::TcpStream;

use crate::kit::{Folder, Gate, Kept, Process, Sim, alone, metric, until};

const CHAT: &str = r#"{"model":"sim","messages":[{"role":"user","content":"hi"}],"max_tokens":2}"#;

#[test]
fn a_full_table_of_descriptors_is_lived_through() {
    let _turn = alone();
    let sim = Sim::start(&[]);
    let folder = Folder::new();
    let text = format!(
        "backends: [{{name: a, url: 'http://{}'}}]\nlog: {{access: false}}\nlimits: {{header_timeout: 300s}}\n",
        sim.addr
    );
    let file = folder.write("sluicegate.yaml", &Gate::whole(&text));
    let process = Process::start_with_descriptors(64, &["serve", "--config", file.to_str().unwrap()]);
    let mut gate = Gate::of(process, folder).healthy();
    let (mut client, mut operator) = (Kept::to(gate.addr), Kept::to(gate.admin));
    assert_eq!(client.ask("POST", "/v1/chat/completions", CHAT).unwrap().0, 200);
    assert_eq!(operator.ask("GET", "/readyz", "").unwrap().0, 200);

    // More than it may have; the kernel keeps those that it cannot take.
    let idle: Vec<_> = (0..200).map(|_| TcpStream::connect(gate.addr).unwrap()).collect();
    until("accepting fails", || {
        let (_, text) = operator.ask("GET", "/metrics", "").unwrap();
        (metric(&text, "sluicegate_accept_failures_total") > 10.0).then_some(())
    });
    assert!(gate.process.said().contains("ulimit -n"), "{}", gate.process.said());
    for _ in 0..50 {
        let (status, text) = client.ask("POST", "/v1/chat/completions", CHAT).unwrap();
        assert_eq!(status, 200, "{text}");
    }
    let mut waiting = Kept::to(gate.addr);
    waiting.send("POST", "/v1/chat/completions", CHAT).unwrap();
    drop(idle);
    assert_eq!(waiting.answer().unwrap().0, 200);
    assert_eq!(client.ask("POST", "/v1/chat/completions", CHAT).unwrap().0, 200);
    gate.until_metric("sluicegate_connections_open", |n| n == 2.0);
    assert!(gate.process.runs());
}
