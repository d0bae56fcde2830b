//! Whether this process should be given work, and if not, why.
//!
//! A [`Latch`] holds readiness back until something has happened once (listening, configuration loaded); a check is
//! asked every time (draining, backends).

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// All that must be well. Cheap to clone.
#[derive(Clone, Default)]
pub struct Readiness(Arc<Mutex<Vec<Entry>>>);

/// Holds readiness back until it is opened. Dropped before, it holds it back for good.
#[derive(Debug)]
pub struct Latch {
    all: Readiness,
    index: usize,
}

/// One check as it came out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    pub name: &'static str,
    /// What is well, or what is not.
    pub outcome: Result<String, String>,
}

type Ask = Arc<dyn Fn() -> Result<String, String> + Send + Sync>;

#[derive(Clone)]
struct Entry {
    name: &'static str,
    state: State,
}

#[derive(Clone)]
enum State {
    Waiting(&'static str),
    Open,
    Ask(Ask),
}

impl Readiness {
    /// Nothing that holds it back.
    pub fn new() -> Self {
        Self::default()
    }

    /// Not ready until the latch is opened; `reason` says what is waited for.
    pub fn latch(&self, name: &'static str, reason: &'static str) -> Latch {
        let mut entries = self.entries();
        entries.push(Entry { name, state: State::Waiting(reason) });
        Latch { all: self.clone(), index: entries.len() - 1 }
    }

    /// Not ready while `ask` says why not. Asked at every probe: it must be quick and never wait.
    pub fn check(&self, name: &'static str, ask: impl Fn() -> Result<String, String> + Send + Sync + 'static) {
        self.entries().push(Entry { name, state: State::Ask(Arc::new(ask)) });
    }

    /// Every check, in the order they were added.
    pub fn report(&self) -> Vec<Check> {
        // Asked without the lock.
        let entries = self.entries().clone();
        let outcome = |state: State| match state {
            State::Waiting(reason) => Err(reason.to_owned()),
            State::Open => Ok(String::new()),
            State::Ask(ask) => ask(),
        };
        entries.into_iter().map(|entry| Check { name: entry.name, outcome: outcome(entry.state) }).collect()
    }

    fn entries(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Latch {
    /// It has happened.
    pub fn open(self) {
        if let Some(entry) = self.all.entries().get_mut(self.index) {
            entry.state = State::Open;
        }
    }
}

impl fmt::Debug for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.report()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn latches_and_checks() {
        let readiness = Readiness::new();
        let well = Arc::new(AtomicBool::new(true));
        let (one, two) = (readiness.latch("listening", "not bound yet"), readiness.latch("config", "not read yet"));
        let asked = Arc::clone(&well);
        readiness.check("backends", move || {
            if asked.load(Ordering::Relaxed) { Ok("1 of 2".into()) } else { Err("all are out".into()) }
        });
        let failing = || {
            let failed = |check: Check| check.outcome.err().map(|reason| (check.name, reason));
            readiness.report().into_iter().filter_map(failed).collect::<Vec<_>>()
        };
        assert_eq!(failing(), [("listening", "not bound yet".into()), ("config", "not read yet".into())]);
        one.open();
        drop(two);
        assert_eq!(failing(), [("config", "not read yet".into())]);
        well.store(false, Ordering::Relaxed);
        assert_eq!(failing().last(), Some(&("backends", "all are out".into())));
    }
}
