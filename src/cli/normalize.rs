//! `sluicegate normalize`: what would be sent for a body, and why.

use std::{
    fmt::Write as _,
    io::{self, Read as _},
    path::PathBuf,
    process::ExitCode,
};

use bytes::Bytes;
use http::Method;
use serde_json::json;

use super::{FAILED, INVALID_CONFIG, WRONG_USAGE, print, print_bytes, talk};
use crate::{
    body::too_large,
    config::{self, Config, Env, Flags, Format, Loaded, Problem},
    error::Error,
    protocol::endpoint::Endpoint,
    proxy::{
        normalize::{Rules, edit::Change},
        respond::row_of,
    },
};

/// Arguments of `normalize`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  sluicegate normalize --config sluicegate.yaml < body.json\n  \
    sluicegate normalize --path /v1/messages --json < body.json\n\n\
    The body goes to stdout as a backend would get it, byte for byte; what was edited, and why, to stderr.\n\
    What one engine alone needs (stream usage, cache_salt) is edited when it is known who gets the body: not here.\n\n\
    Exit codes: 0 it would be sent, 1 it would be refused, 2 invalid configuration, 64 wrong usage.")]
pub struct Args {
    /// The configuration; without it the places that `serve` tries, and then the defaults
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
    /// What the body is sent to
    #[arg(long, value_name = "PATH", default_value = "/v1/chat/completions")]
    path: String,
    /// Prints {body, edits, problems} in place of the body
    #[arg(long)]
    json: bool,
}

/// What became of a body.
struct Outcome {
    received: usize,
    made: Result<(Bytes, Vec<Change>), Error>,
}

/// Reads stdin, edits and prints. Exit code 1 if the body would be refused.
pub fn run(args: &Args) -> ExitCode {
    if !args.path.starts_with('/') {
        talk(&format!("sluicegate: --path {:?} is no path: it begins with a slash\n", args.path));
        return ExitCode::from(WRONG_USAGE);
    }
    let config = match load(args) {
        Ok(config) => config,
        Err(problems) => {
            talk(&config::render(&problems, Format::Human));
            return ExitCode::from(INVALID_CONFIG);
        }
    };
    let outcome = match outcome(&config, &args.path) {
        Ok(outcome) => outcome,
        Err(error) => {
            talk(&format!("sluicegate: cannot read stdin: {error}\n"));
            return ExitCode::from(FAILED);
        }
    };
    let printed = if args.json {
        print(&format!("{}\n", report(&outcome)))
    } else {
        talk(&told(&outcome, &args.path));
        outcome.made.as_ref().map_or(Ok(()), |(body, _)| print_bytes(body))
    };
    match printed {
        Err(code) => code,
        Ok(()) if outcome.made.is_err() => ExitCode::from(FAILED),
        Ok(()) => ExitCode::SUCCESS,
    }
}

/// The configuration; the defaults where none is named and none is found.
fn load(args: &Args) -> Result<Config, Vec<Problem>> {
    let env = Env::of_process();
    let read = |flags: &Flags| config::load(args.config.as_deref(), &env, flags).and_then(serving);
    match read(&Flags::default()) {
        // No backend is asked here.
        Err(_) if args.config.is_none() => {
            read(&Flags { backends: vec!["http://127.0.0.1:8000".to_owned()], ..Flags::default() })
        }
        read => read,
    }
}

fn serving(loaded: Loaded) -> Result<Config, Vec<Problem>> {
    let problems = loaded.problems();
    if loaded.may_serve() { Ok(loaded.config) } else { Err(problems) }
}

/// What the data plane would make of stdin.
fn outcome(config: &Config, path: &str) -> io::Result<Outcome> {
    let mut body = Vec::new();
    let cap = config.limits.request_body;
    io::stdin().lock().take(cap as u64 + 1).read_to_end(&mut body)?;
    let endpoint = Endpoint::of(&Method::POST, path.split('?').next().unwrap_or_default());
    let received = body.len();
    let made = if received > cap { Err(too_large(cap)) } else { Rules::new(config).explain(endpoint, body.into()) };
    Ok(Outcome { received, made })
}

/// The outcome for programs.
fn report(outcome: &Outcome) -> serde_json::Value {
    let (body, edits, problems) = match &outcome.made {
        Ok((body, changes)) => {
            let edits = changes
                .iter()
                .map(|change| json!({"edit": change.edit.name(), "path": change.path, "saved": change.saved}))
                .collect();
            (Some(String::from_utf8_lossy(body)), edits, Vec::new())
        }
        Err(error) => {
            let row = row_of(error.kind());
            let problem = json!({
                "status": row.status.as_u16(),
                "code": row.code,
                "param": error.request_param(),
                "message": error.message(),
            });
            (None, Vec::new(), vec![problem])
        }
    };
    json!({"body": body, "edits": edits, "problems": problems})
}

/// The outcome for people.
fn told(outcome: &Outcome, path: &str) -> String {
    match &outcome.made {
        Ok((body, changes)) => {
            let mut text = format!("POST {path}: {} bytes came, {} would be sent\n", outcome.received, body.len());
            if changes.is_empty() {
                text.push_str("nothing is edited\n");
            }
            for Change { edit, path, saved } in changes {
                let path = if path.is_empty() { "everywhere" } else { path };
                let _ = writeln!(text, "{:<18}  {path:<32}  {:+} bytes", edit.name(), -saved);
            }
            text
        }
        Err(error) => {
            let row = row_of(error.kind());
            let param = error.request_param().map(|param| format!(" at {param}")).unwrap_or_default();
            format!("POST {path}: refused with {} ({}){param}: {}\n", row.status.as_u16(), row.code, error.message())
        }
    }
}
