//! One event of a chat or completions stream, read.

use std::{borrow::Cow, ops::Range};

use crate::protocol::{
    json::{Malformed, Reader, Text, decode, write_string},
    usage::Finish,
};

/// Longest message of an error that is kept.
const MESSAGE: usize = 1 << 10;

/// What an event says. Ranges are into its data.
#[derive(Debug, Default)]
pub(crate) struct Chunk {
    /// Raw values.
    pub(crate) id: Option<Range<usize>>,
    pub(crate) created: Option<Range<usize>>,
    pub(crate) model: Option<Range<usize>>,
    pub(crate) fingerprint: Option<Range<usize>>,
    /// The choices in it: index and reason of the end.
    pub(crate) choices: Vec<(u64, Finish)>,
    /// The inside of the literal of `text` or `delta.content`.
    pub(crate) text: Option<Range<usize>>,
    pub(crate) role: bool,
    /// Members of the delta that are neither role nor content and not `null`: name's literal, value.
    pub(crate) others: Vec<(Range<usize>, Range<usize>)>,
    pub(crate) reasoning: bool,
    pub(crate) tools: bool,
    pub(crate) finish: Finish,
    /// The reason's literal.
    pub(crate) word: Option<Range<usize>>,
    /// `stop_reason` when it is not `null`.
    pub(crate) stop: Option<Range<usize>>,
    pub(crate) logprobs: Option<Range<usize>>,
    /// `"logprobs":null` is spelled out.
    pub(crate) no_logprobs: bool,
    pub(crate) ids: Option<Ids>,
    pub(crate) prompt: Option<Ids>,
    /// The engine spells members out that are `null`.
    pub(crate) nulls: bool,
    pub(crate) usage: Option<Told>,
    pub(crate) error: Option<String>,
}

/// An array of ids.
#[derive(Clone, Debug)]
pub(crate) struct Ids {
    /// What goes with the member: its name, its value, one comma.
    pub(crate) member: Range<usize>,
    /// The array, brackets included.
    pub(crate) value: Range<usize>,
}

impl Ids {
    pub(crate) fn inside(&self) -> Range<usize> {
        self.value.start + 1..self.value.end - 1
    }
}

/// Token counts, as `usage` tells them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) input: u64,
    pub(crate) output: u64,
    pub(crate) cached: Option<u64>,
}

impl Chunk {
    pub(crate) fn read(data: &[u8]) -> Result<Self, Malformed> {
        let mut chunk = Self::default();
        let mut reader = Reader::new(data);
        if reader.peek()? != b'{' {
            return Err(reader.fail("an object is expected"));
        }
        reader.members(|reader, key| chunk.member(data, reader, &key))?;
        reader.finish()?;
        Ok(chunk)
    }

