//! Finds the events of a stream with every byte of theirs, however the stream is split.

use std::ops::Range;

/// The longest event that is looked at.
pub(super) const LONGEST: usize = 1 << 20;

/// The longest blank line, less its last byte: how much of one may have come.
const OPEN: usize = 3;

/// Cuts a stream into events that end in a blank line by LF or CRLF: what engines write. From the first event that is
/// too long, or has a bare CR for a line end, nothing is cut any more.
#[derive(Debug, Default)]
pub(super) struct Frames {
    limit: usize,
    /// The event that has begun and not ended.
    partial: Vec<u8>,
    off: bool,
}

/// A piece of the stream.
pub(super) enum Piece<'a> {
    /// A whole event, with the blank line that ends it.
    Event(&'a [u8]),
    /// What is not looked at.
    Untouched(&'a [u8]),
}

impl Frames {
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, ..Self::default() }
    }

    /// Takes the next bytes, and hands on what is complete with them.
    pub(super) fn push(&mut self, data: &[u8], mut on: impl FnMut(Piece<'_>)) {
        if self.off {
            return on(Piece::Untouched(data));
        }
        if self.partial.is_empty() {
            let rest = self.each(data, &mut on);
            self.partial.extend_from_slice(rest);
            return;
        }
        let mut held = std::mem::take(&mut self.partial);
        let from = held.len().saturating_sub(OPEN);
        held.extend_from_slice(data);
        let rest = match end(&held, from) {
            End::Unknown if held.len() <= self.limit => &held[..],
            End::At(end) if end <= self.limit => {
                on(Piece::Event(&held[..end]));
                self.each(&held[end..], &mut on)
            }
            _ => self.turn_off(&held, &mut on),
        };
        let done = held.len() - rest.len();
        held.drain(..done);
        self.partial = held;
    }

    /// The whole events that `data` begins with; gives what is left to be held.
    fn each<'a>(&mut self, mut data: &'a [u8], on: &mut impl FnMut(Piece<'_>)) -> &'a [u8] {
        while !data.is_empty() {
            match end(data, 0) {
                End::Unknown if data.len() <= self.limit => break,
                End::At(end) if end <= self.limit => {
                    on(Piece::Event(&data[..end]));
                    data = &data[end..];
                }
                _ => return self.turn_off(data, on),
            }
        }
        data
    }

    fn turn_off(&mut self, data: &[u8], on: &mut impl FnMut(Piece<'_>)) -> &'static [u8] {
        self.off = true;
        on(Piece::Untouched(data));
        &[]
    }

    /// The end of the stream: an event that has not ended.
    pub(super) fn finish(&mut self, out: &mut Vec<u8>) {
        out.append(&mut self.partial);
    }
}

/// Where an event ends.
enum End {
    /// Behind its blank line.
    At(usize),
    /// Not within the bytes that are there.
    Unknown,
    /// A CR stands alone: this is not a stream whose ends are found here.
    Bare,
}

/// The end of the event that begins with `bytes`, of which those before `from` were looked at.
fn end(bytes: &[u8], from: usize) -> End {
    for at in memchr::memchr2_iter(b'\n', b'\r', &bytes[from..]).map(|at| from + at) {
        if bytes[at] == b'\r' {
            match bytes.get(at + 1) {
                Some(b'\n') => continue,
                Some(_) => return End::Bare,
                None => return End::Unknown,
            }
        }
        let before = bytes[..at].strip_suffix(b"\r").unwrap_or(&bytes[..at]);
        if before.ends_with(b"\n") {
            return End::At(at + 1);
        }
    }
    End::Unknown
}

/// Where the text of an event's only line lies, a `data` line. An event with more to it is not one of an engine's chunks.
pub(super) fn data(event: &[u8]) -> Option<Range<usize>> {
    let end = event.len() - event.iter().rev().take_while(|b| matches!(b, b'\n' | b'\r')).count();
    let text = event[..end].strip_prefix(b"data:")?;
    if memchr::memchr2(b'\n', b'\r', text).is_some() {
        return None;
    }
    Some(end - text.trim_ascii_start().len()..end)
}
