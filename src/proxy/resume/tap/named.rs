//! One event of a responses or messages stream, read.

use std::ops::Range;

use super::chunk::{bounded, error, value};
use crate::protocol::{
    json::{Malformed, Reader, Text},
    usage::Usage,
};

/// What an event says. Ranges are into its data.
#[derive(Debug, Default)]
pub(super) struct Named<'a> {
    /// Its `type`.
    pub(super) kind: Option<Text<'a>>,
    /// Where the digits of `sequence_number` lie, and what they say.
    pub(super) sequence: Option<(Range<usize>, u64)>,
    pub(super) item_id: Option<Range<usize>>,
    pub(super) output_index: Option<u64>,
    pub(super) content_index: Option<u64>,
    /// Messages: the block's index.
    pub(super) index: Option<u64>,
    /// The inside of the literal: `delta` (responses), `delta.text` (messages).
    pub(super) text: Option<Range<usize>>,
    pub(super) delta_kind: Option<Text<'a>>,
    pub(super) stop_reason: Option<Text<'a>>,
    pub(super) stop_sequence: Option<Text<'a>>,
    /// `item`, `part`, `content_block`, `message`, `response`: whichever it has.
    pub(super) object: Option<Range<usize>>,
    pub(super) object_kind: Option<Text<'a>>,
    pub(super) id: Option<Range<usize>>,
    pub(super) model: Option<Range<usize>>,
    pub(super) created: Option<Range<usize>>,
    pub(super) usage: Option<Usage>,
    pub(super) incomplete: Option<Text<'a>>,
    pub(super) logprobs: bool,
    pub(super) error: Option<String>,
}

impl<'a> Named<'a> {
    pub(super) fn read(data: &'a [u8]) -> Result<Self, Malformed> {
        let mut named = Self::default();
        let mut reader = Reader::new(data);
        if reader.peek()? != b'{' {
            return Err(reader.fail("an object is expected"));
        }
        let mut message = None;
        reader.members(|reader, key| {
            if key.is(b"message") && reader.peek()? == b'"' {
                message = reader.text()?;
                return Ok(());
            }
            named.member(data, reader, &key)
        })?;
        reader.finish()?;
        let failed = named.kind.is_some_and(|kind| kind.is(b"error") || kind.is(b"response.failed"));
        if failed && named.error.as_ref().is_none_or(String::is_empty) {
            named.error = Some(message.map(|text| bounded(&text.decode())).unwrap_or_default());
        }
        Ok(named)
    }

    fn member(&mut self, data: &'a [u8], reader: &mut Reader<'a>, key: &Text<'a>) -> Result<(), Malformed> {
        match key.name().as_ref() {
            b"type" => self.kind = reader.text()?,
            b"sequence_number" => {
                reader.peek()?;
                let start = reader.offset();
                self.sequence = reader.unsigned()?.map(|number| (start..reader.offset(), number));
            }
            b"item_id" => self.item_id = value(reader)?,
            b"output_index" => self.output_index = reader.unsigned()?,
            b"content_index" => self.content_index = reader.unsigned()?,
            b"index" => self.index = reader.unsigned()?,
            b"delta" if reader.peek()? == b'"' => self.text = reader.text()?.map(|text| text.inside()),
            b"delta" => reader.members(|reader, key| self.delta(reader, &key))?,
            b"usage" => self.usage = usage(reader)?.or(self.usage),
            b"logprobs" => reader.elements(|reader| {
                self.logprobs = true;
                reader.skip()
            })?,
            b"error" => self.error = error(data, reader)?.or(self.error.take()),
            name @ (b"item" | b"part" | b"content_block" | b"message" | b"response") => {
                // An item (a call to a tool) may have failed, and the answer goes on.
                let whole = name == b"response";
                reader.peek()?;
                let start = reader.offset();
                reader.members(|reader, key| match key.name().as_ref() {
                    b"error" if !whole => reader.skip(),
                    _ => self.inner(data, reader, &key),
                })?;
                self.object = Some(start..reader.offset());
            }
            _ => reader.skip()?,
        }
        Ok(())
    }

    fn delta(&mut self, reader: &mut Reader<'a>, key: &Text<'a>) -> Result<(), Malformed> {
        match key.name().as_ref() {
            b"type" => self.delta_kind = reader.text()?,
            b"text" => self.text = reader.text()?.map(|text| text.inside()),
            b"stop_reason" => self.stop_reason = reader.text()?,
            b"stop_sequence" => self.stop_sequence = reader.text()?,
            _ => reader.skip()?,
        }
        Ok(())
    }

    fn inner(&mut self, data: &'a [u8], reader: &mut Reader<'a>, key: &Text<'a>) -> Result<(), Malformed> {
        match key.name().as_ref() {
            b"type" => self.object_kind = reader.text()?,
            b"id" => self.id = value(reader)?,
            b"model" => self.model = value(reader)?,
            b"created_at" => self.created = value(reader)?,
            b"usage" => self.usage = usage(reader)?,
            b"error" => self.error = error(data, reader)?,
            b"incomplete_details" => reader.members(|reader, key| {
                if key.is(b"reason") {
                    self.incomplete = reader.text()?;
                    return Ok(());
                }
                reader.skip()
            })?,
            _ => reader.skip()?,
        }
        Ok(())
    }
}

/// Input, output and cached tokens of either dialect; cached ones count into Anthropic's input.
fn usage(reader: &mut Reader<'_>) -> Result<Option<Usage>, Malformed> {
    let (mut input, mut output, mut cached, mut beside) = (None, None, None, 0);
    reader.members(|reader, key| {
        match key.name().as_ref() {
            b"input_tokens" => input = reader.unsigned()?,
            b"output_tokens" => output = reader.unsigned()?,
            b"cache_read_input_tokens" => {
                let read = reader.unsigned()?;
                beside = read.unwrap_or(0).saturating_add(beside);
                cached = read.or(cached);
            }
            b"cache_creation_input_tokens" => beside = reader.unsigned()?.unwrap_or(0).saturating_add(beside),
            b"input_tokens_details" => reader.members(|reader, key| {
                if key.is(b"cached_tokens") {
                    cached = reader.unsigned()?.or(cached);
                    return Ok(());
                }
                reader.skip()
            })?,
            _ => reader.skip()?,
        }
        Ok(())
    })?;
    let narrow = |count: u64| u32::try_from(count).unwrap_or(u32::MAX);
    Ok((input.is_some() || output.is_some()).then(|| Usage {
        input: narrow(input.unwrap_or(0).saturating_add(beside)),
        output: narrow(output.unwrap_or(0)),
        cached: narrow(cached.unwrap_or(0)),
    }))
}
