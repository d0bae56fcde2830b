//! System prompts that requests name instead of sending them: `"system_prompt": "NAME"`.
//!
//! The field goes, and the text takes its place at the front of what the endpoint calls the system prompt. What a
//! request says there itself stays and follows: many chat templates refuse a second system message, so the two become
//! one.

use std::{collections::HashMap, ops::Range, sync::Arc};

use super::{Added, Edit, literal};
use crate::{
    error::{Error, Kind},
    protocol::{
        endpoint::Endpoint,
        json::{Edits, Malformed, Reader, write_string},
    },
};

/// The field that names one.
pub(super) const FIELD: &[u8] = b"system_prompt";

/// Between the prompt and what the request says itself, as it stands in a literal.
const BETWEEN: &[u8] = br"\n\n";

/// What is known of a body's system prompt. Of duplicates the last counts, as in the engines.
#[derive(Debug)]
pub(super) struct Prompt {
    endpoint: Endpoint,
    /// Where the name lies.
    named: Option<Range<usize>>,
    /// Where the member lies that it goes into.
    place: Option<Range<usize>>,
}

impl Prompt {
    pub(super) fn new(endpoint: Endpoint) -> Self {
        Self { endpoint, named: None, place: None }
    }

    /// The member that names a prompt.
    pub(super) fn named(&mut self, value: Range<usize>) {
        self.named = Some(value);
    }

    /// Another that stays.
    pub(super) fn member(&mut self, name: &[u8], value: Range<usize>) {
        if self.field().is_some_and(|field| field.as_bytes() == name) {
            self.place = Some(value);
        }
    }

    /// Where `endpoint` has its system prompt.
    fn field(&self) -> Option<&'static str> {
        match self.endpoint {
            Endpoint::Chat => Some("messages"),
            Endpoint::Responses => Some("instructions"),
            Endpoint::Messages | Endpoint::CountTokens => Some("system"),
            _ => None,
        }
    }

    /// Puts the prompt in its place.
    pub(super) fn finish(
        self,
        prompts: &HashMap<Arc<str>, Arc<str>>,
        body: &[u8],
        edits: &mut Edits<Edit>,
        added: &mut Vec<Added>,
    ) -> Result<(), Error> {
        let Some(text) = self.text(prompts, body)? else { return Ok(()) };
        let Some(field) = self.field() else {
            return Err(refused("system_prompt has no place here: chats, responses and messages have one"));
        };
        let done = match (self.place, self.endpoint) {
            (Some(at), Endpoint::Chat) => into_messages(text, body, at, edits),
            (Some(at), endpoint) => into_field(text, endpoint == Endpoint::Responses, body, at, edits),
            (None, Endpoint::Chat) => false,
            (None, _) => {
                let mut member = format!("\"{field}\":").into_bytes();
                write_string(&mut member, text);
                added.push((member, Edit::Prompt));
                true
            }
        };
        if done {
            Ok(())
        } else {
            Err(refused(format!("system_prompt cannot be put in: `{field}` is not what it should be")))
        }
    }

    /// The text that is named, if one is.
    fn text<'a>(&self, prompts: &'a HashMap<Arc<str>, Arc<str>>, body: &[u8]) -> Result<Option<&'a str>, Error> {
        let Some(at) = &self.named else { return Ok(None) };
        let named = Reader::from(body, at.start).text().ok().flatten();
        if named.is_none() && body[at.clone()] == *b"null" {
            return Ok(None);
        }
        let Some(name) = named else { return Err(refused("system_prompt must be the name of a prompt, a string")) };
        let name = name.decode();
        let text = prompts.get(&*name).ok_or_else(|| {
            refused(format!("there is no system prompt {name:?}: it must be one of normalize.system_prompts"))
        })?;
        Ok(Some(text))
    }
}

/// Puts `text` before what a chat's messages begin with; `false` if they are no list.
fn into_messages(text: &str, body: &[u8], at: Range<usize>, edits: &mut Edits<Edit>) -> bool {
    let mut first = None;
    let mut reader = Reader::from(body, at.start);
    let read = reader.elements(|reader| {
        let message = reader.span()?;
        first.get_or_insert(message);
        Ok(())
    });
    if body[at.start] != b'[' || read.is_err() {
        return false;
    }
    if let Some(first) = &first
        && let Ok(Some(content)) = system_content(body, first.start)
        && let Some(inside) = before(text, body, &content)
    {
        inside.made(edits);
        return true;
    }
    let mut message = br#"{"role":"system","content":"#.to_vec();
    write_string(&mut message, text);
    message.push(b'}');
    put_first(message, at.start, first.is_none(), edits);
    true
}

/// Where the content of the message at `start` lies, if that is a system message.
fn system_content(body: &[u8], start: usize) -> Result<Option<Range<usize>>, Malformed> {
    let (mut system, mut content) = (false, None);
    Reader::from(body, start).members(|reader, key| {
        match &*key.name() {
            b"role" => system = reader.text()?.is_some_and(|role| matches!(&*role.decode(), "system" | "developer")),
            b"content" => content = Some(reader.span()?),
            _ => reader.skip()?,
        }
        Ok(())
    })?;
    Ok(content.filter(|_| system))
}

/// Puts `text` before what a field says; `false` if that is neither text nor, where that may be, a list.
fn into_field(text: &str, text_only: bool, body: &[u8], at: Range<usize>, edits: &mut Edits<Edit>) -> bool {
    if body[at.clone()] == *b"null" {
        edits.replace(at, literal(text), Edit::Prompt);
        return true;
    }
    match before(text, body, &at) {
        Some(Inside::Part(..)) if text_only => false,
        Some(inside) => {
            inside.made(edits);
            true
        }
        None => false,
    }
}

/// An edit that puts a text before others.
enum Inside {
    /// The literal with the text in it, and where the one before it lies.
    Text(Range<usize>, Vec<u8>),
    /// A part for the list that opens there, which is empty or not.
    Part(usize, Vec<u8>, bool),
}

/// How `text` is put before the string or the list of parts at `at`.
fn before(text: &str, body: &[u8], at: &Range<usize>) -> Option<Inside> {
    match body[at.clone()] {
        [b'"', ref inside @ .., b'"'] => {
            let mut all = Vec::with_capacity(text.len() + inside.len() + 8);
            write_string(&mut all, text);
            all.pop();
            if !inside.is_empty() {
                all.extend_from_slice(BETWEEN);
            }
            all.extend_from_slice(inside);
            all.push(b'"');
            Some(Inside::Text(at.clone(), all))
        }
        [b'[', ref inside @ .., b']'] => {
            let mut part = br#"{"type":"text","text":"#.to_vec();
            write_string(&mut part, text);
            part.push(b'}');
            Some(Inside::Part(at.start, part, inside.trim_ascii().is_empty()))
        }
        _ => None,
    }
}

impl Inside {
    fn made(self, edits: &mut Edits<Edit>) {
        match self {
            Self::Text(at, text) => edits.replace(at, text, Edit::Prompt),
            Self::Part(list, part, empty) => put_first(part, list, empty, edits),
        }
    }
}

/// Puts `element` first into the list that opens at `list`.
fn put_first(mut element: Vec<u8>, list: usize, empty: bool, edits: &mut Edits<Edit>) {
    if !empty {
        element.push(b',');
    }
    edits.replace(list + 1..list + 1, element, Edit::Prompt);
}

fn refused(message: impl Into<String>) -> Error {
    Error::new(Kind::InvalidBody, message).param("system_prompt")
}
