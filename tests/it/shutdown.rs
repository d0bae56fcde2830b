//! The orderly end, and a change of configuration, under load.

use crate::support::{Gateway, sim};

const STREAM: &str = r#"{"model":"sim","messages":[{"role":"user","content":"hi"}],"max_tokens":12,"stream":true}"#;

#[test]
fn streams_finish_after_sigterm_and_nothing_new_is_taken() {
    let sim = sim(|config| config.pace.tokens_per_second = 20.0);
    let gate = Gateway::new(&[&sim], "drain: {grace: 60s}\n").healthy();
    let mut streams: Vec<_> = (0..100).map(|_| gate.start("/v1/chat/completions", STREAM)).collect();
    for stream in &mut streams {
        stream.until("data: ");
    }
    gate.terminate();
    gate.until("/readyz", |text| text.contains("drain"));
    for stream in streams {
        let answer = stream.finish();
        assert!(answer.whole && answer.text().ends_with("[DONE]\n\n"));
    }
    gate.ended().unwrap();
}

#[test]
fn what_outlives_the_grace_is_cut() {
    let sim = sim(|config| config.pace.tokens_per_second = 0.5);
    let gate = Gateway::new(&[&sim], "drain: {grace: 1s}\n").healthy();
    let mut stream = gate.start("/v1/chat/completions", STREAM);
    stream.until("data: ");
    gate.terminate();
    assert!(!stream.finish().whole);
    gate.ended().unwrap();
}
