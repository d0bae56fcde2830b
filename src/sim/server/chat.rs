//! `/v1/chat/completions`: role chunk, deltas, tool calls, log probabilities, usage, as each engine shapes them.

use serde_json::Value;

use super::{
    Engine, FAILED, Refusal, Shared, Work,
    job::{Job, STARTED, Wanted, prompt_of, quoted, text_of},
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
    let job = Job::new(shared, body, "chatcmpl-", wanted(engine, body, messages))?;
    let options = &body["stream_options"];
    let shape = Shape {
        engine,
        logprobs: body["logprobs"].as_bool().unwrap_or(false),
        usage: options["include_usage"].as_bool().unwrap_or(false),
        usage_always: options["continuous_usage_stats"].as_bool().unwrap_or(false) && engine == Engine::Vllm,
        ids: body["return_token_ids"].as_bool().unwrap_or(false) && engine == Engine::Vllm,
        tool: tool(body),
    };
    Ok(build(job, shape))
}

fn wanted(engine: Engine, body: &Value, messages: &[Value]) -> Wanted {
    let goes_on = engine == Engine::LlamaCpp || body["continue_final_message"].as_bool().unwrap_or(false);
    let (prompt, spoken) = match messages {
        [before @ .., last] if goes_on && last["role"] == "assistant" => {
            (prompt_of(before), Some(text_of(&last["content"])))
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
    let end = Chunks { job: job.clone(), shape: shape.clone() };
    let frames = Chunks { job: job.clone(), shape: shape.clone() };
    let whole = Chunks { job: job.clone(), shape: shape.clone() };
    Work {
        tokens: job.tokens,
        prompt_tokens: job.prompt_tokens,
        stream: job.stream,
        content_type: shape.engine.event_stream(),
        opening: end.opening(),
        closing: end.closing(end.finish(), end.finish_rides()),
        aborted: end.closing("abort", false),
        failed: failed(shape.engine),
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
            match (&self.shape.tool, self.shape.engine) {
                (Some(name), _) => {
                    let delta = format!(
                        "{{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[{{\"index\":0,\"id\":\"call_{}\",\
                         \"type\":\"function\",\"function\":{{\"name\":{},\"arguments\":\"\"}}}}]}}",
                        self.job.id,
                        quoted(name)
                    );
                    out += &self.chunk(choice, &delta, None, "", 0);
                    out += &self.chunk(choice, &arguments("{\"text\": \""), None, "", 0);
                }
                (None, Engine::LlamaCpp) => {
                    out += &self.chunk(choice, r#"{"role":"assistant","content":null}"#, None, "", 0);
                }
                (None, _) => out += &self.chunk(choice, r#"{"role":"assistant","content":""}"#, None, "", 0),
            }
        }
        out
    }

    fn frame(&self, i: u64) -> String {
        let last = self.finish_rides() && i + 1 == self.job.tokens;
        let finish = last.then(|| self.finish());
        (0..self.job.choices)
            .map(|choice| {
                let token = self.job.token(choice, i);
                let delta = match &self.shape.tool {
                    Some(_) => arguments(inside(token).as_str()),
                    None => format!("{{\"content\":{}}}", quoted(token)),
                };
                let logprobs = if self.shape.logprobs { self.logprobs(choice, i..i + 1) } else { String::new() };
                let ids = if self.shape.ids { format!("[{}]", self.job.token_id(choice, i)) } else { logprobs };
                let what = if self.shape.ids { Extra::Ids(ids) } else { Extra::Logprobs(ids) };
                self.chunk(choice, &delta, finish, &what.written(), i + 1)
            })
            .collect()
    }

    fn closing(&self, finish: &str, said: bool) -> String {
        let mut out = String::new();
        for choice in 0..self.job.choices {
            if self.shape.tool.is_some() {
                out += &self.chunk(choice, &arguments("\"}"), None, "", self.job.tokens);
            }
            if self.shape.engine == Engine::LlamaCpp {
                out += &self.llamacpp_end(choice, finish);
            } else if !said {
                let delta = if self.shape.engine == Engine::Vllm { r#"{"content":""}"# } else { "{}" };
                out += &self.chunk(choice, delta, Some(finish), "", self.job.tokens);
            }
        }
        if self.shape.usage && self.shape.engine != Engine::LlamaCpp {
            out += &self.event("[]", &format!(",\"usage\":{}", usage(&self.job, self.shape.engine, self.job.tokens)));
        }
        out + "data: [DONE]\n\n"
    }

    /// The finish, and after it the choice's own usage; `timings` are in the last of them.
    fn llamacpp_end(&self, choice: u64, finish: &str) -> String {
        let choices = format!("[{{\"finish_reason\":{},\"index\":{choice},\"delta\":{{}}}}]", quoted(finish));
        let timings = timings(&self.job, self.job.tokens);
        if !self.shape.usage {
            return self.event(&choices, &timings);
        }
        let usage = usage(&self.job, Engine::LlamaCpp, self.job.tokens);
        self.event(&choices, "") + &self.event("[]", &format!(",\"usage\":{usage}{timings}"))
    }

    fn chunk(&self, choice: u64, delta: &str, finish: Option<&str>, extra: &str, said: u64) -> String {
        let finish = finish.map_or_else(|| "null".to_owned(), quoted);
        let choices = match self.shape.engine {
            Engine::LlamaCpp => {
                format!("[{{\"finish_reason\":{finish},\"index\":{choice},\"delta\":{delta}{extra}}}]")
            }
            _ if extra.starts_with(",\"logprobs\"") => {
                format!("[{{\"index\":{choice},\"delta\":{delta}{extra},\"finish_reason\":{finish}}}]")
            }
            _ => {
                format!(
                    "[{{\"index\":{choice},\"delta\":{delta},\"logprobs\":null,\"finish_reason\":{finish}{extra}}}]"
                )
            }
        };
        let tail = if self.shape.usage_always {
            format!(",\"usage\":{}", usage(&self.job, self.shape.engine, said))
        } else {
            String::new()
        };
        self.event(&choices, &tail)
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
        let text = self.job.text(choice, said);
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
            let logprobs = if self.shape.logprobs { self.logprobs(choice, 0..said) } else { String::new() };
            let logprobs = Extra::Logprobs(logprobs).written();
            let finish = quoted(finish);
            return format!("{{\"finish_reason\":{finish},\"index\":{choice},\"message\":{message}{logprobs}}}");
        }
        let logprobs = if self.shape.logprobs { self.logprobs(choice, 0..said) } else { "null".to_owned() };
        format!(
            "{{\"index\":{choice},\"message\":{message},\"logprobs\":{logprobs},\"finish_reason\":{}}}",
            quoted(finish)
        )
    }
}

enum Extra {
    Logprobs(String),
    Ids(String),
}

impl Extra {
    fn written(&self) -> String {
        match self {
            Self::Logprobs(value) if value.is_empty() => String::new(),
            Self::Logprobs(value) => format!(",\"logprobs\":{value}"),
            Self::Ids(value) => format!(",\"token_ids\":{value}"),
        }
    }
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
