//! What the demo prints: plain lines on stdout, in colour on a terminal unless NO_COLOR says otherwise.

use std::{
    io::{IsTerminal, Write},
    net::SocketAddr,
    time::Duration,
};

use tokio::time::Instant;

use super::{
    CLIENTS, MODEL, Tally,
    admin::Resumed,
    client::Outcome,
    crowd::{CROWD, Shared},
};

/// Writes lines, each with the time since the start.
#[derive(Clone, Debug)]
pub(super) struct Story {
    started: Instant,
    colour: bool,
}

const RED: &str = "31";
const GREEN: &str = "32";
const YELLOW: &str = "33";
const BOLD: &str = "1";

impl Story {
    pub(super) fn new(started: Instant) -> Self {
        // https://no-color.org: set and not empty.
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { started, colour: !unwanted && std::io::stdout().is_terminal() }
    }

    pub(super) fn welcome(&self, gateway: SocketAddr, admin: Option<SocketAddr>, interval: Duration) {
        let ready = self.started.elapsed().as_secs_f64();
        let question = format!("{{\"model\":\"{MODEL}\",\"messages\":[{{\"role\":\"user\",\"content\":\"hello\"}}]");
        let url = format!("http://{}", reachable(gateway));
        let mut text = format!(
            "{}\n\nTry it, an answer at once and a stream:\n\n  \
             curl {url}/v1/chat/completions -H 'content-type: application/json' -d '{question}}}'\n  \
             curl -N {url}/v1/chat/completions -H 'content-type: application/json' -d '{question},\"stream\":true}}'\n  \
             curl {url}/v1/models\n",
            self.paint(BOLD, &format!("Sluicegate is ready on {url} after {ready:.2} s")),
        );
        if let Some(admin) = admin {
            let admin = reachable(admin);
            text += &format!("  curl http://{admin}/metrics\n  curl http://{admin}/api/v1/backends\n");
        }
        text += &format!(
            "\nBehind it are two simulated spot backends and one on demand. {} clients read streams and {} ask for plain\n\
             answers, and check every token. Every {} a spot backend is taken away, with a notice or without, and comes back.\n\
             Ctrl-C ends.\n\n\
             In front of real servers (vLLM, SGLang, llama.cpp), the same gateway is one line:\n\n  \
             sluicegate serve --backend http://10.0.0.5:8000 --backend http://10.0.0.6:8000\n",
            CLIENTS.0,
            CLIENTS.1,
            spelt(interval),
        );
        self.write(&text);
    }

    pub(super) fn noticed(&self, name: &str, running: u64, lead: Duration) {
        let what = format!(
            "{name} will go in {}: the gateway gets the notice, with {} on it",
            spelt(lead),
            counted(running, "request")
        );
        self.line(&self.paint(YELLOW, &what));
    }

    pub(super) fn killed(&self, name: &str, running: u64, noticed: bool, away: Duration) {
        let how = if noticed { "goes, as it said," } else { "is killed" };
        let what = format!("{name} {how} with {} on it, for {}", counted(running, "request"), spelt(away));
        self.line(&self.paint(YELLOW, &what));
    }

    /// A client's request that did not simply go well.
    pub(super) fn seen(&self, client: u64, outcome: &Outcome) {
        self.not_well(&format!("client {client}"), outcome);
    }

    /// The like, of one who asked what others asked.
    pub(super) fn in_crowd(&self, outcome: &Outcome) {
        self.not_well("one of the crowd", outcome);
    }

    fn not_well(&self, who: &str, outcome: &Outcome) {
        match outcome {
            Outcome::Whole { .. } => {}
            Outcome::Cut { tokens, reason } => {
                let after = counted(*tokens, "token");
                self.line(&format!("  {who}: stream cut after {after}, ended by an error event: {reason}"));
            }
            Outcome::Failed { reason } => self.line(&self.paint(RED, &format!("  {who}: failed: {reason}"))),
            Outcome::Wrong { what } => self.line(&self.paint(RED, &format!("  {who}: wrong: {what}"))),
        }
    }

