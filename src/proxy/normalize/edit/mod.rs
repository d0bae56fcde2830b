//! The engine-neutral edits of a JSON body: what `normalize` and `routing.aliases` ask for, as splices over the body as
//! it came. They are made before the cache's key, so that requests which differ only in what is edited away are one.
//!
//! Everything here is off until it is set, and a plan without edits does not look at the body. With edits there is one
//! more pass over the body's top level, and one copy when something changes. The body was found well-formed before.

mod counters;
mod explain;
mod limits;
mod members;
mod nulls;
mod prompts;

#[cfg(test)]
mod tests;

use std::{collections::HashMap, ops::Range, sync::Arc};

pub use self::{
    counters::Counters,
    explain::{Change, changes},
    nulls::nullable,
};
use self::{
    limits::Limits,
    members::{Members, Paths},
    nulls::Nulls,
    prompts::Prompt,
};
use crate::{
    config,
    error::{Error, Kind},
    protocol::{
        endpoint::Endpoint,
        json::{Edits, Malformed, Reader, Text, write_string},
    },
};

/// Splices that one body may need. A body that repeats a member more often than anyone would costs no more than this.
const MOST: usize = 1024;

/// Why bytes of a body change. The names are those of the metrics and of `sluicegate normalize`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Edit {
    /// `routing.aliases`
    Alias,
    /// `max_tokens_cap`
    Cap,
    /// `default_max_tokens`
    Default,
    /// `strip`
    Strip,
    /// `nulls`
    Nulls,
    /// `minify`
    Minify,
    /// `system_prompts`
    Prompt,
}

impl Edit {
    /// All of them, in the order of the metrics.
    pub const ALL: [Self; 7] =
        [Self::Alias, Self::Cap, Self::Default, Self::Strip, Self::Nulls, Self::Minify, Self::Prompt];

    /// In metrics and texts.
    pub fn name(self) -> &'static str {
        match self {
            Self::Alias => "alias",
            Self::Cap => "max_tokens_cap",
            Self::Default => "default_max_tokens",
            Self::Strip => "strip",
            Self::Nulls => "nulls",
            Self::Minify => "minify",
            Self::Prompt => "system_prompts",
        }
    }
}

/// What is edited, by configuration.
#[derive(Debug, Default)]
pub struct Plan {
    cap: Option<u64>,
    default: Option<u64>,
    strip: Paths,
    nulls: bool,
    minify: bool,
    /// name → text
    prompts: HashMap<Arc<str>, Arc<str>>,
}

/// A name that is an alias: where it stands in the body, and what it stands for.
#[derive(Clone, Copy, Debug)]
pub struct Alias<'a> {
    pub at: &'a Range<usize>,
    pub model: &'a str,
}

impl Plan {
    /// What `normalize` asks for.
    pub fn new(config: &config::Normalize) -> Self {
        Self {
            cap: config.max_tokens_cap,
            default: config.default_max_tokens,
            strip: Paths::new(&config.strip),
            nulls: config.nulls,
            minify: config.minify,
            prompts: config.system_prompts.clone(),
        }
    }

    /// Whether no body of a known endpoint is edited.
    pub fn is_empty(&self) -> bool {
        let Self { cap, default, strip, nulls, minify, prompts } = self;
        cap.is_none() && default.is_none() && strip.is_empty() && !nulls && !minify && prompts.is_empty()
    }

    /// The edits of `body`, a well-formed object sent to `endpoint`, in its order.
    ///
    /// # Errors
    /// [`Kind::InvalidBody`] when it names a system prompt that there is not, or that has no place in it, and when it
    /// needs absurdly many edits.
    pub fn edits(&self, endpoint: Endpoint, body: &[u8], alias: Option<Alias<'_>>) -> Result<Edits<Edit>, Error> {
        let mut edits = Edits::default();
        if self.is_empty() || !is_edited(endpoint) {
            if let Some(alias) = alias {
                edits.replace(alias.at.clone(), literal(alias.model), Edit::Alias);
            }
            return Ok(edits);
        }
        edits.minify(self.minify);
        let mut pass = Pass::new(self, endpoint, alias, &mut edits);
        let read = pass.read(body);
        if pass.edits.len() > MOST {
            return Err(too_many());
        }
        // A body that is not well-formed is the engine's to judge, as it came.
        if read.is_err() {
            return Ok(Edits::default());
        }
        pass.finish(body)?;
        edits.sort();
        Ok(edits)
    }
}

