//! Clients that never rest and know what every answer must be.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
};

use serde_json::{Value, json};
use sluicegate::sim::expected;

use crate::{
    kit::until,
    support::{Answer, Exchange},
};

/// Tokens of every answer; by itself none of a sim is shorter.
const TOKENS: u64 = 8;

/// What the clients of one kind have seen.
#[derive(Debug, Default)]
pub struct Tally {
    /// Whole and right.
    pub whole: u64,
    /// Broken off after body bytes, and said so.
    pub cut: u64,
    /// Everything that must not be, in words.
    pub problems: Vec<String>,
}

/// A running load.
pub struct Load {
    stop: Arc<AtomicBool>,
    whole: Arc<AtomicU64>,
    clients: Vec<(bool, JoinHandle<Tally>)>,
}

impl Load {
    /// So many clients of plain answers and of streams, each with one request at a time.
    pub fn start(gate: SocketAddr, plain: usize, streams: usize) -> Self {
        let (stop, whole) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let clients = (0..plain + streams)
            .map(|number| {
                let (streamed, stop, whole) = (number >= plain, Arc::clone(&stop), Arc::clone(&whole));
                (streamed, thread::spawn(move || talk(gate, number, streamed, &stop, &whole)))
            })
            .collect();
        Self { stop, whole, clients }
    }

    /// Waits until `n` more answers have come whole.
    pub fn more(&self, n: u64) {
        let wanted = self.whole.load(Relaxed) + n;
        until("more answers", || (self.whole.load(Relaxed) >= wanted).then_some(()));
    }

    /// Ends it once every client has the answer it waits for: what plain clients saw, and what readers of streams saw.
    pub fn finish(self) -> (Tally, Tally) {
        self.stop.store(true, Relaxed);
        let mut tallies = (Tally::default(), Tally::default());
        for (streamed, client) in self.clients {
            let seen = client.join().unwrap();
            let tally = if streamed { &mut tallies.1 } else { &mut tallies.0 };
            tally.whole += seen.whole;
            tally.cut += seen.cut;
            tally.problems.extend(seen.problems);
        }
        tallies
    }
}

impl Tally {
    /// Fails with the first few of what must not be.
    pub fn no_problem(&self, of: &str) {
        let first: Vec<_> = self.problems.iter().take(5).collect();
        assert!(first.is_empty(), "{} of {of}: {first:#?}", self.problems.len());
    }
}

/// How one answer ended.
enum End {
    Whole,
    Cut,
    Problem(String),
}

fn talk(gate: SocketAddr, number: usize, streamed: bool, stop: &AtomicBool, whole: &AtomicU64) -> Tally {
    let mut tally = Tally::default();
    let mut turn = 0;
    while !stop.load(Relaxed) {
        let prompt = format!("client {number}, question {turn}");
        match ask(gate, &prompt, streamed) {
            End::Whole => {
                tally.whole += 1;
                whole.fetch_add(1, Relaxed);
            }
            End::Cut => tally.cut += 1,
            End::Problem(what) => tally.problems.push(format!("{prompt}: {what}")),
        }
        turn += 1;
    }
    tally
}

fn ask(gate: SocketAddr, prompt: &str, streamed: bool) -> End {
    let messages = json!([{"role": "user", "content": prompt}]);
    let body = json!({"model": "sim", "messages": messages, "max_tokens": TOKENS, "stream": streamed}).to_string();
    let headers = [("content-type", "application/json")];
    let answer = Exchange::start(gate, "POST", "/v1/chat/completions", &headers, body.as_bytes()).finish();
    let right = expected(prompt, "sim", 0, TOKENS).concat();
    if answer.status != 200 {
        return End::Problem(format!("{} {}", answer.status, answer.text()));
    }
    if streamed { stream(&answer, &right) } else { plain(&answer, &right) }
}

fn plain(answer: &Answer, right: &str) -> End {
    if !answer.whole {
        return if answer.body.is_empty() { End::Problem("a head and no body".into()) } else { End::Cut };
    }
    let said = serde_json::from_slice::<Value>(&answer.body).unwrap_or_default();
    if said["choices"][0]["message"]["content"] == right {
        End::Whole
    } else {
        End::Problem(format!("wrong: {}", answer.text()))
    }
}

/// A stream is whole, or says in an error event that it is not and does not end well either.
fn stream(answer: &Answer, right: &str) -> End {
    let text = answer.text();
    let (mut said, mut error, mut finished, mut done) = (String::new(), false, false, false);
    for data in text.split("\n\n").filter_map(|event| event.strip_prefix("data: ")) {
        done |= data == "[DONE]";
        let event = serde_json::from_str::<Value>(data).unwrap_or_default();
        error |= event.get("error").is_some();
        said.push_str(event["choices"][0]["delta"]["content"].as_str().unwrap_or_default());
        finished |= event["choices"][0]["finish_reason"].is_string();
    }
    let whole = finished && done && answer.whole;
    match (whole, error) {
        (true, false) if said == right => End::Whole,
        (false, true) if !done && !answer.whole && right.starts_with(&said) => End::Cut,
        _ => End::Problem(format!("finished={finished} done={done} framed={} {text}", answer.whole)),
    }
}