    /// What several who asked the same at once were given, and one who came later.
    pub(super) fn shared(&self, shared: &Shared) {
        let took = shared.took.as_secs_f64();
        let live = match shared.collapsed {
            0 => format!("{CROWD} clients ask the same at once, and each answer is computed"),
            followers => format!(
                "{CROWD} clients ask the same at once: {} computed in {took:.1} s, {} it live",
                counted((CROWD - followers) as u64, "stream"),
                if followers == 1 { "1 shares".to_owned() } else { format!("{followers} share") },
            ),
        };
        let later = match shared.hit {
            Some(hit) => format!("; asked again, it is a hit in {:.1} ms", hit.as_secs_f64() * 1e3),
            None => "; asked again, it is computed again".to_owned(),
        };
        self.line(&(self.paint(GREEN, &live) + &later));
    }

    pub(super) fn revived(&self, name: &str, back: std::io::Result<()>, before: &Tally, now: &Tally) {
        let how = match back {
            Ok(()) => format!("{name} is back"),
            Err(error) => format!("{name} stays away: {error}"),
        };
        let since = Tally {
            plain: now.plain - before.plain,
            streams: now.streams - before.streams,
            tokens: now.tokens - before.tokens,
            retried: now.retried - before.retried,
            cut: now.cut - before.cut,
            failed: now.failed - before.failed,
            wrong: now.wrong - before.wrong,
        };
        self.line(&format!("{}; since it was killed: {}", self.paint(GREEN, &how), sum(&since)));
    }

    /// Streams of the last interruption that went on at another backend.
    pub(super) fn resumed(&self, resumed: &Resumed) {
        let count = resumed.count();
        if count == 0 {
            return;
        }
        let [tokens, text, restart, end] = resumed.modes;
        let modes = [(tokens, "by token ids"), (text, "by text"), (restart, "from the start"), (end, "at the end")];
        let modes: Vec<_> = modes.iter().filter(|(n, _)| *n > 0).map(|(n, how)| format!("{n} {how}")).collect();
        let gap = Duration::from_secs_f64(resumed.gap / count as f64);
        self.line(&format!(
            "  {} went on elsewhere ({}): {} kept, {} ms without a token on average",
            counted(count, "stream"),
            modes.join(", "),
            counted(resumed.kept, "token"),
            gap.as_millis(),
        ));
    }

    pub(super) fn farewell(&self, tally: &Tally) {
        let tokens = counted(tally.tokens, "token");
        self.line(&format!("{}: {}, {tokens}", self.paint(BOLD, "in all"), sum(tally)));
    }

    pub(super) fn error(&self, reason: &str) {
        // A closed stderr leaves nobody to tell.
        let _ = writeln!(std::io::stderr(), "sluicegate demo: {reason}");
    }

    fn line(&self, text: &str) {
        self.write(&format!("[{:5.1} s] {text}", self.started.elapsed().as_secs_f64()));
    }

    fn write(&self, text: &str) {
        // A closed stdout leaves nobody to tell.
        let _ = writeln!(std::io::stdout().lock(), "{text}");
    }

    fn paint(&self, colour: &str, text: &str) -> String {
        if self.colour { format!("\u{1b}[{colour}m{text}\u{1b}[0m") } else { text.to_owned() }
    }
}

/// One line of what the clients saw.
fn sum(tally: &Tally) -> String {
    format!(
        "{} and {} whole, {} retried unseen, {} cut with an error event, {} failed, {} wrong",
        counted(tally.plain, "plain answer"),
        counted(tally.streams, "stream"),
        tally.retried,
        tally.cut,
        tally.failed,
        tally.wrong
    )
}

fn counted(n: u64, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

fn spelt(time: Duration) -> String {
    if time < Duration::from_secs(1) {
        return format!("{} ms", time.as_millis());
    }
    format!("{} s", (time.as_secs_f64() * 10.0).round() / 10.0)
}

/// An address that can be written into a curl line on this machine.
fn reachable(addr: SocketAddr) -> String {
    if addr.ip().is_unspecified() { format!("127.0.0.1:{}", addr.port()) } else { addr.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_read_well() {
        let tally = Tally { plain: 1, streams: 2, retried: 3, ..Tally::default() };
        let line = sum(&tally);
        assert!(line.starts_with("1 plain answer and 2 streams whole, 3 retried unseen"), "{line}");
        assert_eq!(spelt(Duration::from_millis(1250)), "1.3 s");
        assert_eq!(reachable(SocketAddr::from(([0, 0, 0, 0], 8080))), "127.0.0.1:8080");
    }
}
