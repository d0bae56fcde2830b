//! Codings one on the other, decoded in steps of bounded size.
//!
//! ```text
//!   what came ─► codec ─► CHUNK bytes ─► codec ─► CHUNK bytes ─► the body
//! ```
//! Each step runs one codec once, the last that has something to do, so no more than a chunk waits between two. What
//! any of them makes is capped, not only the last: of a body in two codings the outer may be the bomb.

use super::codec::{Codec, Coding, Fault};

/// What one codec makes at most in a step.
pub(super) const CHUNK: usize = 32 * 1024;

/// The codecs of one body, the outermost first.
#[derive(Debug)]
pub(super) struct Chain {
    links: Vec<Link>,
    cap: usize,
}

#[derive(Debug)]
struct Link {
    coding: Coding,
    codec: Codec,
    made: Box<[u8]>,
    /// Of `made`, what was not taken yet.
    waiting: std::ops::Range<usize>,
    /// There may be more to come without more input.
    full: bool,
    /// Bytes read and made so far.
    read: usize,
    total: usize,
}

/// What a step came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// So many bytes were moved.
    Moved(usize),
    /// Nothing is left to do before more comes.
    Hungry,
}

/// Why a chain goes no further.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// A codec made more than `cap` bytes.
    TooLarge { cap: usize },
    /// After byte `at` of what `coding` was to read.
    Fault { coding: Coding, at: usize, fault: Fault },
    /// The bytes end inside of `coding`, of which `at` came.
    Truncated { coding: Coding, at: usize },
}

impl Chain {
    /// For `codings` in the order in which they were applied; none of them makes more than `cap`.
    pub(super) fn new(codings: &[Coding], cap: usize) -> Self {
        let links = codings.iter().rev().map(|&coding| Link {
            coding,
            codec: Codec::new(coding),
            made: vec![0; CHUNK].into(),
            waiting: 0..0,
            full: false,
            read: 0,
            total: 0,
        });
        Self { links: links.collect(), cap }
    }

    /// Takes from the front of `source`, and hands what the last codec made to `take`.
    pub(super) fn step<E: From<Stop>>(
        &mut self,
        source: &mut &[u8],
        take: impl FnOnce(&[u8]) -> Result<(), E>,
    ) -> Result<Turn, E> {
        let last = self.links.len() - 1;
        for i in (0..self.links.len()).rev() {
            let (before, from) = self.links.split_at_mut(i);
            let (link, before) = (&mut from[0], before.last_mut());
            let input = before.as_ref().map_or(*source, |before| &before.made[before.waiting.clone()]);
            if input.is_empty() && !link.full {
                continue;
            }
            let (read, made) = link.step(input, self.cap)?;
            match before {
                Some(before) => before.waiting.start += read,
                None => *source = &source[read..],
            }
            if i == last {
                take(&link.made[..made])?;
            } else {
                link.waiting = 0..made;
            }
            return Ok(Turn::Moved(read + made));
        }
        Ok(Turn::Hungry)
    }

    /// Whether all of it came; to be asked when a chain is hungry.
    pub(super) fn finish(&self) -> Result<(), Stop> {
        match self.links.iter().find(|link| !link.codec.may_end()) {
            Some(link) => Err(Stop::Truncated { coding: link.coding, at: link.read }),
            None => Ok(()),
        }
    }

    /// Bytes it holds.
    pub(super) fn held(&self) -> usize {
        self.links.iter().map(|link| link.made.len() + link.codec.held()).sum()
    }
}

impl Link {
    fn step(&mut self, input: &[u8], cap: usize) -> Result<(usize, usize), Stop> {
        let fault = |at, fault| Stop::Fault { coding: self.coding, at, fault };
        let step = self.codec.step(input, &mut self.made).map_err(|found| fault(self.read, found))?;
        if step.read + step.made == 0 && !input.is_empty() {
            // It would be asked for ever.
            return Err(fault(self.read, Fault::Broken));
        }
        self.full = step.made == self.made.len();
        self.read += step.read;
        self.total += step.made;
        if self.total > cap {
            return Err(Stop::TooLarge { cap });
        }
        Ok((step.read, step.made))
    }
}
