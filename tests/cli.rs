//! Runs the built binary: what it prints where, and its exit codes.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails where it stands")]

use std::{
    io::Write,
    process::{Command, Output, Stdio},
};

/// Runs `sluicegate` with a clean environment and `input` as its configuration.
fn run(arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_sluicegate"))
        .args(arguments)
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that does not read its input closes the pipe.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

const GOOD: &str = "backends: [{url: 'http://127.0.0.1:8000'}]\n";

#[test]
fn check_says_valid_on_stderr_and_nothing_on_stdout() {
    let output = run(&["check", "--config", "/dev/stdin"], GOOD);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(text(&output.stdout), "");
    assert_eq!(text(&output.stderr), "/dev/stdin: valid, 1 backend\n");
}

#[test]
fn check_prints_every_problem_and_exits_2() {
    let output = run(&["check", "--config", "/dev/stdin"], "backends: [{ulr: x}]\nretry: {attempts: many}\n");
    assert_eq!(output.status.code(), Some(2));
    let shown = text(&output.stdout);
    assert!(shown.contains("/dev/stdin:1:13: unknown field `ulr`"), "{shown}");
    assert!(shown.contains("/dev/stdin:2:19: expected a whole number"), "{shown}");
    assert!(shown.ends_with("2 errors\n"), "{shown}");
}

#[test]
fn check_prints_json_for_programs() {
    for arguments in [&["check", "--json", "-c", "/dev/stdin"][..], &["check", "--format", "json", "-c", "/dev/stdin"]]
    {
        let output = run(arguments, "zone: [\n");
        assert_eq!(output.status.code(), Some(2));
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["ok"], false);
        assert_eq!(report["problems"][0]["file"], "/dev/stdin");
        let output = run(arguments, GOOD);
        assert_eq!(text(&output.stdout), "{\"ok\":true,\"problems\":[]}\n");
    }
}

#[test]
fn auth_is_an_error_of_check() {
    let output = run(&["check", "-c", "/dev/stdin"], &format!("{GOOD}auth: {{keys: [{{name: a, key: s}}]}}\n"));
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stdout).contains("`auth` is not in this version"));
}

#[test]
fn a_missing_file_is_an_invalid_configuration() {
    let output = run(&["check", "--config", "/nowhere/at/all.yaml"], "");
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stdout).starts_with("/nowhere/at/all.yaml: cannot be opened"));
}

#[test]
fn wrong_usage_exits_64_and_help_0() {
    for wrong in [&["bogus"][..], &[], &["check", "--bogus"], &["check", "--format", "xml"]] {
        let output = run(wrong, "");
        assert_eq!(output.status.code(), Some(64), "{wrong:?}");
        assert!(!output.stderr.is_empty() && output.stdout.is_empty(), "{wrong:?}");
    }
    for command in ["check", "schema"] {
        let output = run(&[command, "--help"], "");
        assert_eq!(output.status.code(), Some(0));
        assert!(text(&output.stdout).contains("Example"), "{command} --help has no example");
    }
    assert_eq!(run(&["--version"], "").status.code(), Some(0));
}

#[test]
fn schema_is_a_json_schema() {
    let output = run(&["schema"], "");
    assert_eq!(output.status.code(), Some(0));
    let schema: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
    assert_eq!(schema["additionalProperties"], false);
}

/// Runs `sluicegate normalize` with `config` in a file and `body` on stdin.
fn normalize(name: &str, config: &str, arguments: &[&str], body: &str) -> Output {
    let file = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("normalize-{name}.yaml"));
    std::fs::write(&file, format!("{GOOD}{config}")).unwrap();
    let mut all = vec!["normalize", "--config", file.to_str().unwrap()];
    all.extend_from_slice(arguments);
    run(&all, body)
}

const EDITS: &str = "routing: {aliases: {gpt: llama}}\n\
    normalize: {minify: true, max_tokens_cap: 100, strip: [user], system_prompts: {terse: Be terse.}}\n";

#[test]
fn normalize_prints_what_would_be_sent_and_why() {
    let body = "{ \"model\": \"gpt\", \"user\": \"u-1\", \"system_prompt\": \"terse\",\n  \"messages\": [] }";
    let output = normalize("why", EDITS, &[], body);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(
        text(&output.stdout),
        r#"{"max_tokens":100,"model":"llama","messages":[{"role":"system","content":"Be terse."}]}"#
    );
    let told = text(&output.stderr);
    assert!(told.starts_with("POST /v1/chat/completions: 77 bytes came, 87 would be sent\n"), "{told}");
    for (edit, path, change) in [
        ("max_tokens_cap", "max_tokens", "+17"),
        ("alias", "model", "+2"),
        ("strip", "user", "-15"),
        ("system_prompts", "messages", "+39"),
        ("minify", "everywhere", "-7"),
    ] {
        let line = told.lines().find(|line| line.starts_with(edit) && line.contains(path));
        assert!(line.is_some_and(|line| line.contains(change)), "{edit}: {told}");
    }
}

#[test]
fn normalize_prints_json_for_programs() {
    let output = normalize("json", EDITS, &["--json"], r#"{"messages":[],"max_completion_tokens":500}"#);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let edits = serde_json::json!([{"edit": "max_tokens_cap", "path": "max_completion_tokens", "saved": 0}]);
    let body = r#"{"messages":[],"max_completion_tokens":100}"#;
    assert_eq!(report, serde_json::json!({"body": body, "edits": edits, "problems": []}));
    assert_eq!(text(&output.stderr), "");
}

#[test]
fn normalize_exits_1_when_the_body_would_be_refused() {
    let body = r#"{"system_prompt":"none","messages":[]}"#;
    let output = normalize("refused", EDITS, &[], body);
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(1), ""));
    let told = text(&output.stderr);
    assert!(
        told.contains("refused with 400") && told.contains("at system_prompt: there is no system prompt"),
        "{told}"
    );
    let output = normalize("refused-json", EDITS, &["--json"], body);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &report["body"]), (Some(1), &serde_json::Value::Null));
    assert_eq!(report["problems"][0]["param"], "system_prompt");
    // So it is when the body itself is judged.
    let output = normalize("invalid", EDITS, &[], r#"{"messages":[{"role":"user"}],"temperature":"hot"}"#);
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(1), ""));
    assert!(text(&output.stderr).contains("refused with 400 (invalid_body)"), "{}", text(&output.stderr));
}

#[test]
fn normalize_works_without_a_configuration_and_for_other_paths() {
    let body =
        "{\"messages\": [{\"role\": \"user\", \"content\": \"\\u0041\"}], \"max_tokens\":1e1, \"model\": \"m\"}\n";
    let output = run(&["normalize"], body);
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(0), body), "{}", text(&output.stderr));
    assert!(text(&output.stderr).ends_with("nothing is edited\n"));
    let output = normalize("path", EDITS, &["--path", "/v1/responses"], r#"{"input":"x"}"#);
    assert_eq!(text(&output.stdout), r#"{"max_output_tokens":100,"input":"x"}"#);
    // Another path passes through, but for the alias.
    let output = normalize("other", EDITS, &["--path", "/v1/other"], r#"{ "model":"gpt", "user":1 }"#);
    assert_eq!(text(&output.stdout), r#"{ "model":"llama", "user":1 }"#);
    assert_eq!(run(&["normalize", "--path", "v1"], "").status.code(), Some(64));
    assert_eq!(normalize("broken", "bogus: 1\n", &[], "{}").status.code(), Some(2));
}
