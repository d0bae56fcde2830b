//! One event on the wire: where its name, its data and its end lie.

use std::{borrow::Cow, ops::Range};

use memchr::memchr2;

/// An event with its blank line.
#[derive(Debug)]
pub(crate) struct Frame {
    name: Range<usize>,
    data: Lines,
    /// Behind the blank line.
    pub(crate) end: usize,
}

#[derive(Debug)]
enum Lines {
    None,
    One(Range<usize>),
    /// Several `data` lines, joined.
    Many(Vec<u8>),
}

impl Frame {
    /// Reads the event that begins with `bytes`; `None` when its blank line is not there.
    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        let mut frame = Self { name: 0..0, data: Lines::None, end: 0 };
        let mut at = 0;
        loop {
            let end = at + memchr2(b'\n', b'\r', bytes.get(at..)?)?;
            let next = behind(bytes, end);
            if end == at {
                frame.end = next;
                return Some(frame);
            }
            frame.line(bytes, at..end);
            at = next;
        }
    }

    fn line(&mut self, bytes: &[u8], line: Range<usize>) {
        let text = &bytes[line.clone()];
        let value = |name: &[u8]| match text.strip_prefix(name)? {
            [] => Some(line.end),
            [b':', b' ', ..] => Some(line.start + name.len() + 2),
            [b':', ..] => Some(line.start + name.len() + 1),
            _ => None,
        };
        if let Some(from) = value(b"data") {
            let more = &bytes[from..line.end];
            match &mut self.data {
                Lines::None => self.data = Lines::One(from..line.end),
                Lines::One(first) => self.data = Lines::Many([&bytes[first.clone()], b"\n", more].concat()),
                Lines::Many(all) => {
                    all.push(b'\n');
                    all.extend_from_slice(more);
                }
            }
        } else if let Some(from) = value(b"event") {
            self.name = from..line.end;
        }
    }

    /// The `event` field; empty when there was none.
    pub(crate) fn name<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        &bytes[self.name.clone()]
    }

    /// The `data` lines, joined; `None` for an event that is none (a comment).
    pub(crate) fn data<'a>(&self, bytes: &'a [u8]) -> Option<Cow<'a, [u8]>> {
        match &self.data {
            Lines::None => None,
            Lines::One(range) => Some(Cow::Borrowed(&bytes[range.clone()])),
            Lines::Many(all) => Some(Cow::Owned(all.clone())),
        }
    }

    /// Where the data lies when it is one line.
    pub(crate) fn line_of_data(&self) -> Option<usize> {
        match &self.data {
            Lines::One(range) => Some(range.start),
            _ => None,
        }
    }
}

/// The offset behind the line end at `end`.
fn behind(bytes: &[u8], end: usize) -> usize {
    if bytes[end] == b'\r' && bytes.get(end + 1) == Some(&b'\n') { end + 2 } else { end + 1 }
}

/// Blank lines (and the second half of a CRLF) at the start.
pub(crate) fn blanks(bytes: &[u8]) -> usize {
    bytes.iter().take_while(|byte| matches!(byte, b'\n' | b'\r')).count()
}

/// The offset behind the first blank line, for bytes that go on behind `last`.
pub(crate) fn resume_behind(bytes: &[u8], last: u8) -> Option<usize> {
    let mut at = usize::from(last == b'\r' && bytes.first() == Some(&b'\n'));
    let mut in_line = at == 0 && !matches!(last, b'\n' | b'\r');
    loop {
        let end = at + memchr2(b'\n', b'\r', bytes.get(at..)?)?;
        let next = behind(bytes, end);
        if end == at && !in_line {
            return Some(next);
        }
        in_line = false;
        at = next;
    }
}
