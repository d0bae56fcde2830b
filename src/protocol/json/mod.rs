//! Reads a few members of a JSON body in one pass over its bytes, and edits it by splices.
//!
//! No tree is built and nothing is written back: unknown members, number spellings, key order and white space reach
//! the other side as they came. The check is *light*: the text is UTF-8, the structure is RFC 8259's, strings are
//! closed, numbers and literals are well-formed. Control characters and bad escapes inside strings are looked for where
//! a body is judged ([`super::request`]), not here.

use std::{borrow::Cow, fmt, ops::Range};

mod canonical;
mod edits;
mod object;
mod path;
mod read;
mod text;

#[cfg(test)]
mod tests;

pub use canonical::{Canonicaliser, Notes, Omit, Unfit};
pub use edits::{Edits, Splice};
pub(crate) use object::{Member, Object, Raw, Writer};
pub use path::path_at;
pub(crate) use read::{Reader, Text};
pub use text::{decode, write_string};

/// Deepest nesting that is followed. Python's parser ends near 1,000, pydantic's at 200.
pub const MAX_DEPTH: usize = 512;

/// Most members in all objects of a body that is judged. The largest real ones name each token of a vocabulary once.
pub const MAX_KEYS: usize = 1_000_000;

const TOO_DEEP: &str = "nested too deeply: at most 512 levels are read";
const TOO_MANY: &str = "too many members: at most 1000000 are read";

/// Why a body is not the JSON it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed {
    /// Offset in bytes from the body's start.
    pub offset: usize,
    /// What is wrong there, as the end of a sentence.
    pub what: &'static str,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "invalid JSON at byte {}: {}", self.offset, self.what)
    }
}

impl std::error::Error for Malformed {}

/// A string of the body and where its literal lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value<'a> {
    /// Escapes resolved.
    pub text: Cow<'a, str>,
    /// The literal in the body, both quotes included.
    pub span: Range<usize>,
}

/// What the gateway looks at in a request. A member that is `null` or of another type than its own counts as absent:
/// the engine says what is wrong with it. Of duplicates the last wins, as in the engines.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fields<'a> {
    /// `model`
    pub model: Option<Value<'a>>,
    /// `stream`
    pub stream: Option<bool>,
    /// `max_tokens`
    pub max_tokens: Option<u64>,
    /// `max_completion_tokens`
    pub max_completion_tokens: Option<u64>,
    /// `max_output_tokens`
    pub max_output_tokens: Option<u64>,
    /// `n`
    pub n: Option<u64>,
    /// `previous_response_id`
    pub previous_response_id: Option<Cow<'a, str>>,
    /// `conversation` is there and not `null`: the answer depends on state that one backend holds.
    pub conversation: bool,
    /// `background`; whatever is neither `false` nor `null` counts as `true`.
    pub background: Option<bool>,
    /// `store`; whatever is neither `false` nor `null` counts as `true`.
    pub store: Option<bool>,
    /// `temperature` is a zero, however it is spelled.
    pub greedy: bool,
    /// `seed` is one that engines take as it is. -1 and 2^32-1 are not: vLLM and llama.cpp draw one of their own then.
    pub seeded: bool,
    /// `stream_options.include_usage`
    pub include_usage: Option<bool>,
}

impl Fields<'_> {
    /// The most tokens the answer may have, by whichever name it was given.
    pub fn token_limit(&self) -> Option<u64> {
        self.max_completion_tokens.or(self.max_output_tokens).or(self.max_tokens)
    }
}

/// Reads the top level of an object.
///
/// # Errors
/// [`Malformed`] when the body is not UTF-8, not one JSON object and nothing else, or nested above [`MAX_DEPTH`].
pub fn scan(body: &[u8]) -> Result<Fields<'_>, Malformed> {
    if let Err(e) = std::str::from_utf8(body) {
        return Err(Malformed { offset: e.valid_up_to(), what: "not UTF-8" });
    }
    let mut fields = Fields::default();
    let mut reader = Reader::new(body);
    if reader.peek()? != b'{' {
        return Err(reader.fail("an object is expected"));
    }
    reader.members(|reader, key| fields.member(reader, key))?;
    reader.finish()?;
    Ok(fields)
}

impl<'a> Fields<'a> {
    fn member(&mut self, reader: &mut Reader<'a>, key: Text<'a>) -> Result<(), Malformed> {
        match key.name().as_ref() {
            b"model" => self.model = reader.text()?.map(|t| Value { text: t.decode(), span: t.literal() }),
            b"stream" => self.stream = reader.boolean()?,
            b"max_tokens" => self.max_tokens = reader.unsigned()?,
            b"max_completion_tokens" => self.max_completion_tokens = reader.unsigned()?,
            b"max_output_tokens" => self.max_output_tokens = reader.unsigned()?,
            b"n" => self.n = reader.unsigned()?,
            b"previous_response_id" => self.previous_response_id = reader.text()?.map(|t| t.decode()),
            b"conversation" => self.conversation = reader.present()?,
            b"background" => self.background = reader.truthy()?,
            b"store" => self.store = reader.truthy()?,
            b"temperature" => self.greedy = reader.zero()?,
            b"seed" => self.seeded = reader.unsigned()?.is_some_and(|seed| seed != u64::from(u32::MAX)),
            b"stream_options" => {
                self.include_usage = None;
                reader.members(|reader, key| {
                    if key.is(b"include_usage") {
                        self.include_usage = reader.boolean()?;
                        return Ok(());
                    }
                    reader.skip()
                })?;
            }
            _ => reader.skip()?,
        }
        Ok(())
    }
}
