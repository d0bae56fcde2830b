//! One pass over a request's body: what a continuation has to know of it, and what is never continued.

use super::Refusal;
use crate::protocol::{
    endpoint::Endpoint,
    json::{Malformed, Object, Raw, Reader},
};

/// Members of a body that are looked at. The largest model of an engine has about 70.
const MOST_MEMBERS: usize = 512;
/// Stop strings that are looked for across a seam, and the bytes of one.
const MOST_STOPS: usize = 256;
const LONGEST_STOP: usize = 4 << 10;

/// What a body says.
#[derive(Clone, Debug, Default)]
pub(super) struct Asked {
    /// How long the answer may be.
    pub(super) limits: Limits,
    /// `min_tokens`.
    pub(super) min_tokens: u64,
    /// `stop`, `stop_sequences`; no empty ones.
    pub(super) stops: Vec<String>,
    /// `temperature` is zero: a seed changes nothing.
    pub(super) greedy: bool,
    /// Tools may be called.
    pub(super) tools: bool,
    /// A message has something else than text.
    pub(super) media: bool,
    /// `return_token_ids` is there, whatever it says.
    pub(super) says_ids: bool,
    /// `continue_final_message`
    pub(super) goes_on: bool,
    /// The engine cuts the prompt to a length.
    pub(super) truncates: bool,
    /// The prompt of a completion.
    pub(super) prompt: Prompt,
    /// The last message of a chat.
    pub(super) last: Last,
    /// Stop strings are left in the output.
    shows_stops: bool,
}

/// The names under which a length is given, and what each says. Absent, `null` and -1 set no limit.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Limits {
    /// `max_completion_tokens`
    pub(super) completion: Option<u64>,
    /// `max_tokens`
    pub(super) tokens: Option<u64>,
    /// `max_tokens` is there, be it `null`.
    pub(super) tokens_said: bool,
    /// `max_output_tokens`
    pub(super) output: Option<u64>,
    /// `n_predict`, llama.cpp's own.
    pub(super) predict: Option<u64>,
}

/// The prompt of a completion.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Prompt {
    #[default]
    None,
    /// One string.
    Text,
    /// One list of token ids.
    Ids,
}

/// The last message of a chat.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Last {
    /// There is no message.
    #[default]
    None,
    /// Not the assistant's.
    Other,
    /// The assistant's: where its text ends (at the closing quote), if it has nothing else.
    Assistant(Option<usize>),
}

impl Asked {
    /// Reads a body. The first member that forbids a continuation names the reason.
    pub(super) fn read(endpoint: Endpoint, body: &[u8]) -> Result<(Object, Self), Refusal> {
        let mut asked = Self::default();
        let mut refused = None;
        let object = Object::read(body, MOST_MEMBERS, |reader, name| {
            let judged = match (endpoint, name) {
                (Endpoint::Chat, b"messages") => asked.messages(reader)?,
                (Endpoint::Completions, b"prompt") => asked.prompt(reader)?,
                _ => {
                    let value = Raw::read(reader)?;
                    asked.note(endpoint, name, value);
                    asked.limit(name, value).or_else(|| refuses(endpoint, name, value))
                }
            };
            refused = refused.or(judged);
            Ok(())
        })
        .map_err(|_| Refusal::Unreadable)?;
        match refused.or_else(|| asked.refuses(endpoint)) {
            Some(refusal) => Err(refusal),
            None => Ok((object, asked)),
        }
    }

    /// What only the whole tells.
    fn refuses(&self, endpoint: Endpoint) -> Option<Refusal> {
        let beyond = |stop: &String| stop.len() > LONGEST_STOP;
        if self.shows_stops && !self.stops.is_empty() || self.stops.len() > MOST_STOPS || self.stops.iter().any(beyond)
        {
            return Some(Refusal::Stops);
        }
        let empty = match endpoint {
            Endpoint::Chat => self.last == Last::None,
            Endpoint::Completions => self.prompt == Prompt::None,
            Endpoint::Responses | Endpoint::Messages => false,
            _ => true,
        };
        empty.then_some(Refusal::Untranslatable)
    }

