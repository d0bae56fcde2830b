//! Token counts and finish reasons, from any dialect's answer.
//!
//! [`of_answer`] reads a plain JSON answer; [`StreamMeter`] watches a stream go by and also says whether it was whole.

use std::sync::LazyLock;

use memchr::memmem;

use super::{
    endpoint::{Dialect, Endpoint},
    json::{Malformed, Reader, Text},
};

pub mod ask;
mod meter;

#[cfg(test)]
mod tests;

pub use meter::{Alike, StreamMeter};

/// Tokens of one answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Prompt tokens, cached ones included.
    pub input: u32,
    /// Generated tokens, reasoning included.
    pub output: u32,
    /// Input tokens that the engine had in its prefix cache.
    pub cached: u32,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Finish {
    /// It did not say.
    #[default]
    None,
    /// The model ended its turn, or a stop string came.
    Stop,
    /// A token limit was reached.
    Length,
    /// It wants a tool called.
    ToolCalls,
    /// A filter or a refusal ended it.
    ContentFilter,
    /// The engine gave it up: shutdown, sleep, the client's leaving.
    Abort,
    /// The engine failed.
    Error,
    /// A reason of its own (`repetition`, …).
    Other,
}

impl Finish {
    /// The reason's word in any dialect: `finish_reason`, `stop_reason`, `done_reason`, `stop_type`.
    pub fn parse(word: &str) -> Self {
        match word {
            "" => Self::None,
            "stop" | "end_turn" | "stop_sequence" | "eos" | "eos_token" | "word" | "completed" => Self::Stop,
            "length" | "max_tokens" | "max_output_tokens" | "limit" | "model_context_window_exceeded" => Self::Length,
            "tool_calls" | "function_call" | "tool_use" => Self::ToolCalls,
            "content_filter" | "refusal" => Self::ContentFilter,
            "abort" | "cancelled" => Self::Abort,
            "error" | "failed" => Self::Error,
            _ => Self::Other,
        }
    }

    /// The word that logs and metrics show.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Stop => "stop",
            Self::Length => "length",
            Self::ToolCalls => "tool_calls",
            Self::ContentFilter => "content_filter",
            Self::Abort => "abort",
            Self::Error => "error",
            Self::Other => "other",
        }
    }

    /// Whether the answer came to an end of its own.
    pub fn is_real(self) -> bool {
        !matches!(self, Self::None | Self::Abort | Self::Error)
    }

    /// Of several choices' reasons the one that tells most: a failure, else the first that came.
    fn join(self, other: Self) -> Self {
        if self == Self::None || (self.is_real() && matches!(other, Self::Abort | Self::Error)) { other } else { self }
    }
}

/// Reads tokens and finish reason off a whole JSON answer of `endpoint` (for [`Endpoint::Passthrough`]: of whichever
/// shape it has). What is absent or not JSON counts nothing.
///
/// Embeddings, rerank and score answers are long arrays of numbers with the usage at one end, chat answers long texts:
/// there it is looked for from the end, without reading the rest.
pub fn of_answer(endpoint: Endpoint, body: &[u8]) -> (Usage, Finish) {
    let numbers = matches!(endpoint, Endpoint::Embeddings | Endpoint::Rerank | Endpoint::Score);
    if numbers && let Some(usage) = trailing_usage(body) {
        return (usage, Finish::None);
    }
    if matches!(endpoint, Endpoint::Chat | Endpoint::Completions)
        && let Some(usage) = trailing_usage(body)
    {
        return (usage, finish_reasons(body));
    }
    if matches!(endpoint, Endpoint::Models | Endpoint::Model | Endpoint::CountTokens) {
        return Default::default();
    }
    let mut facts = Facts::default();
    match facts.read(&mut Reader::new(body)) {
        Ok(()) => (facts.usage(), facts.finish),
        Err(_) => Default::default(),
    }
}

