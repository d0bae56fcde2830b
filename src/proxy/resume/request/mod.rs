//! What the client asked for, as a continuation sees it, and the requests that go on with its answer.
//!
//! The body stays as it came. Its top level is kept as spans, and whatever is carried over to another request is
//! carried byte for byte: a number that Rust would spell differently is another number to the engine.
//!
//! Three ways of going on, each a [`Form`]:
//! * [`restart`](Request::restart): nothing was delivered yet.
//! * [`by_ids`](Request::by_ids): the prompt's ids and those of the answer, to `/v1/completions`. Exact.
//! * [`by_text`](Request::by_text): the text of the answer, as the beginning of the assistant's message or behind the
//!   prompt.
//!
//! `/v1/responses` and `/v1/messages` go on as chats, translated as the engines themselves do it (vLLM's
//! `construct_input_messages` and `to_chat_completion_request`, llama.cpp's `server-chat.cpp`), and only where those
//! agree: plain text, no tools, no reasoning.

mod asked;
mod chat;
mod completions;
mod messages;
mod responses;
#[cfg(test)]
mod tests;
mod tokens;
mod translate;

use bytes::Bytes;
use http::uri::PathAndQuery;

use self::asked::{Asked, Last, Limits, Prompt};
use super::refusal::Refusal;
use crate::protocol::{
    endpoint::Endpoint,
    engine::Engine,
    json::{Member, Object, Raw, Writer, write_string},
};

pub use tokens::{context_length, detokenized, token_count};

/// Shape of a continuation's stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/completions`
    Completions,
}

/// One request to an engine.
#[derive(Clone, Debug)]
pub struct Form {
    /// Where to.
    pub path: PathAndQuery,
    /// A JSON object.
    pub body: Bytes,
    /// How its stream is read.
    pub shape: Shape,
}

/// A request as its continuation sees it. Cheap to hold: spans into its body.
#[derive(Clone, Debug)]
pub struct Request {
    endpoint: Endpoint,
    body: Bytes,
    object: Object,
    asked: Asked,
}

/// How far an answer has come.
#[derive(Clone, Copy, Debug)]
struct Step<'a> {
    engine: Engine,
    /// The text so far; nothing for a fresh start.
    so_far: &'a str,
    /// Tokens that are left, where that is limited and something was said.
    left: Option<u64>,
    /// Tokens that were said.
    said: u64,
}

/// Whether a model answers in gpt-oss's format, by its name.
pub fn is_harmony(model: &str) -> bool {
    let model = model.to_ascii_lowercase();
    model.contains("gpt-oss") || model.contains("gpt_oss")
}

impl Request {
    /// Reads the body of a chat, completion, response or message.
    ///
    /// # Errors
    /// Why its answer is never continued, whatever comes.
    pub fn read(endpoint: Endpoint, body: &Bytes) -> Result<Self, Refusal> {
        let (object, asked) = Asked::read(endpoint, body)?;
        Ok(Self { endpoint, body: body.clone(), object, asked })
    }

    /// The most tokens the answer may have from `engine`, by the client or by the engine's own default.
    pub fn limit(&self, engine: Engine) -> Option<u64> {
        self.limit_in_force(engine).map(|(_, most)| most)
    }

    /// Client stop strings; empty when there are none.
    pub fn stops(&self) -> &[String] {
        &self.asked.stops
    }

    /// Whether `engine` can be asked for token ids in its stream, and they are all that a continuation needs. vLLM
    /// tells them on both endpoints, SGLang on completions; where tools or media take part they are not the whole.
    pub fn may_ask_ids(&self, engine: Engine) -> bool {
        let asked = &self.asked;
        let known = match (engine, self.endpoint) {
            (Engine::Vllm, Endpoint::Chat) => !asked.tools && !asked.media,
            (Engine::Vllm | Engine::Sglang, Endpoint::Completions) => true,
            _ => false,
        };
        known && !asked.says_ids
    }

