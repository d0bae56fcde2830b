//! What each event adds to what is known: text and ids, the envelope, the end.

use std::ops::Range;

use super::{
    Chunk, Edits, Frame, Tap, Verdict,
    chunk::{literal, one_line},
    named::Named,
    skeleton::Part,
    template::{Cut, Hole, read_ids},
};
use crate::protocol::{
    endpoint::Endpoint,
    usage::{Finish, Usage},
};

impl Tap {
    pub(super) fn chunk(&mut self, chunk: &Chunk, said: &[u8], frame: &Frame, rest: &[u8]) -> Verdict {
        if let Some(error) = &chunk.error {
            return Verdict::Cut(error.clone());
        }
        if matches!(chunk.finish, Finish::Abort | Finish::Error) {
            return Verdict::Cut(gave_up(chunk.finish));
        }
        self.nulls |= chunk.nulls;
        if self.ids && chunk.ids.is_some() && chunk.is_bare() {
            self.count(chunk, said);
            return Verdict::Drop;
        }
        for &(index, finish) in &chunk.choices {
            self.choices.saw(index, finish);
            self.delivered.choices |= index > 0;
        }
        if !self.skeleton.started && !self.delivered.is_forgotten() {
            self.skeleton.adopt(chunk, said);
            self.skeleton.started = true;
        }
        self.count(chunk, said);
        self.delivered.tools |= chunk.tools;
        self.delivered.logprobs |= chunk.logprobs.is_some();
        if chunk.finish.is_real() {
            self.delivered.finish = chunk.finish;
            self.skeleton.finish_sent = true;
        }
        if let Some(told) = chunk.usage {
            self.delivered.usage = Some(told.usage());
            self.skeleton.usage_sent |= self.delivered.finish.is_real();
        }
        if chunk.is_ordinary() && !(chunk.role && chunk.text.as_ref().is_some_and(Range::is_empty)) {
            self.learn(chunk, frame, rest);
        }
        Verdict::Pass
    }

    /// Takes text and ids down.
    fn count(&mut self, chunk: &Chunk, said: &[u8]) {
        self.scratch.clear();
        if let Some(prompt) = chunk.prompt.as_ref().filter(|_| self.ids)
            && read_ids(&said[prompt.inside().start..], &mut self.scratch).is_some()
        {
            self.delivered.record_prompt(&self.scratch);
            // A prompt's are many, an event's few.
            self.scratch = Vec::new();
        }
        self.scratch.clear();
        if let Some(ids) = &chunk.ids
            && read_ids(&said[ids.inside().start..], &mut self.scratch).is_none()
        {
            self.scratch.clear();
        }
        let text = chunk.text.clone().map_or(&b""[..], |range| &said[range]);
        if chunk.reasoning && text.is_empty() {
            self.delivered.record_reasoning(&self.scratch);
        } else {
            self.delivered.reasoning |= chunk.reasoning;
            self.delivered.record(&literal(text), &self.scratch);
        }
    }

    fn learn(&mut self, chunk: &Chunk, frame: &Frame, rest: &[u8]) {
        let (Some(from), Some(text)) = (frame.line_of_data(), &chunk.text) else { return };
        let shift = |range: Range<usize>| range.start + from..range.end + from;
        let mut holes = vec![(Hole::Text, shift(text.clone()))];
        let mut cut = Cut::default();
        if let Some(ids) = chunk.ids.as_ref().filter(|_| self.ids) {
            let inside = ids.inside();
            let gone = if self.nulls { &ids.value } else { &ids.member };
            cut = Cut { before: inside.start - gone.start, behind: gone.end - inside.end, null: self.nulls };
            holes.push((Hole::Ids, shift(inside)));
        }
        self.known = None;
        self.template.learn(&rest[..frame.end], &mut holes, cut);
    }

