//! `/v1/chat/completions`: role chunk, deltas, tool calls, log probabilities, usage, as each engine shapes them.

use serde_json::Value;

use super::{
    Closing, Engine, FAILED, Refusal, Shared, Work,
    job::{Job, STARTED, Spoken, Wanted, prompt_of, quoted, stops_of, text_of},
};

/// How a request wants its answer.
#[derive(Clone, Debug)]
struct Shape {
    engine: Engine,
    logprobs: bool,
    usage: bool,
    usage_always: bool,
    ids: bool,
    /// The function that is called, when one is.
    tool: Option<String>,
}

pub(super) fn work(shared: &Shared, body: &Value) -> Result<Work, Refusal> {
    let engine = shared.config.engine;
    let messages = body["messages"].as_array().map(Vec::as_slice).unwrap_or_default();
    if messages.is_empty() {
        return Err(Refusal::bad("messages must be a list that is not empty", Some("messages")));
    }
    let ids = wants_ids(shared, body)?;
    if ids && engine == Engine::Sglang && body["stream"] == true {
        return Err(Refusal::bad(
            "return_token_ids is not supported with streaming on /v1/chat/completions. Please set stream=false when \
             using return_token_ids=true.",
            None,
        ));
    }
    check_turns(engine, body, messages)?;
    let job = Job::new(shared, body, "chatcmpl-", wanted(engine, body, messages))?;
    let options = &body["stream_options"];
    let shape = Shape {
        engine,
        logprobs: body["logprobs"].as_bool().unwrap_or(false),
        usage: options["include_usage"].as_bool().unwrap_or(false),
        usage_always: options["continuous_usage_stats"].as_bool().unwrap_or(false) && engine == Engine::Vllm,
        ids: ids && engine == Engine::Vllm,
        tool: tool(body),
    };
    Ok(build(job, shape))
}

/// Whether `return_token_ids` is asked for, of an engine that knows it.
pub(super) fn wants_ids(shared: &Shared, body: &Value) -> Result<bool, Refusal> {
    let asked = body["return_token_ids"].as_bool().unwrap_or(false) && shared.config.engine != Engine::LlamaCpp;
    if asked && !shared.config.token_ids {
        return Err(Refusal::bad("Extra inputs are not permitted: return_token_ids", Some("return_token_ids")));
    }
    Ok(asked)
}

/// What each engine says about turns that do not fit together.
fn check_turns(engine: Engine, body: &Value, messages: &[Value]) -> Result<(), Refusal> {
    let is_assistant = |message: &Value| message["role"] == "assistant";
    match engine {
        Engine::Vllm if asks(body, "continue_final_message", false) && asks(body, "add_generation_prompt", true) => {
            let message = "Cannot set both `continue_final_message` and `add_generation_prompt` to True.";
            Err(Refusal::bad(message, None))
        }
        Engine::LlamaCpp => match messages {
            [.., before, last] if is_assistant(before) && is_assistant(last) => {
                Err(Refusal::bad("Cannot have 2 or more assistant messages at the end of the list.", None))
            }
            [.., last] if is_assistant(last) && last["tool_calls"].is_array() => {
                Err(Refusal::bad("Cannot continue an assistant message that contains tool calls.", None))
            }
            _ => Ok(()),
        },
        _ => Ok(()),
    }
}

fn asks(body: &Value, name: &str, unless_told: bool) -> bool {
    body[name].as_bool().unwrap_or(unless_told)
}

fn wanted(engine: Engine, body: &Value, messages: &[Value]) -> Wanted {
    let goes_on = engine == Engine::LlamaCpp || asks(body, "continue_final_message", false);
    let (prompt, spoken) = match messages {
        [before @ .., last] if goes_on && last["role"] == "assistant" => {
            (prompt_of(before), Some(Spoken::Text(text_of(&last["content"]))))
        }
        all => (prompt_of(all), None),
    };
    Wanted {
        prompt,
        spoken,
        max_tokens: body["max_completion_tokens"].as_u64().or(body["max_tokens"].as_u64()),
        min_tokens: body["min_tokens"].as_u64().unwrap_or(0),
        endless: body["ignore_eos"].as_bool().unwrap_or(false),
        seed: body["seed"].as_u64(),
        stops: stops_of(&body["stop"]),
    }
}

/// The function that must be called: named, or the first when any is required.
fn tool(body: &Value) -> Option<String> {
    let named = body["tool_choice"]["function"]["name"].as_str();
    let first = body["tools"][0]["function"]["name"].as_str();
    match &body["tool_choice"] {
        Value::Object(_) => named.map(str::to_owned),
        Value::String(choice) if choice == "required" => first.map(str::to_owned),
        _ => None,
    }
}

