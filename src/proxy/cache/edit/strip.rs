//! Takes the usage event out of a stream of chat or completion events.

use std::ops::Range;

use bytes::Bytes;
use memchr::memmem;

use crate::protocol::json::{Malformed, Reader, Text};

/// An event longer than this passes as it is, and what waits for the usage event is at most this much.
pub(super) const HELD: usize = 1 << 20;

/// The events with a finish reason wait, and with them whatever follows, until the usage event or `[DONE]` shows
/// whether a member has to go back into them. Engines send these one right after the other.
#[derive(Debug)]
pub(super) struct Strip {
    limit: usize,
    /// The event that has begun and not ended.
    partial: Vec<u8>,
    /// Where in `partial` the search for its end goes on.
    searched: usize,
    /// In an event that grew above the limit, of which `partial` keeps the last bytes only to find its end.
    passing: bool,
    /// Events that wait.
    waiting: Vec<u8>,
    /// The finish events among them.
    finishes: Vec<Waiting>,
}

/// A finish event that waits: where in [`Strip::waiting`] its closing brace is, and what it has already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Waiting {
    brace: usize,
    fingerprint: bool,
    timings: bool,
}

impl Default for Strip {
    fn default() -> Self {
        Self::with_limit(HELD)
    }
}

/// What an event is to this edit.
#[derive(Debug, PartialEq, Eq)]
enum Kind {
    /// Nothing.
    Other,
    /// It has a finish reason. The brace is the event's own.
    Finish(Waiting),
    /// `choices` is empty and `usage` is told; the values that have to go back.
    Usage {
        fingerprint: Option<Range<usize>>,
        timings: Option<Range<usize>>,
    },
    Done,
}

impl Strip {
    pub(super) fn with_limit(limit: usize) -> Self {
        Self { limit, partial: Vec::new(), searched: 0, passing: false, waiting: Vec::new(), finishes: Vec::new() }
    }

    pub(super) fn push(&mut self, data: Bytes) -> Bytes {
        if self.idle() && is_ordinary(&data) {
            return data;
        }
        let mut out = Vec::with_capacity(data.len() + self.partial.len());
        let mut rest = &data[..];
        while !rest.is_empty() {
            rest = self.take(rest, &mut out);
        }
        out.into()
    }

    pub(super) fn finish(&mut self) -> Bytes {
        let mut out = std::mem::take(&mut self.waiting);
        self.finishes.clear();
        if !std::mem::take(&mut self.passing) {
            out.append(&mut self.partial);
        }
        self.partial.clear();
        self.searched = 0;
        out.into()
    }

    /// Between two events, with nothing waiting.
    fn idle(&self) -> bool {
        self.partial.is_empty() && !self.passing && self.waiting.is_empty()
    }

    /// Takes up to the end of the event that is open, or all.
    fn take<'a>(&mut self, data: &'a [u8], out: &mut Vec<u8>) -> &'a [u8] {
        if self.partial.is_empty() && !self.passing {
            let blank = data.iter().take_while(|b| matches!(b, b'\n' | b'\r')).count();
            if blank > 0 {
                // More line ends than one blank line has: they belong to no event.
                let to = if self.waiting.is_empty() { out } else { &mut self.waiting };
                to.extend_from_slice(&data[..blank]);
                return &data[blank..];
            }
            let Some(end) = event_end(data, 0) else { return self.hold(data, out) };
            self.event(&data[..end], out);
            return &data[end..];
        }
        let before = self.partial.len();
        self.partial.extend_from_slice(data);
        match event_end(&self.partial, self.searched) {
            Some(end) => {
                let mut event = std::mem::take(&mut self.partial);
                event.truncate(end);
                if std::mem::take(&mut self.passing) {
                    out.extend_from_slice(&event[before..]);
                } else {
                    self.event(&event, out);
                }
                event.clear();
                self.partial = event;
                self.searched = 0;
                &data[end - before..]
            }
            None => {
                self.partial.truncate(before);
                self.hold(data, out)
            }
        }
    }

    /// The event's end is not in `data`.
    fn hold<'a>(&mut self, data: &'a [u8], out: &mut Vec<u8>) -> &'a [u8] {
        self.partial.extend_from_slice(data);
        if self.passing {
            out.extend_from_slice(data);
        } else if self.partial.len() > self.limit {
            self.release(out);
            out.extend_from_slice(&self.partial);
            self.passing = true;
        }
        if self.passing {
            // An end is at most four bytes long: three of them may be here.
            self.partial.drain(..self.partial.len().saturating_sub(3));
        }
        self.searched = self.partial.len().saturating_sub(3);
        &[]
    }

    /// A whole event, with the blank line that ends it.
    fn event(&mut self, event: &[u8], out: &mut Vec<u8>) {
        if event.len() > self.limit {
            self.release(out);
            out.extend_from_slice(event);
            return;
        }
        match kind(event) {
            Kind::Usage { fingerprint, timings } => {
                self.restore(fingerprint.map(|at| &event[at]), timings.map(|at| &event[at]));
                self.release(out);
            }
            Kind::Done => {
                self.release(out);
                out.extend_from_slice(event);
            }
            Kind::Finish(finish) => {
                let at = self.wait(event, out);
                self.finishes.push(Waiting { brace: at + finish.brace, ..finish });
            }
            Kind::Other if self.waiting.is_empty() => out.extend_from_slice(event),
            Kind::Other => {
                self.wait(event, out);
            }
        }
    }

    /// Gives where in `waiting` the event begins.
    fn wait(&mut self, event: &[u8], out: &mut Vec<u8>) -> usize {
        if self.waiting.len() + event.len() > self.limit {
            self.release(out);
        }
        let at = self.waiting.len();
        self.waiting.extend_from_slice(event);
        at
    }

    /// Puts back what moved to the usage event: vLLM's fingerprint belongs in every finish event, llama.cpp's timings
    /// in the one just before.
    fn restore(&mut self, fingerprint: Option<&[u8]>, timings: Option<&[u8]>) {
        let last = self.finishes.len().saturating_sub(1);
        // From the last to the first: what is put in moves nothing that is still to be done.
        for (i, finish) in std::mem::take(&mut self.finishes).into_iter().enumerate().rev() {
            let mut put = Vec::new();
            if let (Some(value), false) = (fingerprint, finish.fingerprint) {
                put.extend_from_slice(b",\"system_fingerprint\":");
                put.extend_from_slice(value);
            }
            if let (Some(value), false, true) = (timings, finish.timings, i == last) {
                put.extend_from_slice(b",\"timings\":");
                put.extend_from_slice(value);
            }
            self.waiting.splice(finish.brace..finish.brace, put);
        }
    }

    fn release(&mut self, out: &mut Vec<u8>) {
        out.append(&mut self.waiting);
        self.finishes.clear();
    }
}

