//! A model of the in-flight map: its own source, run under loom over every order in which threads may meet.
//!
//! `cargo test` looks at the orders with few preemptions; `make loom` looks at more.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails where it stands")]

#[allow(dead_code, unreachable_pub, reason = "the model uses a part of it")]
#[path = "../src/proxy/cache/inflight.rs"]
mod inflight;

/// What `inflight` takes its lock from.
mod sync {
    pub(crate) use loom::sync::{Mutex, MutexGuard};

    pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
        mutex.lock().unwrap()
    }
}

use std::sync::Arc as StdArc;

use inflight::{Entered, Inflight};
use loom::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread,
};
use sync::{Mutex, lock};

/// A running answer as far as the map knows it: readers, and whether it was given up.
#[derive(Debug)]
struct Answer {
    number: usize,
    state: Mutex<(usize, bool)>,
}

impl Answer {
    fn join(&self) -> Option<usize> {
        let mut state = lock(&self.state);
        (!state.1).then(|| {
            state.0 += 1;
            self.number
        })
    }

    /// The leader leaves: with nobody else it is given up.
    fn leave(&self) -> bool {
        let mut state = lock(&self.state);
        state.0 -= 1;
        state.1 = state.0 == 0;
        state.1
    }
}

/// The map, a store of one key, and a count of what was computed.
struct World {
    map: Inflight<u64, Answer>,
    store: Mutex<Option<usize>>,
    computed: AtomicUsize,
}

const KEY: u64 = 7;

impl World {
    fn new() -> Arc<Self> {
        Arc::new(Self { map: Inflight::with_shards(1), store: Mutex::new(None), computed: AtomicUsize::new(0) })
    }

    fn enter(&self) -> Entered<usize, usize, Answer> {
        self.map.enter(
            &[&KEY],
            true,
            |answer| answer.join(),
            || *lock(&self.store),
            || {
                let number = self.computed.fetch_add(1, SeqCst) + 1;
                StdArc::new(Answer { number, state: Mutex::new((1, false)) })
            },
        )
    }

    fn seal(&self, answer: &StdArc<Answer>) -> bool {
        self.map.seal(&KEY, answer, || *lock(&self.store) = Some(answer.number))
    }

    /// Asks, leads to a whole answer if it is to, and gives the number of what it got.
    fn ask(&self) -> usize {
        match self.enter() {
            Entered::Sealed(number) | Entered::Joined(_, number) => number,
            Entered::Leads(answer) => {
                self.seal(&answer);
                answer.number
            }
        }
    }
}

fn model(test: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    if builder.preemption_bound.is_none() {
        builder.preemption_bound = Some(2);
    }
    builder.check(test);
}

#[test]
fn one_is_computed_however_they_meet() {
    model(|| {
        let world = World::new();
        let others: Vec<_> = (0..2)
            .map(|_| {
                let world = Arc::clone(&world);
                thread::spawn(move || world.ask())
            })
            .collect();
        let mine = world.ask();
        for other in others {
            assert_eq!(other.join().unwrap(), mine);
        }
        assert_eq!(world.computed.load(SeqCst), 1);
        assert!(world.map.is_empty());
        assert_eq!(*lock(&world.store), Some(1));
    });
}

#[test]
fn who_meets_one_that_is_given_up_leads_anew() {
    model(|| {
        let world = World::new();
        let Entered::Leads(first) = world.enter() else { panic!("nobody was there") };
        let other = {
            let world = Arc::clone(&world);
            thread::spawn(move || match world.enter() {
                Entered::Joined(_, number) => (number, false),
                Entered::Leads(answer) => (answer.number, world.seal(&answer)),
                Entered::Sealed(number) => panic!("{number} was never whole"),
            })
        };
        let given_up = first.leave();
        world.map.remove(&KEY, &first);
        let (got, sealed) = other.join().unwrap();
        // Joined: then it was not given up. Led: then its own answer stands, whatever the first one's end took out.
        assert_eq!((got, sealed), if given_up { (2, true) } else { (1, false) });
        assert!(world.map.is_empty());
    });
}

#[test]
fn nothing_from_before_a_purge_is_kept() {
    model(|| {
        let world = World::new();
        let Entered::Leads(old) = world.enter() else { panic!("nobody was there") };
        let purge = {
            let world = Arc::clone(&world);
            thread::spawn(move || {
                world.map.purge(|_| true);
                *lock(&world.store) = None;
            })
        };
        world.seal(&old);
        purge.join().unwrap();
        assert_eq!(*lock(&world.store), None);
        // Who comes after the purge gets a new one.
        assert_eq!(world.ask(), 2);
    });
}

#[test]
fn the_newer_of_two_leaders_is_kept() {
    model(|| {
        let world = World::new();
        let Entered::Leads(old) = world.enter() else { panic!("nobody was there") };
        let newer = {
            let world = Arc::clone(&world);
            thread::spawn(move || {
                // `no-cache`: it leads although one is under way.
                let entered = world.map.enter(
                    &[&KEY],
                    false,
                    |answer: &StdArc<Answer>| answer.join(),
                    || *lock(&world.store),
                    || {
                        let number = world.computed.fetch_add(1, SeqCst) + 1;
                        StdArc::new(Answer { number, state: Mutex::new((1, false)) })
                    },
                );
                let Entered::Leads(answer) = entered else { panic!("it does not share") };
                assert!(world.seal(&answer));
            })
        };
        world.seal(&old);
        newer.join().unwrap();
        assert_eq!(*lock(&world.store), Some(2));
        assert!(world.map.is_empty());
    });
}