fn build(job: Job, shape: Shape) -> Work {
    let chunks = || Chunks { job: job.clone(), shape: shape.clone() };
    let (end, frames, whole) = (chunks(), chunks(), chunks());
    Work {
        tokens: job.tokens,
        prompt_tokens: job.prompt_tokens,
        stream: job.stream,
        content_type: shape.engine.event_stream(),
        opening: end.opening(),
        rides: end.finish_rides(),
        closing: end.closing(end.finish(), end.finish_rides(), job.tokens),
        aborted: Box::new(move |said| end.closing("abort", false, said).whole()),
        failed: Box::new(move |_| failed(shape.engine)),
        frame: Box::new(move |i| frames.frame(i)),
        whole: Box::new(move |stop| whole.whole(stop)),
    }
}

/// The event of an engine that failed, and the end after it.
pub(super) fn failed(engine: Engine) -> String {
    let message = quoted(FAILED);
    match engine {
        Engine::Vllm => format!(
            "data: {{\"error\":{{\"message\":{message},\"type\":\"InternalServerError\",\"param\":null,\"code\":500}}}}\n\n\
             data: [DONE]\n\n"
        ),
        Engine::Sglang => format!(
            "data: {{\"error\":{{\"object\":\"error\",\"message\":{message},\"type\":\"InternalServerError\",\
             \"param\":null,\"code\":503}}}}\n\ndata: [DONE]\n\n"
        ),
        Engine::LlamaCpp => {
            format!("data: {{\"error\":{{\"code\":500,\"message\":{message},\"type\":\"server_error\"}}}}\n\n")
        }
    }
}

struct Chunks {
    job: Job,
    shape: Shape,
}