    /// The body with `return_token_ids`; nothing else of it changes.
    pub fn with_ids(&self) -> Bytes {
        self.object.with(&self.body, r#""return_token_ids":true"#).into()
    }

    /// The request of a plain answer as that of a stream, which tells its usage, and its ids where `ids` says so.
    pub fn as_stream(&self, ids: bool) -> Bytes {
        let mut writer = Writer::new(self.body.len() + 128);
        for member in self.object.members() {
            if !matches!(member.name(&self.body).as_ref(), b"stream" | b"stream_options") {
                writer.copy(&self.body, member);
            }
        }
        if ids {
            writer.member("return_token_ids", "true");
        }
        writer.member("stream", "true");
        writer.member("stream_options", r#"{"include_usage":true}"#);
        writer.finish().into()
    }

    /// The request from its beginning, for when no text was delivered. Responses and messages become chats.
    ///
    /// # Errors
    /// Why it is not continued: the engine is not one of the three, or it has no form as a chat.
    pub fn restart(&self, engine: Engine) -> Result<Form, Refusal> {
        self.form(Step { engine, so_far: "", left: None, said: 0 })
    }

    /// Goes on after `so_far` (decoded, trailing white space taken back), whose tokens are `said`, with at most
    /// `left`. On vLLM the client's seed stays: its noise depends on the position. On the others it is left out where
    /// it matters, since the same seed would draw again what it drew at the beginning.
    ///
    /// With no text it is the request from its beginning with another limit.
    ///
    /// # Errors
    /// Why it is not continued.
    pub fn by_text(&self, engine: Engine, so_far: &str, left: Option<u64>, said: u64) -> Result<Form, Refusal> {
        let said = if so_far.is_empty() { 0 } else { said };
        let left = left.or_else(|| self.limit(engine).map(|most| most.saturating_sub(said)));
        self.form(Step { engine, so_far, left, said })
    }

    /// Goes on after these ids of the prompt and of the answer, with at most `left`. Where neither that nor the request
    /// says a limit there is no such form: absent and `null` both mean 16 on `/v1/completions` (vLLM 0.32,
    /// `normalize_null_max_tokens`), so the caller has to know how much room the model has.
    ///
    /// # Errors
    /// Why it is not continued: the engine tells no ids for such a request, or no limit is known.
    pub fn by_ids(&self, engine: Engine, prompt: &[u32], said: &[u32], left: Option<u64>) -> Result<Form, Refusal> {
        if self.asked.media {
            return Err(Refusal::Multimodal);
        }
        if !self.may_ask_ids(engine) {
            return Err(Refusal::Engine);
        }
        let count = said.len() as u64;
        let left = left.or_else(|| self.limit(engine).map(|most| most.saturating_sub(count)));
        let left = left.ok_or(Refusal::Untranslatable)?;
        Ok(completions::by_ids(self, Step { engine, so_far: "", left: None, said: count }, left, prompt, said))
    }

    /// `/tokenize` of a text without special tokens, in one body that vLLM, SGLang and llama.cpp all take.
    pub fn tokenize(&self, text: &str) -> (PathAndQuery, Bytes) {
        tokens::tokenize(self.model(), text)
    }

    /// `/detokenize` of ids.
    pub fn detokenize(&self, ids: &[u32]) -> (PathAndQuery, Bytes) {
        tokens::detokenize(self.model(), ids)
    }

    fn form(&self, step: Step<'_>) -> Result<Form, Refusal> {
        if !matches!(step.engine, Engine::Vllm | Engine::Sglang | Engine::LlamaCpp) {
            return Err(Refusal::Engine);
        }
        match self.endpoint {
            Endpoint::Chat => chat::form(self, step),
            Endpoint::Completions => completions::by_text(self, step),
            Endpoint::Responses => responses::form(self, step),
            Endpoint::Messages => messages::form(self, step),
            _ => Err(Refusal::Untranslatable),
        }
    }

    /// The limit that `engine` goes by, and its name in the request of the same shape. llama.cpp knows all names
    /// everywhere, its own first.
    fn limit_in_force(&self, engine: Engine) -> Option<(&'static str, u64)> {
        let Limits { completion, tokens, tokens_said, output, predict } = self.asked.limits;
        let own = predict.filter(|_| engine == Engine::LlamaCpp).map(|most| ("n_predict", most));
        let tokens = tokens.map(|most| ("max_tokens", most));
        match self.endpoint {
            Endpoint::Chat => own.or(completion.map(|most| ("max_completion_tokens", most))).or(tokens),
            Endpoint::Completions => {
                // vLLM takes `null` for absent.
                let default = match engine {
                    Engine::Vllm => true,
                    Engine::Sglang => !tokens_said,
                    _ => false,
                };
                let llamacpp = completion.filter(|_| engine == Engine::LlamaCpp);
                own.or(llamacpp.map(|most| ("max_completion_tokens", most)))
                    .or(tokens)
                    .or(default.then_some(("max_tokens", 16)))
            }
            Endpoint::Responses => output.map(|most| ("max_tokens", most)),
            Endpoint::Messages => tokens.or((engine == Engine::LlamaCpp).then_some(("max_tokens", 4096))),
            _ => None,
        }
    }

    fn value(&self, name: &[u8]) -> Option<Raw<'_>> {
        self.object.get(&self.body, name)
    }

    fn model(&self) -> Option<Raw<'_>> {
        self.value(b"model").filter(|model| model.inside().is_some())
    }

