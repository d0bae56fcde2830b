//! `/v1/completions`, and llama.cpp's own `/completion`.

use serde_json::Value;

use super::{
    super::vocabulary,
    Closing, Engine, Refusal, Shared, Work,
    chat::{failed, timings, usage, wants_ids},
    job::{Job, STARTED, Spoken, Wanted, quoted, stops_of},
};

/// How a request wants its answer.
#[derive(Clone, Copy)]
struct Shape {
    engine: Engine,
    logprobs: bool,
    usage: bool,
    ids: bool,
}

/// An answer in that shape.
#[derive(Clone)]
struct Chunks {
    job: Job,
    shape: Shape,
}

pub(super) fn work(shared: &Shared, body: &Value) -> Result<Work, Refusal> {
    let engine = shared.config.engine;
    let wanted = Wanted {
        max_tokens: Some(body["max_tokens"].as_u64().unwrap_or(16)),
        min_tokens: body["min_tokens"].as_u64().unwrap_or(0),
        endless: body["ignore_eos"].as_bool().unwrap_or(false),
        ..prompt(body)?
    };
    let shape = Shape {
        engine,
        logprobs: body["logprobs"].as_u64().is_some(),
        usage: body["stream_options"]["include_usage"].as_bool().unwrap_or(false),
        ids: wants_ids(shared, body)?,
    };
    let job = Job::new(shared, body, "cmpl-", wanted)?;
    let end = Chunks { job: job.clone(), shape };
    let (frames, whole) = (end.clone(), end.clone());
    Ok(Work {
        tokens: job.tokens,
        prompt_tokens: job.prompt_tokens,
        stream: job.stream,
        content_type: engine.event_stream(),
        opening: String::new(),
        rides: false,
        closing: end.closing(job.finish(), job.tokens),
        aborted: Box::new(move |said| end.closing("abort", said).whole()),
        failed: Box::new(move |_| failed(engine)),
        frame: Box::new(move |i| frames.frame(i)),
        whole: Box::new(move |stop| whole.whole(stop)),
    })
}

impl Chunks {
    fn frame(&self, i: u64) -> String {
        let (job, shape) = (&self.job, self.shape);
        // vLLM sends an event for each token, llama.cpp for each text, SGLang that where ids are not asked for.
        let sends = |choice: &u64| shape.engine == Engine::Vllm || shape.ids || !job.piece(*choice, i).is_empty();
        let each = |choice| {
            let logprobs = if shape.logprobs { log(job, choice, i..i + 1) } else { "null".to_owned() };
            let ids = self.ids(choice, i);
            event(job, shape.engine, choice, &job.piece(choice, i), None, &logprobs, &ids, "")
        };
        (0..job.choices).filter(sends).map(each).collect()
    }

    /// The token's id, with the prompt's in the first event, as further members of a choice. SGLang writes what it does
    /// not have, vLLM leaves it out.
    fn ids(&self, choice: u64, i: u64) -> String {
        let sglang = self.shape.engine == Engine::Sglang;
        let nothing = if sglang { NULLS } else { "" };
        if !self.shape.ids {
            return nothing.to_owned();
        }
        let prompt = if i == 0 { Some(self.job.prompt_ids()) } else { sglang.then(|| "null".to_owned()) };
        let prompt = prompt.map_or_else(String::new, |ids| format!(",\"prompt_token_ids\":{ids}"));
        let matched = if sglang { ",\"matched_stop\":null" } else { "" };
        format!("{matched}{prompt},\"token_ids\":[{}]", self.job.token_id(choice, i))
    }

    fn closing(&self, finish: &str, said: u64) -> Closing {
        let (job, Shape { engine, .. }) = (&self.job, self.shape);
        let last = |choice| {
            let llamacpp = || format!("{}{}", ending(job, said), timings(job, said));
            let more = if engine == Engine::LlamaCpp { llamacpp() } else { String::new() };
            event(job, engine, choice, "", Some(finish), "null", &matched(job, engine), &more)
        };
        let usage = if self.shape.usage && engine != Engine::LlamaCpp {
            head(job, "[]", &format!(",\"usage\":{}", usage(job, engine, said)))
        } else {
            String::new()
        };
        Closing { finish: (0..job.choices).map(last).collect(), usage, end: "data: [DONE]\n\n".to_owned() }
    }

    fn whole(&self, stop: Option<u64>) -> String {
        let (job, Shape { engine, logprobs, .. }) = (&self.job, self.shape);
        let said = stop.unwrap_or(job.tokens);
        let finish = quoted(if stop.is_some() { "abort" } else { job.finish() });
        let matched = matched(job, engine);
        let each = |choice| {
            let logprobs = if logprobs { log(job, choice, 0..said) } else { "null".to_owned() };
            let text = quoted(&job.text(choice, said));
            if engine == Engine::LlamaCpp {
                return llamacpp_choice(choice, &text, &logprobs, &finish);
            }
            format!(
                "{{\"index\":{choice},\"text\":{text},\"logprobs\":{logprobs},\"finish_reason\":{finish}{matched}}}"
            )
        };
        let choices: Vec<_> = (0..job.choices).map(each).collect();
        if engine == Engine::LlamaCpp {
            let more = format!("{}{}", ending(job, said), timings(job, said));
            return llamacpp(job, &choices.join(","), &more);
        }
        format!(
            "{{\"id\":\"{}\",\"object\":\"text_completion\",\"created\":{STARTED},\"model\":{},\"choices\":[{}],\
             \"usage\":{}}}",
            job.id,
            quoted(&job.model),
            choices.join(","),
            usage(job, engine, said)
        )
    }
}

