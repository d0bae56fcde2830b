//! `sluicegate check`: every problem of a configuration at once; with `--live` each backend is dialled.

use std::{fmt::Write as _, path::PathBuf, process::ExitCode};

use serde::Serialize;
use serde_json::json;

use super::{FAILED, INVALID_CONFIG, is_valid, print, talk};
use crate::{
    app::{self, AppError},
    config::{self, Backend, Config, Env, Flags, Format, Problem},
    control::live::{Finding, Found},
};

/// Arguments of `check`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  sluicegate check --config sluicegate.yaml\n  \
    sluicegate check --config sluicegate.yaml --live\n  \
    sluicegate check --format github    # annotations on a pull request")]
pub struct Args {
    /// The configuration; without it the places that `serve` tries
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Dials each backend and lists its models
    #[arg(long)]
    live: bool,
    /// How problems are printed
    #[arg(long, value_enum, default_value_t = Format::Human)]
    format: Format,
    /// The same as `--format json`
    #[arg(long, conflicts_with = "format")]
    json: bool,
}

/// What a backend answered.
#[derive(Clone, Debug, Serialize)]
struct LiveResult {
    backend: String,
    url: String,
    /// Name of the engine, if it was found.
    engine: Option<String>,
    models: Vec<String>,
    /// Why it would get no calls, or some would fail.
    error: Option<String>,
}

/// Checks and prints. Exit code 2 if the configuration is invalid, 1 if it is valid and a backend does not answer.
pub fn run(args: &Args) -> ExitCode {
    let format = if args.json { Format::Json } else { args.format };
    let (problems, loaded) = match config::load(args.config.as_deref(), &Env::of_process(), &Flags::default()) {
        Ok(loaded) => (loaded.problems(), Some(loaded)),
        Err(problems) => (problems, None),
    };
    let asked = loaded.as_ref().filter(|_| args.live).map(|loaded| ask(&loaded.config)).transpose();
    let results = match asked {
        Ok(results) => results,
        Err(error) => {
            talk(&format!("sluicegate: {error}\n"));
            return ExitCode::from(FAILED);
        }
    };
    if let Err(code) = print(&report(&problems, results.as_deref(), format)) {
        return code;
    }
    if !is_valid(&problems) {
        return ExitCode::from(INVALID_CONFIG);
    }
    if let Some(loaded) = loaded.filter(|_| format == Format::Human) {
        let name = loaded.file.map_or_else(|| "the environment".to_owned(), |file| file.display().to_string());
        talk(&format!("{name}: valid, {}\n", count(loaded.config.backends.len())));
    }
    match results {
        Some(results) if results.iter().any(|r| r.error.is_some()) => ExitCode::from(FAILED),
        _ => ExitCode::SUCCESS,
    }
}

/// Dials every backend.
fn ask(config: &Config) -> Result<Vec<LiveResult>, AppError> {
    let findings = app::live(config)?;
    Ok(config.backends.iter().zip(findings).map(|(backend, finding)| LiveResult::new(backend, finding)).collect())
}

impl LiveResult {
    fn new(backend: &Backend, finding: Finding) -> Self {
        let (found, error) = match finding.found {
            Ok(found) => {
                let missing: Vec<_> = found.missing.iter().map(|name| &**name).collect();
                let error = (!missing.is_empty()).then(|| format!("does not list {}", missing.join(", ")));
                (found, error)
            }
            Err(problem) => (Found::default(), Some(problem.to_string())),
        };
        Self {
            backend: finding.backend.to_string(),
            url: backend.url.to_string(),
            engine: found.engine.map(|engine| engine.name().to_owned()),
            models: found.models.unwrap_or_default().iter().map(|name| name.to_string()).collect(),
            error,
        }
    }
}

fn count(backends: usize) -> String {
    if backends == 1 { "1 backend".to_owned() } else { format!("{backends} backends") }
}

/// Problems and answers of backends as one text.
fn report(problems: &[Problem], live: Option<&[LiveResult]>, format: Format) -> String {
    let results = live.unwrap_or_default();
    if format == Format::Json {
        let mut report = json!({ "ok": is_valid(problems), "problems": problems });
        if live.is_some() {
            report["backends"] = json!(results);
        }
        return format!("{report}\n");
    }
    let mut out = config::render(problems, format);
    for result in results {
        let _ = match (&result.error, format) {
            (Some(error), Format::Github) => writeln!(out, "::error::backend {}: {error}", result.backend),
            (None, Format::Github) => Ok(()),
            (Some(error), _) => writeln!(out, "{} ({}): {error}", result.backend, result.url),
            (None, _) => {
                let engine = result.engine.as_deref().unwrap_or("engine unknown");
                let models = if result.models.is_empty() { "no models".to_owned() } else { result.models.join(", ") };
                writeln!(out, "{} ({}): {engine}: {models}", result.backend, result.url)
            }
        };
    }
    out
}
