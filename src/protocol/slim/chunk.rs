//! What one chunk has: what can be cut out of it, and whether it is a delta that others may join.

use std::ops::Range;

use super::Kind;
use crate::protocol::json::{Malformed, Reader, Text};

/// One chunk that was read.
#[derive(Debug, Default)]
pub(super) struct Chunk {
    /// The inside of its text, if that is all it says.
    pub(super) text: Option<Range<usize>>,
    /// The value of `created`, where it is a time: the one thing besides that differs between deltas.
    pub(super) created: Option<Range<usize>>,
    /// The value of `system_fingerprint`.
    pub(super) fingerprint: Option<Range<usize>>,
}

/// When a member is cut out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cut {
    Never,
    /// When it is `null`.
    Null,
    /// When it is `null` or an empty array.
    Hollow,
    /// When it is `null`, or was told and this is not an end: `openai`'s helper for Python takes the last one it sees.
    Repeat,
    /// When it is `null`, or this is not an end.
    Early,
}

/// What a member means for joining deltas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Join {
    /// Nothing: where it differs, the events differ, and that is looked at anyway.
    Same,
    /// It hinders, but as `null`.
    Null,
    /// It is the text.
    Text,
}

type Member = (&'static str, Cut, Join);

/// A chunk's own members. A name that is not listed stays, and hinders.
#[rustfmt::skip] // A table reads by its rows.
const TOP: &[Member] = &[
    ("id", Cut::Never, Join::Same),
    ("object", Cut::Never, Join::Same),
    ("created", Cut::Never, Join::Same),
    ("model", Cut::Never, Join::Same),
    ("choices", Cut::Never, Join::Same),
    ("system_fingerprint", Cut::Repeat, Join::Same),
    ("service_tier", Cut::Null, Join::Same),
    ("usage", Cut::Null, Join::Null),
    ("timings", Cut::Early, Join::Null),
    ("prompt_token_ids", Cut::Null, Join::Null),
    ("prompt_text", Cut::Null, Join::Null),
    ("prompt_logprobs", Cut::Null, Join::Null),
    ("error", Cut::Never, Join::Null),
];

/// Of a choice of a chat chunk.
#[rustfmt::skip]
const CHAT: &[Member] = &[
    ("index", Cut::Never, Join::Same),
    ("delta", Cut::Never, Join::Same),
    ("finish_reason", Cut::Never, Join::Null),
    ("logprobs", Cut::Null, Join::Null),
    ("token_ids", Cut::Null, Join::Null),
    ("stop_reason", Cut::Null, Join::Null),
    ("matched_stop", Cut::Null, Join::Null),
];

/// Of a choice of a completion. `openai`'s type has `logprobs` as a member that is always there.
#[rustfmt::skip]
const COMPLETION: &[Member] = &[
    ("index", Cut::Never, Join::Same),
    ("text", Cut::Never, Join::Text),
    ("finish_reason", Cut::Never, Join::Null),
    ("logprobs", Cut::Never, Join::Null),
    ("token_ids", Cut::Null, Join::Null),
    ("prompt_token_ids", Cut::Null, Join::Null),
    ("prompt_logprobs", Cut::Null, Join::Null),
    ("stop_reason", Cut::Null, Join::Null),
    ("matched_stop", Cut::Null, Join::Null),
];

/// Of a delta. `content: null` stays: there are readers who tell it from an absent one.
#[rustfmt::skip]
const DELTA: &[Member] = &[
    ("content", Cut::Never, Join::Text),
    ("reasoning_content", Cut::Null, Join::Text),
    ("reasoning", Cut::Null, Join::Text),
    ("role", Cut::Null, Join::Null),
    ("refusal", Cut::Null, Join::Null),
    ("tool_calls", Cut::Hollow, Join::Null),
    ("function_call", Cut::Null, Join::Null),
    ("audio", Cut::Null, Join::Null),
];

/// Reads the chunk whose text is at `json` in `event`, and appends what can be cut out, in order. `None` for everything
/// that is not certainly a chunk; what was appended by then is void.
pub(super) fn read(
    kind: Kind,
    event: &[u8],
    json: Range<usize>,
    told: &[u8],
    cuts: &mut Vec<Range<usize>>,
) -> Option<Chunk> {
    std::str::from_utf8(&event[json.clone()]).ok()?;
    let mut reader = Reader::from(&event[..json.end], json.start);
    let mut parts =
        Parts { kind, cuts, chunk: Chunk::default(), texts: 0, choices: 0, closing: false, hindered: false };
    let top = parts.top(&mut reader).ok()?;
    reader.finish().ok()?;
    parts.settle(event, told, &top)
}

/// What is found while a chunk is read.
struct Parts<'c> {
    kind: Kind,
    cuts: &'c mut Vec<Range<usize>>,
    chunk: Chunk,
    /// Texts that are not `null`.
    texts: usize,
    choices: usize,
    /// It has a finish reason, or no choices: the last of its kind.
    closing: bool,
    /// Nothing may join it.
    hindered: bool,
}

