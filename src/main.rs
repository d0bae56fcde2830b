//! The `sluicegate` command.

use std::process::ExitCode;

use clap::Parser;
use sluicegate::cli;

/// A high-performance inference gateway.
#[derive(Parser)]
#[command(version)]
enum Command {
    /// One simulated backend
    Sim(cli::sim::Args),
}

fn main() -> ExitCode {
    match Command::parse() {
        Command::Sim(args) => cli::sim::run(args),
    }
}