/// Members of a choice that SGLang writes without a value.
const NULLS: &str = ",\"matched_stop\":null,\"prompt_token_ids\":null,\"token_ids\":null";

/// The stop string that ended it, as a further member of a choice.
fn matched(job: &Job, engine: Engine) -> String {
    match (job.stop(), engine) {
        (Some(stop), Engine::Vllm) => format!(",\"stop_reason\":{}", quoted(stop)),
        (Some(stop), Engine::Sglang) => NULLS.replacen("null", &quoted(stop), 1),
        (None, Engine::Sglang) => NULLS.to_owned(),
        _ => String::new(),
    }
}

/// Behind the last of these in a prompt stands the beginning of the answer, if it is this sim's: completions have no
/// turns, and what follows does not depend on where a caller sees the end of the question.
const ANSWER: &str = "Answer:";

/// A prompt as text or token ids; the first of a list.
fn prompt(body: &Value) -> Result<Wanted, Refusal> {
    let given = match &body["prompt"] {
        Value::Array(list) if list.first().is_some_and(|first| !first.is_number()) => &list[0],
        whole => whole,
    };
    let (prompt, spoken) = match given {
        Value::String(text) => of_text(text),
        Value::Array(list) if !list.is_empty() => of_ids(list)?,
        Value::Array(_) | Value::Null if body["prompt"].is_array() => {
            return Err(Refusal::bad("prompt is an empty list", Some("prompt")));
        }
        _ => return Err(Refusal::bad("prompt must be a string or a list", Some("prompt"))),
    };
    let stops = stops_of(&body["stop"]);
    Ok(Wanted { prompt, spoken, seed: body["seed"].as_u64(), stops, ..Wanted::default() })
}

fn of_text(text: &str) -> (String, Option<Spoken>) {
    let Some(at) = text.rfind(ANSWER) else { return (text.to_owned(), None) };
    let (question, begun) = text.split_at(at + ANSWER.len());
    (question.to_owned(), (!begun.is_empty()).then(|| Spoken::Text(begun.to_owned())))
}

/// Ids of this sim's own vocabulary, or any others, which are words like any.
fn of_ids(list: &[Value]) -> Result<(String, Option<Spoken>), Refusal> {
    let id = |id: &Value| id.as_u64().and_then(|id| u32::try_from(id).ok());
    let ids: Option<Vec<u32>> = list.iter().map(id).collect();
    let ids = ids.ok_or_else(|| Refusal::bad("prompt must be a list of whole numbers", Some("prompt")))?;
    Ok(match vocabulary::parted(&ids) {
        Some((prompt, answer)) => (prompt, Some(Spoken::Ids(answer.to_vec()))),
        None => (list.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "), None),
    })
}

/// `inner` are further members of the choice, `more` of the event; llama.cpp's go around its id.
#[expect(clippy::too_many_arguments, reason = "all of one event, named at the only two callers")]
fn event(
    job: &Job,
    engine: Engine,
    choice: u64,
    text: &str,
    finish: Option<&str>,
    logprobs: &str,
    inner: &str,
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
        &format!("[{{\"index\":{choice},\"text\":{text},\"logprobs\":{logprobs},\"finish_reason\":{finish}{inner}}}]"),
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
    let kind = match (job.stop(), job.stopped) {
        (Some(_), _) => "word",
        (None, true) => "eos",
        (None, false) => "limit",
    };
    Ok(Work {
        tokens: job.tokens,
        prompt_tokens: job.prompt_tokens,
        stream: job.stream,
        content_type: Engine::LlamaCpp.event_stream(),
        opening: String::new(),
        rides: false,
        closing: Closing { finish: format!("data: {}\n\n", last(&job, "", kind, job.tokens)), ..Closing::default() },
        aborted: Box::new(move |said| format!("data: {}\n\n", last(&job, "", "none", said))),
        failed: Box::new(|_| failed(Engine::LlamaCpp)),
        frame: Box::new(move |i| {
            let (text, id) = (quoted(&frames.piece(0, i)), frames.token_id(0, i));
            format!("data: {{\"index\":0,\"content\":{text},\"tokens\":[{id}],\"stop\":false}}\n\n")
        }),
        whole: Box::new(move |stop| {
            let said = stop.unwrap_or(whole.tokens);
            last(&whole, &whole.text(0, said), if stop.is_some() { "none" } else { kind }, said)
        }),
    })
}
