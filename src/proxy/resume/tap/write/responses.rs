//! Events of responses.

use super::or_null;
use crate::{
    protocol::{
        json::{Malformed, Reader, decode, write_string},
        usage::Finish,
    },
    proxy::resume::tap::{Tap, chunk::Told, skeleton::Part},
};

impl Tap {
    /// Opens an item and its text part where none is.
    pub(super) fn write_item(&mut self, out: &mut Vec<u8>) {
        if self.skeleton.part > Part::Open {
            self.close_item(out, "completed");
        }
        if self.skeleton.part == Part::None {
            let id = decode(&self.skeleton.id).trim_matches('"').to_owned();
            self.skeleton.item.clear();
            let stem = id.strip_prefix("resp_").unwrap_or(&id);
            let number = match self.skeleton.next_output {
                0 => String::new(),
                n => format!("_{n}"),
            };
            write_string(&mut self.skeleton.item, &format!("msg_{stem}{number}"));
            self.skeleton.output_index = self.skeleton.sequence.map(|_| self.skeleton.next_output);
            self.skeleton.next_output = self.skeleton.next_output.saturating_add(1);
            self.skeleton.content_index = self.skeleton.sequence.map(|_| 0);
            let item = self.item_of("in_progress", b"");
            let members = [&self.output_place()[..], b"\"item\":", &item].concat();
            self.write_named(out, "response.output_item.added", &members);
            self.skeleton.part = Part::Item;
            self.delivered.closed = false;
        }
        if self.skeleton.part == Part::Item {
            self.write_part(out);
        }
    }

    pub(super) fn write_part(&mut self, out: &mut Vec<u8>) {
        self.skeleton.part_from = self.delivered.raw().len();
        if self.skeleton.output_index.is_some() {
            self.skeleton.content_index.get_or_insert(0);
        }
        let members = [&self.place()[..], b",\"part\":", &part_of(b"")].concat();
        self.write_named(out, "response.content_part.added", &members);
        self.skeleton.part = Part::Open;
    }

    pub(super) fn close_response(&mut self, out: &mut Vec<u8>, finish: Finish, usage: Option<Told>) {
        let whole = !matches!(finish, Finish::Length | Finish::ContentFilter);
        if self.skeleton.part == Part::None && self.skeleton.items.is_empty() {
            self.write_item(out);
        }
        let status = if whole { "completed" } else { "incomplete" };
        self.close_item(out, status);
        let told = usage.unwrap_or_else(|| self.best_known());
        let mut object = Vec::new();
        if self.response_object(&mut object, finish, status, told).is_err() {
            object = b"{}".to_vec();
        }
        let kind = if whole { "response.completed" } else { "response.incomplete" };
        self.write_named(out, kind, &[b"\"response\":", &object[..]].concat());
        self.delivered.usage = Some(told.usage());
    }

    /// Ends the item that is open, from where it stands.
    pub(super) fn close_item(&mut self, out: &mut Vec<u8>, status: &str) {
        if self.skeleton.part == Part::None {
            return;
        }
        if self.skeleton.part == Part::Item {
            self.write_part(out);
        }
        let text = self.delivered.raw().get(self.skeleton.part_from..).unwrap_or_default().to_vec();
        let part = part_of(&text);
        if self.skeleton.part == Part::Open {
            let members = [&self.place()[..], b",\"text\":\"", &text, b"\",\"logprobs\":[]"].concat();
            self.write_named(out, "response.output_text.done", &members);
        }
        if self.skeleton.part < Part::Done {
            let members = [&self.place()[..], b",\"part\":", &part].concat();
            self.write_named(out, "response.content_part.done", &members);
        }
        let item = self.item_of(status, &part);
        let members = [&self.output_place()[..], b"\"item\":", &item].concat();
        self.write_named(out, "response.output_item.done", &members);
        self.skeleton.add_item(&item);
        self.skeleton.part = Part::None;
        self.delivered.closed = true;
    }

    /// The object of `response.created`, as it stands at the end.
    pub(super) fn response_object(
        &self,
        out: &mut Vec<u8>,
        finish: Finish,
        status: &str,
        told: Told,
    ) -> Result<(), Malformed> {
        const OURS: [&[u8]; 4] = [b"status", b"output", b"usage", b"incomplete_details"];
        let raw = &self.skeleton.response[..];
        let mut names = Vec::new();
        out.push(b'{');
        Reader::new(raw).members(|reader, key| {
            let name = key.name().into_owned();
            let start = key.literal().start;
            reader.skip()?;
            if !OURS.contains(&&name[..]) {
                out.extend_from_slice(&raw[start..reader.offset()]);
                out.push(b',');
                names.push(name);
            }
            Ok(())
        })?;
        for (name, value) in [(&b"created_at"[..], &self.skeleton.created), (b"model", &self.skeleton.model)] {
            if !value.is_empty() && !names.iter().any(|known| known == name) {
                out.extend_from_slice(&[b"\"", name, b"\":", value, b","].concat());
            }
        }
        let why = match finish {
            Finish::Length => r#"{"reason":"max_output_tokens"}"#,
            Finish::ContentFilter => r#"{"reason":"content_filter"}"#,
            _ => "null",
        };
        out.extend_from_slice(format!("\"status\":\"{status}\",\"incomplete_details\":{why},\"output\":[").as_bytes());
        out.extend_from_slice(&self.skeleton.items);
        let Told { input, output, cached } = told;
        out.extend_from_slice(
            format!(
                "],\"usage\":{{\"input_tokens\":{input},\"input_tokens_details\":{{\"cached_tokens\":{}}},\
                 \"output_tokens\":{output},\"output_tokens_details\":{{\"reasoning_tokens\":0}},\"total_tokens\":{}}}}}",
                cached.unwrap_or(0),
                input.saturating_add(output)
            )
            .as_bytes(),
        );
        Ok(())
    }

    pub(super) fn item_of(&self, status: &str, content: &[u8]) -> Vec<u8> {
        [
            b"{\"id\":",
            or_null(&self.skeleton.item),
            b",\"type\":\"message\",\"role\":\"assistant\",\"status\":\"",
            status.as_bytes(),
            b"\",\"content\":[",
            content,
            b"]}",
        ]
        .concat()
    }

    /// `item_id`, and the indices where the engine tells them.
    pub(super) fn place(&self) -> Vec<u8> {
        let mut out = [b"\"item_id\":", or_null(&self.skeleton.item)].concat();
        if let Some(index) = self.skeleton.output_index {
            out.extend_from_slice(format!(",\"output_index\":{index}").as_bytes());
        }
        if let Some(index) = self.skeleton.content_index {
            out.extend_from_slice(format!(",\"content_index\":{index}").as_bytes());
        }
        out
    }

    pub(super) fn output_place(&self) -> Vec<u8> {
        self.skeleton.output_index.map(|index| format!("\"output_index\":{index},").into_bytes()).unwrap_or_default()
    }
}

fn part_of(text: &[u8]) -> Vec<u8> {
    [b"{\"type\":\"output_text\",\"text\":\"", text, b"\",\"annotations\":[],\"logprobs\":[]}"].concat()
}
