//! `sluicegate healthcheck`: for images without a shell and for `HEALTHCHECK`.

use std::process::ExitCode;

use serde_json::json;

use super::{FAILED, print, remote::Remote, talk};

/// Asks a running gateway whether it is ready. Exit code 0: it is; 1: it is not, or does not answer.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  sluicegate healthcheck\n  sluicegate healthcheck --admin 127.0.0.1:9091 --json")]
pub struct Args {
    #[command(flatten)]
    remote: Remote,
    /// Prints the answer as JSON
    #[arg(long)]
    json: bool,
}

/// Asks and tells.
pub fn run(args: &Args) -> ExitCode {
    let asked = args.remote.ask("GET", "/readyz?verbose");
    let ready = asked.as_ref().is_ok_and(|answer| answer.status == 200);
    let said = match asked {
        Ok(answer) => answer.body,
        Err(error) => format!("{}: {error}\n", args.remote.address()),
    };
    if args.json {
        if let Err(code) = print(&format!("{}\n", json!({"ready": ready, "checks": said}))) {
            return code;
        }
    } else if !ready {
        talk(&said);
    }
    if ready { ExitCode::SUCCESS } else { ExitCode::from(FAILED) }
}
