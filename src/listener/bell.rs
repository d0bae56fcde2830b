//! Tells all connections of a worker at once how far the drain is.
//!
//! One waker per connection in a common list: a watch channel per connection would cost each idle one an allocation.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    task::{Context, Waker},
};

use crate::runtime::drain::Phase;

/// The worker's side.
#[derive(Clone, Debug)]
pub(super) struct Bell(Rc<Inner>);

#[derive(Debug)]
struct Inner {
    phase: Cell<Phase>,
    ears: RefCell<Vec<Option<Waker>>>,
    free: RefCell<Vec<usize>>,
}

/// A connection's side.
#[derive(Debug)]
pub(super) struct Ear {
    bell: Bell,
    slot: usize,
}

impl Bell {
    pub(super) fn new() -> Self {
        Self(Rc::new(Inner { phase: Cell::new(Phase::Serving), ears: RefCell::default(), free: RefCell::default() }))
    }

    pub(super) fn phase(&self) -> Phase {
        self.0.phase.get()
    }

    /// Tells everyone.
    pub(super) fn ring(&self, phase: Phase) {
        self.0.phase.set(phase);
        let awake: Vec<_> = self.0.ears.borrow_mut().iter_mut().filter_map(Option::take).collect();
        awake.into_iter().for_each(Waker::wake);
    }

    pub(super) fn ear(&self) -> Ear {
        let slot = self.0.free.borrow_mut().pop().unwrap_or_else(|| {
            let mut ears = self.0.ears.borrow_mut();
            ears.push(None);
            ears.len() - 1
        });
        Ear { bell: self.clone(), slot }
    }
}

impl Ear {
    /// The present phase.
    pub(super) fn phase(&self) -> Phase {
        self.bell.phase()
    }

    /// The present phase; the task is woken when it changes.
    pub(super) fn listen(&self, cx: &mut Context<'_>) -> Phase {
        match &mut self.bell.0.ears.borrow_mut()[self.slot] {
            Some(waker) => waker.clone_from(cx.waker()),
            empty => *empty = Some(cx.waker().clone()),
        }
        self.bell.phase()
    }
}

impl Drop for Ear {
    fn drop(&mut self) {
        let waker = self.bell.0.ears.borrow_mut()[self.slot].take();
        self.bell.0.free.borrow_mut().push(self.slot);
        drop(waker);
    }
}
