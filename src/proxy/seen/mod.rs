//! What bodies said that come again and again, by their very bytes: such a body is not read once more.
//!
//! Whose answer is kept is mostly asked for in the same bytes as before. Reading them, for the model and for the key, is
//! a quarter of what a hit costs; finding them here is a hash over a part of them and one comparison. Only bodies that
//! were answered from the cache are remembered, so that traffic that never repeats pays nothing.
//!
//! One per worker and configuration. Two tenants never meet: what one has sent must not show in the time another waits.

use std::{
    cell::RefCell,
    fmt,
    hash::{BuildHasher as _, RandomState},
    rc::Rc,
    sync::Arc,
};

use http::HeaderMap;
use rapidhash::v3::{RapidSecrets, rapidhash_v3_seeded};

use super::{
    cache::{Asks, is_credential},
    call::{Asked, Call},
    record::Record,
};
use crate::protocol::endpoint::Endpoint;

#[cfg(test)]
mod tests;

/// Sets of two places.
const SETS: usize = 256;
/// Bytes of bodies that are held.
const MOST_HELD: usize = 1024 * 1024;
/// The longest body that is remembered.
const LONGEST: usize = MOST_HELD / 16;
/// Of a longer body this much is hashed at either end. All of it is compared.
const HASHED: usize = 128;
/// How often a newcomer has to come before it takes the place of one that was just met.
const PATIENCE: u8 = 2;

/// Remembers bodies.
pub struct Seen {
    secrets: RapidSecrets,
    kept: RefCell<Kept>,
}

#[derive(Default)]
struct Kept {
    /// Empty until the first is remembered.
    places: Vec<Option<Place>>,
    held: usize,
    /// What is hashed.
    scratch: Vec<u8>,
    /// The count of purges when the oldest of these was remembered.
    purges: u64,
}

struct Place {
    mark: u64,
    /// Newcomers it outlasts.
    patience: u8,
    said: Rc<Said>,
}

/// What one body said.
#[derive(Debug)]
pub struct Said {
    pub endpoint: Endpoint,
    body: Box<[u8]>,
    pub model: Option<Arc<str>>,
    pub stream: bool,
    pub asked: Asked,
    /// What of the head was in the key.
    pub head: Box<[u8]>,
    /// What it is looked up by, under that head.
    pub asks: Asks,
}

impl Seen {
    /// Nothing yet.
    pub fn new() -> Self {
        Self { secrets: RapidSecrets::seed(RandomState::new().hash_one(0)), kept: RefCell::default() }
    }

    /// What this body said when it came before, with these credentials.
    pub fn find(&self, record: &Record, headers: &HeaderMap, body: &[u8]) -> Option<Rc<Said>> {
        let kept = &mut *self.kept.borrow_mut();
        if kept.places.is_empty() || body.len() > LONGEST {
            return None;
        }
        let mark = self.mark(record, headers, body, &mut kept.scratch);
        let place = kept.set(mark).iter_mut().flatten().find(|place| place.mark == mark)?;
        let said = &place.said;
        if said.endpoint != record.endpoint || *said.body != *body {
            return None;
        }
        place.patience = PATIENCE;
        Some(Rc::clone(said))
    }

    /// Remembers what the body of `call` said, which was answered from the cache.
    pub fn remember(&self, call: &Call, head: &[u8], asks: &Asks) {
        let Some(body) = call.payload.bytes() else { return };
        // A body that was edited is not the one that came; and a query may name the model.
        if body.len() > LONGEST || call.edited || call.path.query().is_some() {
            return;
        }
        let kept = &mut *self.kept.borrow_mut();
        let mark = self.mark(&call.record, &call.headers, body, &mut kept.scratch);
        let weight = body.len() + head.len();
        if kept.held + weight > MOST_HELD {
            kept.forget();
        }
        if kept.places.is_empty() {
            kept.places.resize_with(2 * SETS, || None);
        }
        let set = kept.set(mark);
        let rank = |place: &Option<Place>| match place {
            Some(place) if place.mark == mark => 0,
            None => 1,
            Some(place) => 2 + place.patience,
        };
        let Some(place) = set.iter_mut().min_by_key(|place| rank(place)) else { return };
        if let Some(old) = place.as_mut().filter(|old| old.mark != mark && old.patience > 0) {
            old.patience -= 1;
            return;
        }
        let said = Said {
            endpoint: call.endpoint,
            body: body[..].into(),
            model: call.model.clone(),
            stream: call.stream,
            asked: call.asked,
            head: head.into(),
            asks: asks.clone(),
        };
        let old = place.replace(Place { mark, patience: 0, said: Rc::new(said) });
        kept.held += weight;
        kept.held -= old.map_or(0, |old| old.said.weight());
    }

    /// Forgets everything, if there was a purge since it was last told.
    pub fn purged(&self, purges: u64) {
        let kept = &mut *self.kept.borrow_mut();
        if kept.purges != purges {
            kept.purges = purges;
            kept.forget();
        }
    }

    /// Finds the place: a seeded hash that nobody outside can foresee, over who asks and what.
    fn mark(&self, record: &Record, headers: &HeaderMap, body: &[u8], scratch: &mut Vec<u8>) -> u64 {
        scratch.clear();
        if let Some(certificate) = record.peer.identity {
            scratch.extend_from_slice(&certificate.0);
        }
        for (name, value) in headers {
            if is_credential(name) {
                scratch.extend_from_slice(name.as_str().as_bytes());
                scratch.extend_from_slice(value.as_bytes());
            }
        }
        scratch.push(record.endpoint as u8);
        scratch.extend_from_slice(&body.len().to_le_bytes());
        if body.len() <= 2 * HASHED {
            scratch.extend_from_slice(body);
        } else {
            scratch.extend_from_slice(&body[..HASHED]);
            scratch.extend_from_slice(&body[body.len() - HASHED..]);
        }
        rapidhash_v3_seeded(scratch, &self.secrets)
    }
}

impl Kept {
    /// The two places of `mark`.
    fn set(&mut self, mark: u64) -> &mut [Option<Place>] {
        // The remainder is far below any usize.
        let first = 2 * (mark % SETS as u64) as usize;
        &mut self.places[first..first + 2]
    }

    fn forget(&mut self) {
        self.places = Vec::new();
        self.held = 0;
    }
}

impl Said {
    fn weight(&self) -> usize {
        self.body.len() + self.head.len()
    }
}

impl Default for Seen {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seen").field("held", &self.kept.borrow().held).finish_non_exhaustive()
    }
}