/// A member that was read, by its place in its table; and where it lies, from its name on.
struct Found {
    at: Option<usize>,
    name: usize,
    value: Range<usize>,
    said: Said,
}

/// What its value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Said {
    Null,
    EmptyArray,
    Text,
    Other,
}

impl Parts<'_> {
    /// The members of the chunk itself. Whether this is an end is known behind the last of them.
    fn top(&mut self, reader: &mut Reader<'_>) -> Result<Vec<Found>, Malformed> {
        let mut all = Vec::with_capacity(TOP.len());
        let mut names = Names::default();
        object(reader)?;
        reader.members(|reader, key| {
            let at = names.find(TOP, reader, &key)?;
            let found = match at.map(|at| TOP[at].0) {
                Some("choices") => {
                    let start = self.array(reader)?;
                    Found { at, name: key.literal().start, value: start..reader.offset(), said: Said::Other }
                }
                _ => found(at, reader, &key)?,
            };
            all.push(found);
            Ok(())
        })?;
        if !names.has(TOP, "choices") || names.has(TOP, "error") {
            return Err(reader.fail("it is no chunk"));
        }
        Ok(all)
    }

    /// The choices; gives where the array begins.
    fn array(&mut self, reader: &mut Reader<'_>) -> Result<usize, Malformed> {
        if reader.peek()? != b'[' {
            return Err(reader.fail("an array is expected"));
        }
        let start = reader.offset();
        let table = match self.kind {
            Kind::Chat => CHAT,
            Kind::Completions => COMPLETION,
        };
        reader.elements(|reader| {
            self.choices += 1;
            self.inner(reader, table)
        })?;
        self.closing |= self.choices == 0;
        Ok(start)
    }

    /// A choice, or its delta.
    fn inner(&mut self, reader: &mut Reader<'_>, table: &'static [Member]) -> Result<(), Malformed> {
        let mut names = Names::default();
        let mut cutter = Cutter::default();
        object(reader)?;
        reader.members(|reader, key| {
            let at = names.find(table, reader, &key)?;
            if at.is_some_and(|at| table[at].0 == "delta") {
                let name = key.literal().start;
                cutter.kept(name, self.cuts);
                self.inner(reader, DELTA)?;
                cutter.ended(reader.offset());
                return Ok(());
            }
            let found = found(at, reader, &key)?;
            let row = at.map(|at| table[at]);
            let cut = row.is_some_and(|row| found.is_cut(row.1));
            if !cut {
                self.join(row, &found);
            }
            self.closing |= row.is_some_and(|row| row.0 == "finish_reason") && found.said != Said::Null;
            cutter.member(&found, cut, self.cuts);
            Ok(())
        })?;
        cutter.end(self.cuts);
        Ok(())
    }

    /// What a member means for joining.
    fn join(&mut self, row: Option<Member>, found: &Found) {
        match row.map(|row| row.2) {
            Some(Join::Same) => {}
            Some(Join::Null) => self.hindered |= found.said != Said::Null,
            Some(Join::Text) => match found.said {
                Said::Null => {}
                Said::Text => {
                    self.texts += 1;
                    self.chunk.text = Some(found.value.start + 1..found.value.end - 1);
                }
                _ => self.hindered = true,
            },
            None => self.hindered = true,
        }
    }

    /// Now that all of it is known: the cuts of the chunk's own members, and what it is.
    fn settle(mut self, event: &[u8], told: &[u8], top: &[Found]) -> Option<Chunk> {
        let mut cutter = Cutter::default();
        for found in top {
            let row = found.at.map(|at| TOP[at]);
            let name = row.map_or("", |row| row.0);
            let cut = match row.map_or(Cut::Never, |row| row.1) {
                Cut::Repeat => {
                    let repeats = !self.closing && !told.is_empty() && &event[found.value.clone()] == told;
                    found.said == Said::Null || repeats
                }
                Cut::Early => found.said == Said::Null || !self.closing,
                rule => found.is_cut(rule),
            };
            match name {
                "created" if is_time(&event[found.value.clone()]) => self.chunk.created = Some(found.value.clone()),
                "system_fingerprint" if !cut => self.chunk.fingerprint = Some(found.value.clone()),
                _ => {}
            }
            if !cut {
                self.join(row, found);
            }
            cutter.member(found, cut, self.cuts);
        }
        cutter.end(self.cuts);
        // Those of the choices came first.
        self.cuts.sort_unstable_by_key(|cut| cut.start);
        if self.hindered || self.closing || self.texts != 1 || self.choices != 1 {
            self.chunk.text = None;
        }
        Some(self.chunk)
    }
}

