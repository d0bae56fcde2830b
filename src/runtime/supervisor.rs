//! Long-running tasks with a name: started again when they fail, or the process is taken down; whoever does not come
//! home at the end is named.
//!
//! A task is to run until the drain says [`Phase::Draining`]. Ending before, by return or by panic, is a failure.

use std::{future::Future, time::Duration};

use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use super::drain::{Drain, Phase};

/// What to do when a task fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnFailure {
    /// Start it again, later and later.
    Restart,
    /// Nothing works without it: the process ends, orderly.
    TakeDown,
}

/// Owns tasks on the thread's `LocalSet` or local runtime; dropping it ends them.
#[derive(Debug)]
pub struct Supervisor {
    drain: Drain,
    tasks: JoinSet<&'static str>,
    names: Vec<&'static str>,
    failed: mpsc::Sender<&'static str>,
    failures: mpsc::Receiver<&'static str>,
}

/// The first pause before a task is started again; doubled each time.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// A task that ran this long is well: the next pause is the first again.
const WELL_AFTER: Duration = Duration::from_secs(60);

impl Supervisor {
    /// Without tasks.
    pub fn new(drain: Drain) -> Self {
        let (failed, failures) = mpsc::channel(1);
        Self { drain, tasks: JoinSet::new(), names: Vec::new(), failed, failures }
    }

    /// Starts the task that `make` makes; it is called again for each restart.
    pub fn start<F>(&mut self, name: &'static str, on_failure: OnFailure, make: impl FnMut() -> F + 'static)
    where
        F: Future<Output = ()> + 'static,
    {
        let watched = watch(name, on_failure, make, self.drain.clone(), self.failed.clone());
        self.names.push(name);
        self.tasks.spawn_local(async move {
            watched.await;
            name
        });
    }

    /// Waits for the failure of a task that nothing works without, and names it.
    pub async fn failure(&mut self) -> &'static str {
        match self.failures.recv().await {
            Some(name) => name,
            // A sender lives in `self`.
            None => std::future::pending().await,
        }
    }

    /// Waits for all tasks to end by themselves, at most `within`; drops and names the rest.
    pub async fn finish(mut self, within: Duration) -> Vec<&'static str> {
        let names = &mut self.names;
        let tasks = &mut self.tasks;
        let all = async {
            while let Some(ended) = tasks.join_next().await {
                let Ok(name) = ended else { continue };
                if let Some(index) = names.iter().position(|known| *known == name) {
                    names.swap_remove(index);
                }
            }
        };
        // The rest is in `names`, also when time ran out.
        let _ = timeout(within, all).await;
        if !self.names.is_empty() {
            tracing::warn!(tasks = ?self.names, "tasks did not end in time; they are dropped");
        }
        std::mem::take(&mut self.names)
    }
}

async fn watch<F>(
    name: &'static str,
    on_failure: OnFailure,
    mut make: impl FnMut() -> F,
    mut drain: Drain,
    failed: mpsc::Sender<&'static str>,
) where
    F: Future<Output = ()> + 'static,
{
    let mut pause = FIRST_PAUSE;
    loop {
        let started = Instant::now();
        // A task of its own: a panic ends it alone. The set ends it when this future is dropped.
        let mut one = JoinSet::new();
        one.spawn_local(make());
        let panicked = matches!(one.join_next().await, Some(Err(_)));
        if drain.phase() >= Phase::Draining {
            return;
        }
        let how = if panicked { "it panicked" } else { "it returned" };
        if on_failure == OnFailure::TakeDown {
            tracing::error!(task = name, how, "a task ended that nothing works without; shutting down");
            // Full: another task has failed already, and the process is on its way down.
            let _ = failed.try_send(name);
            return;
        }
        if started.elapsed() >= WELL_AFTER {
            pause = FIRST_PAUSE;
        }
        tracing::error!(task = name, how, pause = ?pause, "a task ended early; it is started again after the pause");
        tokio::select! {
            () = sleep(pause) => {}
            () = drain.reached(Phase::Draining) => return,
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        cell::{Cell, RefCell},
        rc::Rc,
    };

    use tokio::task::LocalSet;

    use super::*;
    use crate::runtime::drain::DrainHandle;

    #[tokio::test(start_paused = true)]
    async fn restarts_come_later_and_later_and_end_with_the_drain() {
        LocalSet::new()
            .run_until(async {
                let (handle, drain) = DrainHandle::new();
                let mut tasks = Supervisor::new(drain);
                let starts = Rc::new(RefCell::new(Vec::new()));
                let begin = Instant::now();
                let seen = Rc::clone(&starts);
                tasks.start("frail", OnFailure::Restart, move || {
                    seen.borrow_mut().push(begin.elapsed().as_millis());
                    let times = seen.borrow().len();
                    async move { assert!(times != 2, "on purpose") }
                });
                sleep(Duration::from_millis(1000)).await;
                handle.set(Phase::Draining);
                assert!(tasks.finish(Duration::from_secs(1)).await.is_empty());
                // The clock ticks in whole milliseconds; a pause may end one late.
                let gaps: Vec<_> = starts.borrow().windows(2).map(|two| (two[1] - two[0]) / 100 * 100).collect();
                assert_eq!(gaps, [100, 200, 400]);
            })
            .await;
    }

    #[tokio::test(start_paused = true)]
    async fn what_nothing_works_without_takes_the_process_down() {
        LocalSet::new()
            .run_until(async {
                let (_handle, drain) = DrainHandle::new();
                let mut tasks = Supervisor::new(drain);
                tasks.start("well", OnFailure::TakeDown, std::future::pending);
                tasks.start("admin", OnFailure::TakeDown, || async {});
                assert_eq!(tasks.failure().await, "admin");
            })
            .await;
    }

    #[tokio::test(start_paused = true)]
    async fn stragglers_are_named_and_dropped() {
        struct Told(Rc<Cell<bool>>);
        impl Drop for Told {
            fn drop(&mut self) {
                self.0.set(true);
            }
        }
        LocalSet::new()
            .run_until(async {
                let (handle, drain) = DrainHandle::new();
                let mut tasks = Supervisor::new(drain.clone());
                let dropped = Rc::new(Cell::new(false));
                let held = Rc::clone(&dropped);
                tasks.start("deaf", OnFailure::Restart, move || {
                    let told = Told(Rc::clone(&held));
                    async move {
                        let _told = told;
                        std::future::pending().await
                    }
                });
                tasks.start("good", OnFailure::TakeDown, move || {
                    let mut drain = drain.clone();
                    async move { drain.reached(Phase::Draining).await }
                });
                handle.set(Phase::Draining);
                assert_eq!(tasks.finish(Duration::from_secs(5)).await, ["deaf"]);
                tokio::task::yield_now().await;
                assert!(dropped.get());
            })
            .await;
    }
}