    fn note(&mut self, endpoint: Endpoint, name: &[u8], value: Raw<'_>) {
        let stop: &[u8] = if endpoint == Endpoint::Messages { b"stop_sequences" } else { b"stop" };
        match name {
            b"temperature" => self.greedy = value.is_zero(),
            b"tools" | b"functions" => self.tools |= !value.is_nothing(),
            b"return_token_ids" => self.says_ids = true,
            b"continue_final_message" => self.goes_on = value.is_true(),
            b"truncate_prompt_tokens" => self.truncates = !value.is_null(),
            b"include_stop_str_in_output" | b"no_stop_trim" => self.shows_stops |= !value.is_nothing(),
            _ if name == stop => {
                let texts = if value.is_array() { value.elements() } else { vec![value] };
                let texts = texts.into_iter().filter_map(Raw::text).filter(|text| !text.is_empty());
                self.stops = texts.map(|text| text.into_owned()).collect();
            }
            _ => {}
        }
    }

    /// Numbers that a continuation lowers. One that is spelled in another way than as an integer cannot be.
    fn limit(&mut self, name: &[u8], value: Raw<'_>) -> Option<Refusal> {
        let number = value.unsigned();
        match name {
            b"max_completion_tokens" => self.limits.completion = number,
            b"max_tokens" => (self.limits.tokens, self.limits.tokens_said) = (number, true),
            b"max_output_tokens" => self.limits.output = number,
            b"n_predict" => self.limits.predict = number,
            b"min_tokens" => self.min_tokens = number.unwrap_or_default(),
            _ => return None,
        }
        (number.is_none() && !value.is_null() && value.0 != b"-1").then_some(Refusal::Untranslatable)
    }

    fn prompt(&mut self, reader: &mut Reader<'_>) -> Result<Option<Refusal>, Malformed> {
        self.prompt = Prompt::None;
        match reader.peek()? {
            b'"' => self.prompt = Prompt::Text,
            b'[' => {
                let (mut count, mut ids) = (0_usize, true);
                reader.elements(|reader| {
                    count += 1;
                    ids &= reader.unsigned()?.is_some_and(|id| id <= u64::from(u32::MAX));
                    Ok(())
                })?;
                if count > 0 && ids {
                    self.prompt = Prompt::Ids;
                }
                return Ok((count > 1 && !ids).then_some(Refusal::Choices));
            }
            _ => {}
        }
        reader.skip()?;
        Ok(None)
    }

    fn messages(&mut self, reader: &mut Reader<'_>) -> Result<Option<Refusal>, Malformed> {
        (self.last, self.media) = (Last::None, false);
        reader.elements(|reader| {
            self.last = self.message(reader)?;
            Ok(())
        })?;
        Ok(None)
    }

    fn message(&mut self, reader: &mut Reader<'_>) -> Result<Last, Malformed> {
        let (mut assistant, mut content, mut plain) = (false, None, true);
        reader.members(|reader, key| {
            match key.name().as_ref() {
                b"role" => {
                    assistant = reader.text()?.is_some_and(|role| role.decode().eq_ignore_ascii_case("assistant"));
                }
                b"content" => {
                    content = None;
                    match reader.peek()? {
                        b'"' => content = reader.text()?.map(|text| text.inside().end),
                        b'[' => reader.elements(|reader| {
                            self.media |= !is_text(Raw::read(reader)?);
                            Ok(())
                        })?,
                        _ => reader.skip()?,
                    }
                }
                // SGLang's tools of one message.
                b"tools" => {
                    let tools = !Raw::read(reader)?.is_nothing();
                    self.tools |= tools;
                    plain &= !tools;
                }
                b"name" => reader.skip()?,
                // Tool calls, reasoning, a mark of its own that it goes on.
                _ => plain &= Raw::read(reader)?.is_nothing(),
            }
            Ok(())
        })?;
        Ok(if assistant { Last::Assistant(content.filter(|_| plain)) } else { Last::Other })
    }
}

/// Whether a part of a message is text and nothing else.
fn is_text(part: Raw<'_>) -> bool {
    part.inside().is_some() || part.get(b"type").is_some_and(|kind| kind.is("text") || kind.is("refusal"))
}