impl Found {
    fn is_cut(&self, rule: Cut) -> bool {
        match rule {
            Cut::Null => self.said == Said::Null,
            Cut::Hollow => matches!(self.said, Said::Null | Said::EmptyArray),
            Cut::Never | Cut::Repeat | Cut::Early => false,
        }
    }
}

/// Reads any value.
fn found(at: Option<usize>, reader: &mut Reader<'_>, key: &Text<'_>) -> Result<Found, Malformed> {
    let first = reader.peek()?;
    let start = reader.offset();
    reader.skip()?;
    let value = reader.since(start);
    let said = match first {
        b'n' => Said::Null,
        b'"' => Said::Text,
        b'[' if value[1..value.len() - 1].trim_ascii().is_empty() => Said::EmptyArray,
        _ => Said::Other,
    };
    Ok(Found { at, name: key.literal().start, value: start..reader.offset(), said })
}

/// Seconds since 1970, as everybody reads them.
fn is_time(value: &[u8]) -> bool {
    value.len() < 19 && value.iter().all(u8::is_ascii_digit)
}

fn object(reader: &mut Reader<'_>) -> Result<(), Malformed> {
    if reader.peek()? == b'{' { Ok(()) } else { Err(reader.fail("an object is expected")) }
}

/// The names of a table that an object has, a bit each.
#[derive(Default)]
struct Names(u32);

impl Names {
    /// The place of `key` in `table`. One that comes twice is no chunk of ours: to cut one would bring out the other.
    fn find(
        &mut self,
        table: &'static [Member],
        reader: &Reader<'_>,
        key: &Text<'_>,
    ) -> Result<Option<usize>, Malformed> {
        let name = key.name();
        let Some(at) = table.iter().position(|row| row.0.as_bytes() == &*name) else { return Ok(None) };
        if self.0 & 1 << at != 0 {
            return Err(reader.fail("a member is there twice"));
        }
        self.0 |= 1 << at;
        Ok(Some(at))
    }

    fn has(&self, table: &'static [Member], name: &str) -> bool {
        table.iter().position(|row| row.0 == name).is_some_and(|at| self.0 & 1 << at != 0)
    }
}

/// Cuts members out of one object, each with the comma that it makes superfluous.
#[derive(Default)]
struct Cutter {
    /// Where the first member begins, while none was kept.
    leading: Option<usize>,
    any_kept: bool,
    /// Behind the last member's value.
    end: usize,
}

impl Cutter {
    fn member(&mut self, found: &Found, cut: bool, cuts: &mut Vec<Range<usize>>) {
        if !cut {
            self.kept(found.name, cuts);
        } else if self.any_kept {
            cuts.push(self.end..found.value.end);
        } else {
            self.leading.get_or_insert(found.name);
        }
        self.ended(found.value.end);
    }

    /// A member that stays begins here.
    fn kept(&mut self, name: usize, cuts: &mut Vec<Range<usize>>) {
        self.any_kept = true;
        if let Some(leading) = self.leading.take() {
            cuts.push(leading..name);
        }
    }

    fn ended(&mut self, at: usize) {
        self.end = at;
    }

    /// None stayed.
    fn end(&mut self, cuts: &mut Vec<Range<usize>>) {
        if let Some(leading) = self.leading.take() {
            cuts.push(leading..self.end);
        }
    }
}
