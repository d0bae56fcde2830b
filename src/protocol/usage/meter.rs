//! [`StreamMeter`]: what a passing stream says about itself.

use std::ops::Range;

use super::{Choice, Counts, Facts, Finish, Usage, tells_its_end};
use crate::protocol::{
    endpoint::{Dialect, Endpoint},
    json::Reader,
    ndjson::Lines,
    sse::{Event, Scanner},
};

/// Watches the bytes of one streamed answer: tokens, finish reasons, errors, and whether it was whole.
///
/// Nearly all events of a stream are equal but for one string, the new text. The last such event is kept as a
/// template; an event that is the template with another plain string in it says nothing new and is not parsed.
#[derive(Debug)]
pub struct StreamMeter {
    framing: Framing,
    state: State,
}

/// Bytes that are one event, like the one before around its text and the ids of its tokens. Who knows one such event
/// need not compare the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alike {
    /// Another number for another event around the text.
    pub around: u32,
    /// Of the event.
    pub length: usize,
    /// The text, as the inside of a literal without escapes.
    pub text: (usize, usize),
    /// The inside of the array of ids, where there is one.
    pub ids: Option<(usize, usize)>,
}

#[derive(Debug)]
enum Framing {
    Sse(Scanner),
    Lines(Lines),
}

#[derive(Debug)]
struct State {
    dialect: Dialect,
    tells_its_end: bool,
    template: Template,
    counts: Counts,
    timings: Counts,
    finish: Finish,
    choices: Choices,
    error: bool,
    done: bool,
    /// The dialect's own last event came: `message_stop`, `response.completed`, Ollama's `done`.
    ended: bool,
    events: u64,
    tokens: u64,
    sequence: Option<u64>,
}

impl StreamMeter {
    /// For a stream that answers `endpoint` in `dialect`. Ollama's are NDJSON, all others SSE.
    pub fn new(endpoint: Endpoint, dialect: Dialect) -> Self {
        let framing = match dialect {
            Dialect::Ollama => Framing::Lines(Lines::default()),
            _ => Framing::Sse(Scanner::default()),
        };
        let state = State {
            dialect,
            tells_its_end: tells_its_end(endpoint, dialect),
            template: Template::default(),
            counts: Counts::default(),
            timings: Counts::default(),
            finish: Finish::None,
            choices: Choices::default(),
            error: false,
            done: false,
            ended: false,
            events: 0,
            tokens: 0,
            sequence: None,
        };
        Self { framing, state }
    }

    /// Takes the next bytes. Tells when they are an event like the one before.
    #[inline]
    pub fn push(&mut self, chunk: &[u8]) -> Option<Alike> {
        let state = &mut self.state;
        match &mut self.framing {
            Framing::Sse(scanner) => {
                if scanner.is_clean()
                    && let Some(alike) = state.alone(chunk)
                {
                    return Some(alike);
                }
                scanner.push(chunk, |event| state.event(event));
            }
            Framing::Lines(lines) => lines.push(chunk, |line| state.data(line)),
        }
        None
    }

    /// Tokens so far, as the stream counts them: zeros until it says.
    pub fn usage(&self) -> Usage {
        let counts = if self.state.counts.any() { &self.state.counts } else { &self.state.timings };
        counts.usage()
    }

    /// Why it ended; of several choices a failure, else the first that ended.
    pub fn finish(&self) -> Finish {
        self.state.finish
    }

    /// Whether an error event came.
    pub fn saw_error(&self) -> bool {
        self.state.error
    }

    /// Whether `[DONE]`, or the dialect's own last event, came.
    pub fn saw_done(&self) -> bool {
        self.state.done || self.state.ended
    }

    /// Whether the answer is complete: no error came, and every choice that began has ended for a reason other than
    /// abort and error. `[DONE]` proves nothing (vLLM sends it after errors), and its absence nothing either. Of a
    /// stream that does not tell its end (embeddings, unknown paths) only an error is known; the framing below decides.
    /// Where an event was too large to be looked at, the terminator must do.
    pub fn is_whole(&self) -> bool {
        let state = &self.state;
        if state.error || matches!(state.finish, Finish::Abort | Finish::Error) {
            return false;
        }
        if !state.tells_its_end || (self.overflowed() && self.saw_done()) {
            return true;
        }
        match state.dialect {
            Dialect::OpenAi => state.choices.all_ended(state.done),
            Dialect::Anthropic => state.finish.is_real(),
            Dialect::Responses | Dialect::Ollama => state.ended,
        }
    }

    /// Whether an error event can follow as it is.
    pub fn at_boundary(&self) -> bool {
        match &self.framing {
            Framing::Sse(scanner) => scanner.at_boundary(),
            Framing::Lines(lines) => lines.at_boundary(),
        }
    }

