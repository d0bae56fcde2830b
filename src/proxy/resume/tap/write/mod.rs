//! Events written by us in the client's dialect, in the name of the stream that was cut.

mod messages;
mod openai;
mod responses;

use bytes::Bytes;

use super::{
    Chunk, DONE, Seen, Tap,
    chunk::{Told, one_line},
    read_ids,
};
use crate::{
    protocol::{
        endpoint::Endpoint,
        json::{decode, write_string},
        usage::{Finish, Usage},
    },
    proxy::resume::request::Shape,
};

impl Told {
    pub(in crate::proxy::resume) fn usage(self) -> Usage {
        let narrow = |count: u64| u32::try_from(count).unwrap_or(u32::MAX);
        Usage {
            input: narrow(self.input),
            output: narrow(self.output),
            cached: narrow(self.cached.unwrap_or(0).min(self.input)),
        }
    }

    fn of(usage: Usage) -> Self {
        let cached = (usage.cached > 0).then_some(u64::from(usage.cached));
        Self { input: u64::from(usage.input), output: u64::from(usage.output), cached }
    }
}

impl Tap {
    /// The closing events from where it stands: the finish unless it was sent, usage where it is given and was not
    /// sent, the terminator. `stop`: the stop string that ended it.
    pub fn close(&mut self, finish: Finish, usage: Option<Usage>, stop: Option<&str>) -> Bytes {
        let mut out = Vec::new();
        if let Some(stop) = stop {
            self.skeleton.stop.clear();
            write_string(&mut self.skeleton.stop, stop);
        }
        self.write_close(&mut out, finish, usage.map(Told::of));
        out.into()
    }

    /// Everything was said, and this is why it ended; the events that tell it are not written yet. A [`Splice`] that
    /// begins now brings usage alone: its text is thrown away.
    ///
    /// [`Splice`]: crate::proxy::resume::splice::Splice
    pub fn settle(&mut self, finish: Finish) {
        if !self.delivered.finish.is_real() {
            self.delivered.finish = finish;
        }
    }

    /// What a continuation's event adds to what is known of the stream.
    pub(in crate::proxy::resume) fn adopt(&mut self, chunk: &Chunk, said: &[u8]) {
        if self.is_openai() && self.skeleton.started {
            return;
        }
        let named = !self.skeleton.id.is_empty();
        self.skeleton.adopt(chunk, said);
        if !named && let Some(prefix) = self.prefix() {
            let id = decode(&self.skeleton.id).trim_matches('"').to_owned();
            self.skeleton.id.clear();
            write_string(&mut self.skeleton.id, &format!("{prefix}{id}"));
        }
    }

