//! `/v1/messages` (Anthropic's dialect, which vLLM and llama.cpp speak too) and its `count_tokens`.

use serde_json::{Value, json};

use super::{
    Closing, FAILED, Refusal, Shared, Work,
    job::{Job, Wanted, count as count_text, model, prompt_of, quoted, stops_of, text_of},
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
        stops: stops_of(&body["stop_sequences"]),
    };
    let job = Job::new(shared, body, "msg_", wanted)?;
    let (frames, whole, end) = (job.clone(), job.clone(), job.clone());
    Ok(Work {
        tokens: job.tokens,
        prompt_tokens: job.prompt_tokens,
        stream: job.stream,
        content_type: shared.config.engine.event_stream(),
        opening: opening(&job),
        rides: false,
        closing: closing(&job, stop_reason(&job), job.tokens),
        aborted: Box::new(move |said| closing(&end, "abort", said).whole()),
        failed: Box::new(|_| {
            let error = format!("{{\"type\":\"api_error\",\"message\":{}}}", quoted(FAILED));
            format!("event: error\ndata: {{\"type\":\"error\",\"error\":{error}}}\n\n")
        }),
        frame: Box::new(move |i| {
            let text = frames.piece(0, i);
            if text.is_empty() {
                return String::new();
            }
            let text = quoted(&text);
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
    match (job.stop(), job.stopped) {
        (Some(_), _) => "stop_sequence",
        (None, true) => "end_turn",
        (None, false) => "max_tokens",
    }
}

/// The stop string that ended it, as JSON.
fn sequence(job: &Job) -> String {
    job.stop().map_or_else(|| "null".to_owned(), quoted)
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

fn closing(job: &Job, reason: &str, said: u64) -> Closing {
    let last = format!(
        "\"delta\":{{\"stop_reason\":\"{reason}\",\"stop_sequence\":{}}},\"usage\":{{\"input_tokens\":{},\
         \"cache_read_input_tokens\":{},\"output_tokens\":{said}}}",
        sequence(job),
        job.prompt_tokens - job.cached_tokens,
        job.cached_tokens,
    );
    let finish = event("content_block_stop", "\"index\":0") + &event("message_delta", &last);
    Closing { finish, usage: String::new(), end: event("message_stop", "") }
}

fn message(job: &Job, content: &str, reason: &str, said: u64) -> String {
    format!(
        "{{\"id\":\"{}\",\"type\":\"message\",\"role\":\"assistant\",\"content\":{content},\"model\":{},\
         \"stop_reason\":{reason},\"stop_sequence\":{},\"usage\":{{\"input_tokens\":{},\
         \"cache_read_input_tokens\":{},\"output_tokens\":{said}}}}}",
        job.id,
        quoted(&job.model),
        if reason == "null" { "null".to_owned() } else { sequence(job) },
        job.prompt_tokens - job.cached_tokens,
        job.cached_tokens
    )
}
