//! Server-sent events, read incrementally (WHATWG HTML §9.2.6) and without copying where a chunk holds whole events.
//!
//! Lines end in LF, CR or CRLF; a blank line ends an event; a byte order mark may stand first; comments and unknown
//! fields are dropped; several `data` lines are joined by LF. An event without any `data` line is none. Whatever
//! way the bytes are split, the events are the same, also at the bound: an event above it is left out as a whole and
//! [`Scanner::overflowed`] says so ever after.

use memchr::memchr2;

#[cfg(test)]
mod tests;

/// Largest event that is looked at unless told otherwise. Tool calls and images come in events of megabytes.
pub const MAX_EVENT: usize = 4 << 20;

/// One event, as long as the callback lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event<'a> {
    /// The last `event` field; empty when there was none.
    pub name: &'a [u8],
    /// The `data` lines, joined.
    pub data: &'a [u8],
}

/// Finds the events of one stream.
#[derive(Debug)]
pub struct Scanner {
    /// The event that has begun and not ended, from its first byte.
    held: Vec<u8>,
    /// Joins several `data` lines.
    joined: Vec<u8>,
    limit: usize,
    state: State,
    /// A CR ended the last line: an LF that comes next belongs to it.
    after_cr: bool,
    overflowed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Before the first byte: a byte order mark may come.
    Start,
    /// Between events or within one that is held.
    Open,
    /// Within an event that grew above the limit. `true`: in the middle of a line.
    Skipping(bool),
}

impl Default for Scanner {
    fn default() -> Self {
        Self::new(MAX_EVENT)
    }
}

impl Scanner {
    /// Looks at events of at most `limit` bytes, line ends but the last included.
    pub fn new(limit: usize) -> Self {
        Self { held: Vec::new(), joined: Vec::new(), limit, state: State::Start, after_cr: false, overflowed: false }
    }

    /// Whether the stream stands between two events: nothing has come since the last blank line.
    pub fn at_boundary(&self) -> bool {
        self.held.is_empty() && !matches!(self.state, State::Skipping(_))
    }

    /// Whether the next byte starts an event, whatever it is: neither a byte order mark nor the rest of a line end can
    /// come any more.
    pub fn is_clean(&self) -> bool {
        self.held.is_empty() && self.state == State::Open && !self.after_cr
    }

    /// Bytes of the event that has begun and not ended: what a reader has no use for yet. 0 in an event above the limit.
    pub fn pending(&self) -> usize {
        self.held.len()
    }

    /// Whether an event was left out because it was above the limit.
    pub fn overflowed(&self) -> bool {
        self.overflowed
    }

    /// Takes the next bytes and calls `on_event` for each event that they complete.
    #[inline]
    pub fn push(&mut self, chunk: &[u8], mut on_event: impl FnMut(Event<'_>)) {
        let mut rest = chunk;
        while !rest.is_empty() {
            rest = match self.state {
                State::Open if self.held.is_empty() => self.in_place(rest, &mut on_event),
                State::Open => self.complete(rest, &mut on_event),
                State::Skipping(in_line) => self.skip(rest, in_line),
                State::Start => self.start(rest),
            };
        }
    }

    /// Reads whole events where they lie; what is left of the chunk is held.
    #[inline]
    fn in_place<'a>(&mut self, chunk: &'a [u8], on_event: &mut impl FnMut(Event<'_>)) -> &'a [u8] {
        let mut rest = self.without_lf(chunk);
        while !rest.is_empty() {
            let Some(found) = parse(rest, &mut self.joined) else {
                self.hold(rest);
                return &[];
            };
            if found.size > self.limit {
                self.overflowed = true;
            } else if let Some(event) = found.event(rest, &self.joined) {
                on_event(event);
            }
            self.after_cr = rest[found.end - 1] == b'\r';
            rest = self.without_lf(&rest[found.end..]);
        }
        rest
    }

    /// Goes on with the event that is held, up to its end.
    fn complete<'a>(&mut self, chunk: &'a [u8], on_event: &mut impl FnMut(Event<'_>)) -> &'a [u8] {
        let mut from = 0;
        if self.after_cr && chunk[0] == b'\n' {
            from = 1;
        }
        let in_line = from == 0 && !matches!(self.held.last(), Some(b'\n' | b'\r'));
        let Some(end) = blank_line(&chunk[from..], in_line) else {
            self.hold(chunk);
            return &[];
        };
        let end = from + end;
        self.held.extend_from_slice(&chunk[..end]);
        if let Some(found) = parse(&self.held, &mut self.joined) {
            if found.size > self.limit {
                self.overflowed = true;
            } else if let Some(event) = found.event(&self.held, &self.joined) {
                on_event(event);
            }
        }
        self.after_cr = self.held.last() == Some(&b'\r');
        self.release();
        &chunk[end..]
    }

    fn skip<'a>(&mut self, chunk: &'a [u8], in_line: bool) -> &'a [u8] {
        let rest = self.without_lf(chunk);
        if rest.is_empty() {
            return rest;
        }
        if let Some(found) = blank_line(rest, in_line) {
            self.state = State::Open;
            self.after_cr = rest[found - 1] == b'\r';
            return &rest[found..];
        }
        self.after_cr = rest.last() == Some(&b'\r');
        self.state = State::Skipping(!matches!(rest.last(), Some(b'\n' | b'\r')));
        &[]
    }

    /// Drops a byte order mark, which may come in pieces.
    fn start<'a>(&mut self, chunk: &'a [u8]) -> &'a [u8] {
        const MARK: &[u8] = b"\xef\xbb\xbf";
        let missing = &MARK[self.held.len()..];
        let common = missing.iter().zip(chunk).take_while(|(a, b)| a == b).count();
        self.held.extend_from_slice(&chunk[..common]);
        if self.held.len() == MARK.len() {
            self.held.clear();
        } else if common == chunk.len() {
            return &[];
        }
        self.state = State::Open;
        &chunk[common..]
    }

    fn hold(&mut self, part: &[u8]) {
        self.after_cr = part.last() == Some(&b'\r');
        self.held.extend_from_slice(part);
        if self.held.len() > self.limit {
            self.overflowed = true;
            self.state = State::Skipping(!matches!(part.last(), Some(b'\n' | b'\r')));
            self.release();
        }
    }

    /// Empties the buffer, and gives a large one back.
    fn release(&mut self) {
        const KEPT: usize = 16 << 10;
        self.held.clear();
        self.held.shrink_to(KEPT);
        self.joined.shrink_to(KEPT);
    }

    #[inline]
    fn without_lf<'a>(&mut self, chunk: &'a [u8]) -> &'a [u8] {
        if std::mem::take(&mut self.after_cr) && chunk.first() == Some(&b'\n') { &chunk[1..] } else { chunk }
    }
}

