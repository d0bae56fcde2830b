//! More clients than descriptors: those that are connected are served on, the others once there is room.

use std::net::TcpStream;

use crate::kit::{Folder, Gate, Kept, Process, Sim, alone, metric, until};

const CHAT: &str = r#"{"model":"sim","messages":[{"role":"user","content":"hi"}],"max_tokens":2}"#;

#[test]
fn clients_never_take_the_last_descriptors() {
    let _turn = alone();
    let mut sim = Sim::start(&[]);
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

    // More than it may have. It keeps what it needs for backends and operators, and the rest is refused.
    let idle: Vec<_> = (0..200).map(|_| TcpStream::connect(gate.addr).unwrap()).collect();
    until("clients are refused", || {
        let (_, text) = operator.ask("GET", "/metrics", "").unwrap();
        (metric(&text, "sluicegate_connections_refused_total") > 100.0).then_some(())
    });
    assert!(gate.process.said().contains("ulimit -n"), "{}", gate.process.said());
    // Also over connections to the backend that have yet to be made.
    for _ in 0..3 {
        sim.terminate();
        sim.restart();
        until("the backend is back", || {
            let (_, text) = operator.ask("GET", "/api/v1/backends", "").unwrap();
            text.contains("\"state\":\"healthy\"").then_some(())
        });
        for _ in 0..20 {
            let (status, text) = client.ask("POST", "/v1/chat/completions", CHAT).unwrap();
            assert_eq!(status, 200, "{text}");
        }
    }
    let (_, text) = operator.ask("GET", "/metrics", "").unwrap();
    assert_eq!(metric(&text, "sluicegate_accept_failures_total"), 0.0);

    drop(idle);
    until("there is room", || (gate.metric("sluicegate_connections_open") == 1.0).then_some(()));
    assert_eq!(gate.post("/v1/chat/completions", CHAT).status, 200);
    assert_eq!(client.ask("POST", "/v1/chat/completions", CHAT).unwrap().0, 200);
    assert!(gate.process.runs());
}
