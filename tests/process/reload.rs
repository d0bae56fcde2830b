//! A new configuration under load: nothing is lost, what is wrong is refused and shown.

use std::path::Path;

use crate::{
    kit::{Folder, Gate, Process, Sim, alone, backends},
    load::Load,
    support::Exchange,
};

const SIM: [&str; 4] = ["--ttft", "10ms", "--tokens-per-second", "200"];
const QUIET: &str = "log: {access: false}\nretry: {attempts: ";
/// Answers that come between two changes.
const SOME: u64 = 60;

fn served(folder: Folder, file: &Path) -> Gate {
    let process = Process::start(&["serve", "--config", file.to_str().unwrap()], std::process::Stdio::null());
    Gate::of(process, folder).healthy()
}

fn until_applied(gate: &Gate, times: u64) {
    crate::kit::until("a reload", || (gate.reloads().0 >= times).then_some(()));
    assert_eq!((gate.reloads().1, gate.reloads().2), (0, Vec::new()));
}

#[test]
fn five_reloads_lose_nothing() {
    let _turn = alone();
    let (a, b) = (Sim::start(&SIM), Sim::start(&SIM));
    let both = |attempts: u32| Gate::whole(&format!("{}{QUIET}{attempts}}}\n", backends(&a, &b)));
    let one = Gate::whole(&format!("backends:\n  - {{name: b, url: 'http://{}'}}\n{QUIET}3}}\n", b.addr));
    let folder = Folder::new();
    let file = folder.mount("sluicegate.yaml", &both(3));
    let gate = served(folder, &file);
    let load = Load::start(gate.addr, 16, 16);
    load.more(SOME);

    // By signal, nothing changed.
    gate.process.signal("HUP");
    until_applied(&gate, 1);
    load.more(SOME);
    // By the file's own change.
    std::fs::write(&file, both(2)).unwrap();
    until_applied(&gate, 2);
    load.more(SOME);
    // As Kubernetes does it; a backend is taken out with requests on it.
    gate.folder.mount("sluicegate.yaml", &one);
    until_applied(&gate, 3);
    gate.until_states(|states| states.len() == 1);
    load.more(SOME);
    // And comes back, by signal and by the change of the link.
    gate.folder.mount("sluicegate.yaml", &both(3));
    gate.process.signal("HUP");
    until_applied(&gate, 4);
    gate.until_states(|states| states == ["healthy", "healthy"]);
    load.more(SOME);
    gate.folder.mount("sluicegate.yaml", &both(4));
    until_applied(&gate, 5);
    load.more(SOME);

    let (plain, streams) = load.finish();
    println!("plain: {} whole; streams: {} whole, {} cut", plain.whole, streams.whole, streams.cut);
    plain.no_problem("the plain answers");
    streams.no_problem("the streams");
    assert_eq!((plain.cut, streams.cut), (0, 0));
    assert_eq!(gate.metric(r#"sluicegate_config_reloads_total{result="applied"}"#), 5.0);
}

#[test]
fn a_stream_ends_on_the_backend_that_was_taken_out() {
    let (a, b) = (Sim::start(&["--fault", "stall,after=2,times=1"]), Sim::start(&[]));
    let only = |sim: &Sim| format!("backends: [{{url: 'http://{}'}}]\n", sim.addr);
    let gate = Gate::start(&only(&a)).healthy();
    let mut stream = gate.start_post("/v1/chat/completions", &chat(true));
    stream.until("content\":\"");
    gate.folder.write("sluicegate.yaml", &Gate::whole(&only(&b)));
    gate.process.signal("HUP");
    until_applied(&gate, 1);
    gate.until_states(|states| states == ["healthy"]);
    assert_eq!(gate.post("/v1/chat/completions", &chat(false)).status, 200);
    assert_eq!(b.state()["served"], 1);
    a.post("/sim/release", "");
    let answer = stream.finish();
    assert!(answer.whole && answer.text().ends_with("data: [DONE]\n\n"), "{}", answer.text());
}

fn chat(stream: bool) -> String {
    format!(r#"{{"model":"sim","messages":[{{"role":"user","content":"hi"}}],"max_tokens":4,"stream":{stream}}}"#)
}

#[test]
fn what_is_wrong_is_refused_and_shown_until_it_is_right() {
    let sim = Sim::start(&[]);
    let good = format!("backends: [{{name: a, url: 'http://{}'}}]\n", sim.addr);
    let gate = Gate::start(&good).healthy();
    let refuse = |times: u64, text: String, named: &[&str]| {
        gate.folder.write("sluicegate.yaml", &text);
        gate.process.signal("HUP");
        crate::kit::until("the refusal", || (gate.reloads().1 >= times).then_some(()));
        let (applied, refused, problems) = gate.reloads();
        assert_eq!((applied, refused), (0, times));
        let (told, verbose) = (problems.join("\n"), gate.admin("/readyz?verbose"));
        for name in named {
            assert!(told.contains(name), "{name} in {told}");
            assert!(verbose.text().contains(name), "{name} in {}", verbose.text());
            assert!(gate.process.said().contains(name), "{name} in the log");
        }
        // Not a reason to take traffic away, nor to stop.
        assert_eq!(verbose.status, 200);
        assert_eq!(gate.metric(r#"sluicegate_config_reloads_total{result="refused"}"#), times as f64);
        assert_eq!(gate.post("/v1/chat/completions", &chat(false)).status, 200);
    };
    refuse(1, Gate::whole(&format!("{good}retri: {{}}\n")), &["sluicegate.yaml:5:1", "retri"]);
    refuse(2, Gate::whole(&format!("{good}retry: {{attempts: 0}}\n")), &["sluicegate.yaml:5:"]);
    refuse(3, Gate::whole(&good).replacen("listen: 127.0.0.1:0", "listen: 127.0.0.1:9", 1), &["listen", "restart"]);
    refuse(4, Gate::whole(&good).replace("workers: 2", "workers: 3"), &["workers", "restart"]);
    refuse(5, Gate::whole(&format!("{good}auth: {{keys: [{{name: t, key: sk-secret}}]}}\n")), &["auth"]);
    assert!(!gate.process.said().contains("sk-secret"), "no secret in the log");

    gate.folder.write("sluicegate.yaml", &Gate::whole(&good));
    gate.process.signal("HUP");
    crate::kit::until("the reload", || (gate.reloads().0 == 1).then_some(()));
    assert_eq!(gate.reloads().2, Vec::<String>::new());
    assert!(gate.admin("/readyz?verbose").text().contains("[+]config ok\n"));
}

#[test]
fn a_kept_connection_lives_through_a_reload() {
    let sim = Sim::start(&[]);
    let gate = Gate::start(&format!("backends: [{{url: 'http://{}'}}]\n", sim.addr)).healthy();
    let mut kept = crate::kit::Kept::to(gate.addr);
    assert_eq!(kept.ask("POST", "/v1/chat/completions", &chat(false)).unwrap().0, 200);
    gate.process.signal("HUP");
    until_applied(&gate, 1);
    assert_eq!(kept.ask("POST", "/v1/chat/completions", &chat(false)).unwrap().0, 200);
    assert!(Exchange::start(gate.addr, "GET", "/v1/models", &[], b"").finish().whole);
}
