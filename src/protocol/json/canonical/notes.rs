//! What a body says of where its answer comes from, seen while its canonical form is written.

use std::ops::Range;

use super::{Member, Pass};
use crate::protocol::json::Reader;

/// Depth of an object in the top-level array `tools`.
const TOOL_DEPTH: usize = 3;

/// What an answer depends on beside the body, as far as the body tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Notes {
    /// Refers to content that lies elsewhere: an `image_url` that is no `data:` URL, a `file_id`.
    pub remote: bool,
    /// Tools that the backend runs, or may run.
    pub server_tools: bool,
    /// Refers to state of a backend: a stored prompt or item, a session, a key-value cache elsewhere.
    pub stateful: bool,
    /// Tool or reasoning parsers, or a way of sampling, take part in which an engine's streamed and plain answers may
    /// differ: one does not stand in for the other.
    pub bound: bool,
}

impl Pass<'_, '_> {
    /// A member's name was read.
    pub(super) fn note_begin(&mut self, depth: usize, name: Range<usize>) {
        if depth == 1 {
            self.tool.within = &self.out[name] == b"tools";
        }
    }

    /// A member is complete.
    pub(super) fn note(&mut self, depth: usize, member: &Member) {
        let (name, value) = (&self.out[member.name()], &self.out[member.name_end + 1..member.end]);
        if refers(name, value) {
            self.notes.remote = true;
        }
        if value == br#""item_reference""# && name == b"type" {
            self.notes.stateful = true;
        }
        if depth == 1 {
            note_top(&mut self.notes, name, value);
        } else if depth == TOOL_DEPTH && self.tool.within {
            match (name, value) {
                (b"type", b"null" | br#""function""# | br#""custom""#) | (b"name" | b"function", _) => {
                    self.tool.known = true;
                }
                (b"type", _) => self.notes.server_tools = true,
                _ => {}
            }
        }
    }

    /// An object ended.
    pub(super) fn note_end(&mut self, depth: usize) {
        if depth == TOOL_DEPTH && self.tool.within {
            // One without a type and a name is of a kind that we do not know.
            self.notes.server_tools |= !self.tool.known;
            self.tool.known = false;
        }
    }
}

fn note_top(notes: &mut Notes, name: &[u8], value: &[u8]) {
    let says_something = !matches!(value, b"null" | b"false" | b"[]" | b"{}");
    match name {
        b"web_search_options" => notes.server_tools |= value != b"null",
        b"mcp_servers" | b"container" | b"plugins" | b"search_parameters" | b"enable_search" => {
            notes.server_tools |= says_something;
        }
        b"kv_transfer_params" | b"session_params" | b"bootstrap_host" | b"bootstrap_room" => {
            notes.stateful |= says_something;
        }
        // On /v1/responses: a prompt that the backend has stored.
        b"prompt" => notes.stateful |= value.starts_with(b"{"),
        b"tools"
        | b"functions"
        | b"modalities"
        | b"audio"
        | b"use_beam_search"
        | b"best_of"
        | b"chat_template_kwargs" => notes.bound |= says_something,
        _ => {
            let about = |word: &[u8]| name.starts_with(word) || name.ends_with(word);
            notes.bound |= says_something && (about(b"reasoning") || about(b"thinking"));
        }
    }
}

/// Whether a member refers to content that is not in the body.
#[inline]
fn refers(name: &[u8], value: &[u8]) -> bool {
    // Nearly all names end here.
    match name.last() {
        Some(b'l' | b'i' | b's' | b'L' | b'I' | b'S') if is_link(name) => any_text(value, is_not_data),
        Some(b'd' | b's') if matches!(name, b"file_id" | b"file_ids") => !matches!(value, b"null" | b"[]"),
        Some(b'e' | b'o' | b'a') => {
            matches!(name, b"image" | b"video" | b"audio" | b"image_data" | b"video_data" | b"audio_data")
                && any_text(value, is_url)
        }
        _ => false,
    }
}

/// `url`, `image_url`, `fileUri`, `urls`, …
fn is_link(name: &[u8]) -> bool {
    let stem = match name.last() {
        Some(b's' | b'S') => &name[..name.len() - 1],
        Some(b'l' | b'L' | b'i' | b'I') => name,
        _ => return false,
    };
    stem.last_chunk::<3>().is_some_and(|end| end.eq_ignore_ascii_case(b"url") || end.eq_ignore_ascii_case(b"uri"))
}

/// Where a URL is expected, whatever is not the content itself.
fn is_not_data(text: &[u8]) -> bool {
    !text.is_empty() && !text.first_chunk::<5>().is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"data:"))
}

/// Where base64 may stand too: a scheme at its beginning.
fn is_url(text: &[u8]) -> bool {
    let start = &text[..text.len().min(16)];
    start.windows(3).any(|part| part == b"://")
        || start.first_chunk::<5>().is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"file:"))
}

/// Whether `wanted` holds for the value, where it is a text, or for a text in it, where it is an array.
fn any_text(value: &[u8], wanted: fn(&[u8]) -> bool) -> bool {
    let mut found = false;
    let mut reader = Reader::new(value);
    let mut read = |reader: &mut Reader<'_>| {
        found |= reader.text()?.is_some_and(|text| wanted(text.raw));
        Ok(())
    };
    let whole = if value.first() == Some(&b'[') { reader.elements(read) } else { read(&mut reader) };
    // What is canonical is well-formed.
    found || whole.is_err()
}