    /// How many of the last bytes belong to an event that is not complete. A proxy that holds these back can end a cut
    /// stream with an error event that no half event precedes.
    pub fn pending(&self) -> usize {
        match &self.framing {
            Framing::Sse(scanner) => scanner.pending(),
            Framing::Lines(lines) => lines.pending(),
        }
    }

    /// Whether an event was too large to be looked at: then nothing that is not there is proven.
    pub fn overflowed(&self) -> bool {
        match &self.framing {
            Framing::Sse(scanner) => scanner.overflowed(),
            Framing::Lines(lines) => lines.overflowed(),
        }
    }

    /// Events (lines) so far, whatever they hold.
    pub fn events(&self) -> u64 {
        self.state.events
    }

    /// Events that brought text, reasoning or tool arguments. Engines may put several tokens into one.
    pub fn token_events(&self) -> u64 {
        self.state.tokens
    }

    /// Whether the first token came: role chunks, `message_start` and pings are none.
    pub fn saw_token(&self) -> bool {
        self.state.tokens > 0
    }

    /// In a responses stream the `sequence_number` that comes next, when one was seen.
    pub fn next_sequence(&self) -> Option<u64> {
        self.state.sequence.and_then(|last| last.checked_add(1))
    }
}

impl State {
    #[inline]
    fn event(&mut self, event: Event<'_>) {
        match self.dialect {
            Dialect::OpenAi if event.data == b"[DONE]" => {
                self.events += 1;
                self.done = true;
            }
            // The Responses API numbers its events, so no two are alike but for one string; most need only be counted.
            Dialect::Responses if event.name.ends_with(b".delta") => self.responses_delta(event.data),
            _ => {
                self.error |= event.name == b"error";
                self.data(event.data);
            }
        }
    }

    /// One event without a name, as most engines write it.
    #[inline]
    fn alone(&mut self, chunk: &[u8]) -> Option<Alike> {
        const BEFORE: &[u8] = b"data: ";
        if self.dialect != Dialect::OpenAi {
            return None;
        }
        let data = chunk.strip_prefix(BEFORE)?.strip_suffix(b"\n\n")?;
        let (text, ids) = self.template.find(data)?;
        self.events += 1;
        self.tokens += u64::from(!text.is_empty());
        let shift = |range: Range<usize>| (range.start + BEFORE.len(), range.end + BEFORE.len());
        Some(Alike { around: self.template.version, length: chunk.len(), text: shift(text), ids: ids.map(shift) })
    }

    #[inline]
    fn data(&mut self, data: &[u8]) {
        self.events += 1;
        if let Some((text, _)) = self.template.find(data) {
            self.tokens += u64::from(!text.is_empty());
        } else {
            self.parse(data);
        }
    }

    fn responses_delta(&mut self, data: &[u8]) {
        self.events += 1;
        self.tokens += 1;
        self.sequence = sequence_number(data).or(self.sequence);
    }

    fn parse(&mut self, data: &[u8]) {
        let mut facts = Facts { counts: self.counts, timings: self.timings, ..Facts::default() };
        let choices = &mut self.choices;
        if facts.read_with(&mut Reader::new(data), &mut |choice| choices.saw(choice)).is_err() {
            return;
        }
        let ordinary = facts.finish == Finish::None
            && !facts.error
            && !facts.done
            && !facts.tools
            && facts.deltas == 1
            && facts.sequence.is_none();
        (self.counts, self.timings) = (facts.counts, facts.timings);
        self.finish = self.finish.join(facts.finish);
        self.error |= facts.error;
        self.tokens += u64::from(facts.text || facts.tools);
        self.sequence = facts.sequence.or(self.sequence);
        self.kind(&facts);
        if ordinary && let Some(delta) = facts.delta {
            self.template.learn(data, delta);
        }
    }

    /// What the event's `type` (or Ollama's `done`) adds.
    fn kind(&mut self, facts: &Facts<'_>) {
        let kind = facts.kind.map(|kind| kind.name()).unwrap_or_default();
        match (self.dialect, kind.as_ref()) {
            (Dialect::Anthropic | Dialect::Responses, b"error") | (Dialect::Responses, b"response.failed") => {
                self.error = true;
            }
            (Dialect::Anthropic, b"message_stop") => self.ended = true,
            (Dialect::Responses, b"response.completed" | b"response.incomplete") => self.ended = true,
            (Dialect::Ollama, _) if facts.done && !facts.error => {
                self.ended = true;
                self.finish = self.finish.join(Finish::Stop);
            }
            _ => {}
        }
    }
}