impl Chunks {
    fn finish(&self) -> &'static str {
        if self.shape.tool.is_some() { "tool_calls" } else { self.job.finish() }
    }

    /// Whether the finish reason is in the chunk of the last text: vLLM's way.
    fn finish_rides(&self) -> bool {
        self.shape.engine == Engine::Vllm && self.job.tokens > 0 && self.shape.tool.is_none()
    }

    fn opening(&self) -> String {
        let mut out = String::new();
        for choice in 0..self.job.choices {
            let role = match (&self.shape.tool, self.shape.engine) {
                (Some(name), _) => format!(
                    "{{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[{{\"index\":0,\"id\":\"call_{}\",\
                     \"type\":\"function\",\"function\":{{\"name\":{},\"arguments\":\"\"}}}}]}}",
                    self.job.id,
                    quoted(name)
                ),
                (None, Engine::LlamaCpp) => r#"{"role":"assistant","content":null}"#.to_owned(),
                (None, _) => r#"{"role":"assistant","content":""}"#.to_owned(),
            };
            let prompt = if self.shape.ids && choice == 0 {
                format!(",\"prompt_token_ids\":{}", self.job.prompt_ids())
            } else {
                String::new()
            };
            out += &self.event(&self.choices(choice, &role, None, &Extra::default()), &(self.running(0) + &prompt));
            if self.shape.tool.is_some() {
                out += &self.chunk(choice, &arguments("{\"text\": \""), None, &Extra::default(), 0);
            }
        }
        out
    }

    fn frame(&self, i: u64) -> String {
        let last = self.finish_rides() && i + 1 == self.job.tokens;
        let finish = last.then(|| self.finish());
        // vLLM sends an event for each token, the others for each text.
        let sends = |choice: &u64| self.shape.engine == Engine::Vllm || !self.job.piece(*choice, i).is_empty();
        (0..self.job.choices)
            .filter(sends)
            .map(|choice| {
                let text = self.job.piece(choice, i);
                let delta = match &self.shape.tool {
                    Some(_) => arguments(inside(&text).as_str()),
                    None => format!("{{\"content\":{}}}", quoted(&text)),
                };
                let extra = Extra {
                    logprobs: self.shape.logprobs.then(|| self.logprobs(choice, i..i + 1)),
                    ids: self.shape.ids.then(|| self.job.token_id(choice, i)),
                };
                self.chunk(choice, &delta, finish, &extra, i + 1)
            })
            .collect()
    }

    /// What ends it after `n` tokens; `said`: the finish was told with the last of them.
    fn closing(&self, finish: &str, said: bool, n: u64) -> Closing {
        let mut closing = Closing { end: "data: [DONE]\n\n".to_owned(), ..Closing::default() };
        let extra = Extra::default();
        let llamacpp = self.shape.engine == Engine::LlamaCpp;
        for choice in 0..self.job.choices {
            if self.shape.tool.is_some() {
                closing.finish += &self.chunk(choice, &arguments("\"}"), None, &extra, n);
            }
            if llamacpp {
                let choices = format!("[{{\"finish_reason\":{},\"index\":{choice},\"delta\":{{}}}}]", quoted(finish));
                // Timings are in the last event of a choice.
                let timings = if self.shape.usage { String::new() } else { timings(&self.job, n) };
                closing.finish += &self.event(&choices, &timings);
            } else if !said {
                let delta = if self.shape.engine == Engine::Vllm { r#"{"content":""}"# } else { "{}" };
                closing.finish += &self.chunk(choice, delta, Some(finish), &extra, n);
            }
            if self.shape.usage && (llamacpp || choice + 1 == self.job.choices) {
                let timings = if llamacpp { timings(&self.job, n) } else { String::new() };
                let usage = usage(&self.job, self.shape.engine, n);
                let usage = self.event("[]", &format!(",\"usage\":{usage}{timings}"));
                // llama.cpp tells each choice's own, right behind its finish.
                let last = choice + 1 == self.job.choices;
                *(if last { &mut closing.usage } else { &mut closing.finish }) += &usage;
            }
        }
        closing
    }

    fn chunk(&self, choice: u64, delta: &str, finish: Option<&str>, extra: &Extra, said: u64) -> String {
        self.event(&self.choices(choice, delta, finish, extra), &self.running(said))
    }

    /// Usage so far, where each event is to tell it.
    fn running(&self, said: u64) -> String {
        if !self.shape.usage_always {
            return String::new();
        }
        format!(",\"usage\":{}", usage(&self.job, self.shape.engine, said))
    }

    fn choices(&self, choice: u64, delta: &str, finish: Option<&str>, Extra { logprobs, ids }: &Extra) -> String {
        let stop = finish.and(self.job.stop()).map_or_else(String::new, |stop| self.matched(stop));
        let finish = finish.map_or_else(|| "null".to_owned(), quoted);
        match self.shape.engine {
            Engine::LlamaCpp => {
                let logprobs = logprobs.as_ref().map_or_else(String::new, |it| format!(",\"logprobs\":{it}"));
                format!("[{{\"finish_reason\":{finish},\"index\":{choice},\"delta\":{delta}{logprobs}}}]")
            }
            _ => {
                let logprobs = logprobs.as_deref().unwrap_or("null");
                let ids = ids.map_or_else(String::new, |id| format!(",\"token_ids\":[{id}]"));
                format!(
                    "[{{\"index\":{choice},\"delta\":{delta},\"logprobs\":{logprobs},\"finish_reason\":{finish}{stop}\
                     {ids}}}]"
                )
            }
        }
    }

    /// Which stop string it was, as a further member.
    fn matched(&self, stop: &str) -> String {
        match self.shape.engine {
            Engine::Vllm => format!(",\"stop_reason\":{}", quoted(stop)),
            Engine::Sglang => format!(",\"matched_stop\":{}", quoted(stop)),
            Engine::LlamaCpp => String::new(),
        }
    }

    fn event(&self, choices: &str, tail: &str) -> String {
        let (id, model) = (&self.job.id, quoted(&self.job.model));
        match self.shape.engine {
            Engine::LlamaCpp => format!(
                "data: {{\"choices\":{choices},\"created\":{STARTED},\"id\":\"{id}\",\"model\":{model},\
                 \"system_fingerprint\":\"b1-sim\",\"object\":\"chat.completion.chunk\"{tail}}}\n\n"
            ),
            _ => format!(
                "data: {{\"id\":\"{id}\",\"object\":\"chat.completion.chunk\",\"created\":{STARTED},\"model\":{model},\
                 \"choices\":{choices}{tail}}}\n\n"
            ),
        }
    }

    fn logprobs(&self, choice: u64, tokens: std::ops::Range<u64>) -> String {
        let each: Vec<_> = tokens
            .map(|i| {
                let token = self.job.token(choice, i);
                let bytes: Vec<_> = token.bytes().map(|byte| byte.to_string()).collect();
                let (id, token, bytes) = (self.job.token_id(choice, i), quoted(token), bytes.join(","));
                match self.shape.engine {
                    Engine::LlamaCpp => format!(
                        "{{\"id\":{id},\"token\":{token},\"bytes\":[{bytes}],\"logprob\":-0.{:02},\"top_logprobs\":[]}}",
                        id + 1
                    ),
                    _ => format!(
                        "{{\"token\":{token},\"logprob\":-0.{:02},\"bytes\":[{bytes}],\"top_logprobs\":[]}}",
                        id + 1
                    ),
                }
            })
            .collect();
        format!("{{\"content\":[{}]}}", each.join(","))
    }

    fn whole(&self, stop: Option<u64>) -> String {
        let said = stop.unwrap_or(self.job.tokens);
        let finish = if stop.is_some() { "abort" } else { self.finish() };
        let choices: Vec<_> = (0..self.job.choices).map(|choice| self.whole_choice(choice, said, finish)).collect();
        let (choices, usage) = (choices.join(","), usage(&self.job, self.shape.engine, said));
        let (id, model) = (&self.job.id, quoted(&self.job.model));
        match self.shape.engine {
            Engine::LlamaCpp => format!(
                "{{\"choices\":[{choices}],\"created\":{STARTED},\"model\":{model},\"system_fingerprint\":\"b1-sim\",\
                 \"object\":\"chat.completion\",\"usage\":{usage},\"id\":\"{id}\"{}}}",
                timings(&self.job, said)
            ),
            _ => format!(
                "{{\"id\":\"{id}\",\"object\":\"chat.completion\",\"created\":{STARTED},\"model\":{model},\
                 \"choices\":[{choices}],\"usage\":{usage}}}"
            ),
        }
    }

    fn whole_choice(&self, choice: u64, said: u64, finish: &str) -> String {
        let mut text = self.job.text(choice, said);
        if self.shape.engine == Engine::LlamaCpp {
            // Its plain answer repeats what it went on from; its stream does not.
            text.insert_str(0, &self.job.begun);
        }
        let message = match &self.shape.tool {
            Some(name) => format!(
                "{{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[{{\"id\":\"call_{}\",\"type\":\"function\",\
                 \"function\":{{\"name\":{},\"arguments\":{}}}}}]}}",
                self.job.id,
                quoted(name),
                quoted(&format!("{{\"text\": {}}}", quoted(&text)))
            ),
            None => format!("{{\"role\":\"assistant\",\"content\":{}}}", quoted(&text)),
        };
        if self.shape.engine == Engine::LlamaCpp {
            let logprobs = if self.shape.logprobs {
                format!(",\"logprobs\":{}", self.logprobs(choice, 0..said))
            } else {
                String::new()
            };
            let finish = quoted(finish);
            return format!("{{\"finish_reason\":{finish},\"index\":{choice},\"message\":{message}{logprobs}}}");
        }
        let logprobs = if self.shape.logprobs { self.logprobs(choice, 0..said) } else { "null".to_owned() };
        let stop = self.job.stop().map_or_else(String::new, |stop| self.matched(stop));
        format!(
            "{{\"index\":{choice},\"message\":{message},\"logprobs\":{logprobs},\"finish_reason\":{}{stop}}}",
            quoted(finish)
        )
    }
}

