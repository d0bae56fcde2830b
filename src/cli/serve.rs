//! `sluicegate serve`: flags and file → configuration → [`App`].

use std::process::ExitCode;

use super::{ConfigArgs, FAILED, talk};
use crate::{
    app::{self, App, Options, Source},
    config::{Env, Listen},
    runtime::descriptors,
    telemetry::logging::Logging,
};

/// Runs the gateway. SIGTERM ends it once running answers have finished; SIGHUP, or a changed file, reloads it.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    pub config: ConfigArgs,
}

const EXAMPLES: &str = "\
Examples:
  sluicegate serve --backend http://127.0.0.1:8000
  sluicegate serve --backend http://10.0.0.1:8000 --backend http://10.0.0.2:8000 --listen 0.0.0.0:80
  sluicegate serve --config sluicegate.yaml";

/// Runs it.
pub fn run(args: &Args) -> ExitCode {
    let loaded = match args.config.load() {
        Ok(loaded) => loaded,
        Err(code) => return code,
    };
    let log = match Logging::start(loaded.config.log.json, app::level(loaded.config.log.level)) {
        Ok(log) => log,
        Err(problem) => return failed(&problem),
    };
    descriptors::raise();
    let source = Source { file: loaded.file, env: Env::of_process(), flags: args.config.flags(), watch: loaded.watch };
    let (listen, backends) = (loaded.config.listen.clone(), loaded.config.backends.len());
    let app = match App::bind(loaded.config, Options { source: Some(source), signals: true, log: Some(log.level()) }) {
        Ok(app) => app,
        Err(error) => return failed(&error),
    };
    let at = match (app.listens_at(), &listen) {
        (Some(address), _) => address.to_string(),
        (None, Listen::Unix(path)) => format!("unix:{}", path.display()),
        (None, Listen::Tcp(address)) => address.to_string(),
    };
    let admin = app.admin_at().map_or_else(|| "-".to_owned(), |address| address.to_string());
    tracing::info!(listen = %at, %admin, backends, version = env!("CARGO_PKG_VERSION"), "serving");
    match app.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

fn failed(error: &dyn std::error::Error) -> ExitCode {
    talk(&format!("sluicegate: {error}\n"));
    ExitCode::from(FAILED)
}
