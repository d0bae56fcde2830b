//! A gateway, its backends, and the cells that go through them.

use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use sluicegate::sim::{Engine, Handle, Point};

use super::{
    cell::{self, Blow, Cell, ENGINES, Mode, Outcome, Variant},
    read,
    support::{Answer, Exchange, Gateway, sim},
};

/// Cells of one lane that are under way at once.
const AT_ONCE: usize = 4;
/// Backends of a lane.
const SIMS: usize = 4;
/// Whole answers for each cell: blow upon blow alone, a circuit breaker would take every backend out.
const BALM: usize = 4;
/// A cell that takes longer has hung.
const PATIENCE: Duration = Duration::from_secs(20);
/// Retries are not what is looked at: there are as many as are needed.
const CONFIG: &str = "\
cache: {mode: off}
workers: 1
retry: {budget: 1, min_per_second: 1000000}
";
/// Who is back is seen soon; nobody is taken for dead because the machine is busy.
const PATIENT: &str = "health: {interval: 50ms, timeout: 10s}\n";
/// A silent backend is suspected at once.
const QUICK: &str = "timeouts: {suspect: 100ms}\nhealth: {interval: 50ms, timeout: 150ms, unhealthy_after: 1}\n";

/// What is told of each cell.
pub trait Tell: Fn(Cell, Outcome) + Sync {}
impl<T: Fn(Cell, Outcome) + Sync> Tell for T {}

struct Lane {
    sims: Vec<Handle>,
    gateway: Gateway,
}

impl Lane {
    fn new(engine: Engine, variant: Variant, health: &str) -> Self {
        let start = |i: usize| {
            sim(|config| {
                config.engine = if variant == Variant::Mixed { ENGINES[i % ENGINES.len()] } else { engine };
                config.split_utf8 = variant == Variant::SplitUtf8;
                config.token_ids = variant != Variant::NoIds;
            })
        };
        let sims: Vec<Handle> = (0..SIMS).map(start).collect();
        let gateway = Gateway::new(&sims.iter().collect::<Vec<_>>(), &(CONFIG.to_owned() + health)).healthy();
        Self { sims, gateway }
    }

    fn start(&self, cell: &Cell) -> Exchange {
        for fault in cell.faults() {
            for sim in &self.sims {
                sim.fault(fault.clone());
            }
        }
        self.gateway.start(cell.endpoint.path(), &cell.body()).within(PATIENCE)
    }

    /// Some answers to which nothing happens.
    fn heal(&self) {
        for _ in 0..BALM {
            let body = r#"{"model":"sim","prompt":"balm","max_tokens":1}"#;
            assert_eq!(self.gateway.post("/v1/completions", body).status, 200);
        }
    }

    /// Back to backends that are well, but for one that its circuit breaker may keep out.
    fn repair(&self) {
        for (i, sim) in self.sims.iter().enumerate() {
            sim.clear_faults();
            sim.thaw();
            if !sim.is_alive() {
                sim.revive().unwrap();
            }
            self.gateway.admin("POST", &format!("/api/v1/backends/b{i}/undrain"));
        }
        self.gateway.until("/api/v1/backends", |text| {
            let view: serde_json::Value = serde_json::from_str(text).unwrap();
            let backends = view["backends"].as_array().unwrap();
            backends.iter().filter(|backend| backend["state"] == "healthy").count() + 1 >= SIMS
        });
        self.heal();
    }

    /// Waits until one of the backends holds the cell's answer still; gives its number.
    fn held(&self, cell: &Cell, before: &[u64]) -> Option<usize> {
        let wanted = match cell.point {
            Point::Tokens(n) if cell.mode != Mode::Plain => n,
            Point::Nothing | Point::Tokens(_) => 0,
            _ if cell.mode == Mode::Plain => 0,
            Point::Last => cell::TOKENS - 1,
            _ => cell::TOKENS,
        };
        for _ in 0..2_000 {
            for (i, sim) in self.sims.iter().enumerate() {
                let has = sim
                    .last(Some(cell.endpoint.path()))
                    .is_some_and(|request| memchr::memmem::find(&request.body, cell.prompt.as_bytes()).is_some());
                if has && sim.state().tokens >= before[i] + wanted {
                    return Some(i);
                }
            }
            std::thread::park_timeout(Duration::from_millis(1));
        }
        None
    }

    fn notice(&self, cell: &Cell) -> Result<Answer, String> {
        let before: Vec<u64> = self.sims.iter().map(|sim| sim.state().tokens).collect();
        let exchange = self.start(cell);
        let Some(backend) = self.held(cell, &before) else { return Err("no backend was asked".to_owned()) };
        // Too little for anything but to leave at once.
        let soon = SystemTime::now() + Duration::from_secs(3);
        let time = cell::rfc3339(soon.duration_since(UNIX_EPOCH).unwrap().as_secs());
        let notice = format!("{{\"action\":\"terminate\",\"time\":\"{time}\"}}");
        let path = format!("/api/v1/backends/b{backend}/interruption");
        let told = tell_admin(&self.gateway, &path, &notice);
        if !(200..300).contains(&told.status) {
            return Err(format!("the notice was answered with {}: {}", told.status, told.text()));
        }
        // What cannot be moved ends before its machine does. It may not hold still yet: the release is said again.
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            if cell.mode == Mode::Plain || cell.point == Point::Nothing {
                scope.spawn(|| {
                    while !over.load(Relaxed) {
                        self.sims[backend].release();
                        std::thread::park_timeout(Duration::from_millis(5));
                    }
                });
            }
            let answer = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| exchange.finish()));
            over.store(true, Relaxed);
            answer.map_err(|_| "it hung, or had no head".to_owned())
        })
    }
}

/// A POST with a body to the admin plane, which takes only its own name for a host.
fn tell_admin(gateway: &Gateway, path: &str, json: &str) -> Answer {
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
         connection: close\r\n\r\n{json}",
        gateway.admin,
        json.len()
    );
    Exchange::raw(gateway.admin, head.as_bytes()).finish()
}

/// Blows to one stream: all cells through one gateway, several at once.
pub fn shared(engine: Engine, variant: Variant, cells: Vec<Cell>, tell: &impl Tell) {
    let lane = Lane::new(engine, variant, PATIENT);
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(cell) = cells.get(next.fetch_add(1, Relaxed)) {
                    tell(cell.clone(), heard(cell, || Ok(lane.start(cell).finish())));
                    lane.heal();
                }
            });
        }
    });
}

/// Blows to a whole machine: one cell after the other.
pub fn own(engine: Engine, variant: Variant, cells: Vec<Cell>, tell: &impl Tell) {
    let hangs = cells.iter().any(|cell| cell.blow == Blow::Hang);
    let lane = Lane::new(engine, variant, if hangs { QUICK } else { PATIENT });
    for cell in cells {
        let outcome = heard(&cell, || match cell.blow {
            Blow::Notice => lane.notice(&cell),
            _ => Ok(lane.start(&cell).finish()),
        });
        lane.repair();
        tell(cell, outcome);
    }
}

/// What came, be it nothing: a cell that hangs is one that is wrong, and not the end of the others.
fn heard(cell: &Cell, answer: impl FnOnce() -> Result<Answer, String>) -> Outcome {
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(answer)) {
        Ok(Ok(answer)) => read::outcome(cell, &answer),
        Ok(Err(what)) => Outcome::Wrong(what),
        Err(_) => Outcome::Wrong("it hung, or had no head".to_owned()),
    }
}
