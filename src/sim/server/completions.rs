//! `/v1/completions`, and llama.cpp's own `/completion`.

use serde_json::Value;

use super::{
    Engine, Refusal, Shared, Work,
    chat::{failed, timings, usage},
    job::{Job, STARTED, Wanted, quoted},
};

pub(super) fn work(shared: &Shared, body: &Value) -> Result<Work, Refusal> {
    let engine = shared.config.engine;
    let wanted = Wanted {
        max_tokens: Some(body["max_tokens"].as_u64().unwrap_or(16)),
        min_tokens: body["min_tokens"].as_u64().unwrap_or(0),
        endless: body["ignore_eos"].as_bool().unwrap_or(false),
        ..prompt(body)?
    };
    let job = Job::new(shared, body, "cmpl-", wanted)?;
    let logprobs = body["logprobs"].as_u64().is_some();
    let include_usage = body["stream_options"]["include_usage"].as_bool().unwrap_or(false);
    let (frames, whole) = (job.clone(), job.clone());
    let closing = move |job: &Job, finish: &str| {
        let last = |choice| {
            let llamacpp = || format!("{}{}", ending(job, job.tokens), timings(job, job.tokens));
            let more = if engine == Engine::LlamaCpp { llamacpp() } else { String::new() };
            event(job, engine, choice, "", Some(finish), "null", &more)
        };
        let mut out: String = (0..job.choices).map(last).collect();
        if include_usage && engine != Engine::LlamaCpp {
            out += &head(job, "[]", &format!(",\"usage\":{}", usage(job, engine, job.tokens)));
        }
        out + "data: [DONE]\n\n"
    };
    Ok(Work {
        tokens: job.tokens,
        prompt_tokens: job.prompt_tokens,
        stream: job.stream,
        content_type: engine.event_stream(),
        opening: String::new(),
        closing: closing(&job, job.finish()),
        aborted: closing(&job, "abort"),
        failed: failed(engine),
        frame: Box::new(move |i| {
            let each = |choice| {
                let logprobs = if logprobs { log(&frames, choice, i..i + 1) } else { "null".to_owned() };
                event(&frames, engine, choice, frames.token(choice, i), None, &logprobs, "")
            };
            (0..frames.choices).map(each).collect()
        }),
        whole: Box::new(move |stop| {
            let said = stop.unwrap_or(whole.tokens);
            let finish = quoted(if stop.is_some() { "abort" } else { whole.finish() });
            let each = |choice| {
                let logprobs = if logprobs { log(&whole, choice, 0..said) } else { "null".to_owned() };
                let text = quoted(&whole.text(choice, said));
                if engine == Engine::LlamaCpp {
                    return llamacpp_choice(choice, &text, &logprobs, &finish);
                }
                format!("{{\"index\":{choice},\"text\":{text},\"logprobs\":{logprobs},\"finish_reason\":{finish}}}")
            };
            let choices: Vec<_> = (0..whole.choices).map(each).collect();
            if engine == Engine::LlamaCpp {
                let more = format!("{}{}", ending(&whole, said), timings(&whole, said));
                return llamacpp(&whole, &choices.join(","), &more);
            }
            format!(
                "{{\"id\":\"{}\",\"object\":\"text_completion\",\"created\":{STARTED},\"model\":{},\"choices\":[{}],\
                 \"usage\":{}}}",
                whole.id,
                quoted(&whole.model),
                choices.join(","),
                usage(&whole, engine, said)
            )
        }),
    })
}

/// A prompt as text or token ids; the first of a list.
fn prompt(body: &Value) -> Result<Wanted, Refusal> {
    let text = match &body["prompt"] {
        Value::String(text) => text.clone(),
        Value::Array(list) => match list.first() {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Number(_)) => list.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
            _ => return Err(Refusal::bad("prompt is an empty list", Some("prompt"))),
        },
        _ => return Err(Refusal::bad("prompt must be a string or a list", Some("prompt"))),
    };
    Ok(Wanted { prompt: text, seed: body["seed"].as_u64(), ..Wanted::default() })
}

