//! The command line: one file per subcommand, each with `Args` and `run`.
//!
//! Data goes to stdout, talk to stderr. Exit codes: 0 fine, 1 failed at run time, 2 invalid configuration, 64 wrong
//! usage.

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use clap::{Parser, Subcommand};

use crate::config::{self, Env, Flags, Format, Loaded, Problem};

pub mod agent;
pub mod check;
pub mod demo;
pub mod drain;
pub mod healthcheck;
pub mod normalize;
mod remote;
pub mod schema;
pub mod serve;
pub mod sim;

/// Exit code: something failed while it ran.
pub const FAILED: u8 = 1;
/// Exit code: the configuration is invalid.
pub const INVALID_CONFIG: u8 = 2;
/// Exit code: the arguments are wrong (`EX_USAGE` of sysexits.h).
pub const WRONG_USAGE: u8 = 64;

/// The cheap, unnoticed gate in front of LLM servers.
#[derive(Debug, Parser)]
#[command(name = "sluicegate", version, max_term_width = 100, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  sluicegate serve --backend http://127.0.0.1:8000
  sluicegate serve --config sluicegate.yaml
  sluicegate check --config sluicegate.yaml --live

Exit codes: 0 fine, 1 failed at run time, 2 invalid configuration, 64 wrong usage.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the gateway
    Serve(serve::Args),
    /// Checks a configuration: every problem at once, each with its line
    Check(check::Args),
    /// Watches for the interruption of this machine and tells gateways elsewhere
    Agent(agent::Args),
    /// Drains a running gateway and returns when it has ended
    Drain(drain::Args),
    /// Asks a running gateway whether it is ready
    Healthcheck(healthcheck::Args),
    /// Prints the JSON Schema of the configuration
    Schema(schema::Args),
    /// Shows what would be sent for a body on stdin, and why
    Normalize(normalize::Args),
    /// Shows the gateway at work: simulated backends that are taken away, and clients that do not notice
    Demo(demo::Args),
    /// Runs one simulated OpenAI-compatible backend
    Sim(sim::Args),
}

/// Which configuration, and what overrides it. Flags go before the environment, the environment before the file.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct ConfigArgs {
    /// The configuration; without it $SLUICEGATE_CONFIG, ./sluicegate.yaml, $XDG_CONFIG_HOME/sluicegate/sluicegate.yaml
    /// and /etc/sluicegate/sluicegate.yaml are tried
    #[arg(long, short, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// An inference server, in place of the file's; may be repeated; needs no file
    #[arg(long, value_name = "URL")]
    pub backend: Vec<String>,
    /// Address of the data plane [default: 0.0.0.0:8080]
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Option<String>,
    /// Address of the admin plane, `off` or `same` [default: 127.0.0.1:9090]
    #[arg(long, value_name = "ADDRESS")]
    pub admin: Option<String>,
    /// Form of log lines: text or json
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<String>,
    /// Least weight of log lines: error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<String>,
}

impl ConfigArgs {
    /// What the flags override.
    pub fn flags(&self) -> Flags {
        Flags {
            backends: self.backend.clone(),
            listen: self.listen.clone(),
            admin: self.admin.clone(),
            log_format: self.log_format.clone(),
            log_level: self.log_level.clone(),
        }
    }

    /// Reads the configuration and says on stderr what there is to say about it.
    ///
    /// # Errors
    /// The exit code, when it cannot be served.
    pub fn load(&self) -> Result<Loaded, ExitCode> {
        let (problems, loaded) = match config::load(self.config.as_deref(), &Env::of_process(), &self.flags()) {
            Ok(loaded) => (loaded.problems(), Some(loaded)),
            Err(problems) => (problems, None),
        };
        talk(&config::render(&problems, Format::Human));
        loaded.filter(Loaded::may_serve).ok_or_else(|| ExitCode::from(INVALID_CONFIG))
    }
}

/// Parses the arguments, runs the subcommand.
pub fn main() -> ExitCode {
    match Cli::try_parse() {
        Ok(cli) => match cli.command {
            Command::Serve(args) => serve::run(&args),
            Command::Check(args) => check::run(&args),
            Command::Agent(args) => agent::run(&args),
            Command::Drain(args) => drain::run(&args),
            Command::Healthcheck(args) => healthcheck::run(&args),
            Command::Schema(args) => schema::run(&args),
            Command::Normalize(args) => normalize::run(&args),
            Command::Demo(args) => demo::start(args),
            Command::Sim(args) => sim::run(args),
        },
        Err(e) => {
            // A closed pipe is no reason to fail twice.
            let _ = e.print();
            ExitCode::from(if e.use_stderr() { WRONG_USAGE } else { 0 })
        }
    }
}

/// Data, to stdout. A reader that has seen enough (`| head`) is no failure.
fn print(text: &str) -> Result<(), ExitCode> {
    print_bytes(text.as_bytes())
}

/// Data that need not be text.
fn print_bytes(data: &[u8]) -> Result<(), ExitCode> {
    match io::stdout().write_all(data).and_then(|()| io::stdout().flush()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => {
            talk(&format!("sluicegate: cannot write to stdout: {e}\n"));
            Err(ExitCode::from(FAILED))
        }
        _ => Ok(()),
    }
}

/// Talk, to stderr; nobody may be listening.
fn talk(text: &str) {
    let _ = io::stderr().write_all(text.as_bytes());
}

/// Whether nothing here hinders serving.
fn is_valid(problems: &[Problem]) -> bool {
    !problems.iter().any(Problem::is_error)
}
