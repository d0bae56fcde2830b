//! `/v1/responses`: numbered events, and answers that can be asked for again by id on this backend alone.

use serde_json::{Value, json};

use super::{
    Closing, FAILED, Refusal, Shared, Work,
    job::{Job, STARTED, Wanted, prompt_of, quoted},
};

pub(super) fn work(shared: &Shared, body: &Value) -> Result<Work, Refusal> {
    if let Some(previous) = body["previous_response_id"].as_str() {
        stored(shared, previous)?;
    }
    let wanted = Wanted {
        prompt: prompt(body)?,
        max_tokens: body["max_output_tokens"].as_u64(),
        endless: body["ignore_eos"].as_bool().unwrap_or(false),
        seed: body["seed"].as_u64(),
        ..Wanted::default()
    };
    let job = Job::new(shared, body, "resp_", wanted)?;
    let whole = finished(&job, None);
    if body["store"].as_bool().unwrap_or(true) {
        shared.store(&job.id, whole.clone());
    }
    let (frames, plain, aborted, failed) = (job.clone(), job.clone(), job.clone(), job.clone());
    Ok(Work {
        tokens: job.tokens,
        prompt_tokens: job.prompt_tokens,
        stream: job.stream,
        content_type: shared.config.engine.event_stream(),
        opening: opening(&job),
        closing: closing(&job, &whole),
        rides: false,
        aborted: Box::new(move |said| {
            let response = format!("\"response\":{}", object(&aborted, "failed", "[]", 0));
            event("response.failed", FIRST + aborted.shown(said), &response)
        }),
        failed: Box::new(move |said| {
            format!(
                "event: error\ndata: {{\"type\":\"error\",\"code\":\"server_error\",\"message\":{},\"param\":null,\
                 \"sequence_number\":{}}}\n\n",
                quoted(FAILED),
                FIRST + failed.shown(said)
            )
        }),
        frame: Box::new(move |i| {
            let text = frames.piece(0, i);
            if text.is_empty() {
                return String::new();
            }
            let members = format!("{},\"delta\":{}", place(&frames), quoted(&text));
            event("response.output_text.delta", FIRST + frames.shown(i), &members)
        }),
        whole: Box::new(move |stop| finished(&plain, stop)),
    })
}

/// `GET /v1/responses/{id}`, and the look-up of `previous_response_id`.
pub(super) fn stored(shared: &Shared, id: &str) -> Result<String, Refusal> {
    shared.stored(id).ok_or_else(|| Refusal {
        status: 404,
        kind: "invalid_request_error",
        message: format!("Response with id '{id}' not found."),
        param: Some("response_id"),
    })
}

/// Events before the first delta.
const FIRST: u64 = 4;

fn prompt(body: &Value) -> Result<String, Refusal> {
    match &body["input"] {
        Value::String(text) => Ok(text.clone()),
        Value::Array(items) => Ok(prompt_of(items)),
        _ => Err(Refusal::bad("input must be a string or a list", Some("input"))),
    }
}

fn event(name: &str, number: u64, members: &str) -> String {
    format!("event: {name}\ndata: {{\"type\":\"{name}\",\"sequence_number\":{number},{members}}}\n\n")
}

fn place(job: &Job) -> String {
    format!("\"item_id\":\"{}\",\"output_index\":0,\"content_index\":0", item_id(job))
}

fn item_id(job: &Job) -> String {
    job.id.replacen("resp_", "msg_", 1)
}

fn part(text: &str) -> String {
    format!("{{\"type\":\"output_text\",\"text\":{},\"annotations\":[],\"logprobs\":[]}}", quoted(text))
}

fn item(job: &Job, status: &str, content: &str) -> String {
    format!(
        "{{\"id\":\"{}\",\"type\":\"message\",\"role\":\"assistant\",\"status\":\"{status}\",\"content\":[{content}]}}",
        item_id(job)
    )
}

fn opening(job: &Job) -> String {
    let created = format!("\"response\":{}", object(job, "in_progress", "[]", 0));
    let added = format!("\"output_index\":0,\"item\":{}", item(job, "in_progress", ""));
    event("response.created", 0, &created)
        + &event("response.in_progress", 1, &created)
        + &event("response.output_item.added", 2, &added)
        + &event("response.content_part.added", 3, &format!("{},\"part\":{}", place(job), part("")))
}

fn closing(job: &Job, whole: &str) -> Closing {
    let text = job.text(0, job.tokens);
    let number = FIRST + job.shown(job.tokens);
    let last = if job.stopped { "response.completed" } else { "response.incomplete" };
    let done = item(job, status(job), &part(&text));
    let told = format!("{},\"text\":{},\"logprobs\":[]", place(job), quoted(&text));
    let finish = event("response.output_text.done", number, &told)
        + &event("response.content_part.done", number + 1, &format!("{},\"part\":{}", place(job), part(&text)))
        + &event("response.output_item.done", number + 2, &format!("\"output_index\":0,\"item\":{done}"));
    Closing { finish, usage: String::new(), end: event(last, number + 3, &format!("\"response\":{whole}")) }
}

fn status(job: &Job) -> &'static str {
    if job.stopped { "completed" } else { "incomplete" }
}

fn finished(job: &Job, stop: Option<u64>) -> String {
    let said = stop.unwrap_or(job.tokens);
    let status = if stop.is_some() { "failed" } else { status(job) };
    object(job, status, &format!("[{}]", item(job, status, &part(&job.text(0, said)))), said)
}

fn object(job: &Job, status: &str, output: &str, said: u64) -> String {
    let usage = if status == "in_progress" {
        Value::Null
    } else {
        json!({"input_tokens": job.prompt_tokens, "input_tokens_details": {"cached_tokens": job.cached_tokens},
            "output_tokens": said, "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": job.prompt_tokens + said})
    };
    let why = if status == "incomplete" { r#"{"reason":"max_output_tokens"}"# } else { "null" };
    format!(
        "{{\"id\":\"{}\",\"object\":\"response\",\"created_at\":{STARTED},\"status\":\"{status}\",\"error\":null,\
         \"incomplete_details\":{why},\"model\":{},\"output\":{output},\"parallel_tool_calls\":true,\
         \"tool_choice\":\"auto\",\"tools\":[],\"usage\":{usage}}}",
        job.id,
        quoted(&job.model)
    )
}
