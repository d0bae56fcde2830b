//! What the dialects have in common: model, prompt, length, tokens, usage.

use serde_json::Value;

use super::super::{engine::Refusal, generate::Source, state::Shared};

/// `created` of everything: fixed, so that the same request has the same answer.
pub(crate) const STARTED: u64 = 1_764_000_000;
/// Tokens of an answer that nothing bounds.
const CONTEXT: u64 = 32_768;
/// Choices of one request at most.
const MOST_CHOICES: u64 = 16;
/// Tokens in a block of the prefix cache.
const BLOCK: u64 = 16;

/// What is to be said, and to whom.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    pub(crate) id: String,
    pub(crate) model: String,
    /// Tokens of the answer.
    pub(crate) tokens: u64,
    pub(crate) prompt_tokens: u64,
    /// Of these, what a warm prefix cache has: all whole blocks.
    pub(crate) cached_tokens: u64,
    /// Stopped by itself, not by the bound.
    pub(crate) stopped: bool,
    pub(crate) choices: u64,
    pub(crate) stream: bool,
    sources: Vec<Source>,
    /// Where a continued answer goes on: token, and bytes of it that were said before.
    from: (u64, usize),
}

/// What a dialect reads from its request.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wanted {
    pub(crate) prompt: String,
    /// The beginning of the answer, to be gone on from.
    pub(crate) spoken: Option<String>,
    pub(crate) max_tokens: Option<u64>,
    pub(crate) min_tokens: u64,
    pub(crate) endless: bool,
    pub(crate) seed: Option<u64>,
}

impl Job {
    pub(crate) fn new(shared: &Shared, body: &Value, prefix: &str, mut wanted: Wanted) -> Result<Self, Refusal> {
        let model = model(shared, body)?;
        let choices = body["n"].as_u64().unwrap_or(1);
        if !(1..=MOST_CHOICES).contains(&choices) {
            return Err(Refusal::bad(format!("n must be 1 to {MOST_CHOICES}, and is {choices}"), Some("n")));
        }
        if wanted.max_tokens == Some(0) {
            return Err(Refusal::bad("max_tokens must be at least 1, got 0.", Some("max_tokens")));
        }
        let seed = wanted.seed.unwrap_or(shared.config.seed);
        let mut source = Source::new(&wanted.prompt, &model, seed);
        let from = match wanted.spoken.take() {
            None => (0, 0),
            Some(spoken) => source.after(&spoken).unwrap_or_else(|| {
                // Words of somebody else: part of the prompt like any others.
                wanted.prompt.push_str(&spoken);
                source = Source::new(&wanted.prompt, &model, seed);
                (0, 0)
            }),
        };
        let natural = match shared.config.length {
            _ if wanted.endless => u64::MAX,
            Some(length) => length,
            None => source.natural(),
        };
        let left = natural.max(wanted.min_tokens).saturating_sub(from.0);
        let most = wanted.max_tokens.unwrap_or(CONTEXT);
        let prompt_tokens = count(&wanted.prompt) + from.0;
        Ok(Self {
            id: format!("{prefix}{:016x}{:08x}", source.number(0), shared.number()),
            tokens: left.min(most),
            prompt_tokens,
            cached_tokens: prompt_tokens / BLOCK * BLOCK,
            stopped: left <= most,
            choices,
            stream: body["stream"].as_bool().unwrap_or(false),
            sources: (0..choices)
                .map(|choice| match choice {
                    0 => source,
                    _ => Source::new(&wanted.prompt, &model, seed.wrapping_add(choice)),
                })
                .collect(),
            from,
            model,
        })
    }

    /// Token `i` of a choice.
    pub(crate) fn token(&self, choice: u64, i: u64) -> &'static str {
        let token = self.source(choice).token(self.from.0 + i);
        if i == 0 && choice == 0 { &token[self.from.1..] } else { token }
    }

    /// The id of token `i` of a choice.
    pub(crate) fn token_id(&self, choice: u64, i: u64) -> u32 {
        self.source(choice).id(self.from.0 + i)
    }

    /// The first `n` tokens of a choice as text.
    pub(crate) fn text(&self, choice: u64, n: u64) -> String {
        (0..n.min(self.tokens)).map(|i| self.token(choice, i)).collect()
    }

    /// `length` or `stop`.
    pub(crate) fn finish(&self) -> &'static str {
        if self.stopped { "stop" } else { "length" }
    }

    /// Tokens of all choices, when each has said `n`.
    pub(crate) fn said(&self, n: u64) -> u64 {
        n * self.choices
    }

    fn source(&self, choice: u64) -> &Source {
        &self.sources[usize::try_from(choice).unwrap_or(0).min(self.sources.len() - 1)]
    }
}

/// The model of a request: its own, if this engine has it or does not care, else the first.
pub(crate) fn model(shared: &Shared, body: &Value) -> Result<String, Refusal> {
    let models = shared.models();
    let first = models.first().cloned().unwrap_or_default();
    match body["model"].as_str() {
        Some(name) if !shared.config.engine.knows_models() || models.iter().any(|known| known == name) => {
            Ok(name.to_owned())
        }
        Some(name) => Err(Refusal::no_model(name)),
        None => Ok(first),
    }
}

/// How many tokens a text counts: its words, and one to begin with.
pub(crate) fn count(text: &str) -> u64 {
    1 + text.split_whitespace().count() as u64
}

/// The text of a message's content: a string, or the text parts of a list.
pub(crate) fn text_of(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(parts) => parts.iter().filter_map(|part| part["text"].as_str()).collect(),
        _ => String::new(),
    }
}

/// The text of all messages, joined by line ends.
pub(crate) fn prompt_of(messages: &[Value]) -> String {
    messages.iter().map(|message| text_of(&message["content"])).collect::<Vec<_>>().join("\n")
}

/// A JSON string.
pub(crate) fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}
