//! Judges a request's body and reads what the gateway looks at in it, in one pass over its bytes.
//!
//! A table per endpoint (`schema`) says what each known member may be, at two levels. [`Level::Light`] refuses only
//! what every engine refuses that could serve the model (vLLM, SGLang, llama.cpp), and what could get round the
//! gateway's own checks; [`Level::Strict`] what the API's documentation does not allow. Unknown members pass at both.
//! A body that is fine costs no allocation: paths and messages are made where something is wrong.

mod base64;
mod content;
mod fault;
mod rule;
mod schema;
mod tools;

#[cfg(test)]
mod tests;

use std::borrow::Cow;

pub use self::fault::Invalid;
use self::{
    content::Noted,
    fault::Fault,
    schema::{Need, Slot, Table},
};
use super::{
    endpoint::Endpoint,
    json::{Fields, Malformed, Raw, Reader, Text, Value},
};

/// How much is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// What every engine refuses.
    Light,
    /// What the API's documentation does not allow.
    Strict,
}

/// A bound of the gateway's own, which holds at both levels.
#[derive(Clone, Copy, Debug)]
pub struct Bound {
    /// What is bounded.
    pub what: &'static str,
    /// The most there may be.
    pub most: u64,
    /// Why it may be no more.
    pub why: &'static str,
}

/// Most answers to one prompt. vLLM's own bound is 16,384 (before it had one, a large `n` ended the process).
pub const MOST_CHOICES: u64 = 4096;

/// The bounds that docs/payload.md lists.
pub const BOUNDS: &[Bound] = &[
    Bound {
        what: "levels of nesting",
        most: super::json::MAX_DEPTH as u64,
        why: "Python's parser ends near 1,000, and tool schemas have some 20",
    },
    Bound {
        what: "members in all objects together",
        most: super::json::MAX_KEYS as u64,
        why: "a `logit_bias` for a whole vocabulary has 262,144",
    },
    Bound {
        what: "`n` and `best_of`",
        most: MOST_CHOICES,
        why: "each choice is a sequence of its own on the GPU; vLLM ends at 16,384",
    },
];

/// Whether `endpoint` has a table: whether its bodies are requests for an answer, each known in its members.
pub fn is_judged(endpoint: Endpoint) -> bool {
    !matches!(endpoint, Endpoint::Response | Endpoint::Models | Endpoint::Model | Endpoint::Passthrough)
}

/// Reads the body of a request to `endpoint`.
///
/// # Errors
/// [`Invalid`] says what is wrong, where, and what would be right.
pub fn read(endpoint: Endpoint, body: &[u8], level: Level) -> Result<Fields<'_>, Invalid> {
    let mut walk = Walk {
        reader: Reader::strict(body),
        level,
        fields: Fields::default(),
        body,
        named: None,
        tools: None,
        noted: Noted::default(),
    };
    match walk.whole(schema::of(endpoint)) {
        Ok(()) => Ok(walk.fields),
        Err(fault) => Err(fault.told()),
    }
}

/// Which members of an object were there, a bit each.
#[derive(Clone, Copy, Debug, Default)]
struct Met {
    /// They came.
    present: u64,
    /// They came, and not as `null`.
    said: u64,
}

/// The state of one pass.
struct Walk<'a> {
    reader: Reader<'a, true>,
    level: Level,
    fields: Fields<'a>,
    body: &'a [u8],
    /// The tool that `tool_choice` names.
    named: Option<Text<'a>>,
    /// Where `tools` starts.
    tools: Option<usize>,
    noted: Noted,
}

impl<'a> Walk<'a> {
    fn whole(&mut self, table: &'static Table) -> Result<(), Fault> {
        // Most bodies are ASCII, and that is cheaper to see.
        if !self.body.is_ascii()
            && let Err(e) = std::str::from_utf8(self.body)
        {
            return Err(Malformed { offset: e.valid_up_to(), what: "the text is not UTF-8" }.into());
        }
        if self.reader.peek()? != b'{' {
            return Err(self.reader.fail("an object is expected").into());
        }
        let met = self.object(table)?;
        self.reader.finish()?;
        self.needs(table, met)?;
        self.chosen_tool()
    }

    fn strict(&self) -> bool {
        self.level == Level::Strict
    }

    /// Reads the object that was peeked at, by `table`.
    fn object(&mut self, table: &'static Table) -> Result<Met, Fault> {
        let mut met = Met::default();
        if self.reader.open(b'}')? {
            return Ok(met);
        }
        loop {
            let name = self.reader.name()?;
            match table.find(&name.name()) {
                None => self.reader.skip()?,
                Some(index) => {
                    let (field, bit) = (&table.fields[index], 1_u64 << index);
                    if met.present & bit != 0 && (field.once || self.strict()) {
                        let fault = Fault::new("it is there more than once, and parsers differ in which they take");
                        return Err(fault.under(field.name));
                    }
                    met.present |= bit;
                    if self.reader.peek()? == b'n' {
                        self.reader.skip()?;
                        self.null(field.rule).map_err(|fault| fault.under(field.name))?;
                    } else {
                        met.said |= bit;
                        let start = self.reader.offset();
                        self.value(field.rule).map_err(|fault| fault.under(field.name))?;
                        self.keep(field.slot, start);
                    }
                }
            }
            if self.reader.last(b'}')? {
                return Ok(met);
            }
        }
    }

    /// Whether what must be there is.
    fn needs(&self, table: &Table, met: Met) -> Result<(), Fault> {
        for (need, by) in table.needs.iter().zip(&table.met_by) {
            let there = match need {
                Need::Present(_) if !self.strict() => met.present,
                Need::Strict(_) if !self.strict() => continue,
                Need::Present(_) | Need::Said(_) | Need::Strict(_) => met.said,
            };
            if there & by == 0 {
                let names = need.names();
                let others = names[1..].iter().map(|name| format!(", or `{name}`")).collect::<String>();
                let fault = Fault::new(format!("it is required{others}, and is missing"));
                return Err(fault.under(names[0]));
            }
        }
        Ok(())
    }

    /// Keeps what the gateway looks at, of the value that was just read.
    fn keep(&mut self, slot: Slot, start: usize) {
        if matches!(slot, Slot::None) {
            return;
        }
        let raw = Raw(self.reader.since(start));
        let flag = match raw.0 {
            b"true" => Some(true),
            b"false" => Some(false),
            _ => None,
        };
        let text = |raw: Raw<'a>| raw.text().map(|text: Cow<'a, str>| Value { text, span: start..start + raw.0.len() });
        let fields = &mut self.fields;
        match slot {
            Slot::None => {}
            Slot::Model => fields.model = text(raw),
            Slot::Stream => fields.stream = flag,
            Slot::MaxTokens => fields.max_tokens = raw.unsigned(),
            Slot::MaxCompletionTokens => fields.max_completion_tokens = raw.unsigned(),
            Slot::MaxOutputTokens => fields.max_output_tokens = raw.unsigned(),
            Slot::N => fields.n = raw.unsigned(),
            Slot::PreviousResponse => fields.previous_response_id = raw.text(),
            Slot::Conversation => fields.conversation = true,
            Slot::Background => fields.background = Some(flag.unwrap_or(true)),
            Slot::Store => fields.store = Some(flag.unwrap_or(true)),
            Slot::Temperature => fields.greedy = raw.is_zero(),
            Slot::Seed => fields.seeded = raw.unsigned().is_some_and(|seed| seed != u64::from(u32::MAX)),
            Slot::Tools => self.tools = Some(start),
        }
    }
}
