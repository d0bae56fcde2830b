//! `sluicegate agent`: on a spot machine; watches for its interruption and tells the gateways.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::ValueEnum;
use tracing_subscriber::filter::LevelFilter;

use super::{FAILED, WRONG_USAGE, sim::duration, talk};
use crate::{
    app,
    config::{self, BackendUrl, ClientTls, InterruptionSource, Notify, Secret},
    telemetry::logging::Logging,
};

/// Watches for the interruption of this machine and tells gateways elsewhere, until each has acknowledged it
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Admin address of a gateway to be told, such as https://gateway:9090; may be repeated
    #[arg(long, required = true, value_name = "URL", num_args = 1..)]
    notify: Vec<String>,
    /// What the gateways call the backend on this machine
    #[arg(long, value_name = "NAME")]
    backend: String,
    /// Whose notices are watched
    #[arg(long, value_enum, default_value = "auto")]
    source: Source,
    /// In place of the cloud's metadata service at http://169.254.169.254
    #[arg(long, value_name = "URL", value_parser = config::web_address)]
    endpoint: Option<BackendUrl>,
    /// The interruption_token of the gateways, or of this backend
    #[arg(long, env = "SLUICEGATE_INTERRUPTION_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    token: Option<String>,
    /// A file that holds it
    #[arg(long, conflicts_with = "token", value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// PEM file of the authorities of the gateways' certificates, in place of the system's
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Time between two looks [default: as the cloud's notices need it, 1s or 2s]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    interval: Option<Duration>,
    /// On SIGTERM, tells that the machine goes in so long, and ends when every gateway knows: for pods that are evicted
    #[arg(long, value_name = "TIME", value_parser = duration)]
    on_term: Option<Duration>,
    /// Form of log lines
    #[arg(long, value_enum, default_value = "text")]
    log_format: Format,
}

const EXAMPLES: &str = "\
Examples:
  sluicegate agent --notify https://gateway:9090 --backend spot-a --token-file /etc/sluicegate/token
  sluicegate agent --notify http://10.0.0.1:9090 http://10.0.0.2:9090 --backend spot-a --source aws
  sluicegate agent --notify http://gateway:9090 --backend spot-a --source off --on-term 25s

Ends on SIGTERM. Exit codes: 0 fine, 1 failed at run time, 64 wrong usage.";

/// A cloud.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Source {
    /// Finds out where this runs
    Auto,
    Aws,
    Gcp,
    Azure,
    /// SIGTERM alone
    Off,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
}

/// Between two looks, at most: a notice may be no longer than 30 s.
const INTERVAL: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// Runs until it is told to end.
pub fn run(args: &Args) -> ExitCode {
    let agent = match agent(args) {
        Ok(agent) => agent,
        Err(reason) => {
            talk(&format!("sluicegate agent: {reason}\n"));
            return ExitCode::from(WRONG_USAGE);
        }
    };
    let _log = match Logging::start(args.log_format == Format::Json, LevelFilter::INFO) {
        Ok(log) => log,
        Err(problem) => return failed(&problem),
    };
    match app::agent(&agent) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

/// The arguments, made sense of.
fn agent(args: &Args) -> Result<app::Agent, String> {
    let notify = args
        .notify
        .iter()
        .map(|url| Notify::of(url, &args.backend).map_err(|reason| format!("--notify {url}: {reason}")));
    let notify = notify.collect::<Result<Vec<_>, _>>()?;
    let fine = |c: char| c.is_ascii_graphic() && !"\"\\/?#%{}".contains(c);
    if args.backend.is_empty() || !args.backend.chars().all(fine) {
        return Err(format!("--backend {}: use the name that the gateways have for it", args.backend));
    }
    if let Some(interval) = args.interval.filter(|interval| *interval < INTERVAL.0 || *interval > INTERVAL.1) {
        return Err(format!("--interval {interval:?}: from {:?} to {:?}", INTERVAL.0, INTERVAL.1));
    }
    let source = match args.source {
        Source::Auto => InterruptionSource::Auto,
        Source::Aws => InterruptionSource::Aws,
        Source::Gcp => InterruptionSource::Gcp,
        Source::Azure => InterruptionSource::Azure,
        Source::Off if args.on_term.is_none() => return Err("--source off without --on-term has nothing to do".into()),
        Source::Off => InterruptionSource::Off,
    };
    Ok(app::Agent {
        source,
        endpoint: args.endpoint.clone(),
        notify,
        tls: ClientTls { ca: args.ca.clone(), ..ClientTls::default() },
        token: token(args)?,
        every: args.interval,
        on_term: args.on_term,
    })
}

fn token(args: &Args) -> Result<Option<Secret>, String> {
    let text = match &args.token_file {
        Some(file) => {
            let read = std::fs::read_to_string(file);
            Some(read.map_err(|error| format!("--token-file {}: {error}", file.display()))?.trim_end().to_owned())
        }
        None => args.token.clone(),
    };
    match text {
        Some(text) if text.is_empty() || !text.bytes().all(|b| (0x20..0x7f).contains(&b)) => {
            Err("the token is empty, or has characters that no header can carry".into())
        }
        text => Ok(text.map(|text| Secret::new(&*text))),
    }
}

fn failed(error: &dyn std::error::Error) -> ExitCode {
    talk(&format!("sluicegate agent: {error}\n"));
    ExitCode::from(FAILED)
}
