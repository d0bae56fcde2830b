//! `/tokenize` and `/detokenize`, as each engine has them.

use serde_json::{Value, json};

use super::{
    super::vocabulary,
    Engine, Refusal, Shared,
    job::{CONTEXT, model, prompt_of},
};

/// A text with special tokens (vLLM's and SGLang's default) is a prompt, one without them a part of an answer.
pub(super) fn tokenize(shared: &Shared, body: &Value) -> Result<String, Refusal> {
    model(shared, body)?;
    let engine = shared.config.engine;
    let text = match (engine, body["messages"].as_array()) {
        (Engine::Vllm, Some(messages)) => Some(prompt_of(messages)),
        (Engine::LlamaCpp, _) => body["content"].as_str().map(str::to_owned),
        _ => body["prompt"].as_str().map(str::to_owned),
    };
    let is_prompt = match engine {
        Engine::LlamaCpp => body["add_special"].as_bool().unwrap_or(false),
        _ => body["messages"].is_array() || body["add_special_tokens"].as_bool().unwrap_or(true),
    };
    let ids = match text {
        Some(text) if is_prompt => vocabulary::prompt(&text),
        Some(text) => vocabulary::words(&text),
        // llama.cpp makes nothing of nothing.
        None if engine == Engine::LlamaCpp => Vec::new(),
        None => return Err(Refusal::bad("prompt: Field required", Some("prompt"))),
    };
    Ok(match engine {
        Engine::Vllm => {
            json!({"count": ids.len(), "max_model_len": CONTEXT, "tokens": ids, "token_strs": null}).to_string()
        }
        Engine::Sglang => json!({"tokens": ids, "count": ids.len(), "max_model_len": CONTEXT}).to_string(),
        Engine::LlamaCpp => json!({"tokens": ids}).to_string(),
    })
}

/// The text of ids.
pub(super) fn detokenize(shared: &Shared, body: &Value) -> Result<String, Refusal> {
    model(shared, body)?;
    let listed = body["tokens"].as_array().map(Vec::as_slice).unwrap_or_default();
    let id = |id: &Value| id.as_u64().and_then(|id| u32::try_from(id).ok());
    let ids: Option<Vec<u32>> = listed.iter().map(id).collect();
    let ids = ids.ok_or_else(|| Refusal::bad("tokens must be a list of ids", Some("tokens")))?;
    let text = vocabulary::text(&ids);
    let name = match shared.config.engine {
        Engine::Vllm => "prompt",
        Engine::Sglang => "text",
        Engine::LlamaCpp => "content",
    };
    Ok(json!({ name: text }).to_string())
}
