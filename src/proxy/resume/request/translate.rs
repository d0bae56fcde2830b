//! What the translation of responses and messages to chats has in common.

use super::{Form, Refusal, Request, Step, go_on, push_answer};
use crate::protocol::json::Raw;

/// The messages of a chat, as they are put together: an array that is not closed yet.
#[derive(Debug)]
pub(super) struct Turns {
    out: Vec<u8>,
    last: Option<Role>,
}

/// Whose turn it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    System,
    Developer,
    User,
    Assistant,
}

/// Which members of a request a chat takes as they are, and which have no part in the answer.
#[derive(Debug)]
pub(super) struct Carried {
    pub(super) copied: &'static [&'static [u8]],
    pub(super) renamed: &'static [(&'static [u8], &'static str)],
    pub(super) dropped: &'static [&'static [u8]],
    /// Whether what one of the other members says is what engines do anyway.
    pub(super) is_default: fn(name: &[u8], value: Raw<'_>) -> bool,
}

impl Role {
    pub(super) fn read(value: Raw<'_>) -> Option<Self> {
        Some(match value.text()?.as_ref() {
            "system" => Self::System,
            "developer" => Self::Developer,
            "user" => Self::User,
            "assistant" => Self::Assistant,
            _ => return None,
        })
    }

    fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::Developer => "developer",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

impl Turns {
    /// Begins a list that will have about `size` bytes.
    pub(super) fn new(size: usize) -> Self {
        let mut out = Vec::with_capacity(size);
        out.push(b'[');
        Self { out, last: None }
    }

    /// Whose turn was last.
    pub(super) fn last(&self) -> Option<Role> {
        self.last
    }

    /// A turn of one text, given by the inside of its literal.
    pub(super) fn push(&mut self, role: Role, text: &[u8]) {
        self.begin(role);
        self.text(text);
        self.out.push(b'}');
    }

    /// A turn of several texts, which templates may keep apart.
    pub(super) fn push_parts(&mut self, role: Role, texts: &[&[u8]]) {
        self.begin(role);
        self.out.push(b'[');
        for (i, text) in texts.iter().enumerate() {
            if i > 0 {
                self.out.push(b',');
            }
            self.out.extend_from_slice(br#"{"type":"text","text":"#);
            self.text(text);
            self.out.push(b'}');
        }
        self.out.extend_from_slice(b"]}");
    }

    fn begin(&mut self, role: Role) {
        if self.last.replace(role).is_some() {
            self.out.push(b',');
        }
        self.out.extend_from_slice(br#"{"role":""#);
        self.out.extend_from_slice(role.name().as_bytes());
        self.out.extend_from_slice(br#"","content":"#);
    }

    fn text(&mut self, inside: &[u8]) {
        self.out.push(b'"');
        self.out.extend_from_slice(inside);
        self.out.push(b'"');
    }
}

/// The chat that says the same.
pub(super) fn form(
    request: &Request,
    mut step: Step<'_>,
    mut turns: Turns,
    carried: &Carried,
) -> Result<Form, Refusal> {
    match turns.last {
        None => return Err(Refusal::Untranslatable),
        // A prefill to llama.cpp, the end of a turn to vLLM.
        Some(Role::Assistant) => return Err(Refusal::Prefill),
        Some(_) => {}
    }
    step.left = step.left.or_else(|| request.limit(step.engine));
    let text = &request.body;
    let mut writer = request.writer(&step);
    if let Some(model) = request.value(b"model") {
        writer.member("model", model.0);
    }
    if step.is_fresh() {
        turns.out.push(b']');
    } else {
        push_answer(&mut turns.out, step.so_far);
    }
    writer.member("messages", turns.out);
    if !step.is_fresh() {
        go_on(&mut writer);
    }
    for member in request.object.members() {
        let (name, value) = (member.name(text), member.value(text));
        let listed = |names: &[&[u8]]| names.contains(&name.as_ref());
        if listed(carried.dropped) || name.as_ref() == b"model" {
            continue;
        }
        if listed(carried.copied) {
            if !request.drops(&step, &name) {
                writer.copy(text, member);
            }
        } else if let Some((_, new)) = carried.renamed.iter().find(|(old, _)| *old == name.as_ref()) {
            writer.member(new, value.0);
        } else if !value.is_nothing() && !(carried.is_default)(&name, value) {
            return Err(Refusal::Untranslatable);
        }
    }
    Ok(Form::chat(request.close(&step, writer)))
}

/// An object in which nothing is set.
pub(super) fn is_unset(value: Raw<'_>) -> bool {
    let mut unset = value.is_object();
    value.each_member(|_, value| unset &= value.is_null());
    unset
}
