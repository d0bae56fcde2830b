//! Chunks of chat and completions.

use crate::{
    protocol::{endpoint::Endpoint, usage::Finish},
    proxy::resume::tap::{
        Chunk, Tap,
        chunk::{Told, one_line},
    },
};

impl Tap {
    /// Members of a delta that are neither role nor content, as they came. Only chat can tell them: `false` elsewhere.
    pub(in crate::proxy::resume) fn write_others(
        &mut self,
        out: &mut Vec<u8>,
        chunk: &Chunk,
        said: &[u8],
        ids: &[u32],
    ) -> bool {
        self.delivered.tools |= chunk.tools;
        if self.endpoint != Endpoint::Chat {
            self.delivered.reasoning |= chunk.reasoning;
            return false;
        }
        if chunk.reasoning {
            self.delivered.record_reasoning(ids);
        }
        let members: Vec<_> = chunk
            .others
            .iter()
            .map(|(name, value)| [&one_line(&said[name.clone()])[..], b":", &one_line(&said[value.clone()])].concat())
            .collect();
        self.write_opening(out);
        self.write_chunk(out, |out, tap| tap.delta(out, &members.join(&b','), b""));
        true
    }

    /// Takes down why it ended; in OpenAI's dialect that is told at once, elsewhere with the closing events.
    pub(in crate::proxy::resume) fn write_finish(&mut self, out: &mut Vec<u8>, finish: Finish) {
        self.delivered.finish = finish;
        if !self.is_openai() || std::mem::replace(&mut self.skeleton.finish_sent, true) {
            return;
        }
        self.write_opening(out);
        self.choices.saw(0, finish);
        let reason: &[u8] = match finish {
            _ if !self.skeleton.word.is_empty() => &self.skeleton.word,
            Finish::Length => b"\"length\"",
            Finish::ToolCalls => b"\"tool_calls\"",
            Finish::ContentFilter => b"\"content_filter\"",
            _ => b"\"stop\"",
        };
        self.write_chunk(out, |out, tap| {
            let delta: &[u8] = if tap.endpoint == Endpoint::Chat { b"\"delta\":{}" } else { b"\"text\":\"\"" };
            out.extend_from_slice(b"\"choices\":[{\"index\":0,");
            out.extend_from_slice(delta);
            if tap.skeleton.no_logprobs {
                out.extend_from_slice(b",\"logprobs\":null");
            }
            out.extend_from_slice(b",\"finish_reason\":");
            out.extend_from_slice(reason);
            if !tap.skeleton.stop.is_empty() {
                out.extend_from_slice(b",\"stop_reason\":");
                out.extend_from_slice(&tap.skeleton.stop);
            }
            out.extend_from_slice(b"}]");
        });
    }

    /// The chunk of OpenAI's dialect that tells usage, once.
    pub(in crate::proxy::resume) fn write_usage(&mut self, out: &mut Vec<u8>, told: Told) {
        self.delivered.usage = Some(told.usage());
        if !self.is_openai() || std::mem::replace(&mut self.skeleton.usage_sent, true) {
            return;
        }
        let Told { input, output, cached } = told;
        let details = cached.map(|n| format!(",\"prompt_tokens_details\":{{\"cached_tokens\":{n}}}"));
        let total = input.saturating_add(output);
        self.write_chunk(out, |out, _| {
            out.extend_from_slice(
                format!(
                    "\"choices\":[],\"usage\":{{\"prompt_tokens\":{input},\"total_tokens\":{total},\
                     \"completion_tokens\":{output}{}}}",
                    details.unwrap_or_default()
                )
                .as_bytes(),
            );
        });
    }

    /// An event of OpenAI's dialect; `rest` writes `choices` and what follows.
    pub(super) fn write_chunk(&self, out: &mut Vec<u8>, rest: impl FnOnce(&mut Vec<u8>, &Self)) {
        let kind: &[u8] =
            if self.endpoint == Endpoint::Chat { b"\"chat.completion.chunk\"" } else { b"\"text_completion\"" };
        out.extend_from_slice(b"data: {");
        let skeleton = &self.skeleton;
        for (name, value) in [
            (&b"id"[..], &skeleton.id[..]),
            (b"object", kind),
            (b"created", &skeleton.created),
            (b"model", &skeleton.model),
            (b"system_fingerprint", &skeleton.fingerprint),
        ] {
            if !value.is_empty() {
                out.extend_from_slice(&[b"\"", name, b"\":", value, b","].concat());
            }
        }
        rest(out, self);
        out.extend_from_slice(b"}\n\n");
    }

    pub(super) fn delta(&self, out: &mut Vec<u8>, members: &[u8], logprobs: &[u8]) {
        self.choice(out, &[b"\"delta\":{", members, b"}"].concat(), logprobs);
    }

    pub(super) fn choice(&self, out: &mut Vec<u8>, members: &[u8], logprobs: &[u8]) {
        out.extend_from_slice(b"\"choices\":[{\"index\":0,");
        out.extend_from_slice(members);
        if logprobs.is_empty() && self.skeleton.no_logprobs {
            out.extend_from_slice(b",\"logprobs\":null");
        }
        out.extend_from_slice(logprobs);
        out.extend_from_slice(b",\"finish_reason\":null}]");
    }
}
