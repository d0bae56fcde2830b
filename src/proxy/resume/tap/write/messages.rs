//! Events of messages.

use crate::{
    protocol::usage::Finish,
    proxy::resume::tap::{Tap, chunk::Told},
};

impl Tap {
    /// Opens a text block where none is.
    pub(super) fn write_block(&mut self, out: &mut Vec<u8>) {
        if let Some(index) = self.skeleton.block {
            if self.skeleton.text_block {
                return;
            }
            self.write_named(out, "content_block_stop", format!("\"index\":{index}").as_bytes());
        }
        let index = self.skeleton.next_block;
        let members = format!("\"index\":{index},\"content_block\":{{\"type\":\"text\",\"text\":\"\"}}");
        self.write_named(out, "content_block_start", members.as_bytes());
        self.skeleton.block = Some(index);
        self.skeleton.next_block = index.saturating_add(1);
        self.skeleton.text_block = true;
        self.delivered.closed = false;
    }

    pub(super) fn close_message(&mut self, out: &mut Vec<u8>, finish: Finish, usage: Option<Told>) {
        if let Some(index) = self.skeleton.block.take() {
            self.write_named(out, "content_block_stop", format!("\"index\":{index}").as_bytes());
        }
        if !std::mem::replace(&mut self.skeleton.finish_sent, true) {
            let stop = Some(&self.skeleton.stop).filter(|raw| raw.first() == Some(&b'"'));
            let reason = match finish {
                Finish::Length => "max_tokens",
                Finish::ToolCalls => "tool_use",
                Finish::ContentFilter => "refusal",
                _ if stop.is_some() => "stop_sequence",
                _ => "end_turn",
            };
            let stop = stop.map_or("null".into(), |raw| String::from_utf8_lossy(raw));
            let Told { input, output, cached } = usage.unwrap_or_else(|| self.best_known());
            let fresh = input.saturating_sub(cached.unwrap_or(0));
            let cached = cached.map(|n| format!("\"cache_read_input_tokens\":{n},")).unwrap_or_default();
            let members = format!(
                "\"delta\":{{\"stop_reason\":\"{reason}\",\"stop_sequence\":{stop}}},\
                 \"usage\":{{\"input_tokens\":{fresh},{cached}\"output_tokens\":{output}}}"
            );
            self.write_named(out, "message_delta", members.as_bytes());
            self.delivered.usage = Some(Told { input, output, cached: None }.usage());
        }
        self.write_named(out, "message_stop", b"");
    }
}