    fn prefix(&self) -> Option<&'static str> {
        match self.endpoint {
            Endpoint::Messages => Some("msg_"),
            Endpoint::Responses => Some("resp_"),
            _ => None,
        }
    }

    /// A continuation begins. `ids`: it tells its ids and follows the first `said` of ours.
    pub(in crate::proxy::resume) fn continues(&mut self, ids: bool, said: u64) {
        self.over = None;
        if !ids {
            self.delivered.lose_ids();
            return;
        }
        self.delivered.begin_ids();
        self.delivered.keep_ids(usize::try_from(said).unwrap_or(usize::MAX));
    }

    /// The ids of a continuation's event; `prompt`: those of the prompt in it are the client's own prompt.
    pub(in crate::proxy::resume) fn ids_of(&mut self, chunk: &Chunk, said: &[u8], prompt: bool) -> Vec<u32> {
        let read = |ids: &super::chunk::Ids| {
            let mut all = Vec::new();
            read_ids(&said[ids.inside().start..], &mut all).map(|_| all).unwrap_or_default()
        };
        if prompt && let Some(ids) = &chunk.prompt {
            self.delivered.record_prompt(&read(ids));
        }
        chunk.ids.as_ref().map(read).unwrap_or_default()
    }

    /// Whether a continuation of this shape has the client's own events.
    pub(in crate::proxy::resume) fn speaks(&self, shape: Shape) -> bool {
        matches!((self.endpoint, shape), (Endpoint::Chat, Shape::Chat) | (Endpoint::Completions, Shape::Completions))
    }

    /// Input tokens and cached ones that are known for certain: as the first stream told them, or by the prompt's ids
    /// (then `cached` is what the continuation tells).
    pub(in crate::proxy::resume) fn prompt_told(&self, cached: Option<u64>) -> Option<(u64, Option<u64>)> {
        let told = self.delivered.usage.filter(|usage| usage.input > 0).map(Told::of);
        let counted = self.delivered.prompt_count().map(|count| (count as u64, cached));
        told.map(|told| (told.input, told.cached)).or(counted)
    }

    /// The first events, where the stream never began.
    pub(in crate::proxy::resume) fn write_opening(&mut self, out: &mut Vec<u8>) {
        if std::mem::replace(&mut self.skeleton.started, true) {
            return;
        }
        self.choices.saw(0, Finish::None);
        match self.endpoint {
            Endpoint::Chat => {
                self.write_chunk(out, |out, tap| tap.delta(out, br#""role":"assistant","content":"""#, b""))
            }
            Endpoint::Messages => {
                let members = [
                    br#""message":{"id":"#,
                    &self.skeleton.id[..],
                    br#","type":"message","role":"assistant","content":[],"model":"#,
                    or_null(&self.skeleton.model),
                    br#","stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":0,"output_tokens":0}}"#,
                ]
                .concat();
                self.write_named(out, "message_start", &members);
            }
            Endpoint::Responses => {
                self.skeleton.sequence = Some(0);
                self.skeleton.response = [
                    br#"{"id":"#,
                    &self.skeleton.id[..],
                    br#","object":"response","created_at":"#,
                    or_null(&self.skeleton.created),
                    br#","status":"in_progress","error":null,"incomplete_details":null,"model":"#,
                    or_null(&self.skeleton.model),
                    br#","output":[],"parallel_tool_calls":true,"tool_choice":"auto","tools":[],"usage":null}"#,
                ]
                .concat();
                let members = [b"\"response\":", &self.skeleton.response[..]].concat();
                self.write_named(out, "response.created", &members);
                self.write_named(out, "response.in_progress", &members);
            }
            _ => {}
        }
    }

    /// One piece of text, the inside of a literal, and its ids; `logprobs` is the raw member of a chat continuation.
    pub(in crate::proxy::resume) fn write_text(
        &mut self,
        out: &mut Vec<u8>,
        raw: &[u8],
        ids: &[u32],
        logprobs: Option<&[u8]>,
    ) {
        if raw.is_empty() && logprobs.is_none() {
            self.delivered.record(raw, ids);
            return;
        }
        self.write_opening(out);
        match self.endpoint {
            Endpoint::Messages => {
                self.write_block(out);
                let index = self.skeleton.block.unwrap_or(0).to_string();
                let members =
                    [br#""index":"#, index.as_bytes(), br#","delta":{"type":"text_delta","text":""#, raw, br#""}"#]
                        .concat();
                self.write_named(out, "content_block_delta", &members);
            }
            Endpoint::Responses => {
                self.write_item(out);
                let members = [&self.place()[..], b",\"delta\":\"", raw, b"\",\"logprobs\":[]"].concat();
                self.write_named(out, "response.output_text.delta", &members);
            }
            endpoint => match self.template.around().filter(|_| logprobs.is_none()) {
                Some((before, behind)) => {
                    out.extend_from_slice(before);
                    out.extend_from_slice(raw);
                    out.extend_from_slice(&behind);
                }
                None => self.write_chunk(out, |out, tap| {
                    let told = logprobs.map(|raw| [b",\"logprobs\":", &one_line(raw)[..]].concat()).unwrap_or_default();
                    if endpoint == Endpoint::Chat {
                        tap.delta(out, &[b"\"content\":\"", raw, b"\""].concat(), &told);
                    } else {
                        tap.choice(out, &[b"\"text\":\"", raw, b"\""].concat(), &told);
                    }
                }),
            },
        }
        self.delivered.logprobs |= logprobs.is_some();
        self.delivered.record(raw, ids);
    }

    /// The stop string (or token) that ended it, as a raw value.
    pub(in crate::proxy::resume) fn set_stop(&mut self, raw: &[u8]) {
        self.skeleton.stop = one_line(raw).into_owned();
    }

    /// The literal of the reason why it ended, as OpenAI's dialect tells it.
    pub(in crate::proxy::resume) fn set_word(&mut self, raw: &[u8]) {
        self.skeleton.word = one_line(raw).into_owned();
    }

    /// See [`close`](Self::close).
    pub(in crate::proxy::resume) fn write_close(&mut self, out: &mut Vec<u8>, finish: Finish, usage: Option<Told>) {
        if self.over == Some(Seen::Ended) {
            return;
        }
        self.over = Some(Seen::Ended);
        self.write_opening(out);
        let finish = if self.delivered.finish.is_real() { self.delivered.finish } else { finish };
        match self.endpoint {
            Endpoint::Messages => self.close_message(out, finish, usage),
            Endpoint::Responses => self.close_response(out, finish, usage),
            _ => {
                self.write_finish(out, finish);
                if let Some(told) = usage {
                    self.write_usage(out, told);
                }
                out.extend_from_slice(b"data: ");
                out.extend_from_slice(DONE);
                out.extend_from_slice(b"\n\n");
            }
        }
        self.delivered.finish = finish;
    }

    /// Counts where no engine told them: ids where they are known, else a token for each event.
    pub(in crate::proxy::resume) fn best_known(&self) -> Told {
        let told = self.delivered.usage.map(Told::of).unwrap_or_default();
        let input = self.delivered.prompt_count().map_or(told.input, |count| count as u64);
        let output = self.delivered.id_count().map_or(self.delivered.chunks(), |count| count as u64);
        Told { input, output: output.max(told.output), cached: told.cached }
    }

    /// A named event with `members` behind its type and number.
    fn write_named(&mut self, out: &mut Vec<u8>, name: &str, members: &[u8]) {
        out.extend_from_slice(format!("event: {name}\ndata: {{\"type\":\"{name}\"").as_bytes());
        if let Some(number) = self.skeleton.sequence {
            out.extend_from_slice(format!(",\"sequence_number\":{number}").as_bytes());
            self.skeleton.sequence = number.checked_add(1);
        }
        if !members.is_empty() {
            out.push(b',');
            out.extend_from_slice(members);
        }
        out.extend_from_slice(b"}\n\n");
    }
}

fn or_null(raw: &[u8]) -> &[u8] {
    if raw.is_empty() { b"null" } else { raw }
}
