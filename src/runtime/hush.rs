//! A waker that can be told to keep still.
//!
//! hyper wakes a connection's task when the service takes the last piece of a request's body out of its channel, though
//! the sending half is gone and nothing is left to do: the task would run once more for nothing, at every request.
//! Whoever takes from the channel hushes the waker meanwhile, and passes the wake on where it may matter.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
    task::{Context, Wake, Waker},
};

thread_local! {
    /// The address of the waker that keeps still on this thread, 0 for none. A wake from another thread gets through.
    static HUSHED: Cell<usize> = const { Cell::new(0) };
    /// It was called meanwhile.
    static CALLED: Cell<bool> = const { Cell::new(false) };
}

/// One task's waker, as it is handed to what runs inside of the task. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Hush(Rc<RefCell<Option<Handle>>>);

#[derive(Debug)]
struct Handle {
    inner: Arc<Inner>,
    waker: Waker,
}

#[derive(Debug)]
struct Inner {
    task: Waker,
}

impl Inner {
    fn address(self: &Arc<Self>) -> usize {
        Arc::as_ptr(self).addr()
    }
}

impl Wake for Inner {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if HUSHED.get() == self.address() {
            CALLED.set(true);
        } else {
            self.task.wake_by_ref();
        }
    }
}

impl Hush {
    /// The waker to hand on in place of `cx`'s.
    pub fn waker(&self, cx: &Context<'_>) -> Waker {
        let mut handle = self.0.borrow_mut();
        if let Some(known) = &*handle
            && known.inner.task.will_wake(cx.waker())
        {
            return known.waker.clone();
        }
        let inner = Arc::new(Inner { task: cx.waker().clone() });
        let waker = Waker::from(Arc::clone(&inner));
        *handle = Some(Handle { inner, waker: waker.clone() });
        waker
    }

    /// Runs `act` in the task, and wakes it for what tried to meanwhile only if `matters` says so of the outcome. Under
    /// any other `waker` than the task's nothing is held back: the task has to look at what changed behind its back.
    pub fn quietly<T>(&self, waker: &Waker, act: impl FnOnce() -> T, matters: impl FnOnce(&T) -> bool) -> T {
        let own = |handle: &&Handle| handle.waker.will_wake(waker);
        let inner = self.0.borrow().as_ref().filter(own).map(|handle| Arc::clone(&handle.inner));
        let Some(inner) = inner else { return act() };
        let outer = HUSHED.replace(inner.address());
        let out = act();
        HUSHED.set(outer);
        if CALLED.take() && matters(&out) {
            inner.task.wake_by_ref();
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

    use super::*;

    #[derive(Default)]
    struct Count(AtomicU32);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Relaxed);
        }
    }

    #[test]
    fn only_what_matters_wakes() {
        let count = Arc::new(Count::default());
        let task = Waker::from(Arc::clone(&count));
        let hush = Hush::default();
        let waker = hush.waker(&Context::from_waker(&task));
        let calls = || count.0.swap(0, Relaxed);

        waker.wake_by_ref();
        assert_eq!(calls(), 1);
        hush.quietly(&waker, || waker.wake_by_ref(), |()| false);
        assert_eq!(calls(), 0);
        hush.quietly(&waker, || waker.wake_by_ref(), |()| true);
        assert_eq!(calls(), 1);
        hush.quietly(&waker, || {}, |()| true);
        assert_eq!(calls(), 0, "nobody called");
        // Another thread has its own reasons.
        let far = waker.clone();
        hush.quietly(&waker, || std::thread::spawn(move || far.wake()).join().unwrap(), |()| false);
        assert_eq!(calls(), 1);
        // Another task of this thread too.
        let other = Hush::default();
        let other = other.waker(&Context::from_waker(&task));
        hush.quietly(&waker, || other.wake_by_ref(), |()| false);
        assert_eq!(calls(), 1);
        hush.quietly(&task, || waker.wake_by_ref(), |()| false);
        assert_eq!(calls(), 1, "it runs elsewhere");
    }

    #[test]
    fn the_waker_follows_its_task() {
        let (first, second) = (Arc::new(Count::default()), Arc::new(Count::default()));
        let hush = Hush::default();
        for count in [&first, &first, &second] {
            let task = Waker::from(Arc::clone(count));
            hush.waker(&Context::from_waker(&task)).wake();
        }
        assert_eq!((first.0.load(Relaxed), second.0.load(Relaxed)), (2, 1));
    }
}
