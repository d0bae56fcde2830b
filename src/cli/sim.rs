//! `sluicegate sim`: one simulated backend in the foreground.

use std::{net::SocketAddr, process::ExitCode, time::Duration};

use crate::sim::{
    Config, Engine, Fault, LateModel, Pace, Sim,
    metadata::{self, Cloud, Metadata},
};

/// One simulated OpenAI-compatible backend, for trying things out; the same one that tests, benches and the demo use.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Where it listens; port 0 = any free one
    #[arg(long, default_value = "127.0.0.1:8000", value_name = "ADDRESS")]
    pub listen: SocketAddr,
    /// Whose shapes, headers, metrics and habits it has
    #[arg(long, value_enum, default_value = "vllm")]
    pub engine: Engine,
    /// A model it has; may be repeated, the first is the default
    #[arg(long, default_value = "sim", value_name = "NAME")]
    pub model: Vec<String>,
    /// A model that appears after N reads of the model list, like a LoRA adapter loaded late
    #[arg(long, value_name = "NAME=N")]
    pub late_model: Vec<LateModel>,
    /// Time to the first token: 50ms, 1.5s
    #[arg(long, default_value = "0ms", value_parser = duration, value_name = "TIME")]
    pub ttft: Duration,
    /// Tokens per second of one answer; 0 = as fast as they can be written
    #[arg(long, default_value_t = 0.0, value_name = "N")]
    pub tokens_per_second: f64,
    /// Every wait is longer or shorter by up to this share, 0 to 1
    #[arg(long, default_value_t = 0.0, value_name = "SHARE")]
    pub jitter: f64,
    /// Requests that run at the same time, others wait; 0 = no bound
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub slots: usize,
    /// Of tokens, jitter and chance
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub seed: u64,
    /// Tokens after which every answer stops by itself; unset: 8 to 71, by prompt
    #[arg(long, value_name = "TOKENS")]
    pub length: Option<u64>,
    /// Tokens end inside characters, as a byte-level tokenizer's do: an id comes before its text
    #[arg(long)]
    pub split_utf8: bool,
    /// `return_token_ids` is answered with 400, as by an older vLLM
    #[arg(long)]
    pub no_token_ids: bool,
    /// What goes wrong: KIND, then any of `after=POINT`, `times=N`, `p=SHARE`, `ms=N`, `path=PREFIX`, `text=PART`, joined
    /// by commas; may be repeated
    #[arg(long, value_name = "FAULT")]
    pub fault: Vec<Fault>,
    /// In place of a backend, a cloud's metadata service, for `sluicegate agent --endpoint`
    #[arg(long, value_enum, value_name = "CLOUD")]
    pub metadata: Option<Cloud>,
    /// With --metadata: the machine has notice after this time
    #[arg(long, requires = "metadata", value_name = "TIME", value_parser = duration)]
    pub notice_after: Option<Duration>,
}

const EXAMPLES: &str = "\
Faults: die, reset, hang, stall, 503, 429, empty-500, refuse, slow-health, loading, cut-event, clean-fin, short-body,
long-body, bad-head, header-bomb, interim-bomb, error-event, abort, silent-close, freeze. The same at POST /sim/fault.
POINT: a number of tokens, or nothing (before the head), last (before the finish), finish, usage (after them).

Examples:
  sluicegate sim --listen 127.0.0.1:8001 --ttft 200ms --tokens-per-second 50
  sluicegate sim --engine llamacpp --slots 4 --fault die-after=20
  sluicegate sim --fault 503,p=0.1 --fault stall,after=5,times=1
  sluicegate sim --metadata aws --listen 127.0.0.1:1338 --notice-after 20s";

/// A number with its unit: `ms`, `s` or `m`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is not a time; write 50ms, 1.5s or 2m");
    let at = text.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
    let (number, unit) = text.split_at(at);
    let number: f64 = number.parse().map_err(|_| wrong())?;
    let seconds = match unit {
        "ms" => number / 1000.0,
        "s" => number,
        "m" => number * 60.0,
        _ => return Err(wrong()),
    };
    Duration::try_from_secs_f64(seconds).map_err(|_| wrong())
}

impl From<Args> for Config {
    fn from(args: Args) -> Self {
        Self {
            listen: args.listen,
            engine: args.engine,
            models: args.model,
            late_models: args.late_model,
            pace: Pace { ttft: args.ttft, tokens_per_second: args.tokens_per_second, jitter: args.jitter },
            slots: args.slots,
            seed: args.seed,
            length: args.length,
            split_utf8: args.split_utf8,
            token_ids: !args.no_token_ids,
            faults: args.fault,
            ..Self::default()
        }
    }
}

/// Runs until it is interrupted (exit code 0), or dies by a fault (1).
#[expect(clippy::print_stderr, reason = "a command talks on stderr")]
pub fn run(args: Args) -> ExitCode {
    let listen = args.listen;
    if let Some(cloud) = args.metadata {
        return metadata(cloud, listen, args.notice_after);
    }
    let sim = match Sim::start(args.into()) {
        Ok(sim) => sim,
        Err(error) => {
            eprintln!("sluicegate sim: cannot listen on {listen}: {error}; choose another address with --listen");
            return ExitCode::from(1);
        }
    };
    eprintln!("sluicegate sim: listening on {}", sim.url());
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("sluicegate sim: cannot wait for signals: {error}");
            return ExitCode::from(1);
        }
    };
    let interrupted = runtime.block_on(async {
        tokio::select! {
            () = sim.died() => false,
            () = super::demo::interrupted() => true,
        }
    });
    if interrupted {
        return ExitCode::SUCCESS;
    }
    eprintln!("sluicegate sim: dead, as its faults asked");
    ExitCode::from(1)
}

/// Runs a metadata service until it is interrupted.
#[expect(clippy::print_stderr, reason = "a command talks on stderr")]
fn metadata(cloud: Cloud, listen: SocketAddr, notice_after: Option<Duration>) -> ExitCode {
    let started = Metadata::start(metadata::Config { listen, ..metadata::Config::of(cloud) });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let (service, runtime) = match (started, runtime) {
        (Ok(service), Ok(runtime)) => (service, runtime),
        (Err(error), _) | (_, Err(error)) => {
            eprintln!("sluicegate sim: cannot serve metadata on {listen}: {error}");
            return ExitCode::from(1);
        }
    };
    eprintln!("sluicegate sim: metadata of {cloud:?} on {}", service.url());
    let noticed = async {
        if let Some(after) = notice_after {
            tokio::time::sleep(after).await;
            let (action, lead) = cloud.notice();
            service.notice(action, lead);
            eprintln!("sluicegate sim: this machine has notice to {action}, {} s", lead.as_secs());
        }
        std::future::pending::<()>().await;
    };
    runtime.block_on(async {
        tokio::select! {
            () = noticed => {}
            () = super::demo::interrupted() => {}
        }
    });
    ExitCode::SUCCESS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        assert_eq!(duration("50ms"), Ok(Duration::from_millis(50)));
        assert_eq!(duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert!(["5", "x", "-1s", "3h", "1.2.3s"].iter().all(|text| duration(text).is_err()));
    }
}