/// The top-level `usage` when it is among the last members, found from the end.
///
/// In JSON text, `"usage"` without a backslash before it and with a colon behind is a member's name at some level:
/// inside a string both quotes would be escaped. It is a top-level member if the value and the members after it are
/// followed by one closing brace and the end.
fn trailing_usage(body: &[u8]) -> Option<Usage> {
    let at = USAGE.rfind(body)?;
    let mut reader = value_of_name(body, at, USAGE.needle().len())?;
    let mut counts = Counts::default();
    counts.read(&mut reader).ok()?;
    reader.further_members().ok()?;
    reader.finish().ok()?;
    Some(counts.usage())
}

/// The reasons of all choices, wherever they stand: the APIs have a member of this name nowhere else.
fn finish_reasons(body: &[u8]) -> Finish {
    let name = FINISH_REASON.needle().len();
    FINISH_REASON
        .find_iter(body)
        .filter_map(|at| value_of_name(body, at, name)?.text().ok()?)
        .fold(Finish::None, |finish, word| finish.join(Finish::parse(&word.decode())))
}

/// Stands at the value of the member whose quoted name of `length` bytes is at `at`; `None` when it is no name.
fn value_of_name(body: &[u8], at: usize, length: usize) -> Option<Reader<'_>> {
    if at == 0 || body[at - 1] == b'\\' {
        return None;
    }
    let mut reader = Reader::from(body, at + length);
    (reader.peek().ok()? == b':').then(|| Reader::from(body, reader.offset() + 1))
}

/// Made once: a searcher costs more to make than to use on a short answer.
static USAGE: LazyLock<memmem::FinderRev<'static>> = LazyLock::new(|| memmem::FinderRev::new(b"\"usage\""));
static FINISH_REASON: LazyLock<memmem::Finder<'static>> = LazyLock::new(|| memmem::Finder::new(b"\"finish_reason\""));

/// The members of a `usage` object in any dialect.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    input: Option<u64>,
    output: Option<u64>,
    cached: Option<u64>,
    /// Anthropic's: counted beside `input_tokens`, not in it.
    cache_read: u64,
    cache_written: u64,
}

impl Counts {
    fn read(&mut self, reader: &mut Reader<'_>) -> Result<(), Malformed> {
        reader.members(|reader, key| {
            match key.name().as_ref() {
                b"prompt_tokens" | b"input_tokens" => keep(&mut self.input, reader.unsigned()?),
                b"completion_tokens" | b"output_tokens" => keep(&mut self.output, reader.unsigned()?),
                b"prompt_tokens_details" | b"input_tokens_details" => reader.members(|reader, key| {
                    if key.is(b"cached_tokens") {
                        keep(&mut self.cached, reader.unsigned()?);
                        return Ok(());
                    }
                    reader.skip()
                })?,
                b"cache_read_input_tokens" => self.cache_read = reader.unsigned()?.unwrap_or(self.cache_read),
                b"cache_creation_input_tokens" => {
                    self.cache_written = reader.unsigned()?.unwrap_or(self.cache_written);
                }
                _ => reader.skip()?,
            }
            Ok(())
        })
    }

    fn usage(&self) -> Usage {
        let beside = self.cache_read.saturating_add(self.cache_written);
        Usage {
            input: narrow(self.input.unwrap_or(0).saturating_add(beside)),
            output: narrow(self.output.unwrap_or(0)),
            cached: narrow(self.cached.unwrap_or(self.cache_read)),
        }
    }

    fn any(&self) -> bool {
        self.input.is_some() || self.output.is_some()
    }
}

/// What one answer, or one event of a stream, says. Every dialect's members are looked for at once: no name means two
/// things.
#[derive(Debug, Default)]
struct Facts<'a> {
    counts: Counts,
    /// llama.cpp's `timings` or Ollama's counts; `usage` goes before them.
    timings: Counts,
    finish: Finish,
    /// A top-level `error` that is not null.
    error: bool,
    /// Ollama's `done`, llama.cpp's `stop`.
    done: bool,
    /// Text or reasoning came.
    text: bool,
    /// A tool call, or a piece of one, came.
    tools: bool,
    /// Entries of `choices`.
    choices: usize,
    /// Of the last entry: its index and reason.
    choice: Choice,
    /// `type`
    kind: Option<Text<'a>>,
    /// `sequence_number`
    sequence: Option<u64>,
    /// The one string that differs from event to event: inside its quotes.
    delta: Option<std::ops::Range<usize>>,
    deltas: usize,
}

