//! What the engines differ in: how each is recognised, asked for its health, and read for its load.
//!
//! Sources: each engine's own tree, and the endpoint-picker protocol of the Gateway API inference extension (proposal
//! 003) for the metric names.

use std::{borrow::Cow, time::Duration};

use super::json::{Malformed, Reader};

/// The software of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Engine {
    /// vLLM.
    Vllm,
    /// SGLang.
    Sglang,
    /// llama.cpp's server.
    LlamaCpp,
    /// Hugging Face text-generation-inference.
    Tgi,
    /// Ollama.
    Ollama,
    /// NVIDIA Triton with its OpenAI front end.
    Triton,
    /// Something else that speaks OpenAI's API.
    OpenAi,
}

/// The gauges in an engine's Prometheus text that say how busy it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadMetrics {
    /// Requests being worked on.
    pub running: &'static str,
    /// Requests that wait inside the engine.
    pub waiting: &'static str,
}

impl Engine {
    /// Every engine, in the order of the configuration reference.
    pub const ALL: [Self; 7] =
        [Self::Vllm, Self::Sglang, Self::LlamaCpp, Self::Tgi, Self::Ollama, Self::Triton, Self::OpenAi];

    /// The name in configuration, metrics and the admin API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Vllm => "vllm",
            Self::Sglang => "sglang",
            Self::LlamaCpp => "llamacpp",
            Self::Tgi => "tgi",
            Self::Ollama => "ollama",
            Self::Triton => "triton",
            Self::OpenAi => "openai",
        }
    }

    /// The engine of that [`name`](Self::name).
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|engine| engine.name() == name)
    }

    /// The path whose 200 says that it can be sent requests. SGLang's `/health` generates a token and takes a second;
    /// its `/ready` is a flag. Ollama and unknown servers have none of their own: their model list stands for it.
    pub fn health_path(self) -> &'static str {
        match self {
            Self::Vllm | Self::LlamaCpp | Self::Tgi => "/health",
            Self::Sglang => "/ready",
            Self::Triton => "/v2/health/ready",
            Self::Ollama => "/api/version",
            Self::OpenAi => "/v1/models",
        }
    }

    /// After how long its server closes an idle connection, where that is known: uvicorn's setting in vLLM
    /// (`VLLM_HTTP_TIMEOUT_KEEP_ALIVE`) and SGLang, cpp-httplib's in llama.cpp. A pool must give connections up before.
    pub fn idle_timeout(self) -> Option<Duration> {
        match self {
            Self::Vllm | Self::Sglang | Self::LlamaCpp => Some(Duration::from_secs(5)),
            Self::Tgi | Self::Ollama | Self::Triton | Self::OpenAi => None,
        }
    }

    /// The gauges of its `/metrics`, where it has them without labels to sum over.
    pub fn load_metrics(self) -> Option<LoadMetrics> {
        let (running, waiting) = match self {
            Self::Vllm => ("vllm:num_requests_running", "vllm:num_requests_waiting"),
            Self::Sglang => ("sglang:num_running_reqs", "sglang:num_queue_reqs"),
            Self::LlamaCpp => ("llamacpp:requests_processing", "llamacpp:requests_deferred"),
            Self::Tgi | Self::Ollama | Self::Triton | Self::OpenAi => return None,
        };
        Some(LoadMetrics { running, waiting })
    }
}

/// Recognises an engine by its answer to `GET /v1/models`: the `Server` header and the body. `None` when nothing there
/// is an engine's own mark.
///
/// Marks, each from the engine's source: `owned_by` is a constant `vllm` (vLLM), `sglang` (SGLang), `llamacpp`
/// (llama.cpp, which also sends `Server: llama.cpp`), `Triton Inference Server` (Triton); in Ollama it is the name
/// space of the model, `library` unless a user pushed it. TGI has no mark there: see [`detect_by_info`].
pub fn detect(server: Option<&str>, models: &[u8]) -> Option<Engine> {
    if server.is_some_and(|name| name.trim().eq_ignore_ascii_case("llama.cpp")) {
        return Some(Engine::LlamaCpp);
    }
    let mut found = None;
    let each = each_model(models, |reader, _| {
        reader.members(|reader, key| {
            if !key.is(b"owned_by") {
                return reader.skip();
            }
            if let Some(owner) = reader.text()? {
                found = found.or(owner_mark(&owner.decode()));
            }
            Ok(())
        })
    });
    each.ok().and(found)
}

fn owner_mark(owner: &str) -> Option<Engine> {
    match owner {
        "vllm" => Some(Engine::Vllm),
        "sglang" => Some(Engine::Sglang),
        "llamacpp" => Some(Engine::LlamaCpp),
        "library" => Some(Engine::Ollama),
        "Triton Inference Server" => Some(Engine::Triton),
        _ => None,
    }
}

