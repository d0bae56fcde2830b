//! Bodies are edited as the configuration asks: by bytes, before the cache's key, and for one engine when it is chosen.

use sluicegate::sim;

use crate::support::{Answer, Gateway, sim};

const CHAT: &str = "/v1/chat/completions";

/// What `sim` was sent last, and the length that was told with it.
fn sent(sim: &sim::Handle, path: &str) -> String {
    let seen = sim.last(Some(path)).unwrap();
    assert_eq!(seen.header("content-length"), Some(&*seen.body.len().to_string()));
    String::from_utf8(seen.body.to_vec()).unwrap()
}

fn status(answer: &Answer) -> &str {
    answer.header("cache-status").unwrap_or_default()
}

/// The sim says that it is what `engine` says.
fn engine(engine: &str, sim: &sim::Handle, extra: &str) -> Gateway {
    Gateway::with_config(&format!("backends: [{{name: b0, url: '{}', engine: {engine}}}]\n{extra}", sim.url()))
}

const ALL: &str = "routing: {aliases: {small: sim}}\n\
    normalize: {minify: true, nulls: true, max_tokens_cap: 4, strip: [user, metadata.trace], system_prompts: {terse: Be terse.}}\n";

#[test]
fn the_backend_gets_the_edited_bytes() {
    let sim = sim(|_| {});
    let gate = Gateway::new(&[&sim], ALL).healthy();
    let body = "{ \"zeta\" : 1.0e0, \"user\" : \"u\", \"model\" : \"small\", \"stop\":null,\r\n\
                \"system_prompt\":\"terse\", \"messages\":[ {\"role\":\"user\",\"content\":\"\\u00e9\\/ é  \"} ],\n\
                \"max_tokens\" : 9000, \"metadata\":{\"trace\":1, \"k\" : [1 , 2]}, \"zeta\" : 2 }";
    let answer = gate.post(CHAT, body);
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.json()["model"], "small");
    assert_eq!(
        sent(&sim, CHAT),
        "{\"zeta\":1.0e0,\"model\":\"sim\",\"messages\":[{\"role\":\"system\",\"content\":\"Be terse.\"},\
         {\"role\":\"user\",\"content\":\"\\u00e9\\/ é  \"}],\"max_tokens\":4,\"metadata\":{\"k\":[1,2]},\"zeta\":2}"
    );
    for (edit, count) in
        [("alias", 1), ("max_tokens_cap", 1), ("strip", 2), ("nulls", 1), ("minify", 1), ("system_prompts", 2)]
    {
        let edits = gate.metric(&format!("sluicegate_payload_edits_total{{edit=\"{edit}\"}}"));
        assert_eq!(edits, f64::from(count), "{edit}");
    }
    assert!(gate.metric("sluicegate_payload_saved_bytes_total{edit=\"minify\"}") > 10.0);
    assert_eq!(gate.metric("sluicegate_payload_edits_total{edit=\"default_max_tokens\"}"), 0.0);
}