/// `more` are members behind the others; llama.cpp's go around its id.
fn event(
    job: &Job,
    engine: Engine,
    choice: u64,
    text: &str,
    finish: Option<&str>,
    logprobs: &str,
    more: &str,
) -> String {
    let finish = finish.map_or_else(|| "null".to_owned(), quoted);
    let text = quoted(text);
    if engine == Engine::LlamaCpp {
        let choice = llamacpp_choice(choice, &text, logprobs, &finish);
        let more = if more.is_empty() { format!(",\"id\":\"{}\"", job.id) } else { more.to_owned() };
        return format!("data: {}\n\n", llamacpp(job, &choice, &more));
    }
    head(
        job,
        &format!("[{{\"index\":{choice},\"text\":{text},\"logprobs\":{logprobs},\"finish_reason\":{finish}}}]"),
        more,
    )
}

fn llamacpp_choice(choice: u64, text: &str, logprobs: &str, finish: &str) -> String {
    format!("{{\"text\":{text},\"index\":{choice},\"logprobs\":{logprobs},\"finish_reason\":{finish}}}")
}

/// llama.cpp's form of an event and of a plain answer.
fn llamacpp(job: &Job, choices: &str, more: &str) -> String {
    let model = quoted(&job.model);
    format!(
        "{{\"choices\":[{choices}],\"created\":{STARTED},\"model\":{model},\"system_fingerprint\":\"b1-sim\",\
         \"object\":\"text_completion\"{more}}}"
    )
}

/// What llama.cpp's last event and its plain answer have before `timings`.
fn ending(job: &Job, said: u64) -> String {
    format!(",\"usage\":{},\"id\":\"{}\"", usage(job, Engine::LlamaCpp, said), job.id)
}

fn head(job: &Job, choices: &str, tail: &str) -> String {
    format!(
        "data: {{\"id\":\"{}\",\"object\":\"text_completion\",\"created\":{STARTED},\"model\":{},\
         \"choices\":{choices}{tail}}}\n\n",
        job.id,
        quoted(&job.model)
    )
}

fn log(job: &Job, choice: u64, tokens: std::ops::Range<u64>) -> String {
    let (mut names, mut values, mut offsets) = (Vec::new(), Vec::new(), Vec::new());
    let mut at = 0;
    for i in tokens {
        let token = job.token(choice, i);
        names.push(quoted(token));
        values.push(format!("-0.{:02}", job.token_id(choice, i) + 1));
        offsets.push(at.to_string());
        at += token.chars().count();
    }
    let none = vec!["null"; names.len()].join(",");
    format!(
        "{{\"text_offset\":[{}],\"token_logprobs\":[{}],\"tokens\":[{}],\"top_logprobs\":[{none}]}}",
        offsets.join(","),
        values.join(","),
        names.join(",")
    )
}

/// llama.cpp's own form: `content` and `stop`, no `[DONE]`.
pub(super) fn native(shared: &Shared, body: &Value) -> Result<Work, Refusal> {
    let wanted = Wanted {
        max_tokens: body["n_predict"].as_u64(),
        endless: body["ignore_eos"].as_bool().unwrap_or(false),
        ..prompt(body)?
    };
    let job = Job::new(shared, body, "", wanted)?;
    let (frames, whole) = (job.clone(), job.clone());
    let last = |job: &Job, content: &str, kind: &str, said: u64| {
        format!(
            "{{\"index\":0,\"content\":{},\"tokens\":[],\"stop\":true,\"model\":{},\"tokens_predicted\":{said},\
             \"tokens_evaluated\":{},\"stop_type\":\"{kind}\",\"tokens_cached\":{}}}",
            quoted(content),
            quoted(&job.model),
            job.prompt_tokens,
            job.cached_tokens
        )
    };
    let kind = if job.stopped { "eos" } else { "limit" };
    Ok(Work {
        tokens: job.tokens,
        prompt_tokens: job.prompt_tokens,
        stream: job.stream,
        content_type: Engine::LlamaCpp.event_stream(),
        opening: String::new(),
        closing: format!("data: {}\n\n", last(&job, "", kind, job.tokens)),
        aborted: format!("data: {}\n\n", last(&job, "", "none", job.tokens)),
        failed: failed(Engine::LlamaCpp),
        frame: Box::new(move |i| {
            let (text, id) = (quoted(frames.token(0, i)), frames.token_id(0, i));
            format!("data: {{\"index\":0,\"content\":{text},\"tokens\":[{id}],\"stop\":false}}\n\n")
        }),
        whole: Box::new(move |stop| {
            let said = stop.unwrap_or(whole.tokens);
            last(&whole, &whole.text(0, said), if stop.is_some() { "none" } else { kind }, said)
        }),
    })
}