/// The number behind the last `"sequence_number":` of an event. Inside a string its quotes would be escaped.
fn sequence_number(data: &[u8]) -> Option<u64> {
    const NAME: &[u8] = b"\"sequence_number\"";
    let at = memchr::memmem::rfind(data, NAME)?;
    if data[..at].last() == Some(&b'\\') {
        return None;
    }
    let mut reader = Reader::from(data, at + NAME.len());
    if reader.peek().ok()? != b':' {
        return None;
    }
    Reader::from(data, reader.offset() + 1).unsigned().ok()?
}

/// An event that said nothing but text, around that text and the ids of its tokens.
#[derive(Debug, Default)]
struct Template {
    bytes: Vec<u8>,
    prefix: usize,
    /// Where in `bytes`, behind the text, the inside of an array of ids was taken out.
    ids: Option<usize>,
    /// Another one whenever it was learnt anew.
    version: u32,
}

impl Template {
    /// Larger events are not kept: comparing them is no gain.
    const MAX: usize = 4 << 10;

    /// The text in `data`, and the ids, if it is the template around them. Strings with a quote, an escape or a control
    /// character in them do not match: what they say is for the parser.
    #[inline]
    fn find(&self, data: &[u8]) -> Option<(Range<usize>, Option<Range<usize>>)> {
        if self.bytes.is_empty() || data.len() < self.bytes.len() {
            return None;
        }
        let (prefix, suffix) = self.bytes.split_at(self.prefix);
        let rest = data.strip_prefix(prefix)?;
        let (text, ids) = match self.ids {
            None => (rest.strip_suffix(suffix)?, None),
            Some(at) => {
                let (middle, end) = suffix.split_at(at - self.prefix);
                let text = without_ids(rest, (middle, end))?;
                let start = prefix.len() + text.len() + middle.len();
                (text, Some(start..data.len() - end.len()))
            }
        };
        let plain = text.iter().all(|&b| b >= 0x20 && b != b'"' && b != b'\\');
        plain.then_some((prefix.len()..prefix.len() + text.len(), ids))
    }

    fn learn(&mut self, data: &[u8], text: Range<usize>) {
        // An event of several lines is not the bytes that came.
        if data.len() > Self::MAX || data.contains(&b'\n') {
            return;
        }
        self.version = self.version.wrapping_add(1);
        self.bytes.clear();
        self.bytes.extend_from_slice(&data[..text.start]);
        self.prefix = text.start;
        let behind = &data[text.end..];
        let inside = token_ids(behind);
        self.ids = inside.as_ref().map(|inside| self.prefix + inside.start);
        let inside = inside.unwrap_or(0..0);
        self.bytes.extend_from_slice(&behind[..inside.start]);
        self.bytes.extend_from_slice(&behind[inside.end..]);
    }
}

/// The inside of the one array of `token_ids` (vLLM, SGLang), which differs from event to event as the text does.
fn token_ids(data: &[u8]) -> Option<Range<usize>> {
    const NAME: &[u8] = b"\"token_ids\":[";
    let start = memchr::memmem::find(data, NAME)? + NAME.len();
    let length = data[start..].iter().position(|byte| !is_of_ids(*byte))?;
    (data[start + length] == b']').then_some(start..start + length)
}

fn is_of_ids(byte: u8) -> bool {
    byte.is_ascii_digit() || matches!(byte, b',' | b' ')
}

/// What is before `(middle, ids, end)` in `rest`. Most streams have none: out of their way.
#[inline(never)]
fn without_ids<'a>(rest: &'a [u8], (middle, end): (&[u8], &[u8])) -> Option<&'a [u8]> {
    let rest = rest.strip_suffix(end)?;
    let ids = rest.iter().rev().take_while(|byte| is_of_ids(**byte)).count();
    rest[..rest.len() - ids].strip_suffix(middle)
}

/// Which choices began and which ended, by index.
#[derive(Debug, Default)]
struct Choices {
    began: u128,
    ended: u128,
    /// One had an index of 128 or more; OpenAI's `n` ends at 128.
    beyond: bool,
}

impl Choices {
    fn saw(&mut self, choice: Choice) {
        let Some(bit) = u32::try_from(choice.index).ok().and_then(|index| 1_u128.checked_shl(index)) else {
            self.beyond = true;
            return;
        };
        self.began |= bit;
        if choice.finish.is_real() {
            self.ended |= bit;
        }
    }

    /// For choices beyond those that are told apart, the terminator must do.
    fn all_ended(&self, done: bool) -> bool {
        self.began != 0 && self.began == self.ended && (done || !self.beyond)
    }
}