/// Whether bodies for `endpoint` are edited, beyond the model's name.
fn is_edited(endpoint: Endpoint) -> bool {
    matches!(
        endpoint,
        Endpoint::Chat
            | Endpoint::Completions
            | Endpoint::Embeddings
            | Endpoint::Responses
            | Endpoint::Messages
            | Endpoint::CountTokens
            | Endpoint::Rerank
            | Endpoint::Score
    )
}

/// One look at a body's top level.
struct Pass<'a> {
    plan: &'a Plan,
    alias: Option<Alias<'a>>,
    edits: &'a mut Edits<Edit>,
    members: Members,
    limits: Option<Limits>,
    nulls: Option<Nulls>,
    prompt: Option<Prompt>,
}

impl<'a> Pass<'a> {
    fn new(plan: &'a Plan, endpoint: Endpoint, alias: Option<Alias<'a>>, edits: &'a mut Edits<Edit>) -> Self {
        Self {
            plan,
            alias,
            edits,
            members: Members::default(),
            limits: Limits::new(plan.cap, plan.default, endpoint),
            nulls: plan.nulls.then(|| Nulls::new(endpoint)),
            prompt: (!plan.prompts.is_empty()).then(|| Prompt::new(endpoint)),
        }
    }

    fn read(&mut self, body: &[u8]) -> Result<(), Malformed> {
        let mut reader = Reader::new(body);
        reader.peek()?;
        self.members.open(reader.offset() + 1);
        reader.members(|reader, key| self.member(reader, key))?;
        self.members.close(self.edits);
        Ok(())
    }

    fn member(&mut self, reader: &mut Reader<'_>, key: Text<'_>) -> Result<(), Malformed> {
        let name = key.name();
        let start = key.literal().start;
        self.members.begin(start, self.edits);
        let value = match self.plan.strip.get(&name) {
            // A limit is a number, and edited as a whole.
            Some(paths) if !paths.is_empty() && !limits::NAMES.contains(&&*name) => paths.cut(reader, self.edits)?,
            _ => reader.span()?,
        };
        if self.edits.len() > MOST {
            return Err(reader.fail("too many edits"));
        }
        let raw = reader.since(value.start);
        let cause = self.cause(&name, raw, &value);
        match cause {
            Some(cause) => self.members.cut(start, value.end, cause, self.edits),
            None => {
                self.members.keep(value.end);
                self.kept(&name, raw, value);
            }
        }
        Ok(())
    }

    /// Why a member goes, if it does.
    fn cause(&mut self, name: &[u8], raw: &[u8], value: &Range<usize>) -> Option<Edit> {
        if self.plan.strip.get(name).is_some_and(Paths::is_empty) {
            return Some(Edit::Strip);
        }
        if let Some(prompt) = &mut self.prompt
            && name == prompts::FIELD
        {
            prompt.named(value.clone());
            return Some(Edit::Prompt);
        }
        self.nulls.as_mut().is_some_and(|nulls| nulls.go(name, raw)).then_some(Edit::Nulls)
    }

    /// What is to be edited inside a member that stays, or known of it.
    fn kept(&mut self, name: &[u8], raw: &[u8], value: Range<usize>) {
        if let Some(alias) = self.alias
            && *alias.at == value
        {
            self.edits.replace(value.clone(), literal(alias.model), Edit::Alias);
        }
        if let Some(limits) = &mut self.limits {
            limits.member(name, raw, &value, self.edits);
        }
        if let Some(prompt) = &mut self.prompt {
            prompt.member(name, value);
        }
    }

    /// What could not be told before all was read.
    fn finish(self, body: &[u8]) -> Result<(), Error> {
        let mut added = Vec::new();
        if let Some(limits) = self.limits {
            limits.finish(self.edits, &mut added);
        }
        if let Some(prompt) = self.prompt {
            prompt.finish(&self.plan.prompts, body, self.edits, &mut added)?;
        }
        self.members.add(added, self.edits);
        Ok(())
    }
}

/// A member that is put in: its text, and why.
type Added = (Vec<u8>, Edit);

/// `text` as JSON.
fn literal(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() + 2);
    write_string(&mut out, text);
    out
}

fn too_many() -> Error {
    Error::new(
        Kind::InvalidBody,
        format!("the body would need more than {MOST} edits: it repeats what the gateway edits; name each field once"),
    )
}