    /// Takes the ids out of an event.
    pub(super) fn take_out(
        &self,
        chunk: &Chunk,
        said: &[u8],
        frame: &Frame,
        at: usize,
        data: &[u8],
        edits: &mut Edits,
    ) {
        let mut gone: Vec<_> = chunk.taken().map(|ids| if self.nulls { &ids.value } else { &ids.member }).collect();
        if gone.is_empty() {
            return;
        }
        gone.sort_unstable_by_key(|range| range.start);
        let instead: &[u8] = if self.nulls { b"null" } else { b"" };
        if let Some(from) = frame.line_of_data() {
            for range in gone {
                edits.cut(data, at + from + range.start..at + from + range.end, instead);
            }
            return;
        }
        // Several lines of data: written anew, each line with its name.
        let (mut left, mut behind) = (Vec::new(), 0);
        for range in gone {
            left.extend_from_slice(&said[behind..range.start.max(behind)]);
            left.extend_from_slice(instead);
            behind = range.end.max(behind);
        }
        left.extend_from_slice(&said[behind..]);
        let mut event = Vec::new();
        for line in left.split(|byte| *byte == b'\n') {
            event.extend_from_slice(b"data: ");
            event.extend_from_slice(line);
            event.push(b'\n');
        }
        event.push(b'\n');
        edits.cut(data, at..at + frame.end, &event);
    }

    pub(super) fn named(&mut self, named: &Named<'_>, said: &[u8], frame: &Frame, rest: &[u8]) -> Verdict {
        if let Some(error) = &named.error {
            return Verdict::Cut(error.clone());
        }
        let kind = named.kind.map(|kind| kind.name()).unwrap_or_default();
        match self.endpoint {
            Endpoint::Messages => self.message(&kind, named, said, frame, rest),
            _ => self.response(&kind, named, said, frame, rest),
        }
    }

    fn message(&mut self, kind: &[u8], named: &Named<'_>, said: &[u8], frame: &Frame, rest: &[u8]) -> Verdict {
        let reason = named.stop_reason.map_or(Finish::None, |reason| Finish::parse(&reason.decode()));
        if kind == b"message_delta" && matches!(reason, Finish::Abort | Finish::Error) {
            return Verdict::Cut(gave_up(reason));
        }
        if kind == b"message_stop" && !self.delivered.finish.is_real() {
            return Verdict::Cut("the stream ended without a stop reason".to_owned());
        }
        if kind != b"ping" && std::mem::take(&mut self.waits) {
            self.delivered.closed = true;
            self.skeleton.block = None;
        }
        let skeleton = &mut self.skeleton;
        let of = |name: &[u8]| named.object_kind.is_some_and(|kind| kind.is(name));
        let delta = |name: &[u8]| named.delta_kind.is_some_and(|kind| kind.is(name));
        match kind {
            b"message_start" => {
                skeleton.started = true;
                skeleton.name(named, said);
                self.delivered.usage = named.usage;
            }
            b"content_block_start" => {
                let index = named.index.unwrap_or(skeleton.next_block);
                skeleton.block = Some(index);
                skeleton.next_block = index.saturating_add(1);
                skeleton.text_block = of(b"text");
                self.delivered.closed = false;
                self.delivered.reasoning |= of(b"thinking") || of(b"redacted_thinking");
                self.delivered.tools |= !(of(b"text") || of(b"thinking") || of(b"redacted_thinking"));
            }
            b"content_block_delta" if delta(b"text_delta") => {
                let text = named.text.clone().map_or(&b""[..], |range| &said[range]);
                self.delivered.record(&literal(text), &[]);
                self.learn_named(named, frame, rest);
            }
            b"content_block_delta" if delta(b"thinking_delta") => self.delivered.record_reasoning(&[]),
            b"content_block_delta" => self.delivered.tools |= delta(b"input_json_delta"),
            b"content_block_stop" if skeleton.text_block => {
                self.waits = true;
                return Verdict::Hold;
            }
            b"content_block_stop" => skeleton.block = None,
            b"message_delta" => self.message_delta(named, reason),
            b"message_stop" => return Verdict::End,
            _ => {}
        }
        Verdict::Pass
    }

