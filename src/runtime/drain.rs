//! How far the end of the process has come, and who is still at work.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::{Notify, watch};

/// The stages of an orderly end, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Everything as usual.
    Serving,
    /// Not ready any more, still accepting.
    Delaying,
    /// Nothing new is accepted; what runs may finish.
    Draining,
    /// The grace is over: everything is dropped.
    Ending,
}

/// The side that says how far it is.
#[derive(Debug)]
pub struct DrainHandle {
    phase: watch::Sender<Phase>,
    tasks: Arc<Tasks>,
}

/// The side that listens. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Drain {
    phase: watch::Receiver<Phase>,
    tasks: Arc<Tasks>,
}

/// Counts as work under way while it lives.
#[derive(Debug)]
pub struct Guard(Arc<Tasks>);

#[derive(Debug, Default)]
struct Tasks {
    count: AtomicUsize,
    dry: Notify,
}

impl DrainHandle {
    /// A process that serves.
    pub fn new() -> (Self, Drain) {
        let (sender, receiver) = watch::channel(Phase::Serving);
        let tasks = Arc::new(Tasks::default());
        (Self { phase: sender, tasks: Arc::clone(&tasks) }, Drain { phase: receiver, tasks })
    }

    /// Moves to `phase`; never backwards.
    pub fn set(&self, phase: Phase) {
        self.phase.send_if_modified(|now| {
            let later = phase > *now;
            if later {
                *now = phase;
            }
            later
        });
    }

    /// How many guards live.
    pub fn tasks_left(&self) -> usize {
        self.tasks.count.load(Ordering::Acquire)
    }

    /// Waits until no guard lives.
    pub async fn dry(&self) {
        loop {
            let notified = self.tasks.dry.notified();
            if self.tasks_left() == 0 {
                return;
            }
            notified.await;
        }
    }
}

impl Drain {
    /// How far it is.
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Waits until `phase` or a later one is reached. A handle that is gone means the end.
    pub async fn reached(&mut self, phase: Phase) {
        let _ = self.phase.wait_for(|now| *now >= phase).await;
    }

    /// Counts as work under way until it is dropped.
    pub fn guard(&self) -> Guard {
        self.tasks.count.fetch_add(1, Ordering::AcqRel);
        Guard(Arc::clone(&self.tasks))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if self.0.count.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.dry.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::{Instant, sleep};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn phases_only_move_on_and_waiters_see_later_ones() {
        let (handle, mut drain) = DrainHandle::new();
        assert_eq!(drain.phase(), Phase::Serving);
        let act = async {
            sleep(Duration::from_secs(5)).await;
            handle.set(Phase::Delaying);
            sleep(Duration::from_secs(5)).await;
            // Draining is skipped: who waits for it is woken all the same.
            handle.set(Phase::Ending);
            handle.set(Phase::Serving);
        };
        let begin = Instant::now();
        let wait = async {
            drain.reached(Phase::Delaying).await;
            let delaying = begin.elapsed();
            drain.reached(Phase::Draining).await;
            (delaying.as_secs(), begin.elapsed().as_secs())
        };
        let (seen, ()) = tokio::join!(wait, act);
        assert_eq!(seen, (5, 10));
        assert_eq!(drain.phase(), Phase::Ending);
    }

    #[tokio::test(start_paused = true)]
    async fn dry_waits_for_the_last_guard() {
        let (handle, drain) = DrainHandle::new();
        handle.dry().await;
        let (one, two) = (drain.guard(), drain.clone().guard());
        assert_eq!(handle.tasks_left(), 2);
        let begin = Instant::now();
        let act = async {
            sleep(Duration::from_secs(1)).await;
            drop(one);
            sleep(Duration::from_secs(1)).await;
            drop(two);
        };
        let wait = async {
            handle.dry().await;
            begin.elapsed().as_secs()
        };
        let (seen, ()) = tokio::join!(wait, act);
        assert_eq!((seen, handle.tasks_left()), (2, 0));
    }

    #[tokio::test]
    async fn a_handle_that_is_gone_lets_everybody_end() {
        let (handle, mut drain) = DrainHandle::new();
        drop(handle);
        drain.reached(Phase::Ending).await;
    }

    #[test]
    fn guards_go_to_other_threads() {
        fn both<T: Send + Sync>() {}
        both::<Guard>();
        both::<Drain>();
    }
}