#[test]
fn a_limit_is_given_where_none_is_named() {
    let sim = sim(|_| {});
    let gate = Gateway::new(&[&sim], "normalize: {default_max_tokens: 3, max_tokens_cap: 4}\n").healthy();
    for (path, body, expected) in [
        (
            CHAT,
            r#"{"model":"sim","messages":[{"role":"user","content":"x"}]}"#,
            r#"{"max_tokens":3,"model":"sim","messages":[{"role":"user","content":"x"}]}"#,
        ),
        (CHAT, r#"{"messages":[],"max_completion_tokens":2}"#, r#"{"messages":[],"max_completion_tokens":2}"#),
        (
            "/v1/completions",
            r#"{"model":"sim","prompt":"x","max_tokens":null}"#,
            r#"{"model":"sim","prompt":"x","max_tokens":3}"#,
        ),
        ("/v1/responses", r#"{"model":"sim","input":"x"}"#, r#"{"max_output_tokens":3,"model":"sim","input":"x"}"#),
        (
            "/v1/messages",
            r#"{"model":"sim","messages":[{"role":"user","content":"x"}],"max_tokens":5}"#,
            r#"{"model":"sim","messages":[{"role":"user","content":"x"}],"max_tokens":4}"#,
        ),
        ("/v1/embeddings", r#"{"model":"sim","input":"x"}"#, r#"{"model":"sim","input":"x"}"#),
        // Not the gateway's to know.
        ("/v1/other", r#"{"max_tokens":5}"#, r#"{"max_tokens":5}"#),
    ] {
        gate.post(path, body);
        assert_eq!(sent(&sim, path), expected);
    }
}

#[test]
fn what_differs_in_what_is_edited_away_is_one_entry() {
    let sim = sim(|_| {});
    let gate = Gateway::new(&[&sim], ALL).healthy();
    let body = |more: &str| {
        format!(
            r#"{{"model":"sim","temperature":0,"messages":[{{"role":"system","content":"Be terse."}},{{"role":"user","content":"x"}}]{more}}}"#
        )
    };
    let first = gate.post(CHAT, &body(r#","max_tokens":4"#));
    assert_eq!(status(&first), "sluicegate;fwd=miss;stored", "{}", first.text());
    for same in [
        body(r#","max_tokens":5"#),
        body(""),
        body(r#","max_tokens":4,"user":"somebody","seed":null"#),
        body(r#", "max_tokens" : 4, "metadata":null"#),
        r#"{"model":"sim","temperature":0,"system_prompt":"terse","messages":[{"role":"user","content":"x"}]}"#
            .to_owned(),
        r#"{"model":"small","temperature":0,"system_prompt":"terse","messages":[{"role":"user","content":"x"}]}"#
            .to_owned(),
    ] {
        // The second and third time it may be known by its bytes.
        for _ in 0..3 {
            let again = gate.post(CHAT, &same);
            assert!(status(&again).starts_with("sluicegate;hit"), "{same}: {}", status(&again));
            assert_eq!(again.json()["choices"], first.json()["choices"]);
        }
    }
    let other = gate.post(CHAT, &body(r#","max_tokens":3"#));
    assert_eq!(status(&other), "sluicegate;fwd=miss;stored");
    assert_eq!(sim.state().served, 2);
}

#[test]
fn a_stripped_seed_makes_no_answer_deterministic() {
    let sim = sim(|_| {});
    let gate = Gateway::new(&[&sim], "normalize: {strip: [seed]}\n").healthy();
    let answer = gate.post(CHAT, r#"{"model":"sim","seed":1,"messages":[{"role":"user","content":"x"}]}"#);
    assert_eq!(status(&answer), "sluicegate;fwd=bypass;detail=sampled");
}

#[test]
fn a_prompt_that_there_is_not_is_refused() {
    let sim = sim(|_| {});
    let gate = Gateway::new(&[&sim], ALL).healthy();
    let answer =
        gate.post(CHAT, r#"{"model":"sim","system_prompt":"none","messages":[{"role":"user","content":"x"}]}"#);
    assert_eq!(answer.status, 400);
    let error = &answer.json()["error"];
    assert_eq!((&error["type"], &error["param"]), (&"invalid_request_error".into(), &"system_prompt".into()));
    assert!(error["message"].as_str().unwrap().contains("there is no system prompt \"none\""), "{error}");
    assert!(sim.last(Some(CHAT)).is_none());
    // On a path without a configured prompt the field is the engine's.
    let plain = Gateway::new(&[&sim], "").healthy();
    let body = r#"{"model":"sim","system_prompt":"none","messages":[{"role":"user","content":"x"}]}"#;
    plain.post(CHAT, body);
    assert_eq!(sent(&sim, CHAT), body);
}

#[test]
fn tenants_get_salts_that_they_cannot_make() {
    let sim = sim(|_| {});
    let gate = engine("vllm", &sim, "normalize: {isolate_prefix_cache: true}\n").healthy();
    let salt = |key: &str, more: &str| {
        let body = format!(r#"{{"model":"sim"{more},"messages":[{{"role":"user","content":"x"}}],"max_tokens":1}}"#);
        let headers = [("content-type", "application/json"), ("authorization", key)];
        let answer = gate.request("POST", CHAT, &headers, &body);
        assert_eq!(answer.status, 200, "{}", answer.text());
        let body: serde_json::Value = serde_json::from_str(&sent(&sim, CHAT)).unwrap();
        body["cache_salt"].as_str().unwrap().to_owned()
    };
    let own = r#","cache_salt":"mine""#;
    let (a, b, own_a, own_b) =
        (salt("Bearer a", ""), salt("Bearer b", ""), salt("Bearer a", own), salt("Bearer b", own));
    assert!(a != b && a != own_a && own_a != own_b && own_a != "mine");
    assert_eq!((salt("Bearer a", ""), salt("Bearer a", own)), (a, own_a));
    assert_eq!(gate.metric("sluicegate_payload_edits_total{edit=\"cache_salt\"}"), 6.0);
}

#[test]
fn a_shared_stream_is_salted_and_asked_for_its_usage_at_once() {
    let sim = sim(|_| {});
    let gate = engine("vllm", &sim, "normalize: {isolate_prefix_cache: true}\n").healthy();
    let answer = gate.post(
        CHAT,
        r#"{"model":"sim","messages":[{"role":"user","content":"x"}],"stream":true,"temperature":0,"max_tokens":1}"#,
    );
    assert_eq!(answer.status, 200);
    let body = sent(&sim, CHAT);
    // How the stream could go on elsewhere, and what was asked for.
    let rest = r#""return_token_ids":true,"model":"sim","messages":[{"role":"user","content":"x"}],"stream":true,"temperature":0,"max_tokens":1}"#;
    let told = body
        .strip_suffix(rest)
        .and_then(|front| front.strip_prefix(r#"{"stream_options":{"include_usage":true},"cache_salt":""#));
    assert!(told.is_some_and(|salt| salt.len() == 34 && salt.ends_with("\",")), "{body}");
}

#[test]
fn engines_that_know_no_salt_get_none() {
    let sim = sim(|_| {});
    let gate = engine("llamacpp", &sim, "normalize: {isolate_prefix_cache: true}\n").healthy();
    let body = r#"{"model":"sim","messages":[{"role":"user","content":"x"}],"cache_salt":"mine"}"#;
    gate.post(CHAT, body);
    assert_eq!(sent(&sim, CHAT), body);
}

#[test]
fn a_limit_has_the_name_that_the_engine_knows() {
    let sim = sim(|_| {});
    let body = r#"{"model":"sim","max_completion_tokens":9,"messages":[{"role":"user","content":"x"}]}"#;
    let capped = "normalize: {max_tokens_cap: 8}\n";
    for (name, extra, expected) in [
        ("tgi", capped, r#"{"model":"sim","max_tokens":8,"messages":[{"role":"user","content":"x"}]}"#),
        ("vllm", capped, r#"{"model":"sim","max_completion_tokens":8,"messages":[{"role":"user","content":"x"}]}"#),
        // Without a word in it the gateway changes nothing.
        ("tgi", "", body),
    ] {
        let gate = engine(name, &sim, extra);
        gate.post(CHAT, body);
        assert_eq!(sent(&sim, CHAT), expected, "{name}");
    }
}
