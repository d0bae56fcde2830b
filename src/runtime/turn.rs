//! Writes wait for their turn: a task that is about to write lets those that are ready run first.
//!
//! A worker that wrote as soon as it had something would wake the other end for every message, and find it asleep again
//! at the next: an interrupt to another core each time, a quarter of all time in the measurement. With all the work of
//! one round done first, the writes leave one after the other, and one wake serves many. When nothing else is ready it
//! costs one more poll of the task.

use std::{cell::Cell, task::Context, task::Poll};

/// The turns of one task. It counts its polls with [`Turn::begin`]; one that does not never waits.
#[derive(Debug, Default)]
pub struct Turn {
    /// The poll that runs.
    now: Cell<u64>,
    /// The one that asked, until it is granted.
    asked: Cell<Option<u64>>,
    granted: Cell<u64>,
}

impl Turn {
    /// The task is polled.
    pub fn begin(&self) {
        self.now.set(self.now.get() + 1);
    }

    /// Pending until all tasks that are ready now have run; then ready for as long as this poll lasts.
    pub fn poll(&self, cx: &Context<'_>) -> Poll<()> {
        let now = self.now.get();
        if self.granted.get() == now {
            return Poll::Ready(());
        }
        match self.asked.get() {
            Some(asked) if asked < now => {
                self.asked.set(None);
                self.granted.set(now);
                return Poll::Ready(());
            }
            Some(_) => {}
            None => {
                self.asked.set(Some(now));
                cx.waker().wake_by_ref();
            }
        }
        Poll::Pending
    }
}

/// One turn, for a task that does not count.
pub async fn turn() {
    let mut asked = false;
    std::future::poll_fn(|cx| {
        if std::mem::replace(&mut asked, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Arc,
            atomic::{AtomicU32, Ordering::Relaxed},
        },
        task::{Wake, Waker},
    };

    use super::*;

    #[derive(Default)]
    struct Count(AtomicU32);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Relaxed);
        }
    }

    #[test]
    fn once_a_poll() {
        let count = Arc::new(Count::default());
        let waker = Waker::from(Arc::clone(&count));
        let cx = Context::from_waker(&waker);
        let turn = Turn::default();
        assert!(turn.poll(&cx).is_ready(), "nobody counts");
        for wakes in 1..4 {
            turn.begin();
            assert!(turn.poll(&cx).is_pending());
            assert!(turn.poll(&cx).is_pending(), "it was not polled again yet");
            assert_eq!(count.0.load(Relaxed), wakes);
            turn.begin();
            assert!(turn.poll(&cx).is_ready());
            assert!(turn.poll(&cx).is_ready(), "the same poll");
        }
    }

    #[tokio::test]
    async fn all_work_before_any_writes() {
        let order = std::rc::Rc::new(std::cell::RefCell::new(Vec::new()));
        let set = tokio::task::LocalSet::new();
        for task in 0..3 {
            let order = std::rc::Rc::clone(&order);
            set.spawn_local(async move {
                order.borrow_mut().push(("work", task));
                turn().await;
                order.borrow_mut().push(("write", task));
            });
        }
        set.await;
        let kinds: Vec<_> = order.borrow().iter().map(|(kind, _)| *kind).collect();
        assert_eq!(kinds, ["work", "work", "work", "write", "write", "write"]);
    }
}
