//! Nearly all events of a stream equal the one before but for the new text, its token ids and a running number. The
//! last such event is kept; one that is the same around these holes is not parsed.

use std::ops::Range;

/// What differs from event to event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hole {
    /// The inside of a string literal: the text.
    Text,
    /// The inside of an array of token ids.
    Ids,
    /// `sequence_number`.
    Number,
}

/// The last ordinary event, without what is in its holes.
#[derive(Debug, Default)]
pub(super) struct Template {
    bytes: Vec<u8>,
    /// Each hole, and where the bytes before it end.
    holes: Vec<(Hole, usize)>,
    cut: Cut,
}

/// What is taken out around the ids.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cut {
    /// Bytes before and behind the inside of the array that go with it.
    pub(super) before: usize,
    pub(super) behind: usize,
    /// `null` stands in its place.
    pub(super) null: bool,
}

/// An event that fits.
#[derive(Debug)]
pub(super) struct Match {
    pub(super) text: Range<usize>,
    pub(super) number: Option<u64>,
    /// What is taken out.
    pub(super) drop: Option<Range<usize>>,
    pub(super) end: usize,
}

impl Template {
    /// Larger events are not kept: comparing them is no gain.
    const MAX: usize = 4 << 10;

    /// Keeps `event` (a whole one, blank line included) with `holes` in their order.
    pub(super) fn learn(&mut self, event: &[u8], holes: &mut [(Hole, Range<usize>)], cut: Cut) {
        self.bytes.clear();
        self.holes.clear();
        if event.len() > Self::MAX {
            return;
        }
        holes.sort_unstable_by_key(|(_, range)| range.start);
        let mut from = 0;
        for (hole, range) in holes.iter() {
            self.bytes.extend_from_slice(&event[from..range.start]);
            self.holes.push((*hole, self.bytes.len()));
            from = range.end;
        }
        self.bytes.extend_from_slice(&event[from..]);
        self.cut = cut;
    }

    pub(super) fn held(&self) -> usize {
        self.bytes.capacity()
    }

    /// Whether the next event of `rest` is the template with other contents; its ids are put into `ids`.
    #[inline]
    pub(super) fn find(&self, rest: &[u8], ids: &mut Vec<u32>) -> Option<Match> {
        if self.holes.is_empty() {
            return None;
        }
        ids.clear();
        let mut found = Match { text: 0..0, number: None, drop: None, end: 0 };
        let (mut at, mut from) = (0, 0);
        for &(hole, end) in &self.holes {
            at += same(rest.get(at..)?, &self.bytes[from..end])?;
            from = end;
            let inside = &rest[at..];
            let length = match hole {
                Hole::Text => {
                    let length = literal(inside)?;
                    found.text = at..at + length;
                    length
                }
                Hole::Number => {
                    let (number, length) = number(inside)?;
                    found.number = Some(number);
                    length
                }
                Hole::Ids => {
                    let length = read_ids(inside, ids)?;
                    found.drop = Some(self.gone(at..at + length));
                    length
                }
            };
            at += length;
        }
        found.end = at + same(rest.get(at..)?, &self.bytes[from..])?;
        Some(found)
    }

    /// The text of `event`, where it is the template with another text and has nothing else that differs.
    #[inline]
    pub(super) fn text(&self, event: &[u8]) -> Option<Range<usize>> {
        let [(Hole::Text, at)] = self.holes[..] else { return None };
        let (prefix, suffix) = self.bytes.split_at(at);
        let text = event.strip_prefix(prefix)?.strip_suffix(suffix)?;
        // Where it has escapes or ends early, the longer way looks.
        let plain = text.iter().all(|byte| *byte >= 0x20 && *byte != b'"' && *byte != b'\\');
        plain.then_some(at..at + text.len())
    }

    /// What is taken out around these ids.
    pub(super) fn gone(&self, ids: Range<usize>) -> Range<usize> {
        ids.start - self.cut.before..ids.end + self.cut.behind
    }

    /// What stands for the part that is taken out.
    pub(super) fn instead(&self) -> &'static [u8] {
        if self.cut.null { b"null" } else { b"" }
    }

    /// The event as the client sees it around a text; `None` when it has more holes than that.
    pub(super) fn around(&self) -> Option<(&[u8], Vec<u8>)> {
        match self.holes[..] {
            [(Hole::Text, at)] => Some((&self.bytes[..at], self.bytes[at..].to_vec())),
            [(Hole::Text, at), (Hole::Ids, ids)] if ids - self.cut.before >= at => {
                let (before, behind) = (&self.bytes[at..ids - self.cut.before], &self.bytes[ids + self.cut.behind..]);
                Some((&self.bytes[..at], [before, self.instead(), behind].concat()))
            }
            _ => None,
        }
    }
}

#[inline]
fn same(rest: &[u8], part: &[u8]) -> Option<usize> {
    rest.starts_with(part).then_some(part.len())
}

/// Bytes up to the quote that ends a string. A control character is none of a string's: the parser judges.
#[inline]
fn literal(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        match *bytes.get(at)? {
            b'"' => return Some(at),
            b'\\' => at += 2,
            0..0x20 => return None,
            _ => at += 1,
        }
    }
}

/// A number without sign, and its length.
#[inline]
fn number(bytes: &[u8]) -> Option<(u64, usize)> {
    let mut value = 0_u64;
    for (at, byte) in bytes.iter().enumerate() {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return (at > 0).then_some((value, at));
        }
        value = value.checked_mul(10)?.checked_add(u64::from(digit))?;
    }
    None
}

/// Reads the inside of an array of ids up to its bracket: how many bytes that are.
pub(super) fn read_ids(bytes: &[u8], ids: &mut Vec<u32>) -> Option<usize> {
    ids.clear();
    let mut at = 0;
    loop {
        match *bytes.get(at)? {
            b']' => return Some(at),
            b',' | b' ' | b'\n' | b'\r' | b'\t' => at += 1,
            _ => {
                let (id, length) = number(&bytes[at..])?;
                ids.push(u32::try_from(id).ok()?);
                at += length;
            }
        }
    }
}