/// What an event may tell of its token beside the text.
#[derive(Default)]
struct Extra {
    logprobs: Option<String>,
    ids: Option<u32>,
}

/// A delta with a piece of a call's arguments.
fn arguments(piece: &str) -> String {
    format!("{{\"tool_calls\":[{{\"index\":0,\"function\":{{\"arguments\":{}}}}}]}}", quoted(piece))
}

/// A text as it stands inside a JSON string.
fn inside(text: &str) -> String {
    let quoted = quoted(text);
    quoted[1..quoted.len() - 1].to_owned()
}

/// llama.cpp's `timings`, as a further member.
pub(super) fn timings(job: &Job, n: u64) -> String {
    let read = job.prompt_tokens - job.cached_tokens;
    let cached = job.cached_tokens;
    format!(
        ",\"timings\":{{\"cache_n\":{cached},\"prompt_n\":{read},\"prompt_ms\":1.0,\"prompt_per_token_ms\":1.0,\
         \"prompt_per_second\":1000.0,\"predicted_n\":{n},\"predicted_ms\":1.0,\"predicted_per_token_ms\":1.0,\
         \"predicted_per_second\":1000.0}}"
    )
}

/// The usage of a job of which each choice has said `n` tokens. llama.cpp tells that of one choice.
pub(super) fn usage(job: &Job, engine: Engine, n: u64) -> String {
    let output = if engine == Engine::LlamaCpp { n } else { job.said(n) };
    let (input, cached) = (job.prompt_tokens, job.cached_tokens);
    let total = input + output;
    match engine {
        Engine::LlamaCpp => format!(
            "{{\"completion_tokens\":{output},\"prompt_tokens\":{input},\"total_tokens\":{total},\
             \"prompt_tokens_details\":{{\"cached_tokens\":{cached}}}}}"
        ),
        _ => format!(
            "{{\"prompt_tokens\":{input},\"total_tokens\":{total},\"completion_tokens\":{output},\
             \"prompt_tokens_details\":{{\"cached_tokens\":{cached}}}}}"
        ),
    }
}
