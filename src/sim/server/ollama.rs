//! Ollama's `/api/chat` and `/api/generate`: one object a line, streamed unless told not to.

use serde_json::Value;

use super::{
    Closing, FAILED, Refusal, Shared, Work,
    job::{Job, Wanted, prompt_of, quoted, stops_of},
};

const WHEN: &str = "2025-11-24T16:00:00Z";

pub(super) fn work(shared: &Shared, body: &Value) -> Result<Work, Refusal> {
    let messages = body["messages"].as_array();
    let is_chat = messages.is_some();
    let prompt = match messages {
        Some(messages) => prompt_of(messages),
        None => body["prompt"].as_str().unwrap_or_default().to_owned(),
    };
    let options = &body["options"];
    let wanted = Wanted {
        prompt,
        max_tokens: options["num_predict"].as_u64(),
        seed: options["seed"].as_u64(),
        stops: stops_of(&options["stop"]),
        ..Wanted::default()
    };
    let job = Job::new(shared, body, "", wanted)?;
    let stream = body["stream"].as_bool().unwrap_or(true);
    let (frames, whole, end) = (job.clone(), job.clone(), job.clone());
    Ok(Work {
        tokens: job.tokens,
        prompt_tokens: job.prompt_tokens,
        stream,
        content_type: "application/x-ndjson",
        opening: String::new(),
        rides: false,
        closing: Closing { finish: last(&job, is_chat, "", job.finish(), job.tokens) + "\n", ..Closing::default() },
        aborted: Box::new(move |said| last(&end, is_chat, "", "abort", said) + "\n"),
        failed: Box::new(|_| format!("{{\"error\":{}}}\n", quoted(FAILED))),
        frame: Box::new(move |i| match frames.piece(0, i) {
            text if text.is_empty() => String::new(),
            text => line(&frames, is_chat, &text, "\"done\":false") + "\n",
        }),
        whole: Box::new(move |stop| {
            let said = stop.unwrap_or(whole.tokens);
            let reason = if stop.is_some() { "abort" } else { whole.finish() };
            last(&whole, is_chat, &whole.text(0, said), reason, said)
        }),
    })
}

fn line(job: &Job, is_chat: bool, text: &str, rest: &str) -> String {
    let (model, text) = (quoted(&job.model), quoted(text));
    let said = if is_chat {
        format!("\"message\":{{\"role\":\"assistant\",\"content\":{text}}}")
    } else {
        format!("\"response\":{text}")
    };
    format!("{{\"model\":{model},\"created_at\":\"{WHEN}\",{said},{rest}}}")
}

fn last(job: &Job, is_chat: bool, text: &str, reason: &str, said: u64) -> String {
    let rest = format!(
        "\"done\":true,\"done_reason\":\"{reason}\",\"total_duration\":1,\"load_duration\":1,\
         \"prompt_eval_count\":{},\"prompt_eval_duration\":1,\"eval_count\":{said},\"eval_duration\":1",
        job.prompt_tokens
    );
    line(job, is_chat, text, &rest)
}