#[derive(Clone, Copy, Debug, Default)]
struct Choice {
    index: u64,
    finish: Finish,
}

impl<'a> Facts<'a> {
    fn read(&mut self, reader: &mut Reader<'a>) -> Result<(), Malformed> {
        self.read_with(reader, &mut |_| ())
    }

    /// Reads a whole text; `on_choice` gets each entry of `choices`.
    fn read_with(&mut self, reader: &mut Reader<'a>, on_choice: &mut dyn FnMut(Choice)) -> Result<(), Malformed> {
        reader.members(|reader, key| self.member(reader, key, on_choice))?;
        reader.finish()
    }

    fn member(
        &mut self,
        reader: &mut Reader<'a>,
        key: Text<'a>,
        on_choice: &mut dyn FnMut(Choice),
    ) -> Result<(), Malformed> {
        match key.name().as_ref() {
            b"choices" => reader.elements(|reader| {
                self.choice = Choice::default();
                reader.members(|reader, key| self.choice_member(reader, key))?;
                self.choices += 1;
                on_choice(self.choice);
                Ok(())
            })?,
            b"usage" => self.counts.read(reader)?,
            b"timings" => self.read_timings(reader)?,
            b"error" => self.error |= reader.present()?,
            b"type" => self.kind = reader.text()?,
            b"sequence_number" => self.sequence = reader.unsigned()?,
            b"stop_reason" | b"done_reason" | b"stop_type" => self.reason(reader)?,
            b"done" | b"stop" => self.done |= reader.boolean()? == Some(true),
            // Ollama's chat holds its text in `message`; Anthropic's `message_start` and the Responses API's terminal
            // events hold the answer in `message` and `response`.
            b"message" | b"response" if reader.peek()? == b'{' => {
                reader.members(|reader, key| self.inner_member(reader, key))?;
            }
            // The native streams of Ollama (`response`), llama.cpp (`content`).
            b"response" | b"content" | b"thinking" if reader.peek()? == b'"' => self.delta_text(reader)?,
            b"prompt_eval_count" => keep(&mut self.timings.input, reader.unsigned()?),
            b"eval_count" => keep(&mut self.timings.output, reader.unsigned()?),
            // Anthropic's `content_block_delta` and `message_delta`; a string in the Responses API.
            b"delta" if reader.peek()? == b'{' => reader.members(|reader, key| self.delta_member(reader, key))?,
            b"delta" => self.delta_text(reader)?,
            b"status" | b"incomplete_details" | b"output" => self.response_member(reader, key)?,
            _ => reader.skip()?,
        }
        Ok(())
    }

    fn choice_member(&mut self, reader: &mut Reader<'a>, key: Text<'a>) -> Result<(), Malformed> {
        match key.name().as_ref() {
            b"index" => self.choice.index = reader.unsigned()?.unwrap_or(0),
            b"finish_reason" => {
                if let Some(text) = reader.text()? {
                    self.choice.finish = Finish::parse(&text.decode());
                    self.finish = self.finish.join(self.choice.finish);
                }
            }
            b"delta" if reader.peek()? == b'{' => reader.members(|reader, key| self.delta_member(reader, key))?,
            b"text" => self.delta_text(reader)?,
            _ => reader.skip()?,
        }
        Ok(())
    }

    fn delta_member(&mut self, reader: &mut Reader<'a>, key: Text<'a>) -> Result<(), Malformed> {
        match key.name().as_ref() {
            b"content" | b"reasoning" | b"reasoning_content" | b"refusal" | b"text" | b"thinking" | b"partial_json" => {
                self.delta_text(reader)?
            }
            b"tool_calls" | b"function_call" => self.tools |= reader.present()?,
            b"stop_reason" => self.reason(reader)?,
            _ => reader.skip()?,
        }
        Ok(())
    }