    fn member<'a>(&mut self, data: &'a [u8], reader: &mut Reader<'a>, key: &Text<'a>) -> Result<(), Malformed> {
        match key.name().as_ref() {
            b"id" => self.id = value(reader)?,
            b"created" => self.created = value(reader)?,
            b"model" => self.model = value(reader)?,
            b"system_fingerprint" => self.fingerprint = value(reader)?,
            b"choices" => reader.elements(|reader| self.choice(data, reader))?,
            b"usage" => self.usage = usage(reader)?.or(self.usage),
            b"error" => self.error = error(data, reader)?.or(self.error.take()),
            b"object" => {
                let kind = reader.text()?;
                if kind.is_some_and(|kind| kind.is(b"error")) {
                    self.error = self.error.take().or_else(|| Some(String::new()));
                }
            }
            b"message" => {
                if let (Some(text), Some(error)) = (reader.text()?, &mut self.error)
                    && error.is_empty()
                {
                    *error = bounded(&text.decode());
                }
            }
            b"prompt_text" => self.nulls |= !reader.present()?,
            b"token_ids" | b"prompt_token_ids" => self.token_ids(data, reader, key)?,
            _ => reader.skip()?,
        }
        Ok(())
    }

    fn choice<'a>(&mut self, data: &'a [u8], reader: &mut Reader<'a>) -> Result<(), Malformed> {
        let (mut index, mut finish) = (0, Finish::None);
        reader.members(|reader, key| {
            match key.name().as_ref() {
                b"index" => index = reader.unsigned()?.unwrap_or(u64::MAX),
                b"text" => self.text = reader.text()?.map(|text| text.inside()).or(self.text.take()),
                b"delta" => reader.members(|reader, key| self.delta(reader, &key))?,
                b"finish_reason" => {
                    if let Some(text) = reader.text()? {
                        finish = Finish::parse(&text.decode());
                        self.word = Some(text.literal());
                    }
                }
                b"stop_reason" => {
                    self.stop = value(reader)?;
                    self.nulls |= self.stop.is_none();
                }
                // SGLang's name for it; a number is a token.
                b"matched_stop" if reader.peek()? == b'"' => self.stop = value(reader)?,
                b"matched_stop" => self.nulls |= !reader.present()?,
                b"logprobs" => {
                    self.logprobs = value(reader)?;
                    self.no_logprobs |= self.logprobs.is_none();
                }
                b"token_ids" | b"prompt_token_ids" => self.token_ids(data, reader, &key)?,
                _ => reader.skip()?,
            }
            Ok(())
        })?;
        self.choices.push((index, finish));
        if self.finish == Finish::None || matches!(finish, Finish::Abort | Finish::Error) {
            self.finish = finish;
        }
        Ok(())
    }

    fn delta<'a>(&mut self, reader: &mut Reader<'a>, key: &Text<'a>) -> Result<(), Malformed> {
        match key.name().as_ref() {
            b"role" => self.role |= reader.present()?,
            b"content" => self.text = reader.text()?.map(|text| text.inside()).or(self.text.take()),
            name => {
                let said = !matches!(reader.peek()?, b'n');
                let start = reader.offset();
                let kind = reader.peek()?;
                reader.skip()?;
                let empty = matches!(kind, b'"' | b'[' | b'{') && reader.offset() - start == 2;
                if said {
                    self.others.push((key.literal(), start..reader.offset()));
                }
                if said && !empty {
                    match name {
                        b"reasoning" | b"reasoning_content" => self.reasoning = true,
                        b"tool_calls" | b"function_call" => self.tools = true,
                        _ => {}
                    }
                }
            }
        }
        Ok(())
    }

    fn token_ids<'a>(&mut self, data: &[u8], reader: &mut Reader<'a>, key: &Text<'a>) -> Result<(), Malformed> {
        let array = reader.peek()? == b'[';
        let start = reader.offset();
        reader.skip()?;
        if !array {
            self.nulls = true;
            return Ok(());
        }
        let end = reader.offset();
        let taken = self.taken().map(|ids| ids.member.end).max().unwrap_or(0);
        let ids = Ids { member: whole_member(data, key.literal().start..end, taken), value: start..end };
        if key.is(b"token_ids") {
            self.ids = Some(ids);
        } else {
            self.prompt = Some(ids);
        }
        Ok(())
    }

    /// The arrays of ids in it.
    pub(crate) fn taken(&self) -> impl Iterator<Item = &Ids> {
        self.ids.iter().chain(&self.prompt)
    }

    /// It says nothing: without ids asked for, an engine would not have sent it.
    pub(crate) fn is_bare(&self) -> bool {
        !self.choices.is_empty()
            && self.text.is_none()
            && !self.role
            && self.others.is_empty()
            && self.word.is_none()
            && self.logprobs.is_none()
            && self.prompt.is_none()
            && self.usage.is_none()
    }

    /// Text and nothing else: the next one may be compared with it.
    pub(crate) fn is_ordinary(&self) -> bool {
        matches!(self.choices[..], [(0, Finish::None)])
            && self.text.is_some()
            && self.word.is_none()
            && !self.reasoning
            && !self.tools
            && self.logprobs.is_none()
            && self.prompt.is_none()
            && self.usage.is_none()
            && self.error.is_none()
    }
}

