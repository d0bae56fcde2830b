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
