//! Reads an answer as far as is needed to know that it is whole and good.

use memchr::memchr_iter;

use super::Reason;
use crate::protocol::{
    endpoint::Endpoint,
    json::{Malformed, Reader, Text},
    sse::Event,
    usage::Finish,
};

/// What was seen of one answer.
#[derive(Debug)]
pub(super) struct Content {
    kind: Kind,
    choices: Choices,
    /// The dialect's own last event, or `[DONE]`.
    end: End,
    refused: Option<Reason>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Chat and completions.
    Choices,
    Responses,
    Messages,
    /// Embeddings, rerank, score: no error, no more is asked of it.
    Vectors,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum End {
    #[default]
    Open,
    /// Every choice ended, or the dialect's last event came.
    Said,
    /// `[DONE]`
    Done,
}

/// Which choices began and which ended for a real reason, by index.
#[derive(Debug, Default)]
struct Choices {
    began: u128,
    ended: u128,
}

impl Content {
    /// `None` for endpoints whose answers are not kept.
    pub(super) fn of(endpoint: Endpoint) -> Option<Self> {
        let kind = match endpoint {
            Endpoint::Chat | Endpoint::Completions => Kind::Choices,
            Endpoint::Responses => Kind::Responses,
            Endpoint::Messages => Kind::Messages,
            Endpoint::Embeddings | Endpoint::Rerank | Endpoint::Score => Kind::Vectors,
            _ => return None,
        };
        Some(Self { kind, choices: Choices::default(), end: End::default(), refused: None })
    }

    /// A plain answer.
    pub(super) fn plain(&mut self, body: &[u8]) -> Result<(), Reason> {
        let mut seen = Seen::default();
        self.read(body, &mut seen)?;
        let whole = match self.kind {
            Kind::Choices => self.choices.all_ended(),
            Kind::Responses => seen.status,
            Kind::Messages => seen.stop && !seen.is_error,
            Kind::Vectors => true,
        };
        if whole { Ok(()) } else { Err("unfinished") }
    }

    /// The next event of a stream.
    pub(super) fn event(&mut self, event: Event<'_>) -> Result<(), Reason> {
        if event.name == b"error" {
            return Err("error");
        }
        if event.data == b"[DONE]" {
            // A choice that has not ended by now never will.
            return if std::mem::replace(&mut self.end, End::Done) == End::Done { Err("after-end") } else { Ok(()) };
        }
        if self.end != End::Open {
            return Err("after-end");
        }
        let mut seen = Seen { in_stream: true, ..Seen::default() };
        self.read(event.data, &mut seen)?;
        match self.kind {
            Kind::Choices if !seen.choices => Err("unknown-event"),
            Kind::Responses | Kind::Messages => self.named(&seen),
            _ => Ok(()),
        }
    }

    /// The stream's bytes are over.
    pub(super) fn ended(&self) -> Result<(), Reason> {
        let whole = match self.kind {
            Kind::Choices => self.end == End::Done && self.choices.all_ended(),
            _ => self.end != End::Open,
        };
        if whole { Ok(()) } else { Err("unfinished") }
    }

    /// An event that tells its kind.
    fn named(&mut self, seen: &Seen) -> Result<(), Reason> {
        match (self.kind, seen.kind) {
            (_, Type::None) => return Err("unknown-event"),
            (_, Type::Error) => return Err("error"),
            (Kind::Responses, Type::Last) if !seen.status => return Err("unfinished"),
            (Kind::Messages, Type::Last) if self.choices.ended == 0 => return Err("unfinished"),
            (_, Type::Last) => self.end = End::Said,
            // Anthropic tells the reason one event before the last.
            (_, Type::Other) => self.choices.ended |= u128::from(seen.stop),
        }
        Ok(())
    }

    /// One JSON object, to its end.
    fn read(&mut self, json: &[u8], seen: &mut Seen) -> Result<(), Reason> {
        if !sound_strings(json) {
            return Err("json");
        }
        let mut reader = Reader::new(json);
        let read = match (reader.peek(), self.kind) {
            (Ok(b'{'), _) => reader.members(|reader, key| self.member(reader, key, seen)),
            // SGLang's rerank is a bare list.
            (Ok(b'['), Kind::Vectors) => reader.skip(),
            _ => return Err("json"),
        };
        let read = read.and_then(|()| reader.finish());
        match self.refused.take() {
            Some(reason) => Err(reason),
            None => read.map_err(|_| "json"),
        }
    }