/// Recognises TGI by its answer to `GET /info`, which has both `model_id` and `max_concurrent_requests` (its router's
/// `Info` struct); no other engine answers that path so.
pub fn detect_by_info(info: &[u8]) -> Option<Engine> {
    let (mut id, mut limit) = (false, false);
    let mut reader = Reader::new(info);
    let read = reader.members(|reader, key| {
        id |= key.is(b"model_id");
        limit |= key.is(b"max_concurrent_requests");
        reader.skip()
    });
    (read.is_ok() && id && limit).then_some(Engine::Tgi)
}

/// One entry of a model list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed<'a> {
    /// Its `id`.
    pub id: Cow<'a, str>,
    /// The whole object as the engine wrote it, for a merged list.
    pub raw: &'a [u8],
}

/// Entries of one list that are read; more are an engine gone wrong.
pub const MAX_MODELS: usize = 10_000;

/// The entries of a `GET /v1/models` answer, in its order; entries without an `id` are left out.
///
/// # Errors
/// [`Malformed`] when the body is not JSON, has no `data` array, or lists more than [`MAX_MODELS`].
pub fn parse_models(body: &[u8]) -> Result<Vec<Listed<'_>>, Malformed> {
    let mut all = Vec::new();
    each_model(body, |reader, body| {
        let start = reader.offset();
        let mut id = None;
        reader.members(|reader, key| {
            if key.is(b"id") {
                id = reader.text()?.map(|text| text.decode());
                return Ok(());
            }
            reader.skip()
        })?;
        if all.len() == MAX_MODELS {
            return Err(reader.fail("too many models"));
        }
        if let Some(id) = id.filter(|id| !id.is_empty()) {
            all.push(Listed { id, raw: &body[start..reader.offset()] });
        }
        Ok(())
    })?;
    Ok(all)
}

/// Calls `model` at the first byte of each element of `data`.
fn each_model<'a>(
    body: &'a [u8],
    mut model: impl FnMut(&mut Reader<'a>, &'a [u8]) -> Result<(), Malformed>,
) -> Result<(), Malformed> {
    let mut reader = Reader::new(body);
    let mut seen = false;
    reader.members(|reader, key| {
        if !key.is(b"data") || reader.peek()? != b'[' {
            return reader.skip();
        }
        seen = true;
        reader.elements(|reader| {
            reader.peek()?;
            model(reader, body)
        })
    })?;
    reader.finish()?;
    if seen { Ok(()) } else { Err(Malformed { offset: 0, what: "there is no \"data\" array" }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for engine in Engine::ALL {
            assert_eq!(Engine::parse(engine.name()), Some(engine));
            assert!(engine.health_path().starts_with('/'));
        }
        assert_eq!(Engine::parse("auto"), None);
    }

    #[test]
    fn engines_are_known_by_their_marks() {
        let list = |owner: &str| format!(r#"{{"object":"list","data":[{{"id":"m","owned_by":"{owner}"}}]}}"#);
        for (owner, engine) in [
            ("vllm", Some(Engine::Vllm)),
            ("sglang", Some(Engine::Sglang)),
            ("llamacpp", Some(Engine::LlamaCpp)),
            ("library", Some(Engine::Ollama)),
            ("Triton Inference Server", Some(Engine::Triton)),
            ("openai", None),
        ] {
            assert_eq!(detect(Some("uvicorn"), list(owner).as_bytes()), engine, "{owner}");
        }
        assert_eq!(detect(Some("llama.cpp"), b""), Some(Engine::LlamaCpp));
        assert_eq!(detect(None, b"{\"data\":[{\"owned_by\":\"vllm\"}"), None);
        let info = br#"{"model_id":"m","model_sha":null,"max_concurrent_requests":128,"router":"text"}"#;
        assert_eq!(detect_by_info(info), Some(Engine::Tgi));
        assert_eq!(detect_by_info(br#"{"model_id":"m"}"#), None);
    }

    #[test]
    fn model_lists_keep_each_object_as_written() {
        let body = br#"{"models":[{"id":"no"}],"data": [ {"id":"a/b", "x":1.0} ,{"object":"model"},{"id":"c\u0021"}]}"#;
        let models = parse_models(body).unwrap();
        let seen: Vec<_> = models.iter().map(|m| (m.id.as_ref(), std::str::from_utf8(m.raw).unwrap())).collect();
        assert_eq!(seen, [("a/b", r#"{"id":"a/b", "x":1.0}"#), ("c!", r#"{"id":"c\u0021"}"#)]);
        assert!(parse_models(b"{}").is_err());
        assert!(parse_models(b"[]").is_err());
        assert_eq!(parse_models(br#"{"data":[]}"#).unwrap(), []);
    }
}