/// Whether a member alone forbids a continuation.
fn refuses(endpoint: Endpoint, name: &[u8], value: Raw<'_>) -> Option<Refusal> {
    if value.is_null() {
        return None;
    }
    let (refusal, applies) = match name {
        b"model" => (Refusal::Harmony, value.text().is_some_and(|model| super::is_harmony(&model))),
        b"response_format" => (Refusal::Structured, !has_type(value, &["text"])),
        b"structured_outputs"
        | b"structural_tag"
        | b"json_schema"
        | b"regex"
        | b"ebnf"
        | b"grammar"
        | b"choice"
        | b"output_format"
        | b"custom_logit_processor" => (Refusal::Structured, !matches!(value.0, b"false" | b"\"\"")),
        _ if name.starts_with(b"guided_") => (Refusal::Structured, true),
        b"text" if endpoint == Endpoint::Responses => {
            let format = value.get(b"format").filter(|format| !format.is_null());
            (Refusal::Structured, format.is_some_and(|format| !has_type(format, &["text"])))
        }
        b"output_config" => (Refusal::Structured, value.get(b"format").is_some_and(|format| !format.is_null())),
        b"tool_choice" | b"function_call" => {
            let free = ["auto", "none"];
            (Refusal::ForcedTool, !free.iter().any(|choice| value.is(choice)) && !has_type(value, &free))
        }
        b"n" | b"best_of" | b"n_cmpl" => (Refusal::Choices, value.unsigned() != Some(1)),
        b"use_beam_search" => (Refusal::Choices, !value.is_nothing()),
        b"echo" => (Refusal::Echo, !value.is_nothing()),
        b"prompt_logprobs" => (Refusal::PromptLogprobs, true),
        // A number on completions: zero asks for the log probability of what was chosen.
        b"logprobs" => (Refusal::Logprobs, value.0 != b"false"),
        b"top_logprobs" | b"n_probs" => (Refusal::Logprobs, !value.is_zero()),
        b"logprob_token_ids" => (Refusal::Logprobs, !value.is_nothing()),
        b"include" => (Refusal::Logprobs, value.elements().iter().any(|what| what.is("message.output_text.logprobs"))),
        b"frequency_penalty" | b"presence_penalty" => (Refusal::Penalties, !value.is_zero()),
        b"bad_words" | b"repetition_detection" => (Refusal::Penalties, !value.is_nothing()),
        b"stop_regex" => (Refusal::Stops, !value.is_nothing()),
        b"return_token_ids" | b"return_tokens" | b"return_output_ids_in_sglext" => {
            (Refusal::TokenIds, !value.is_nothing())
        }
        // It is in the context all the same, and neither its text nor its ids are known.
        b"include_reasoning" => (Refusal::Reasoning, !value.is_true()),
        b"prompt_embeds" | b"input_embeds" | b"audio" => (Refusal::Multimodal, !value.is_nothing()),
        b"modalities" => (Refusal::Multimodal, value.elements().iter().any(|what| !what.is("text"))),
        b"previous_response_id"
        | b"conversation"
        | b"previous_input_messages"
        | b"kv_transfer_params"
        | b"ec_transfer_params"
        | b"session_params"
        | b"bootstrap_host"
        | b"bootstrap_room" => (Refusal::Stateful, !value.is_nothing()),
        // A prompt that the backend has stored.
        b"prompt" if endpoint == Endpoint::Responses => (Refusal::Stateful, true),
        b"store" | b"background" if endpoint == Endpoint::Responses => (Refusal::Stateful, value.0 != b"false"),
        // The prompt is not the messages; one that is filled in has an end as well.
        b"input_ids" | b"suffix" => (Refusal::Untranslatable, !value.is_nothing()),
        _ => return None,
    };
    applies.then_some(refusal)
}

/// An object whose `type` is one of these.
fn has_type(value: Raw<'_>, kinds: &[&str]) -> bool {
    value.get(b"type").is_some_and(|own| kinds.iter().any(|kind| own.is(kind)))
}