    fn writer(&self, step: &Step<'_>) -> Writer {
        Writer::new(self.body.len() + step.so_far.len() + 256)
    }

    /// Whether `step` leaves the member out: what we say ourselves, and the ids by which an engine knows the first
    /// attempt.
    fn drops(&self, step: &Step<'_>, name: &[u8]) -> bool {
        match name {
            b"stream" | b"stream_options" | b"n" | b"best_of" | b"n_cmpl" | b"return_token_ids" | b"request_id"
            | b"rid" => true,
            b"max_completion_tokens" | b"max_tokens" | b"n_predict" => step.left.is_some(),
            b"min_tokens" => step.said > 0,
            b"seed" => !step.is_fresh() && step.engine != Engine::Vllm && !self.asked.greedy,
            _ => false,
        }
    }

    /// What every continuation says at its end.
    fn close(&self, step: &Step<'_>, mut writer: Writer) -> Bytes {
        if let Some(left) = step.left {
            let name = self.limit_in_force(step.engine).map_or("max_tokens", |(name, _)| name);
            writer.member(name, left.max(1).to_string());
        }
        self.close_limited(step, writer)
    }

    /// The same, where the limit is said already.
    fn close_limited(&self, step: &Step<'_>, mut writer: Writer) -> Bytes {
        let least = self.asked.min_tokens.saturating_sub(step.said);
        if step.said > 0 && least > 0 {
            writer.member("min_tokens", least.to_string());
        }
        writer.member("stream", "true");
        writer.member("stream_options", r#"{"include_usage":true}"#);
        writer.finish().into()
    }
}

impl Form {
    fn chat(body: Bytes) -> Self {
        Self { path: PathAndQuery::from_static("/v1/chat/completions"), body, shape: Shape::Chat }
    }

    fn completions(body: Bytes) -> Self {
        Self { path: PathAndQuery::from_static("/v1/completions"), body, shape: Shape::Completions }
    }
}

impl Step<'_> {
    /// Nothing was said: the request as it was.
    fn is_fresh(&self) -> bool {
        self.so_far.is_empty()
    }
}

/// Ends an array of messages with the answer so far.
fn push_answer(messages: &mut Vec<u8>, so_far: &str) {
    messages.extend_from_slice(br#",{"role":"assistant","content":"#);
    write_string(messages, so_far);
    messages.extend_from_slice(b"}]");
}

/// What makes engines go on with the last message. Always the pair: vLLM and llama.cpp refuse the second alone, since
/// the first is true by default.
fn go_on(writer: &mut Writer) {
    writer.member("add_generation_prompt", "false");
    writer.member("continue_final_message", "true");
}

/// Appends `text` as the inside of a literal.
fn push_escaped(out: &mut Vec<u8>, text: &str) {
    let mut literal = Vec::with_capacity(text.len() + 2);
    write_string(&mut literal, text);
    out.extend_from_slice(&literal[1..literal.len() - 1]);
}
