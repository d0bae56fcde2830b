//! Makes answers smaller without a change in what they say: stream events lose what repeats or says nothing, deltas
//! that are there together become one event, plain JSON loses its white space.
//!
//! All of it by cutting bytes out and putting strings one behind the other; nothing is parsed and written back. An event
//! of another shape than the ones known here passes as it came.
//!
//! Chat and completion chunks alone. The events of `/v1/messages` have nothing in them that repeats, and those of
//! `/v1/responses` are numbered: with one missing, the numbers would have a hole.

mod chunk;
mod frame;
mod held;
mod minify;

#[cfg(test)]
mod tests;

use std::ops::Range;

pub use self::minify::Minifier;
use self::{
    chunk::Chunk,
    frame::{Frames, Piece},
    held::Held,
};

/// What the events of a stream are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `chat.completion.chunk`
    Chat,
    /// `text_completion`
    Completions,
}

/// Bytes that were not sent, by what spared them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Saved {
    pub slim: u64,
    pub merge: u64,
}

/// Slims one stream. Whatever way its bytes are split, the output is the same.
#[derive(Debug)]
pub struct Slimmer {
    kind: Kind,
    /// Deltas are held, so that the next ones can join them.
    merges: bool,
    frames: Frames,
    /// The fingerprint as it was told last.
    told: Vec<u8>,
    held: Option<Held>,
    saved: Saved,
    /// Of the event that is looked at; kept for its room.
    cuts: Vec<Range<usize>>,
}

/// A longer fingerprint is not remembered, and so told each time.
const FINGERPRINT: usize = 256;

impl Slimmer {
    /// For a stream of `kind`. With `merges`, a delta waits for the next ones until [`flush`](Self::flush), or an event
    /// that cannot join it.
    pub fn new(kind: Kind, merges: bool) -> Self {
        Self::with_limit(kind, merges, frame::LONGEST)
    }

    /// As [`new`](Self::new), for events of at most `limit` bytes: with the first that is longer, all passes as it is.
    pub fn with_limit(kind: Kind, merges: bool, limit: usize) -> Self {
        Self {
            kind,
            merges,
            frames: Frames::new(limit),
            told: Vec::new(),
            held: None,
            saved: Saved::default(),
            cuts: Vec::new(),
        }
    }

    /// Takes the next bytes, and appends to `out` what can go on.
    pub fn push(&mut self, data: &[u8], out: &mut Vec<u8>) {
        let mut frames = std::mem::take(&mut self.frames);
        frames.push(data, |piece| match piece {
            Piece::Event(event) => self.event(event, out),
            Piece::Untouched(data) => {
                self.flush(out);
                out.extend_from_slice(data);
            }
        });
        self.frames = frames;
    }

    /// Lets go of the delta that waits.
    pub fn flush(&mut self, out: &mut Vec<u8>) {
        if let Some(held) = self.held.take() {
            held.write(out);
        }
    }

    /// The stream has ended: what is still here, whole or not.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        self.flush(out);
        self.frames.finish(out);
    }

    /// Bytes of text in the delta that waits; `None` when none does.
    pub fn waiting(&self) -> Option<usize> {
        self.held.as_ref().map(Held::text)
    }

    /// What was spared since the last call.
    pub fn take_saved(&mut self) -> Saved {
        std::mem::take(&mut self.saved)
    }

    /// One whole event, with the blank line that ends it.
    fn event(&mut self, event: &[u8], out: &mut Vec<u8>) {
        self.cuts.clear();
        let chunk = frame::data(event).and_then(|json| chunk::read(self.kind, event, json, &self.told, &mut self.cuts));
        let Some(chunk) = chunk else {
            self.flush(out);
            out.extend_from_slice(event);
            return;
        };
        if let Some(told) = chunk.fingerprint.clone().filter(|told| told.len() <= FINGERPRINT) {
            self.told.clear();
            self.told.extend_from_slice(&event[told]);
        }
        self.saved.slim += self.cuts.iter().map(|cut| cut.len() as u64).sum::<u64>();
        if self.merges && chunk.text.is_some() { self.hold(event, &chunk, out) } else { self.pass(event, out) }
    }

    fn pass(&mut self, event: &[u8], out: &mut Vec<u8>) {
        self.flush(out);
        slimmed(event, &self.cuts, out);
    }

    /// A delta: joins the one that waits, or takes its place.
    fn hold(&mut self, event: &[u8], chunk: &Chunk, out: &mut Vec<u8>) {
        let mut slim = Vec::with_capacity(event.len());
        slimmed(event, &self.cuts, &mut slim);
        let Some(next) = Held::new(slim, chunk, &self.cuts) else { return self.pass(event, out) };
        if let Some(held) = &mut self.held
            && held.join(&next)
        {
            self.saved.merge += (next.len() - next.text()) as u64;
            return;
        }
        self.flush(out);
        self.held = Some(next);
    }
}

/// `event` without `cuts`, which are in order and do not overlap.
fn slimmed(event: &[u8], cuts: &[Range<usize>], out: &mut Vec<u8>) {
    let mut from = 0;
    for cut in cuts {
        out.extend_from_slice(&event[from..cut.start]);
        from = cut.end;
    }
    out.extend_from_slice(&event[from..]);
}
