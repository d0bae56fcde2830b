//! `/v1/messages` (Anthropic's dialect, which vLLM and llama.cpp speak too) and its `count_tokens`.

use serde_json::{Value, json};

use super::{
    FAILED, Refusal, Shared, Work,
    job::{Job, Wanted, count as count_text, model, prompt_of, quoted, text_of},
};

pub(super) fn work(shared: &Shared, body: &Value) -> Result<Work, Refusal> {
    let Some(max_tokens) = body["max_tokens"].as_u64() else {
        return Err(Refusal::bad("max_tokens: Field required", Some("max_tokens")));
    };
    let wanted = Wanted {
        prompt: prompt(body)?,
        max_tokens: Some(max_tokens),
        min_tokens: body["min_tokens"].as_u64().unwrap_or(0),
        endless: body["ignore_eos"].as_bool().unwrap_or(false),
        seed: body["seed"].as_u64(),
        spoken: None,
    };
    let job = Job::new(shared, body, "msg_", wanted)?;
    let (frames, whole) = (job.clone(), job.clone());
    Ok(Work {
        tokens: job.tokens,
        prompt_tokens: job.prompt_tokens,
        stream: job.stream,
        content_type: shared.config.engine.event_stream(),
        opening: opening(&job),
        closing: closing(&job, stop_reason(&job)),
        aborted: closing(&job, "abort"),
        failed: format!(
            "event: error\ndata: {{\"type\":\"error\",\"error\":{{\"type\":\"api_error\",\"message\":{}}}}}\n\n",
            quoted(FAILED)
        ),
        frame: Box::new(move |i| {
            let text = quoted(frames.token(0, i));
            event("content_block_delta", &format!("\"index\":0,\"delta\":{{\"type\":\"text_delta\",\"text\":{text}}}"))
        }),
        whole: Box::new(move |stop| {
            let said = stop.unwrap_or(whole.tokens);
            let reason = quoted(if stop.is_some() { "abort" } else { stop_reason(&whole) });
            let text = quoted(&whole.text(0, said));
            message(&whole, &format!("[{{\"type\":\"text\",\"text\":{text}}}]"), &reason, said)
        }),
    })
}

/// `POST /v1/messages/count_tokens`.
pub(super) fn count(shared: &Shared, body: &Value) -> Result<String, Refusal> {
    model(shared, body)?;
    Ok(json!({"input_tokens": count_text(&prompt(body)?)}).to_string())
}

fn prompt(body: &Value) -> Result<String, Refusal> {
    let messages = body["messages"].as_array().map(Vec::as_slice).unwrap_or_default();
    if messages.is_empty() {
        return Err(Refusal::bad("messages: Field required", Some("messages")));
    }
    let system = text_of(&body["system"]);
    let rest = prompt_of(messages);
    Ok(if system.is_empty() { rest } else { format!("{system}\n{rest}") })
}

fn stop_reason(job: &Job) -> &'static str {
    if job.stopped { "end_turn" } else { "max_tokens" }
}

fn event(name: &str, members: &str) -> String {
    let comma = if members.is_empty() { "" } else { "," };
    format!("event: {name}\ndata: {{\"type\":\"{name}\"{comma}{members}}}\n\n")
}

fn opening(job: &Job) -> String {
    event("message_start", &format!("\"message\":{}", message(job, "[]", "null", 0)))
        + &event("content_block_start", r#""index":0,"content_block":{"type":"text","text":""}"#)
        + &event("ping", "")
}

fn closing(job: &Job, reason: &str) -> String {
    let usage = format!(
        "\"delta\":{{\"stop_reason\":\"{reason}\",\"stop_sequence\":null}},\"usage\":{{\"input_tokens\":{},\
         \"cache_read_input_tokens\":{},\"output_tokens\":{}}}",
        job.prompt_tokens - job.cached_tokens,
        job.cached_tokens,
        job.tokens
    );
    event("content_block_stop", "\"index\":0") + &event("message_delta", &usage) + &event("message_stop", "")
}

fn message(job: &Job, content: &str, reason: &str, said: u64) -> String {
    format!(
        "{{\"id\":\"{}\",\"type\":\"message\",\"role\":\"assistant\",\"content\":{content},\"model\":{},\
         \"stop_reason\":{reason},\"stop_sequence\":null,\"usage\":{{\"input_tokens\":{},\
         \"cache_read_input_tokens\":{},\"output_tokens\":{said}}}}}",
        job.id,
        quoted(&job.model),
        job.prompt_tokens - job.cached_tokens,
        job.cached_tokens
    )
}
