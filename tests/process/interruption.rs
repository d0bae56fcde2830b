//! The agent on a spot machine, and gateways elsewhere.

use std::{process::Stdio, time::Duration};

use serde_json::Value;
use sluicegate::sim::metadata::{Cloud, Config, Metadata};

use crate::kit::{Folder, Gate, Process, Sim, backends, free_port, memory, until};

const TOKEN: &str = "interruption_token: shared\n";

/// What the gateway holds for backend `a`.
fn notice(gate: &Gate) -> Value {
    gate.admin("/api/v1/backends").json()["backends"][0]["interruption"].clone()
}

fn leaves(gate: &Gate) -> f64 {
    gate.until_state(0, "draining");
    gate.metric("sluicegate_backend_leaves_in_seconds{backend=\"a\"}")
}

fn agent(gateways: &[String], more: &[&str]) -> Process {
    let mut arguments = vec!["agent", "--backend", "a", "--token", "shared", "--notify"];
    arguments.extend(gateways.iter().map(String::as_str));
    arguments.extend(more);
    Process::start(&arguments, Stdio::null())
}

#[test]
fn an_agent_brings_a_notice_to_two_gateways_though_one_is_down_at_first() {
    let (a, b) = (Sim::start(&[]), Sim::start(&[]));
    let metadata = Metadata::start(Config::of(Cloud::Aws)).unwrap();
    let config = format!("{}{TOKEN}", backends(&a, &b));
    let first = Gate::start(&config).healthy();
    let later = free_port();
    let gateways = [format!("http://{}", first.admin), format!("http://{later}")];
    let mut agent = agent(&gateways, &["--endpoint", &metadata.url()]);
    agent.line("source=\"aws\"");
    until("looks", || metadata.asked().iter().any(|asked| asked.contains("instance-action")).then_some(()));
    metadata.forget_tokens();

    metadata.notice("terminate", Duration::from_secs(120));
    let left = leaves(&first);
    assert!((60.0..=120.0).contains(&left), "{left}");
    assert_eq!(notice(&first)["source"], "push");
    agent.line("cannot tell the gateway");

    let folder = Folder::new();
    let text = Gate::whole(&config).replace("admin: 127.0.0.1:0", &format!("admin: {later}"));
    let file = folder.write("sluicegate.yaml", &text);
    let serve = Process::start(&["serve", "--config", file.to_str().unwrap()], Stdio::null());
    let second = Gate::of(serve, folder);
    assert!((1.0..=120.0).contains(&leaves(&second)));
    until("both know", || (agent.said().matches("the gateway knows").count() == 2).then_some(()));

    // The rest is the program's own file, whose pages the system maps by the dozen and may drop at any time.
    let (resident, own) = (agent.resident(), memory(agent.id(), "RssAnon:"));
    println!("the agent has {resident:.1} MiB, {own:.1} of them its own");
    assert!(own <= 3.0, "{own} MiB");

    metadata.take_back();
    for gate in [&first, &second] {
        gate.until_state(0, "healthy");
    }
    agent.signal("TERM");
    assert_eq!(agent.ended().code(), Some(0), "{}", agent.said());
}

#[test]
fn a_pod_that_is_evicted_says_so_and_waits_until_it_is_heard() {
    let (a, b) = (Sim::start(&[]), Sim::start(&[]));
    let gate = Gate::start(&format!("{}{TOKEN}", backends(&a, &b))).healthy();
    let mut told = agent(&[format!("http://{}", gate.admin)], &["--source", "off", "--on-term", "100s"]);
    told.line("on SIGTERM");
    told.signal("TERM");
    assert_eq!(told.ended().code(), Some(0), "{}", told.said());
    let left = leaves(&gate);
    assert!((1.0..=100.0).contains(&left), "{left}");

    let nobody = format!("http://{}", free_port());
    let mut deaf = agent(std::slice::from_ref(&nobody), &["--source", "off", "--on-term", "500ms"]);
    deaf.line("on SIGTERM");
    deaf.signal("TERM");
    assert_eq!(deaf.ended().code(), Some(1));
    until("whom", || deaf.said().contains(&format!("could not tell {nobody}")).then_some(()));
}

#[test]
fn an_agent_says_what_is_wrong() {
    let (a, b) = (Sim::start(&[]), Sim::start(&[]));
    let gate = Gate::start(&format!("admin_token: other\n{}{TOKEN}", backends(&a, &b)));
    let metadata = Metadata::start(Config::of(Cloud::Gcp)).unwrap();
    metadata.notice("", Duration::from_secs(30));
    let gateway = format!("http://{}", gate.admin);
    let start = |more: &[&str]| {
        let common = ["agent", "--notify", &gateway, "--endpoint", &metadata.url()];
        Process::start(&[&common[..], more].concat(), Stdio::null())
    };
    start(&["--backend", "a", "--token", "wrong"]).line("the token is not its interruption_token");
    start(&["--backend", "c", "--token", "shared"]).line("it has no backend of this name");
    for (more, said) in [
        (&["--backend", "a", "--source", "off"][..], "nothing to do"),
        (&["--backend", "a/b"], "--backend a/b"),
        (&["--backend", "a", "--interval", "1m"], "--interval"),
        (&["--backend", "a", "--token-file", "/nowhere"], "/nowhere"),
        (&["--backend", "a", "--notify", "gateway"], "did you mean"),
        (&[], "--backend"),
    ] {
        let mut process = start(more);
        assert_eq!(process.ended().code(), Some(64), "{more:?}");
        until(said, || process.said().contains(said).then_some(()));
    }
    let mut process = start(&["--backend", "a", "--ca", "/nowhere", "--notify", "https://gateway:9090"]);
    assert_eq!(process.ended().code(), Some(1));
    until("why", || process.said().contains("/nowhere").then_some(()));
}