/// Whether `data` is whole events of which none can be a finish, usage or `[DONE]` event: most are told by one look.
fn is_ordinary(data: &[u8]) -> bool {
    data.ends_with(b"\n\n") && memmem::find(data, b"[DONE]").is_none() && !is_suspect(data)
}

/// Whether `"finish_reason"` or `"usage"` stand there with another value than `null`. Text that only looks so is
/// suspect too; the parser knows better.
fn is_suspect(data: &[u8]) -> bool {
    let told = |name: &[u8]| {
        memmem::find_iter(data, name).any(|at| {
            let value = data[at + name.len()..].trim_ascii_start();
            let value = value.strip_prefix(b":").unwrap_or(value).trim_ascii_start();
            !value.starts_with(b"null")
        })
    };
    told(b"\"finish_reason\"") || told(b"\"usage\"")
}

fn kind(event: &[u8]) -> Kind {
    let Some(json) = data_of(event) else { return Kind::Other };
    if &event[json.clone()] == b"[DONE]" {
        return Kind::Done;
    }
    if !is_suspect(&event[json.clone()]) {
        return Kind::Other;
    }
    let mut members = Members::default();
    // Offsets are the event's: the reader stands at the text's first byte and its end is the line's.
    let mut reader = Reader::from(&event[..json.end], json.start);
    if reader.peek() != Ok(b'{') {
        return Kind::Other;
    }
    let read = reader.members(|reader, key| members.read(reader, key)).and_then(|()| {
        members.brace = reader.offset() - 1;
        reader.finish()
    });
    if read.is_err() { Kind::Other } else { members.kind() }
}

/// What a chat or completion event has.
#[derive(Debug, Default)]
struct Members {
    choices: Option<usize>,
    finished: bool,
    usage: bool,
    fingerprint: Option<Range<usize>>,
    timings: Option<Range<usize>>,
    brace: usize,
}

impl Members {
    fn read(&mut self, reader: &mut Reader<'_>, key: Text<'_>) -> Result<(), Malformed> {
        match key.name().as_ref() {
            b"choices" => {
                let mut count = 0;
                reader.elements(|reader| {
                    count += 1;
                    reader.members(|reader, key| {
                        if !key.is(b"finish_reason") {
                            return reader.skip();
                        }
                        self.finished |= reader.text()?.is_some();
                        Ok(())
                    })
                })?;
                self.choices = Some(count);
            }
            b"usage" => self.usage = reader.present()?,
            b"system_fingerprint" => self.fingerprint = value(reader)?,
            b"timings" => self.timings = value(reader)?,
            _ => reader.skip()?,
        }
        Ok(())
    }

    fn kind(self) -> Kind {
        match self.choices {
            Some(0) if self.usage => Kind::Usage { fingerprint: self.fingerprint, timings: self.timings },
            // One that tells its usage itself was not asked, or asked for it in every event.
            Some(1..) if self.finished && !self.usage => Kind::Finish(Waiting {
                brace: self.brace,
                fingerprint: self.fingerprint.is_some(),
                timings: self.timings.is_some(),
            }),
            _ => Kind::Other,
        }
    }
}

/// Where the value lies, unless it is `null`.
fn value(reader: &mut Reader<'_>) -> Result<Option<Range<usize>>, Malformed> {
    let there = reader.peek()? != b'n';
    let start = reader.offset();
    reader.skip()?;
    Ok(there.then(|| start..reader.offset()))
}

/// Where the text of an event's only `data` line lies. An event with several, or another field, is none of ours.
fn data_of(event: &[u8]) -> Option<Range<usize>> {
    let end = event.len() - event.iter().rev().take_while(|b| matches!(b, b'\n' | b'\r')).count();
    let line = &event[..end];
    let text = line.strip_prefix(b"data:")?;
    if text.iter().any(|b| matches!(b, b'\n' | b'\r')) {
        return None;
    }
    let start = end - text.trim_ascii_start().len();
    Some(start..end - (text.len() - text.trim_ascii_end().len()))
}

/// Behind the first blank line that ends at or after `from`, by LF or CRLF: what the engines write. A stream of bare
/// CRs has no end of this kind and passes whole.
fn event_end(bytes: &[u8], from: usize) -> Option<usize> {
    memchr::memchr_iter(b'\n', &bytes[from..]).map(|at| from + at).find_map(|at| {
        let before = bytes[..at].strip_suffix(b"\r").unwrap_or(&bytes[..at]);
        before.ends_with(b"\n").then_some(at + 1)
    })
}
