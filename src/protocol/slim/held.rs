//! A delta that waits for others of the same kind.

use std::ops::Range;

use super::chunk::Chunk;

/// Text of one event is not made longer than this: readers have bounds for a line.
const LONGEST: usize = 16 << 10;

/// A slimmed event that says one piece of text and nothing else.
#[derive(Debug)]
pub(super) struct Held {
    event: Vec<u8>,
    /// The inside of its text.
    text: Range<usize>,
    /// When it was made, which may differ.
    created: Option<Range<usize>>,
}

impl Held {
    /// `event` is what is left of the one that `chunk` was read from. `None` when its text is not one that can stand
    /// beside another.
    pub(super) fn new(event: Vec<u8>, chunk: &Chunk, cuts: &[Range<usize>]) -> Option<Self> {
        let moved = |at: &Range<usize>| {
            let before: usize = cuts.iter().take_while(|cut| cut.end <= at.start).map(|cut| cut.len()).sum();
            at.start - before..at.end - before
        };
        let text = moved(chunk.text.as_ref()?);
        if !is_sound(&event[text.clone()]) {
            return None;
        }
        Some(Self { text, created: chunk.created.as_ref().map(moved), event })
    }

    /// Takes the text of `next` in, which must differ from this one in that alone. `false` = it did not.
    pub(super) fn join(&mut self, next: &Self) -> bool {
        let (text, more) = (&self.event[self.text.clone()], &next.event[next.text.clone()]);
        if self.rest() != next.rest() || text.len() + more.len() > LONGEST {
            return false;
        }
        let (at, by) = (self.text.end, more.len());
        self.event.splice(at..at, more.iter().copied());
        self.text.end += by;
        if let Some(created) = &mut self.created
            && created.start >= at
        {
            *created = created.start + by..created.end + by;
        }
        true
    }

    /// The event without its text and without when it was made: three pieces, and which of the two came first.
    fn rest(&self) -> ([&[u8]; 3], bool) {
        let none = self.event.len()..self.event.len();
        let created = self.created.clone().unwrap_or(none);
        let in_front = created.start < self.text.start;
        let (first, second) = if in_front { (&created, &self.text) } else { (&self.text, &created) };
        ([&self.event[..first.start], &self.event[first.end..second.start], &self.event[second.end..]], in_front)
    }

    /// Bytes of its text, as spelled.
    pub(super) fn text(&self) -> usize {
        self.text.len()
    }

    /// Bytes of the whole event.
    pub(super) fn len(&self) -> usize {
        self.event.len()
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.event);
    }
}

/// Whether a string's inside is spelled as it must be, without half a surrogate pair: a reader that refuses one event
/// must not lose another with it, and two halves must not become a character.
fn is_sound(inside: &[u8]) -> bool {
    let mut rest = inside;
    loop {
        let plain = rest.iter().take_while(|b| **b >= b' ' && **b != b'\\').count();
        rest = match &rest[plain..] {
            [] => return true,
            [b'\\', b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't', after @ ..] => after,
            escape => match unit(escape) {
                Some((0xd800..0xdc00, after)) => match unit(after) {
                    Some((0xdc00..0xe000, after)) => after,
                    _ => return false,
                },
                None | Some((0xdc00..0xe000, _)) => return false,
                Some((_, after)) => after,
            },
        };
    }
}

/// The `\uXXXX` that `bytes` begins with, and what follows it.
fn unit(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let (digits, after) = bytes.strip_prefix(b"\\u")?.split_at_checked(4)?;
    let value = digits.iter().try_fold(0, |sum, digit| Some(sum * 16 + char::from(*digit).to_digit(16)?))?;
    Some((value, after))
}
