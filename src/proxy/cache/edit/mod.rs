//! What one reader's answer differs in from the answer that is shared: the usage event it did not ask for, and the name
//! it called the model by.
//!
//! Taking the usage event out leaves exactly the bytes that the engine would have sent without being asked for it,
//! where [`ask`](crate::protocol::usage::ask) asks for it: members that moved to that event go back to where they were. All else passes
//! as it came, and any split of the input gives the same output.

use std::sync::Arc;

use bytes::Bytes;

use super::entry::Shape;
use crate::protocol::{
    endpoint::{Dialect, Endpoint},
    rename::{Renamer, rename_in_answer},
};

mod strip;

#[cfg(test)]
mod tests;

use strip::Strip;

/// What is changed for one reader.
#[derive(Clone, Debug)]
pub struct Edit {
    pub endpoint: Endpoint,
    /// The name the reader called the model by.
    pub alias: Option<Arc<str>>,
    /// The usage event is in the stream, or may be, and the reader did not ask for it.
    pub strip_usage: bool,
}

impl Edit {
    /// Whether the answer passes as it is.
    pub fn is_none(&self) -> bool {
        self.alias.is_none() && !self.strips()
    }

    /// A whole answer, edited. Without an edit it is the same memory.
    #[must_use]
    pub fn whole(&self, shape: Shape, body: &Bytes) -> Bytes {
        match (shape, self.alias.as_deref()) {
            (Shape::Plain, None) => body.clone(),
            (Shape::Plain, Some(alias)) => rename_in_answer(body, alias).map_or_else(|| body.clone(), Bytes::from),
            (Shape::Stream, _) if self.is_none() => body.clone(),
            (Shape::Stream, _) => {
                let mut editor = self.editor();
                let (first, rest) = (editor.push(body.clone()), editor.finish());
                joined(first, rest)
            }
        }
    }

    /// For a stream that comes in pieces.
    pub fn editor(&self) -> Editor {
        Editor {
            strip: self.strips().then(Strip::default),
            renamer: self.alias.as_deref().map(|alias| Renamer::new(Dialect::OpenAi, alias)),
        }
    }

    /// Only these two have that event; the others tell their usage to everyone.
    fn strips(&self) -> bool {
        self.strip_usage && matches!(self.endpoint, Endpoint::Chat | Endpoint::Completions)
    }
}

/// Edits one stream.
#[derive(Debug)]
pub struct Editor {
    strip: Option<Strip>,
    renamer: Option<Renamer>,
}

impl Editor {
    /// Takes the next bytes, gives what can go on; that may be nothing.
    pub fn push(&mut self, data: Bytes) -> Bytes {
        let data = match &mut self.strip {
            Some(strip) => strip.push(data),
            None => data,
        };
        match &mut self.renamer {
            Some(renamer) if !data.is_empty() => renamer.push(data),
            _ => data,
        }
    }

    /// What was held back, at the stream's end.
    pub fn finish(&mut self) -> Bytes {
        let rest = self.strip.as_mut().map(Strip::finish).unwrap_or_default();
        let Some(renamer) = &mut self.renamer else { return rest };
        let renamed = if rest.is_empty() { rest } else { renamer.push(rest) };
        joined(renamed, renamer.finish())
    }
}

fn joined(first: Bytes, second: Bytes) -> Bytes {
    match (first.is_empty(), second.is_empty()) {
        (_, true) => first,
        (true, _) => second,
        _ => [&first[..], &second[..]].concat().into(),
    }
}