/// The range of a member, with the comma that goes when it does. `taken`: up to there all is gone already.
fn whole_member(data: &[u8], member: Range<usize>, taken: usize) -> Range<usize> {
    let before = data[..member.start].iter().rposition(|byte| !byte.is_ascii_whitespace());
    if let Some(comma) = before.filter(|at| data[*at] == b',' && *at >= taken) {
        return comma..member.end;
    }
    let behind = data[member.end..].iter().position(|byte| !byte.is_ascii_whitespace());
    match behind.map(|at| member.end + at) {
        Some(comma) if data[comma] == b',' => member.start..comma + 1,
        _ => member,
    }
}

/// Any value's range; `None` for `null`.
pub(super) fn value(reader: &mut Reader<'_>) -> Result<Option<Range<usize>>, Malformed> {
    let null = reader.peek()? == b'n';
    let start = reader.offset();
    reader.skip()?;
    Ok((!null).then_some(start..reader.offset()))
}

fn usage(reader: &mut Reader<'_>) -> Result<Option<Told>, Malformed> {
    let (mut told, mut any) = (Told::default(), false);
    reader.members(|reader, key| {
        match key.name().as_ref() {
            b"prompt_tokens" => told.input = counted(reader, &mut any)?,
            b"completion_tokens" => told.output = counted(reader, &mut any)?,
            b"prompt_tokens_details" => reader.members(|reader, key| {
                if key.is(b"cached_tokens") {
                    told.cached = reader.unsigned()?;
                    return Ok(());
                }
                reader.skip()
            })?,
            _ => reader.skip()?,
        }
        Ok(())
    })?;
    Ok(any.then_some(told))
}

fn counted(reader: &mut Reader<'_>, any: &mut bool) -> Result<u64, Malformed> {
    let count = reader.unsigned()?;
    *any |= count.is_some();
    Ok(count.unwrap_or(0))
}

/// An error's message: `error.message`, or `error` where it is a string. `null` is none.
pub(super) fn error<'a>(data: &'a [u8], reader: &mut Reader<'a>) -> Result<Option<String>, Malformed> {
    match reader.peek()? {
        b'n' | b'f' => reader.skip().map(|()| None),
        b'"' => Ok(reader.text()?.map(|text| bounded(&text.decode()))),
        b'{' => {
            let start = reader.offset();
            let mut message = None;
            reader.members(|reader, key| {
                if key.is(b"message") {
                    message = reader.text()?.map(|text| bounded(&text.decode()));
                    return Ok(());
                }
                reader.skip()
            })?;
            let whole = || bounded(&decode(&data[start..reader.offset()]));
            Ok(Some(message.unwrap_or_else(whole)))
        }
        _ => reader.skip().map(|()| Some(String::new())),
    }
}

pub(super) fn bounded(message: &str) -> String {
    message[..message.floor_char_boundary(MESSAGE)].to_owned()
}

/// A raw value as it may stand in one line of data. JSON has line ends between its tokens alone.
pub(super) fn one_line(raw: &[u8]) -> Cow<'_, [u8]> {
    if memchr::memchr2(b'\n', b'\r', raw).is_none() {
        return Cow::Borrowed(raw);
    }
    raw.iter().map(|byte| if matches!(byte, b'\n' | b'\r') { b' ' } else { *byte }).collect::<Vec<_>>().into()
}

/// The inside of a string literal that is one: control characters, which JSON forbids there, are escaped.
pub(in crate::proxy::resume) fn literal(raw: &[u8]) -> Cow<'_, [u8]> {
    if raw.iter().all(|byte| *byte >= 0x20) {
        return Cow::Borrowed(raw);
    }
    let mut out = Vec::with_capacity(raw.len() + 8);
    write_string(&mut out, &decode(raw));
    out.pop();
    out.remove(0);
    out.into()
}