    fn member<'a>(&mut self, reader: &mut Reader<'a>, key: Text<'a>, seen: &mut Seen) -> Result<(), Malformed> {
        match (self.kind, key.name().as_ref()) {
            (_, b"error") => {
                if reader.present()? {
                    self.refused = Some("error");
                }
            }
            // vLLM's errors used to say what they are here.
            (_, b"object") => {
                if reader.text()?.is_some_and(|text| text.is(b"error")) {
                    self.refused = Some("error");
                }
            }
            (Kind::Choices, b"choices") => {
                // Readers differ in which of two members they take.
                if std::mem::replace(&mut seen.choices, true) {
                    self.refused = Some("duplicate");
                }
                reader.elements(|reader| self.choice(reader))?;
            }
            (Kind::Responses | Kind::Messages, b"type") => {
                if let Some(text) = reader.text()? {
                    seen.kind = Type::of(&text.decode());
                    seen.is_error = seen.kind == Type::Error;
                }
            }
            (Kind::Responses, b"status") => seen.status = self.status(reader)?,
            // Nested in the stream's events; a plain answer is the response itself.
            (Kind::Responses, b"response") if seen.in_stream => reader.members(|reader, key| {
                match key.name().as_ref() {
                    b"status" => seen.status = self.status(reader)?,
                    b"error" if reader.peek()? != b'n' => self.refused = Some("error"),
                    _ => {}
                }
                if key.is(b"status") { Ok(()) } else { reader.skip() }
            })?,
            (Kind::Messages, b"stop_reason") => seen.stop = self.reason(reader)?,
            (Kind::Messages, b"delta") if seen.in_stream && reader.peek()? == b'{' => {
                reader.members(|reader, key| {
                    if !key.is(b"stop_reason") {
                        return reader.skip();
                    }
                    seen.stop = self.reason(reader)?;
                    Ok(())
                })?;
            }
            _ => reader.skip()?,
        }
        Ok(())
    }

    fn choice(&mut self, reader: &mut Reader<'_>) -> Result<(), Malformed> {
        if reader.peek()? != b'{' {
            self.refused = Some("json");
        }
        let (mut index, mut ended) = (0, false);
        reader.members(|reader, key| {
            match key.name().as_ref() {
                b"index" => index = reader.unsigned()?.unwrap_or(u64::MAX),
                b"finish_reason" => ended |= self.reason(reader)?,
                b"error" if reader.peek()? != b'n' => {
                    self.refused = Some("error");
                    reader.skip()?;
                }
                _ => reader.skip()?,
            }
            Ok(())
        })?;
        if !self.choices.saw(index, ended) {
            self.refused = Some("too-many-choices");
        }
        Ok(())
    }

    /// Whether a reason is there; one that means failure refuses the answer.
    fn reason(&mut self, reader: &mut Reader<'_>) -> Result<bool, Malformed> {
        let Some(text) = reader.text()? else { return Ok(false) };
        let finish = Finish::parse(&text.decode());
        if matches!(finish, Finish::Abort | Finish::Error) {
            self.refused = Some("aborted");
        }
        Ok(finish.is_real())
    }

    /// Whether a response ended well; `failed` and `cancelled` refuse it.
    fn status(&mut self, reader: &mut Reader<'_>) -> Result<bool, Malformed> {
        let Some(text) = reader.text()? else { return Ok(false) };
        let word = text.decode();
        if matches!(word.as_ref(), "failed" | "cancelled") {
            self.refused = Some("aborted");
        }
        Ok(matches!(word.as_ref(), "completed" | "incomplete"))
    }
}

/// What one JSON object said.
#[derive(Debug, Default)]
struct Seen {
    in_stream: bool,
    choices: bool,
    kind: Type,
    is_error: bool,
    /// A `status` that is an end.
    status: bool,
    /// A real `stop_reason`.
    stop: bool,
}

/// What an event's `type` means for the end of its stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Type {
    #[default]
    None,
    Last,
    Error,
    Other,
}

impl Type {
    fn of(word: &str) -> Self {
        match word {
            "" => Self::None,
            "message_stop" | "response.completed" | "response.incomplete" => Self::Last,
            "error" | "response.failed" | "response.cancelled" => Self::Error,
            _ => Self::Other,
        }
    }
}

impl Choices {
    /// `false` for an index beyond those that are told apart.
    fn saw(&mut self, index: u64, ended: bool) -> bool {
        let Some(bit) = u32::try_from(index).ok().and_then(|index| 1_u128.checked_shl(index)) else { return false };
        self.began |= bit;
        if ended {
            self.ended |= bit;
        }
        true
    }

    /// There is a first, none is left out, and each has ended.
    fn all_ended(&self) -> bool {
        self.began != 0 && self.began & self.began.wrapping_add(1) == 0 && self.began == self.ended
    }
}

/// Whether every string of a text whose structure is RFC 8259's is, too: known escapes, no bare control characters. The
/// [`Reader`] leaves that to the engines; what is kept must parse everywhere.
fn sound_strings(json: &[u8]) -> bool {
    // Compact JSON has no control character at all, and outside strings the reader refuses all but white space.
    // The least byte of all, not the first that is low: this compiles to vector instructions.
    let least = json.iter().fold(u8::MAX, |least, &byte| least.min(byte));
    escapes(json) && (least >= b' ' || no_control_inside_strings(json))
}

/// Backslashes stand in strings only, and each starts an escape or is the second half of one.
fn escapes(json: &[u8]) -> bool {
    let mut after = 0;
    memchr_iter(b'\\', json).all(|at| {
        if at < after {
            return true;
        }
        after = at + 2;
        match json.get(at + 1) {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => true,
            Some(b'u') => json.get(at + 2..at + 6).is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit)),
            _ => false,
        }
    })
}

fn no_control_inside_strings(json: &[u8]) -> bool {
    let (mut inside, mut escaped) = (false, false);
    json.iter().all(|&byte| {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if inside => escaped = true,
            b'"' => inside = !inside,
            _ => {}
        }
        !inside || byte >= b' '
    })
}
