//! Spot machines go, with a notice and without one: no stream through them notices.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde_json::{Value, json};
use sluicegate::sim::{Engine, Point, expected};

use crate::{
    cell::{self, Blow, Cell, ENGINES, Endpoint, Mode, Outcome, Variant},
    kit::{Gate, Sim, alone, until},
    read,
    support::{Answer, Exchange},
};

const STREAMS: usize = 200;
const TOKENS: u64 = 100;
/// A silent backend is found within a second.
const QUICK: &str = "\
timeouts: {suspect: 500ms}
health: {interval: 200ms, timeout: 500ms}
retry: {budget: 1}
cache: {mode: off}
log: {access: false}
";

/// Two spot backends and the baseline.
fn fleet(sims: &[&Sim; 3]) -> Gate {
    let backend = |(name, capacity, sim): (&str, &str, &Sim)| {
        format!("  - {{name: {name}, url: 'http://{}', capacity: {capacity}}}\n", sim.addr)
    };
    let named = [("spot-a", "spot", sims[0]), ("spot-b", "spot", sims[1]), ("base", "on_demand", sims[2])];
    let backends: String = named.into_iter().map(backend).collect();
    Gate::start(&format!("backends:\n{backends}{QUICK}")).healthy()
}

/// `blow` falls when the streams are under way; gives what is wrong with each of them.
fn two_hundred_streams(tokens_per_second: &str, blow: impl FnOnce(&Gate, &mut Sim)) -> Vec<String> {
    let _turn = alone();
    let start = || Sim::start(&["--tokens-per-second", tokens_per_second, "--length", "300"]);
    let (mut a, b, base) = (start(), start(), start());
    let gate = fleet(&[&a, &b, &base]);
    let wrong = thread::scope(|scope| {
        let streams: Vec<_> = (0..STREAMS)
            .map(|number| {
                let address = gate.addr;
                scope.spawn(move || {
                    let prompt = format!("stream {number}");
                    let answer = chat(address, &prompt);
                    judged(&answer, &prompt).err().map(|what| format!("{prompt}: {what} in {}", answer.text()))
                })
            })
            .collect();
        until("streams on the spot backend", || {
            let state = a.state();
            let busy = state["running"].as_u64() >= Some(20) && state["tokens"].as_u64() >= Some(200);
            busy.then_some(())
        });
        blow(&gate, &mut a);
        streams.into_iter().filter_map(|stream| stream.join().unwrap()).collect()
    });
    let text = gate.admin("/metrics").text();
    let told =
        |line: &&str| line.starts_with("sluicegate_resume") && !line.contains("_bucket") && !line.ends_with(" 0");
    text.lines().filter(told).for_each(|line| println!("{line}"));
    assert_eq!(gate.metric("sluicegate_panics_total"), 0.0);
    wrong
}

fn chat(address: std::net::SocketAddr, prompt: &str) -> Answer {
    let body = json!({"model": "sim", "messages": [{"role": "user", "content": prompt}], "max_tokens": TOKENS,
        "temperature": 0, "stream": true, "stream_options": {"include_usage": true}});
    let headers = [("content-type", "application/json")];
    Exchange::start(address, "POST", "/v1/chat/completions", &headers, body.to_string().as_bytes()).finish()
}

/// One whole stream with every token in its place, and the right count of them.
fn judged(answer: &Answer, prompt: &str) -> Result<(), String> {
    let text = answer.text();
    let events: Vec<&str> = text.split_terminator("\n\n").filter_map(|event| event.strip_prefix("data: ")).collect();
    if !answer.whole || events.last() != Some(&"[DONE]") {
        return Err(format!("not whole, status {}", answer.status));
    }
    let chunks: Vec<Value> = events.iter().filter_map(|data| serde_json::from_str(data).ok()).collect();
    let words = |chunk: &Value| chunk["choices"][0]["delta"]["content"].as_str().unwrap_or_default().to_owned();
    let said: String = chunks.iter().map(words).collect();
    if said != expected(prompt, "sim", 0, TOKENS).concat() {
        return Err("other tokens".to_owned());
    }
    if chunks.iter().any(|chunk| chunk["id"] != chunks[0]["id"]) {
        return Err("two ids".to_owned());
    }
    let used = chunks.last().map(|chunk| chunk["usage"]["completion_tokens"].clone());
    if used == Some(json!(TOKENS)) { Ok(()) } else { Err(format!("usage {used:?}")) }
}

fn nothing_wrong(wrong: &[String]) {
    let first: Vec<&String> = wrong.iter().take(3).collect();
    assert!(wrong.is_empty(), "{} of {STREAMS}: {first:#?}", wrong.len());
}

/// POST to the admin plane, which takes only its own name for a host.
fn tell(gate: &Gate, path: &str, json: &str) -> Answer {
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
         connection: close\r\n\r\n{json}",
        gate.admin,
        json.len()
    );
    Exchange::raw(gate.admin, head.as_bytes()).finish()
}

/// The machine of `backend` goes in so many seconds.
fn notice(gate: &Gate, backend: &str, seconds: u64) -> SystemTime {
    let goes = SystemTime::now() + Duration::from_secs(seconds);
    let unix = goes.duration_since(UNIX_EPOCH).unwrap().as_secs();
    let time = cell::rfc3339(unix);
    let body = format!("{{\"action\":\"terminate\",\"time\":\"{time}\"}}");
    let told = tell(gate, &format!("/api/v1/backends/{backend}/interruption"), &body);
    assert_eq!(told.status, 200, "{}", told.text());
    UNIX_EPOCH + Duration::from_secs(unix)
}

