//! One line a request, at its end. Never prompts, keys, or the values of a query.

use std::time::Duration;

use super::{Story, endpoint_name};
use crate::{protocol::usage::Finish, telemetry::access::Line};

/// Of a model's name, in bytes.
const LONGEST_MODEL: usize = 128;

/// Fills in the fields of `story`, in the order they are read.
pub(super) fn write(line: &mut Line<'_>, story: &Story, took: Duration) {
    let record = &story.record;
    line.number("status", u64::from(story.status));
    line.text("method", record.method.as_str());
    line.text("path", record.path.path());
    line.millis("duration_ms", took);
    line.text("id", record.id.to_str().unwrap_or("-"));
    if record.peer.address.is_some() {
        line.word("client", story.forwarded.address());
    }
    line.word("endpoint", endpoint_name(record.endpoint));
    if let Some(model) = &*record.model.borrow() {
        line.text("model", shown(model));
    }
    if record.stream.get() {
        line.flag("stream", true);
    }
    if let Some(backend) = &*record.backend.borrow() {
        line.text("backend", &backend.spec.name);
        line.word("why", record.why.get());
        line.number("attempts", u64::from(record.attempts.get()));
    }
    if let Some(cache) = record.cached.get().word() {
        line.word("cache", cache);
    }
    line.millis("gateway_ms", story.overhead);
    if !record.queued.get().is_zero() {
        line.millis("queue_ms", record.queued.get());
    }
    if let Some(head) = record.head.get() {
        line.millis("head_ms", head - record.start);
    }
    if let Some(first) = record.first_byte.get() {
        line.millis("first_byte_ms", first - record.start);
    }
    line.number("bytes_in", record.received.get());
    line.number("bytes_out", story.sent);
    if story.sent > 0
        && let Some(coding) = record.coding.get()
    {
        line.word("coding", coding.name());
    }
    let usage = record.usage.get();
    if usage != Default::default() {
        line.number("tokens_in", u64::from(usage.input));
        line.number("tokens_cached", u64::from(usage.cached));
        line.number("tokens_out", u64::from(usage.output));
    }
    if record.finish.get() != Finish::None {
        line.word("finish", record.finish.get().name());
    }
    let resumed = record.resumed.get();
    if resumed.times > 0 {
        line.number("resumed", u64::from(resumed.times));
        line.word("resume_mode", resumed.mode);
        line.number("tokens_kept", resumed.kept);
        line.millis("gap_ms", resumed.gap);
    }
    if let Some(kind) = story.error {
        line.word("error", crate::proxy::respond::row_of(kind).code);
    }
    if let Some(cut) = record.cut.get() {
        line.word("cut", crate::proxy::respond::row_of(cut).code);
    } else if story.left {
        line.word("cut", "client_gone");
    }
}

/// A client may call a model anything, at any length.
fn shown(model: &str) -> &str {
    &model[..model.floor_char_boundary(LONGEST_MODEL)]
}
