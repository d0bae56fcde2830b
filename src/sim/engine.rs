//! What the three engines differ in around an answer: headers, health, model list, metrics, errors. Shapes as
//! measured on the real servers.

use std::time::Duration;

use serde_json::json;

use super::state::{Shared, Snapshot};

/// Which server a sim speaks like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Engine {
    #[default]
    Vllm,
    Sglang,
    #[value(name = "llamacpp")]
    LlamaCpp,
}

/// An error of the engine: status, type, what, and the field at fault.
#[derive(Clone, Debug)]
pub(crate) struct Refusal {
    pub(crate) status: u16,
    pub(crate) kind: &'static str,
    pub(crate) message: String,
    pub(crate) param: Option<&'static str>,
}

impl Refusal {
    pub(crate) fn bad(message: impl Into<String>, param: Option<&'static str>) -> Self {
        Self { status: 400, kind: "BadRequestError", message: message.into(), param }
    }

    pub(crate) fn no_model(model: &str) -> Self {
        let message = format!("The model `{model}` does not exist.");
        Self { status: 404, kind: "NotFoundError", message, param: Some("model") }
    }
}

impl Engine {
    /// Headers that its HTTP server puts on every answer.
    pub(crate) fn headers(self, closing: bool) -> &'static [(&'static str, &'static str)] {
        match (self, closing) {
            (Self::Vllm | Self::Sglang, _) => &[("server", "uvicorn")],
            (Self::LlamaCpp, false) => {
                &[("keep-alive", "timeout=5, max=100"), ("server", "llama.cpp"), ("access-control-allow-origin", "")]
            }
            (Self::LlamaCpp, true) => &[("server", "llama.cpp"), ("access-control-allow-origin", "")],
        }
    }

    /// A header name as its server spells it: `content-type`, or `Content-Type` by llama.cpp.
    pub(crate) fn cased(self, name: &str) -> String {
        if self != Self::LlamaCpp {
            return name.to_owned();
        }
        let words: Vec<String> = name
            .split('-')
            .map(|word| {
                let mut letters = word.chars();
                letters.next().map(|first| first.to_ascii_uppercase()).into_iter().chain(letters).collect()
            })
            .collect();
        words.join("-")
    }

    /// How long its server keeps an idle connection.
    pub(crate) fn idle(self) -> Duration {
        Duration::from_secs(5)
    }

    /// How many requests its server takes on one connection.
    pub(crate) fn requests_per_connection(self) -> u64 {
        if self == Self::LlamaCpp { 100 } else { u64::MAX }
    }

    /// Whether the head of a stream goes out before the first token.
    pub(crate) fn head_first(self) -> bool {
        self != Self::LlamaCpp
    }

    /// Whether a model it does not have is refused; llama.cpp and SGLang answer with the one they have.
    pub(crate) fn knows_models(self) -> bool {
        self == Self::Vllm
    }

    /// The type of its event streams.
    pub(crate) fn event_stream(self) -> &'static str {
        if self == Self::LlamaCpp { "text/event-stream" } else { "text/event-stream; charset=utf-8" }
    }

    /// What `/health` answers when it is well.
    pub(crate) fn well(self) -> (&'static str, &'static str) {
        match self {
            Self::Vllm | Self::Sglang => ("", ""),
            Self::LlamaCpp => ("application/json; charset=utf-8", r#"{"status":"ok"}"#),
        }
    }

    /// What `/health` answers while it loads.
    pub(crate) fn loading(self) -> (&'static str, &'static str) {
        match self {
            Self::Vllm | Self::Sglang => ("", ""),
            Self::LlamaCpp => (
                "application/json; charset=utf-8",
                r#"{"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}"#,
            ),
        }
    }

    /// The body of an error.
    pub(crate) fn error(self, refusal: &Refusal) -> String {
        let Refusal { status, kind, message, param } = refusal;
        let value = match self {
            Self::Vllm => json!({"error": {"message": message, "type": kind, "param": param, "code": status}}),
            Self::Sglang => {
                json!({"object": "error", "message": message, "type": kind, "param": param, "code": status})
            }
            Self::LlamaCpp => {
                let kind = match status {
                    404 => "not_found_error",
                    429 | 503 => "unavailable_error",
                    500 => "server_error",
                    _ => "invalid_request_error",
                };
                json!({"error": {"code": status, "message": message, "type": kind}})
            }
        };
        value.to_string()
    }

    /// The body of an error on `/v1/messages`.
    pub(crate) fn anthropic_error(refusal: &Refusal) -> String {
        let kind = match refusal.status {
            404 => "not_found_error",
            429 => "rate_limit_error",
            500.. => "api_error",
            _ => "invalid_request_error",
        };
        json!({"type": "error", "error": {"type": kind, "message": refusal.message}}).to_string()
    }

    /// `GET /v1/models`.
    pub(crate) fn models(self, names: &[String], created: u64) -> String {
        let one = |name: &String| match self {
            Self::Vllm => json!({"id": name, "object": "model", "created": created, "owned_by": "vllm",
                "root": name, "parent": null, "max_model_len": 1 << 24, "permission": []}),
            Self::Sglang => json!({"id": name, "object": "model", "created": created, "owned_by": "sglang",
                "root": name, "max_model_len": 1 << 24}),
            Self::LlamaCpp => json!({"id": name, "object": "model", "created": created, "owned_by": "llamacpp",
                "meta": {"vocab_type": 2, "n_vocab": 64, "n_ctx_train": 32768, "n_embd": 8}}),
        };
        let data: Vec<_> = names.iter().map(one).collect();
        match self {
            Self::LlamaCpp => {
                let old: Vec<_> = names
                    .iter()
                    .map(|name| json!({"name": name, "model": name, "type": "model", "capabilities": ["completion"]}))
                    .collect();
                json!({"models": old, "object": "list", "data": data}).to_string()
            }
            _ => json!({"object": "list", "data": data}).to_string(),
        }
    }

    /// `GET /metrics`, with the names that each engine has.
    pub(crate) fn metrics(self, shared: &Shared) -> String {
        let now = shared.snapshot();
        let model = shared.models().into_iter().next().unwrap_or_default();
        let use_of_cache = cache_use(&now, shared.config.slots);
        let mut out = String::new();
        let mut put = |kind: &str, name: &str, labels: &str, value: String| {
            let family = name;
            let label = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
            out.push_str(&format!("# HELP {family} {family}\n# TYPE {family} {kind}\n{name}{label} {value}\n"));
        };
        let n = |value: u64| format!("{value}.0");
        match self {
            Self::Vllm => {
                let labels = format!("engine=\"0\",model_name=\"{model}\"");
                put("gauge", "vllm:num_requests_running", &labels, n(now.running));
                put("gauge", "vllm:num_requests_waiting", &labels, n(now.waiting));
                put("gauge", "vllm:kv_cache_usage_perc", &labels, format!("{use_of_cache:.3}"));
                put("counter", "vllm:prompt_tokens_total", &labels, n(now.prompt_tokens));
                put("counter", "vllm:generation_tokens_total", &labels, n(now.tokens));
                let served = format!("{labels},finished_reason=\"stop\"");
                put("counter", "vllm:request_success_total", &served, n(now.served));
                put("counter", "vllm:iteration_tokens_total_count", &labels, n(now.tokens));
                let config = "block_size=\"16\",num_gpu_blocks=\"1024\",engine=\"0\"";
                put("gauge", "vllm:cache_config_info", config, n(1));
            }
            Self::Sglang => {
                let labels = format!("model_name=\"{model}\"");
                put("gauge", "sglang:num_running_reqs", &labels, n(now.running));
                put("gauge", "sglang:num_queue_reqs", &labels, n(now.waiting));
                put("gauge", "sglang:token_usage", &labels, format!("{use_of_cache:.3}"));
                put("counter", "sglang:prompt_tokens_total", &labels, n(now.prompt_tokens));
                put("counter", "sglang:generation_tokens_total", &labels, n(now.tokens));
                put("counter", "sglang:num_requests_total", &labels, n(now.served));
            }
            Self::LlamaCpp => {
                put("gauge", "llamacpp:requests_processing", "", now.running.to_string());
                put("gauge", "llamacpp:requests_deferred", "", now.waiting.to_string());
                put("counter", "llamacpp:prompt_tokens_total", "", now.prompt_tokens.to_string());
                put("counter", "llamacpp:tokens_predicted_total", "", now.tokens.to_string());
            }
        }
        out
    }
}

/// A share for the engines' cache gauge: the part of the slots in use (of 64 when there is no bound).
fn cache_use(now: &Snapshot, slots: usize) -> f64 {
    let slots = if slots == 0 { 64 } else { slots };
    (now.running as f64 / slots as f64).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_names_are_spelt_as_each_server_spells_them() {
        assert_eq!(Engine::Vllm.cased("content-type"), "content-type");
        assert_eq!(Engine::LlamaCpp.cased("x-accel-buffering"), "X-Accel-Buffering");
    }

    #[test]
    fn errors_have_the_engines_shapes() {
        let refusal = Refusal::no_model("x");
        assert_eq!(
            Engine::Vllm.error(&refusal),
            r#"{"error":{"message":"The model `x` does not exist.","type":"NotFoundError","param":"model","code":404}}"#
        );
        assert!(Engine::LlamaCpp.error(&refusal).starts_with(r#"{"error":{"code":404,"message""#));
    }
}