    /// Members of Ollama's `message`, Anthropic's `message`, the Responses API's `response`.
    fn inner_member(&mut self, reader: &mut Reader<'a>, key: Text<'a>) -> Result<(), Malformed> {
        match key.name().as_ref() {
            b"usage" => self.counts.read(reader)?,
            b"status" | b"incomplete_details" | b"output" => self.response_member(reader, key)?,
            b"stop_reason" => self.reason(reader)?,
            b"content" | b"thinking" | b"tool_calls" => self.delta_member(reader, key)?,
            _ => reader.skip()?,
        }
        Ok(())
    }

    /// The Responses API tells its end in three places: `status`, why it is incomplete, and calls among the output.
    fn response_member(&mut self, reader: &mut Reader<'a>, key: Text<'a>) -> Result<(), Malformed> {
        match key.name().as_ref() {
            b"status" => {
                if let Some(text) = reader.text()? {
                    let word = text.decode();
                    if matches!(word.as_ref(), "completed" | "failed" | "cancelled") {
                        self.finish = self.finish.join(Finish::parse(&word));
                    }
                }
            }
            b"incomplete_details" => reader.members(|reader, key| {
                if !key.is(b"reason") {
                    return reader.skip();
                }
                if let Some(text) = reader.text()? {
                    self.finish = Finish::parse(&text.decode());
                }
                Ok(())
            })?,
            _ => reader.elements(|reader| {
                reader.members(|reader, key| {
                    if !key.is(b"type") {
                        return reader.skip();
                    }
                    if reader.text()?.is_some_and(|text| text.is(b"function_call"))
                        && matches!(self.finish, Finish::None | Finish::Stop)
                    {
                        self.finish = Finish::ToolCalls;
                    }
                    Ok(())
                })
            })?,
        }
        Ok(())
    }

    fn reason(&mut self, reader: &mut Reader<'a>) -> Result<(), Malformed> {
        if let Some(text) = reader.text()? {
            let word = text.decode();
            if word != "none" {
                self.finish = self.finish.join(Finish::parse(&word));
            }
        }
        Ok(())
    }

    fn delta_text(&mut self, reader: &mut Reader<'a>) -> Result<(), Malformed> {
        if let Some(text) = reader.text()? {
            self.text |= !text.is_empty();
            self.delta = Some(text.inside());
            self.deltas += 1;
        }
        Ok(())
    }

    /// llama.cpp: the prompt is what it had cached and what it read.
    fn read_timings(&mut self, reader: &mut Reader<'a>) -> Result<(), Malformed> {
        let (mut cached, mut read) = (0, 0_u64);
        reader.members(|reader, key| {
            match key.name().as_ref() {
                b"cache_n" => cached = reader.unsigned()?.unwrap_or(0),
                b"prompt_n" => read = reader.unsigned()?.unwrap_or(0),
                b"predicted_n" => keep(&mut self.timings.output, reader.unsigned()?),
                _ => reader.skip()?,
            }
            Ok(())
        })?;
        self.timings.input = Some(read.saturating_add(cached));
        self.timings.cached = Some(cached);
        Ok(())
    }

    fn usage(&self) -> Usage {
        if self.counts.any() { self.counts.usage() } else { self.timings.usage() }
    }
}

/// A later count goes before an earlier one; `null` and other types say nothing.
fn keep(slot: &mut Option<u64>, value: Option<u64>) {
    if value.is_some() {
        *slot = value;
    }
}

fn narrow(count: u64) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// Whether streams of `endpoint` say their own end, so that its absence is a cut.
fn tells_its_end(endpoint: Endpoint, dialect: Dialect) -> bool {
    dialect == Dialect::Ollama
        || matches!(
            endpoint,
            Endpoint::Chat | Endpoint::Completions | Endpoint::Responses | Endpoint::Response | Endpoint::Messages
        )
}