/// Where one event lies in the bytes that begin with it.
struct Found {
    name: (usize, usize),
    data: Data,
    /// Bytes before the blank line.
    size: usize,
    /// Behind the blank line.
    end: usize,
}

enum Data {
    None,
    /// One line: start and end.
    Line(usize, usize),
    /// Several, copied.
    Joined,
}

impl Found {
    #[inline]
    fn event<'a>(&self, bytes: &'a [u8], joined: &'a [u8]) -> Option<Event<'a>> {
        let data = match self.data {
            Data::None => return None,
            Data::Line(start, end) => &bytes[start..end],
            Data::Joined => joined,
        };
        Some(Event { name: &bytes[self.name.0..self.name.1], data })
    }
}

/// Reads one event from its first byte; `None` when its blank line is not there.
#[inline]
fn parse(bytes: &[u8], joined: &mut Vec<u8>) -> Option<Found> {
    let mut found = Found { name: (0, 0), data: Data::None, size: 0, end: 0 };
    let mut at = 0;
    loop {
        // A look at the first byte spares the search where the blank line is, once an event.
        let blank = matches!(bytes.get(at), Some(b'\n' | b'\r'));
        let end = if blank { at } else { at + memchr2(b'\n', b'\r', &bytes[at..])? };
        let next = if bytes[end] == b'\r' && bytes.get(end + 1) == Some(&b'\n') { end + 2 } else { end + 1 };
        if blank {
            found.size = at;
            found.end = next;
            return Some(found);
        }
        field(&mut found, bytes, (at, end), joined);
        at = next;
    }
}

/// One line: `name`, or `name:value`, or `name: value`.
#[inline]
fn field(found: &mut Found, bytes: &[u8], (start, end): (usize, usize), joined: &mut Vec<u8>) {
    let line = &bytes[start..end];
    let value = |name: &[u8]| match line.strip_prefix(name)? {
        [] => Some(end),
        [b':', b' ', ..] => Some(start + name.len() + 2),
        [b':', ..] => Some(start + name.len() + 1),
        _ => None,
    };
    if let Some(from) = value(b"data") {
        found.data = match found.data {
            Data::None => Data::Line(from, end),
            Data::Line(first, last) => {
                joined.clear();
                joined.extend_from_slice(&bytes[first..last]);
                append(joined, &bytes[from..end])
            }
            Data::Joined => append(joined, &bytes[from..end]),
        };
    } else if let Some(from) = value(b"event") {
        found.name = (from, end);
    }
}

fn append(joined: &mut Vec<u8>, line: &[u8]) -> Data {
    joined.push(b'\n');
    joined.extend_from_slice(line);
    Data::Joined
}

/// The offset behind the first blank line, for a reader that stands in a line or at the start of one.
fn blank_line(bytes: &[u8], mut in_line: bool) -> Option<usize> {
    let mut at = 0;
    loop {
        let end = at + memchr2(b'\n', b'\r', &bytes[at..])?;
        let next = if bytes[end] == b'\r' && bytes.get(end + 1) == Some(&b'\n') { end + 2 } else { end + 1 };
        if end == at && !in_line {
            return Some(next);
        }
        in_line = false;
        at = next;
    }
}
