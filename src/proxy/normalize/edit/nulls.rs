//! Optional fields whose `null` says what their absence says, in every engine that takes it.
//!
//! By the engines' own schemas. Not among them, though OpenAI calls them nullable: `tool_choice` (vLLM sets `auto` only
//! where it is absent), `parallel_tool_calls` (a null is false there), `max_tokens` of completions (16 where it is
//! absent, no limit where it is null, in vLLM before 0.20), `store` and `truncation` of responses. Anthropic's fields
//! are not nullable.

use crate::protocol::endpoint::Endpoint;

/// Which of the known fields were seen with a value.
#[derive(Debug)]
pub(super) struct Nulls {
    known: &'static [&'static str],
    /// A bit for each of them.
    valued: u32,
}

const CHAT: &[&str] = &[
    "audio",
    "frequency_penalty",
    "logit_bias",
    "logprobs",
    "max_completion_tokens",
    "max_tokens",
    "metadata",
    "modalities",
    "n",
    "prediction",
    "presence_penalty",
    "reasoning_effort",
    "response_format",
    "seed",
    "service_tier",
    "stop",
    "store",
    "stream",
    "stream_options",
    "temperature",
    "tools",
    "top_logprobs",
    "top_p",
    "user",
    "verbosity",
];

const COMPLETIONS: &[&str] = &[
    "best_of",
    "echo",
    "frequency_penalty",
    "logit_bias",
    "logprobs",
    "n",
    "presence_penalty",
    "seed",
    "stop",
    "stream",
    "stream_options",
    "suffix",
    "temperature",
    "top_p",
    "user",
];

const RESPONSES: &[&str] = &[
    "background",
    "include",
    "instructions",
    "max_output_tokens",
    "metadata",
    "previous_response_id",
    "reasoning",
    "stream",
    "temperature",
    "text",
    "top_p",
    "user",
];

const EMBEDDINGS: &[&str] = &["dimensions", "user"];

/// The fields of `endpoint`.
pub fn nullable(endpoint: Endpoint) -> &'static [&'static str] {
    match endpoint {
        Endpoint::Chat => CHAT,
        Endpoint::Completions => COMPLETIONS,
        Endpoint::Responses => RESPONSES,
        Endpoint::Embeddings => EMBEDDINGS,
        _ => &[],
    }
}

impl Nulls {
    pub(super) fn new(endpoint: Endpoint) -> Self {
        Self { known: nullable(endpoint), valued: 0 }
    }

    /// Whether this member goes. A null that takes back what was said before it stays: without it that would be heard.
    pub(super) fn go(&mut self, name: &[u8], raw: &[u8]) -> bool {
        let Some(index) = self.known.iter().position(|known| known.as_bytes() == name) else { return false };
        let bit = 1 << index;
        if raw != b"null" {
            self.valued |= bit;
            return false;
        }
        self.valued & bit == 0
    }
}
