//! What the dialects have in common: model, prompt, length, tokens, usage.

use std::{borrow::Cow, rc::Rc};

use serde_json::Value;

pub(crate) use super::super::vocabulary::count;
use super::{
    super::{
        engine::{Engine, Refusal},
        generate::{Source, begins},
        state::Shared,
        vocabulary,
    },
    pieces::{Hold, Pieces},
};

/// `created` of everything: fixed, so that the same request has the same answer.
pub(crate) const STARTED: u64 = 1_764_000_000;
/// Tokens that a prompt and its answer may have together: megabytes of text are of use in tests.
pub(crate) const CONTEXT: u64 = 1 << 24;
/// Tokens of an answer that nothing bounds.
const UNBOUNDED: u64 = 32_768;
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
    /// The beginning of the answer that came with the request.
    pub(crate) begun: String,
    prompt: String,
    sources: Vec<Source>,
    /// Where a continued answer goes on: token, and bytes of it that were said before.
    from: (u64, usize),
    /// What is shown with each token of each choice, where that is not the token's own text.
    pieces: Option<Rc<[Pieces]>>,
}

/// The beginning of an answer, to be gone on from.
#[derive(Clone, Debug)]
pub(crate) enum Spoken {
    Text(String),
    Ids(Vec<u32>),
}

/// What a dialect reads from its request.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wanted {
    pub(crate) prompt: String,
    pub(crate) spoken: Option<Spoken>,
    pub(crate) max_tokens: Option<u64>,
    pub(crate) min_tokens: u64,
    pub(crate) endless: bool,
    pub(crate) seed: Option<u64>,
    pub(crate) stops: Vec<String>,
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
        let begun = match &wanted.spoken {
            None => String::new(),
            Some(Spoken::Text(text)) => text.clone(),
            Some(Spoken::Ids(ids)) => vocabulary::text(ids),
        };
        let read = match &wanted.spoken {
            Some(Spoken::Ids(ids)) => ids.len() as u64,
            _ => vocabulary::words(&begun).len() as u64,
        };
        let from = match wanted.spoken.take() {
            None => (0, 0),
            Some(spoken) => place(&source, &spoken).unwrap_or_else(|| {
                // Words of somebody else: part of the prompt like any others.
                wanted.prompt.push_str(&begun);
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
        let most = wanted.max_tokens.unwrap_or(UNBOUNDED);
        let prompt_tokens = count(&wanted.prompt) + if from == (0, 0) { 0 } else { read };
        if let Some(asked) = wanted.max_tokens.filter(|_| shared.config.engine == Engine::Vllm) {
            fits(prompt_tokens, asked)?;
        }
        let mut job = Self {
            id: format!("{prefix}{:016x}{:08x}", source.number(0), shared.number()),
            tokens: left.min(most),
            prompt_tokens,
            cached_tokens: prompt_tokens / BLOCK * BLOCK,
            stopped: left <= most,
            choices,
            stream: body["stream"].as_bool().unwrap_or(false),
            begun,
            sources: (0..choices)
                .map(|choice| match choice {
                    0 => source,
                    _ => Source::new(&wanted.prompt, &model, seed.wrapping_add(choice)),
                })
                .collect(),
            prompt: wanted.prompt,
            from,
            model,
            pieces: None,
        };
        let (engine, split_utf8) = (shared.config.engine, shared.config.split_utf8);
        job.hold(&Hold { engine, stops: &wanted.stops, split_utf8 });
        Ok(job)
    }

    /// Works out what is shown when, and where a stop string ends it.
    fn hold(&mut self, hold: &Hold<'_>) {
        if !hold.holds() {
            return;
        }
        self.tokens = self.tokens.min(UNBOUNDED);
        // Below that, so the conversion cannot fail.
        let tokens = usize::try_from(self.tokens).unwrap_or(usize::MAX);
        let of = |choice| hold.pieces((0..tokens).map(|i| self.token(choice, i as u64)));
        let pieces: Rc<[Pieces]> = (0..self.choices).map(of).collect();
        if pieces[0].stop.is_some() {
            self.tokens = pieces[0].shown.len() as u64;
            self.stopped = true;
        }
        self.pieces = Some(pieces);
    }

    /// Token `i` of a choice.
    pub(crate) fn token(&self, choice: u64, i: u64) -> &'static str {
        let token = self.source(choice).token(self.from.0 + i);
        if i == 0 && choice == 0 { &token[self.from.1..] } else { token }
    }

    /// What is shown when token `i` of a choice is there.
    pub(crate) fn piece(&self, choice: u64, i: u64) -> Cow<'_, str> {
        let Some(pieces) = &self.pieces else { return Cow::Borrowed(self.token(choice, i)) };
        let of = |choice: u64, i: u64| {
            pieces.get(usize::try_from(choice).ok()?)?.shown.get(usize::try_from(i).ok()?).map(String::as_str)
        };
        Cow::Borrowed(of(choice, i).unwrap_or_default())
    }

    /// How many of the first `n` tokens of the first choice had anything to show.
    pub(crate) fn shown(&self, n: u64) -> u64 {
        match &self.pieces {
            None => n,
            Some(_) => (0..n.min(self.tokens)).filter(|i| !self.piece(0, *i).is_empty()).count() as u64,
        }
    }

    /// The stop string that ended it.
    pub(crate) fn stop(&self) -> Option<&str> {
        self.pieces.as_ref()?.first()?.stop.as_deref()
    }

    /// The id of token `i` of a choice.
    pub(crate) fn token_id(&self, choice: u64, i: u64) -> u32 {
        self.source(choice).id(self.from.0 + i)
    }

    /// The ids of the prompt, the answer's beginning with it, as a JSON list.
    pub(crate) fn prompt_ids(&self) -> String {
        let mut ids = vocabulary::prompt(&self.prompt);
        ids.extend((0..self.from.0).map(|i| self.source(0).id(i)));
        Value::from(ids).to_string()
    }

    /// The first `n` tokens of a choice as text.
    pub(crate) fn text(&self, choice: u64, n: u64) -> String {
        (0..n.min(self.tokens)).map(|i| self.piece(choice, i)).collect()
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

/// Where `spoken` stops in what `source` says. A text that ends in white space is not found: its last token would be
/// another one than was said (a word takes the white space before it), and what follows another answer.
fn place(source: &Source, spoken: &Spoken) -> Option<(u64, usize)> {
    match spoken {
        Spoken::Text(text) if text.ends_with(char::is_whitespace) => None,
        Spoken::Text(text) => source.after(text),
        Spoken::Ids(ids) => begins(source, ids).then_some((ids.len() as u64, 0)),
    }
}

/// vLLM refuses more than its context holds.
fn fits(prompt: u64, asked: u64) -> Result<(), Refusal> {
    if prompt.saturating_add(asked) <= CONTEXT {
        return Ok(());
    }
    let message = format!(
        "'max_tokens' or 'max_completion_tokens' is too large: {asked}. This model's maximum context length is \
         {CONTEXT} tokens and your request has {prompt} input tokens ({asked} > {CONTEXT} - {prompt})."
    );
    Err(Refusal::bad(message, Some("max_tokens")))
}

/// `stop`, `stop_sequences`: a string or a list of them.
pub(crate) fn stops_of(value: &Value) -> Vec<String> {
    let list = match value {
        Value::Array(list) => list.as_slice(),
        one => std::slice::from_ref(one),
    };
    list.iter().filter_map(Value::as_str).filter(|stop| !stop.is_empty()).map(str::to_owned).collect()
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
