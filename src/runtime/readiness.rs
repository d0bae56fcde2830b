//! Whether this process should be given work, and if not, why.
//!
//! Each check is asked every time: draining, backends, configuration. That something listens shows by the answer.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// All that must be well. Cheap to clone.
#[derive(Clone, Default)]
pub struct Readiness(Arc<Mutex<Vec<Entry>>>);

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
    ask: Ask,
}

impl Readiness {
    /// Nothing that holds it back.
    pub fn new() -> Self {
        Self::default()
    }

    /// Not ready while `ask` says why not. Asked at every probe: it must be quick and never wait.
    pub fn check(&self, name: &'static str, ask: impl Fn() -> Result<String, String> + Send + Sync + 'static) {
        self.entries().push(Entry { name, ask: Arc::new(ask) });
    }

    /// Every check, in the order they were added.
    pub fn report(&self) -> Vec<Check> {
        // Asked without the lock.
        let entries = self.entries().clone();
        entries.into_iter().map(|entry| Check { name: entry.name, outcome: (entry.ask)() }).collect()
    }

    fn entries(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
    fn checks_are_asked_each_time() {
        let readiness = Readiness::new();
        let well = Arc::new(AtomicBool::new(true));
        let asked = Arc::clone(&well);
        readiness.check("config", || Ok(String::new()));
        readiness.check("backends", move || {
            if asked.load(Ordering::Relaxed) { Ok("1 of 2".into()) } else { Err("all are out".into()) }
        });
        let outcomes = || readiness.report().into_iter().map(|check| (check.name, check.outcome)).collect::<Vec<_>>();
        assert_eq!(outcomes(), [("config", Ok(String::new())), ("backends", Ok("1 of 2".into()))]);
        well.store(false, Ordering::Relaxed);
        assert_eq!(outcomes()[1], ("backends", Err("all are out".into())));
    }
}