#[test]
fn two_hundred_streams_outlive_a_killed_spot_backend() {
    nothing_wrong(&two_hundred_streams("30", |_, sim| sim.kill()));
}

#[test]
fn two_hundred_streams_leave_a_noticed_spot_backend_before_it_goes() {
    let wrong = two_hundred_streams("8", |gate, sim| {
        let goes = notice(gate, "spot-a", 8);
        until("nothing on the machine that goes", || (sim.state()["running"] == 0).then_some(()));
        assert!(SystemTime::now() < goes, "the last stream left after the machine");
        sim.kill();
    });
    nothing_wrong(&wrong);
}

// === soak ===

/// Numbers that repeat themselves by seed (SplitMix64).
struct Chance(u64);

impl Chance {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len() as u64) as usize]
    }
}

/// What the clients saw.
#[derive(Debug, Default)]
struct Seen {
    exact: u64,
    told: u64,
    wrong: Vec<String>,
}

/// `SLUICEGATE_SOAK=600` makes it ten minutes of 100 clients, `SLUICEGATE_SEED` repeats one.
#[test]
fn whatever_happens_no_client_is_told_a_wrong_token() {
    let _turn = alone();
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let seed = number("SLUICEGATE_SEED").unwrap_or(clock.as_nanos() as u64);
    let (seconds, clients) = number("SLUICEGATE_SOAK").map_or((10, 30), |seconds| (seconds, 100));
    println!("soak of {seconds} s, {clients} clients: SLUICEGATE_SEED={seed}");
    let mut chance = Chance(seed);
    let engine = chance.of(&ENGINES);
    let name = format!("{engine:?}").to_lowercase();
    let start = |_| Sim::start(&["--engine", &name, "--tokens-per-second", "40"]);
    let mut sims: Vec<Sim> = (0..4).map(start).collect();
    let backend = |(i, sim): (usize, &Sim)| format!("  - {{name: b{i}, url: 'http://{}'}}\n", sim.addr);
    let backends: String = sims.iter().enumerate().map(backend).collect();
    let gate = Gate::start(&format!("backends:\n{backends}{QUICK}resume: {{attempts: 6}}\n")).healthy();
    let (stop, seen) = (AtomicBool::new(false), Mutex::new(Seen::default()));
    thread::scope(|scope| {
        for client in 0..clients {
            let (gate, stop, seen, chance) = (&gate, &stop, &seen, Chance(seed ^ (client + 1)));
            scope.spawn(move || talk(gate, engine, client, chance, stop, seen));
        }
        let end = SystemTime::now() + Duration::from_secs(seconds);
        while SystemTime::now() < end {
            harm(&gate, &mut sims, &mut chance);
        }
        stop.store(true, Relaxed);
    });
    let Seen { exact, told, wrong } = seen.into_inner().unwrap();
    println!("{engine:?}: {exact} exact, {told} told, {} wrong", wrong.len());
    let first: Vec<&String> = wrong.iter().take(3).collect();
    assert!(wrong.is_empty() && exact > 0, "SLUICEGATE_SEED={seed}: {first:#?}");
    assert_eq!(gate.metric("sluicegate_panics_total"), 0.0);
}

/// One client: one answer after the other, of any kind.
fn talk(gate: &Gate, engine: Engine, client: u64, mut chance: Chance, stop: &AtomicBool, seen: &Mutex<Seen>) {
    let mut turn = client as usize * 1_000_000;
    while !stop.load(Relaxed) {
        turn += 1;
        let (endpoint, mode) = (chance.of(&Endpoint::ALL), chance.of(&Mode::ALL));
        let prompt = cell::prompt(turn, mode, Variant::Nothing);
        let (variant, blow, point) = (Variant::Nothing, Blow::Kill, Point::Nothing);
        let cell = Cell { variant, engine, blow, endpoint, mode, point, prompt };
        let answer = gate.post(endpoint.path(), &cell.body());
        let outcome = read::outcome(&cell, &answer);
        let mut seen = seen.lock().unwrap();
        match outcome {
            Outcome::Exact => seen.exact += 1,
            Outcome::Told(_) => seen.told += 1,
            Outcome::Wrong(what) => seen.wrong.push(format!("{cell}: {what}")),
        }
    }
}

/// One backend is killed, hung, or told to go, and comes back.
fn harm(gate: &Gate, sims: &mut [Sim], chance: &mut Chance) {
    let i = chance.below(sims.len() as u64) as usize;
    let some_time = |chance: &mut Chance| Duration::from_millis(200 + chance.below(1_200));
    let (kind, lasts) = (chance.below(3), some_time(chance));
    let sim = &mut sims[i];
    match kind {
        0 => {
            sim.kill();
            thread::park_timeout(lasts);
            sim.restart();
        }
        1 => {
            sim.signal("STOP");
            thread::park_timeout(lasts);
            sim.signal("CONT");
        }
        _ => {
            notice(gate, &format!("b{i}"), 4);
            thread::park_timeout(lasts);
            sim.kill();
            sim.restart();
            tell(gate, &format!("/api/v1/backends/b{i}/undrain"), "");
        }
    }
    thread::park_timeout(some_time(chance) / 2);
}