    fn message_delta(&mut self, named: &Named<'_>, finish: Finish) {
        if let Some(usage) = named.usage {
            let start = self.delivered.usage.unwrap_or_default();
            let first = if usage.input == 0 { start } else { usage };
            self.delivered.usage = Some(Usage { output: usage.output, ..first });
        }
        if finish.is_real() {
            self.delivered.finish = finish;
            self.skeleton.finish_sent = true;
            self.skeleton.usage_sent |= named.usage.is_some();
        }
    }

    fn response(&mut self, kind: &[u8], named: &Named<'_>, said: &[u8], frame: &Frame, rest: &[u8]) -> Verdict {
        let skeleton = &mut self.skeleton;
        if let Some((_, number)) = named.sequence {
            skeleton.sequence = number.checked_add(1);
        }
        let of = |name: &[u8]| named.object_kind.is_some_and(|kind| kind.is(name));
        let raw = |range: &Option<Range<usize>>| {
            range.clone().map_or(Vec::new(), |range| one_line(&said[range]).into_owned())
        };
        let kept = !self.delivered.is_forgotten();
        match kind {
            b"response.created" if kept => {
                skeleton.started = true;
                skeleton.name(named, said);
                skeleton.response = raw(&named.object);
            }
            b"response.output_item.added" if kept => {
                skeleton.item = raw(&named.id);
                skeleton.output_index = named.output_index;
                skeleton.next_output = named.output_index.unwrap_or(skeleton.next_output).saturating_add(1);
                skeleton.part = if of(b"message") { Part::Item } else { Part::None };
                self.delivered.closed = false;
                self.delivered.reasoning |= of(b"reasoning");
                self.delivered.tools |= !of(b"message") && !of(b"reasoning");
            }
            b"response.content_part.added" if kept && skeleton.part != Part::None => {
                skeleton.part = Part::Open;
                skeleton.content_index = named.content_index;
                skeleton.part_from = self.delivered.raw().len();
                self.delivered.closed = false;
                self.delivered.tools |= !of(b"output_text");
            }
            b"response.output_text.delta" => {
                let text = named.text.clone().map_or(&b""[..], |range| &said[range]);
                self.delivered.record(&literal(text), &[]);
                self.delivered.logprobs |= named.logprobs;
                if !named.logprobs {
                    self.learn_named(named, frame, rest);
                }
            }
            b"response.output_text.done" => {
                skeleton.part = Part::Told;
                self.delivered.closed = true;
            }
            b"response.content_part.done" if skeleton.part == Part::Told => skeleton.part = Part::Done,
            b"response.output_item.done" if kept => {
                skeleton.part = Part::None;
                skeleton.add_item(&raw(&named.object));
            }
            b"response.completed" | b"response.incomplete" => {
                let reason = named.incomplete.map_or(Finish::Stop, |reason| Finish::parse(&reason.decode()));
                self.delivered.finish = if reason.is_real() { reason } else { Finish::Other };
                self.delivered.usage = named.usage;
                return Verdict::End;
            }
            b"response.cancelled" => return Verdict::Cut(gave_up(Finish::Abort)),
            _ if kind.starts_with(b"response.reasoning") && kind.ends_with(b".delta") => {
                self.delivered.record_reasoning(&[]);
            }
            _ => self.delivered.tools |= kind.ends_with(b".delta"),
        }
        Verdict::Pass
    }

    fn learn_named(&mut self, named: &Named<'_>, frame: &Frame, rest: &[u8]) {
        let (Some(from), Some(text)) = (frame.line_of_data(), &named.text) else { return };
        let mut holes = vec![(Hole::Text, text.start + from..text.end + from)];
        if let Some((number, _)) = &named.sequence {
            holes.push((Hole::Number, number.start + from..number.end + from));
        }
        self.known = None;
        self.template.learn(&rest[..frame.end], &mut holes, Cut::default());
    }
}

fn gave_up(finish: Finish) -> String {
    format!("the engine ended the answer with `{}`", finish.name())
}
