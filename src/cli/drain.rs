//! `sluicegate drain`: for `preStop` hooks; comes back when the gateway has drained.

use std::{io, process::ExitCode, thread, time::Duration};

use serde_json::json;

use super::{FAILED, print, remote::Remote, talk};

/// Drains a running gateway: readiness off, running answers finish, the process ends. Returns when it has ended.
#[derive(Clone, Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  sluicegate drain\n  sluicegate drain --admin 127.0.0.1:9091 --token-file /run/secrets/admin"
)]
pub struct Args {
    #[command(flatten)]
    remote: Remote,
    /// Prints the outcome as JSON
    #[arg(long)]
    json: bool,
}

/// How often it is looked whether the gateway is still there.
const LOOK: Duration = Duration::from_millis(200);

/// Sets it off and waits.
pub fn run(args: &Args) -> ExitCode {
    let outcome = drain(&args.remote);
    let drained = outcome.is_ok();
    if args.json {
        let error = outcome.err();
        if let Err(code) = print(&format!("{}\n", json!({"drained": drained, "error": error}))) {
            return code;
        }
    } else if let Err(reason) = outcome {
        talk(&format!("sluicegate: {reason}\n"));
    }
    if drained { ExitCode::SUCCESS } else { ExitCode::from(FAILED) }
}

fn drain(remote: &Remote) -> Result<(), String> {
    let answer = remote.ask("POST", "/api/v1/drain").map_err(|error| format!("{}: {error}", remote.address()))?;
    if answer.status != 202 {
        return Err(format!("{} answered {}: {}", remote.address(), answer.status, answer.body.trim_end()));
    }
    // The admin plane answers until the last request has ended, and then goes with the process.
    loop {
        match remote.ask("GET", "/livez") {
            Ok(_) => thread::sleep(LOOK),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return Ok(()),
        }
    }
}
