//! Asks engines to tell a stream's usage, so that whoever asks for it later can be served by the same stream.
//!
//! Only where the stream can be turned back into exactly what the engine would have sent without being asked (the
//! response cache does that, for readers who did not ask):
//!
//! * vLLM: one event more before `[DONE]`, and `system_fingerprint` there in place of the event with the finish reason;
//! * SGLang: one event more;
//! * llama.cpp's chat: one event more, which takes `timings` from the event with the finish reason. Its completions
//!   tell their usage always.
//!
//! Of others it is not known that a stream without that event is the one they would have sent (OpenAI itself writes
//! `"usage":null` into every other event). Several choices are left alone too: the events that must be changed back
//! then lie far before the one that says how, and the stream would stall in between.

use std::ops::Range;

use crate::protocol::{
    endpoint::Endpoint,
    engine::Engine,
    json::{Malformed, Reader, Text},
};

#[cfg(test)]
mod tests;

/// Whether `engine` takes `stream_options.include_usage` and its stream can be changed back.
pub fn takes(engine: Option<Engine>, endpoint: Endpoint) -> bool {
    matches!(
        (engine, endpoint),
        (Some(Engine::Vllm | Engine::Sglang), Endpoint::Chat | Endpoint::Completions)
            | (Some(Engine::LlamaCpp), Endpoint::Chat)
    )
}

/// What takes the place of which bytes of `body` to make `stream_options.include_usage` true. `None` where it is so
/// already, where no stream of one choice is asked for, and where the body says something odd about it (that is the
/// engine's to judge).
pub fn with_usage(body: &[u8]) -> Option<(Range<usize>, &'static str)> {
    let mut said = Said::default();
    let mut reader = Reader::new(body);
    if reader.peek().ok()? != b'{' {
        return None;
    }
    said.open = reader.offset() + 1;
    reader.members(|reader, key| said.member(reader, key)).ok()?;
    reader.finish().ok()?;
    said.edit().map(|(from, to, text)| (from..to, text))
}

/// What the body says about its stream.
#[derive(Debug, Default)]
struct Said {
    /// Behind the opening brace.
    open: usize,
    stream: Option<bool>,
    options: Option<Options>,
    /// Said twice, of another type, or with what [`with_usage`] has no part in.
    odd: bool,
}

/// `stream_options`, as far as it was said.
#[derive(Clone, Copy, Debug)]
enum Options {
    /// `null`: from, to.
    Null(usize, usize),
    /// An object without `include_usage`: behind its brace; whether it is empty.
    Without(usize, bool),
    /// `include_usage` is `false` or `null`: from, to.
    Off(usize, usize),
    On,
}

impl Said {
    fn member(&mut self, reader: &mut Reader<'_>, key: Text<'_>) -> Result<(), Malformed> {
        match key.name().as_ref() {
            b"stream" => {
                self.odd |= self.stream.is_some();
                self.stream = Some(reader.boolean()? == Some(true));
            }
            b"n" | b"best_of" => {
                let first = reader.peek()?;
                let one = reader.unsigned()? == Some(1);
                self.odd |= !(one || first == b'n');
            }
            // A list of prompts; token ids are one prompt.
            b"prompt" if reader.peek()? == b'[' => reader.elements(|reader| {
                self.odd |= matches!(reader.peek()?, b'"' | b'[');
                reader.skip()
            })?,
            b"stream_options" => {
                self.odd |= self.options.is_some();
                self.options = Some(self.options(reader)?);
            }
            _ => reader.skip()?,
        }
        Ok(())
    }

    fn options(&mut self, reader: &mut Reader<'_>) -> Result<Options, Malformed> {
        let first = reader.peek()?;
        let start = reader.offset();
        if first != b'{' {
            reader.skip()?;
            self.odd |= first != b'n';
            return Ok(Options::Null(start, reader.offset()));
        }
        let (mut found, mut empty) = (None, true);
        reader.members(|reader, key| {
            empty = false;
            match (key.name().as_ref(), reader.peek()?) {
                (b"include_usage", first) => {
                    self.odd |= found.is_some();
                    let from = reader.offset();
                    reader.skip()?;
                    match first {
                        b't' => found = Some(Options::On),
                        b'f' | b'n' => found = Some(Options::Off(from, reader.offset())),
                        _ => self.odd = true,
                    }
                    return Ok(());
                }
                // Every event would carry it.
                (b"continuous_usage_stats", first) => self.odd |= !matches!(first, b'f' | b'n'),
                _ => {}
            }
            reader.skip()
        })?;
        Ok(found.unwrap_or(Options::Without(start + 1, empty)))
    }

    /// What is replaced by what.
    fn edit(&self) -> Option<(usize, usize, &'static str)> {
        if self.odd || self.stream != Some(true) {
            return None;
        }
        Some(match self.options {
            Some(Options::On) => return None,
            Some(Options::Off(from, to)) => (from, to, "true"),
            Some(Options::Null(from, to)) => (from, to, r#"{"include_usage":true}"#),
            Some(Options::Without(at, true)) => (at, at, r#""include_usage":true"#),
            Some(Options::Without(at, false)) => (at, at, r#""include_usage":true,"#),
            // There is a member, `stream`.
            None => (self.open, self.open, r#""stream_options":{"include_usage":true},"#),
        })
    }
}
