//! Gives an answer back under the name the client asked for (`routing.aliases`): a byte edit of `model`, nothing else.

use std::ops::Range;

use bytes::Bytes;
use memchr::{memchr2, memmem};

use super::{
    endpoint::Dialect,
    json::{Malformed, Reader, Text, write_string},
};

#[cfg(test)]
mod tests;

/// A plain JSON answer with its top-level `model` set to `to`; `None` when it has none that is a string, or is not
/// JSON: then it stays as it is.
pub fn rename_in_answer(body: &[u8], to: &str) -> Option<Vec<u8>> {
    rename(body, to, false)
}

/// The JSON of one stream event with `model`, `response.model` and `message.model` set to `to`; `None` when it has
/// none of them: then it stays as it is.
pub fn rename_in_event(data: &[u8], to: &str) -> Option<Vec<u8>> {
    rename(data, to, true)
}

fn rename(json: &[u8], to: &str, nested: bool) -> Option<Vec<u8>> {
    memmem::find(json, b"\"model\"")?;
    let mut spans = Spans::default();
    let mut reader = Reader::new(json);
    reader
        .members(|reader, key| match key.name().as_ref() {
            b"model" => spans.take(reader),
            b"response" | b"message" if nested => reader.members(|reader, key| spans.inner(reader, key)),
            _ => reader.skip(),
        })
        .ok()?;
    reader.finish().ok()?;
    spans.replace(json, to)
}

/// Where the names lie, in order. An answer has one or two; of the rest, which nobody reads, the first few are edited.
#[derive(Default)]
struct Spans {
    all: Vec<Range<usize>>,
}

impl Spans {
    const MAX: usize = 8;

    fn take(&mut self, reader: &mut Reader<'_>) -> Result<(), Malformed> {
        if let Some(text) = reader.text()?
            && self.all.len() < Self::MAX
        {
            self.all.push(text.literal());
        }
        Ok(())
    }

    fn inner(&mut self, reader: &mut Reader<'_>, key: Text<'_>) -> Result<(), Malformed> {
        if key.is(b"model") { self.take(reader) } else { reader.skip() }
    }

    fn replace(&self, json: &[u8], to: &str) -> Option<Vec<u8>> {
        if self.all.is_empty() {
            return None;
        }
        let mut out = Vec::with_capacity(json.len() + self.all.len() * (to.len() + 2));
        let mut from = 0;
        for span in &self.all {
            out.extend_from_slice(&json[from..span.start]);
            write_string(&mut out, to);
            from = span.end;
        }
        out.extend_from_slice(&json[from..]);
        Some(out)
    }
}

/// Renames in a stream, chunk by chunk. It holds back the line that is not complete, up to a bound; a longer line
/// passes as it is. Whatever way the bytes are split, the output is the same.
///
/// In SSE each `data` line is taken for a whole JSON text, as every engine writes it; a text that is spread over
/// several lines stays as it is.
#[derive(Debug)]
pub struct Renamer {
    to: Box<str>,
    sse: bool,
    limit: usize,
    held: Vec<u8>,
    /// In a line that grew above the bound.
    passing: bool,
}

/// The longest line that is edited.
pub const MAX_LINE: usize = 1 << 20;

impl Renamer {
    /// Renames to `to` in a stream of `dialect`: NDJSON for Ollama, SSE for all others.
    pub fn new(dialect: Dialect, to: &str) -> Self {
        Self::with_limit(dialect, to, MAX_LINE)
    }

    /// As [`new`](Self::new), editing lines of at most `limit` bytes.
    pub fn with_limit(dialect: Dialect, to: &str, limit: usize) -> Self {
        Self { to: to.into(), sse: dialect != Dialect::Ollama, limit, held: Vec::new(), passing: false }
    }

    /// Takes the next bytes and gives what can go on: whole lines, renamed.
    pub fn push(&mut self, chunk: Bytes) -> Bytes {
        let untouched = self.held.is_empty() && !self.passing && matches!(chunk.last(), Some(b'\n'));
        if untouched && memmem::find(&chunk, b"\"model\"").is_none() {
            return chunk;
        }
        let mut out = Vec::with_capacity(self.held.len() + chunk.len() + 32);
        let mut rest = &chunk[..];
        while let Some(end) = memchr2(b'\n', b'\r', rest) {
            let (line, after) = rest.split_at(end + 1);
            self.line(line, &mut out);
            rest = after;
        }
        self.hold(rest, &mut out);
        out.into()
    }

    /// What is still held at the end of the stream, as it came.
    pub fn finish(&mut self) -> Bytes {
        std::mem::take(&mut self.held).into()
    }

    /// The rest of a line, with its end.
    fn line(&mut self, part: &[u8], out: &mut Vec<u8>) {
        if std::mem::take(&mut self.passing) {
            out.extend_from_slice(part);
        } else if self.held.is_empty() {
            self.edit(part, out);
        } else {
            let mut line = std::mem::take(&mut self.held);
            line.extend_from_slice(part);
            self.edit(&line, out);
            line.clear();
            self.held = line;
        }
    }

    fn edit(&self, line: &[u8], out: &mut Vec<u8>) {
        let (content, end) = line.split_at(line.len() - 1);
        let start = if self.sse { data_start(content) } else { Some(0) };
        let renamed = start
            .filter(|_| content.len() <= self.limit)
            .and_then(|start| Some((start, rename_in_event(&content[start..], &self.to)?)));
        match renamed {
            Some((start, json)) => {
                out.extend_from_slice(&content[..start]);
                out.extend_from_slice(&json);
                out.extend_from_slice(end);
            }
            None => out.extend_from_slice(line),
        }
    }

    fn hold(&mut self, part: &[u8], out: &mut Vec<u8>) {
        if self.passing || self.held.len() + part.len() > self.limit {
            out.append(&mut self.held);
            out.extend_from_slice(part);
            self.passing |= !part.is_empty();
        } else {
            self.held.extend_from_slice(part);
        }
    }
}

/// Where the JSON of a `data` line begins. The byte order mark may stand before the first.
fn data_start(line: &[u8]) -> Option<usize> {
    const MARK: &[u8] = b"\xef\xbb\xbf";
    let bare = line.strip_prefix(MARK).unwrap_or(line);
    let value = bare.strip_prefix(b"data:")?;
    Some(line.len() - value.len())
}
