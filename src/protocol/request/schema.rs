//! The tables: what each known member of each endpoint's body may be.

use super::rule::{ANY, ARRAY, BOOL, NULL, NUMBER, OBJECT, Rule, STRING};
use crate::protocol::endpoint::Endpoint;

/// The known members of one kind of object.
pub(super) struct Table {
    pub(super) fields: &'static [Field],
    /// The fields' indices, by the length of their names.
    order: [u8; MOST],
    /// Length of a name → where in `order` those that are as long start.
    starts: [u8; LONGEST + 2],
    pub(super) needs: &'static [Need],
    /// The bits of the fields that each need is met by.
    pub(super) met_by: [u64; MOST_NEEDS],
}

/// One known member.
pub(super) struct Field {
    pub(super) name: &'static str,
    pub(super) rule: Rule,
    /// The gateway acts on it: a second one could get round its checks.
    pub(super) once: bool,
    pub(super) slot: Slot,
}

/// What must be there: one of the names at least. A `null` is none, but for [`Need::Present`] at the light level.
pub(super) enum Need {
    Said(&'static [&'static str]),
    Present(&'static [&'static str]),
    /// At the strict level alone.
    Strict(&'static [&'static str]),
}

/// Where in [`Fields`](crate::protocol::json::Fields) a value is kept.
#[derive(Clone, Copy)]
pub(super) enum Slot {
    None,
    Model,
    Stream,
    MaxTokens,
    MaxCompletionTokens,
    MaxOutputTokens,
    N,
    PreviousResponse,
    Conversation,
    Background,
    Store,
    Temperature,
    Seed,
    Tools,
}

/// Most fields of one table: each has a bit.
const MOST: usize = 64;

/// Most needs of one table.
const MOST_NEEDS: usize = 4;

/// Length of the longest name that is known.
const LONGEST: usize = 25;

impl Table {
    const fn new(fields: &'static [Field], needs: &'static [Need]) -> Self {
        let (mut order, mut starts) = ([0; MOST], [0; LONGEST + 2]);
        let (mut sorted, mut length) = (0, 0);
        while length < starts.len() {
            starts[length] = sorted as u8;
            let mut at = 0;
            while at < fields.len() {
                if fields[at].name.len() == length {
                    order[sorted] = at as u8;
                    sorted += 1;
                }
                at += 1;
            }
            length += 1;
        }
        assert!(starts[LONGEST + 1] as usize == fields.len(), "a name is longer than the longest");
        let (mut met_by, mut at) = ([0; MOST_NEEDS], 0);
        while at < needs.len() {
            met_by[at] = bits(fields, needs[at].names());
            at += 1;
        }
        Self { fields, order, starts, needs, met_by }
    }

    /// The index of the field of that name.
    #[inline]
    pub(super) fn find(&self, name: &[u8]) -> Option<usize> {
        let starts = self.starts.get(name.len()..name.len() + 2)?;
        let candidates = self.order.get(usize::from(starts[0])..usize::from(starts[1]))?;
        candidates.iter().map(|at| usize::from(*at)).find(|at| {
            // They are equally long, and the first byte tells most of them apart.
            let known = self.fields[*at].name.as_bytes();
            known.first() == name.first() && known == name
        })
    }
}

impl Need {
    pub(super) const fn names(&self) -> &'static [&'static str] {
        let (Self::Said(names) | Self::Present(names) | Self::Strict(names)) = self;
        names
    }
}

/// The bits of the fields of those names, of which each must be there.
const fn bits(fields: &[Field], names: &[&str]) -> u64 {
    let (mut bits, mut at) = (0, 0);
    while at < names.len() {
        let mut field = 0;
        while !equal(fields[field].name, names[at]) {
            field += 1;
        }
        bits |= 1 << field;
        at += 1;
    }
    bits
}

const fn equal(a: &str, b: &str) -> bool {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let (mut same, mut at) = (a.len() == b.len(), 0);
    while same && at < a.len() {
        same = a[at] == b[at];
        at += 1;
    }
    same
}

const fn field(name: &'static str, rule: Rule) -> Field {
    Field { name, rule, once: false, slot: Slot::None }
}

const fn once(name: &'static str, rule: Rule) -> Field {
    Field { name, rule, once: true, slot: Slot::None }
}

const fn acts(name: &'static str, rule: Rule, slot: Slot) -> Field {
    Field { name, rule, once: true, slot }
}

/// Judged at the strict level alone: one of these kinds.
const fn only(kinds: u8) -> Rule {
    Rule::Kinds { light: ANY, strict: kinds }
}

/// Judged at both levels alike.
const fn must(kinds: u8) -> Rule {
    Rule::Kinds { light: kinds, strict: kinds }
}

const FLAG: Rule = only(BOOL);
const TEXT: Rule = only(STRING);
/// What has to be a string at both levels.
const NAME: Rule = must(NULL | STRING);
const SEED: Rule = Rule::Integer { least: i64::MIN, most: i64::MAX };
const TEMPERATURE: Rule = Rule::Number { least: 0.0, most: 2.0 };
const SHARE: Rule = Rule::Number { least: 0.0, most: 1.0 };
const PENALTY: Rule = Rule::Number { least: -2.0, most: 2.0 };
const EFFORT: Rule = Rule::OneOf(&["none", "minimal", "low", "medium", "high", "xhigh", "max"]);

/// The table of `endpoint`.
pub(super) fn of(endpoint: Endpoint) -> &'static Table {
    match endpoint {
        Endpoint::Chat => &CHAT,
        Endpoint::Completions => &COMPLETIONS,
        Endpoint::Embeddings => &EMBEDDINGS,
        Endpoint::Responses => &RESPONSES,
        Endpoint::Messages => &MESSAGES,
        Endpoint::CountTokens => &COUNT_TOKENS,
        Endpoint::Rerank => &RERANK,
        Endpoint::Score => &SCORE,
        Endpoint::Response | Endpoint::Models | Endpoint::Model | Endpoint::Passthrough => &OTHER,
    }
}

/// The table of a body: its own fields, and those that the gateway looks at in every body. Of two rows of one name the
/// first counts.
macro_rules! body {
    ([$($own:expr),* $(,)?], $needs:expr $(,)?) => {
        Table::new(
            &[
                $($own,)*
                acts("model", Rule::Any, Slot::Model),
                acts("stream", Rule::Any, Slot::Stream),
                acts("max_tokens", Rule::Any, Slot::MaxTokens),
                acts("max_completion_tokens", Rule::Any, Slot::MaxCompletionTokens),
                acts("max_output_tokens", Rule::Any, Slot::MaxOutputTokens),
                acts("n", Rule::Choices { most: 128, read: false }, Slot::N),
                acts("temperature", Rule::Any, Slot::Temperature),
                acts("seed", Rule::Any, Slot::Seed),
                acts("store", Rule::Any, Slot::Store),
                acts("background", Rule::Any, Slot::Background),
                acts("conversation", Rule::Any, Slot::Conversation),
                acts("previous_response_id", Rule::Any, Slot::PreviousResponse),
            ],
            $needs,
        )
    };
}

static CHAT: Table = body!(
    [
        once("messages", Rule::Messages),
        acts("model", TEXT, Slot::Model),
        acts("stream", Rule::Flag, Slot::Stream),
        once("stream_options", Rule::Table(&STREAM_OPTIONS)),
        acts("max_tokens", Rule::Tokens { least: 0 }, Slot::MaxTokens),
        acts("max_completion_tokens", Rule::Tokens { least: 0 }, Slot::MaxCompletionTokens),
        acts("n", Rule::Choices { most: 128, read: true }, Slot::N),
        once("best_of", Rule::Choices { most: 20, read: false }),
        acts("temperature", TEMPERATURE, Slot::Temperature),
        field("top_p", SHARE),
        acts("seed", SEED, Slot::Seed),
        field("stop", Rule::Stop { most: 4, alone: true }),
        acts("tools", Rule::Tools, Slot::Tools),
        once("tool_choice", Rule::ToolChoice(&CHOICE)),
        field("parallel_tool_calls", FLAG),
        field("response_format", Rule::Format),
        field("logit_bias", Rule::Bias),
        field("logprobs", Rule::Kinds { light: NULL | BOOL | NUMBER | STRING, strict: BOOL }),
        field("top_logprobs", Rule::Strictly(&Rule::Integer { least: 0, most: 20 })),
        field("presence_penalty", PENALTY),
        field("frequency_penalty", PENALTY),
        field("reasoning_effort", EFFORT),
        field("verbosity", Rule::OneOf(&["low", "medium", "high"])),
        field("modalities", only(ARRAY)),
        field("audio", only(OBJECT)),
        field("prediction", only(OBJECT)),
        field("metadata", Rule::Metadata),
        acts("store", FLAG, Slot::Store),
        field("user", TEXT),
        field("service_tier", TEXT),
        field("prompt_cache_key", TEXT),
        field("safety_identifier", TEXT),
        field("web_search_options", only(OBJECT)),
        field("functions", only(ARRAY)),
        field("function_call", only(STRING | OBJECT)),
    ],
    &[Need::Said(&["messages"]), Need::Strict(&["model"])],
);

static COMPLETIONS: Table = body!(
    [
        once("prompt", Rule::Prompt { most: usize::MAX }),
        field("prompt_embeds", Rule::Any),
        acts("model", TEXT, Slot::Model),
        acts("stream", Rule::Flag, Slot::Stream),
        once("stream_options", Rule::Table(&STREAM_OPTIONS)),
        acts("max_tokens", Rule::Tokens { least: 0 }, Slot::MaxTokens),
        acts("n", Rule::Choices { most: 128, read: true }, Slot::N),
        once("best_of", Rule::Choices { most: 20, read: false }),
        acts("temperature", TEMPERATURE, Slot::Temperature),
        field("top_p", SHARE),
        acts("seed", SEED, Slot::Seed),
        field("stop", Rule::Stop { most: 4, alone: true }),
        field("echo", Rule::Flag),
        field("suffix", TEXT),
        field("response_format", Rule::Format),
        field("logit_bias", Rule::Bias),
        field("logprobs", Rule::Integer { least: 0, most: 5 }),
        field("presence_penalty", PENALTY),
        field("frequency_penalty", PENALTY),
        acts("store", FLAG, Slot::Store),
        field("user", TEXT),
    ],
    &[Need::Said(&["prompt", "prompt_embeds"]), Need::Strict(&["prompt"]), Need::Strict(&["model"])],
);

static EMBEDDINGS: Table = body!(
    [
        once("input", Rule::Prompt { most: 2048 }),
        // Both are engines' own ways to say it.
        field("messages", Rule::Any),
        field("content", Rule::Any),
        acts("model", TEXT, Slot::Model),
        field("encoding_format", Rule::OneOf(&["float", "base64"])),
        field("dimensions", Rule::Strictly(&Rule::Integer { least: 1, most: i64::MAX })),
        field("user", TEXT),
    ],
    &[Need::Said(&["input", "messages", "content"]), Need::Strict(&["input"]), Need::Strict(&["model"])],
);

static RESPONSES: Table = body!(
    [
        once("input", Rule::Input),
        acts("model", TEXT, Slot::Model),
        acts("stream", Rule::Flag, Slot::Stream),
        once("stream_options", only(OBJECT)),
        acts("max_output_tokens", Rule::Tokens { least: 1 }, Slot::MaxOutputTokens),
        acts("temperature", TEMPERATURE, Slot::Temperature),
        field("top_p", SHARE),
        acts("tools", Rule::ToolList(&ANY_TOOL), Slot::Tools),
        once("tool_choice", Rule::ToolChoice(&ANY_CHOICE)),
        field("parallel_tool_calls", FLAG),
        field("max_tool_calls", Rule::Strictly(&Rule::Integer { least: 1, most: i64::MAX })),
        field("text", Rule::Table(&TEXT_OPTIONS)),
        field("reasoning", only(OBJECT)),
        field("instructions", only(STRING | ARRAY)),
        field("prompt", only(OBJECT)),
        field("include", only(ARRAY)),
        field("top_logprobs", Rule::Strictly(&Rule::Integer { least: 0, most: 20 })),
        field("truncation", Rule::OneOf(&["auto", "disabled"])),
        field("metadata", Rule::Metadata),
        acts("store", FLAG, Slot::Store),
        acts("background", FLAG, Slot::Background),
        acts("conversation", only(STRING | OBJECT), Slot::Conversation),
        acts("previous_response_id", TEXT, Slot::PreviousResponse),
        field("previous_input_messages", Rule::Any),
        field("service_tier", TEXT),
        field("prompt_cache_key", TEXT),
        field("safety_identifier", TEXT),
        field("user", TEXT),
    ],
    &[
        Need::Said(&["input", "previous_response_id", "conversation", "prompt", "previous_input_messages"]),
        Need::Strict(&["model", "prompt"]),
    ],
);

const TURNS: Field = once("messages", Rule::Turns);
const SYSTEM: Field = once("system", Rule::System);
const THINKING: Field = field("thinking", Rule::Table(&THINKING_OPTIONS));
const OWN_TOOLS: Field = acts("tools", Rule::TableList(&OWN_TOOL), Slot::Tools);
const OWN_CHOICE: Field = once("tool_choice", Rule::Table(&OWN_CHOICE_OBJECT));

static MESSAGES: Table = body!(
    [
        TURNS,
        acts("model", TEXT, Slot::Model),
        acts("stream", Rule::Flag, Slot::Stream),
        acts("max_tokens", Rule::Tokens { least: 1 }, Slot::MaxTokens),
        acts("temperature", Rule::Number { least: 0.0, most: 1.0 }, Slot::Temperature),
        field("top_p", SHARE),
        field("top_k", Rule::Integer { least: 0, most: i64::MAX }),
        field("stop_sequences", Rule::Stop { most: usize::MAX, alone: false }),
        SYSTEM,
        OWN_TOOLS,
        OWN_CHOICE,
        THINKING,
        field("metadata", only(OBJECT)),
        field("service_tier", TEXT),
    ],
    &[Need::Present(&["messages"]), Need::Strict(&["model"]), Need::Strict(&["max_tokens"])],
);

static COUNT_TOKENS: Table = body!(
    [TURNS, acts("model", TEXT, Slot::Model), SYSTEM, OWN_TOOLS, OWN_CHOICE, THINKING],
    &[Need::Present(&["messages"]), Need::Strict(&["model"])],
);

static RERANK: Table = body!(
    [
        acts("model", TEXT, Slot::Model),
        once("query", Rule::Kinds { light: STRING | ARRAY | OBJECT, strict: STRING }),
        once("documents", Rule::Kinds { light: NULL | STRING | ARRAY | OBJECT, strict: ARRAY }),
        field("texts", Rule::Any),
        field("top_n", Rule::Strictly(&Rule::Integer { least: 1, most: i64::MAX })),
        field("return_documents", FLAG),
    ],
    &[Need::Said(&["query"]), Need::Said(&["documents", "texts"]), Need::Strict(&["documents"])],
);

static SCORE: Table = body!([acts("model", TEXT, Slot::Model)], &[]);

static OTHER: Table = body!([], &[]);

/// A message of a chat.
pub(super) static MESSAGE: Table = Table::new(
    &[
        once("role", Rule::Role(&["user", "assistant", "system", "tool", "developer", "function"])),
        once("content", Rule::Content),
        field("name", NAME),
        field("tool_calls", Rule::ToolCalls),
        field("tool_call_id", TEXT),
        field("function_call", only(OBJECT)),
        field("refusal", TEXT),
        field("audio", only(OBJECT)),
    ],
    &[Need::Said(&["role"])],
);

/// A part of a message's content.
pub(super) static PART: Table = Table::new(
    &[
        field("type", Rule::PartType),
        field("text", Rule::PartText),
        once("image_url", Rule::ImageUrl),
        once("input_audio", Rule::Audio),
        field("refusal", Rule::Any),
        field("file", only(OBJECT)),
        once("source", Rule::Source),
    ],
    &[Need::Strict(&["type"])],
);

/// `image_url` of a part.
pub(super) static IMAGE_URL: Table =
    Table::new(&[once("url", Rule::DataUrl), field("detail", TEXT)], &[Need::Strict(&["url"])]);

/// `input_audio` of a part.
pub(super) static AUDIO: Table = Table::new(
    &[once("data", Rule::Base64("input_audio")), field("format", TEXT)],
    &[Need::Strict(&["data"]), Need::Strict(&["format"])],
);

/// `source` of an Anthropic image or document.
pub(super) static SOURCE: Table = Table::new(
    &[
        field("type", Rule::SourceType),
        once("data", Rule::Base64("source")),
        field("media_type", TEXT),
        field("url", TEXT),
    ],
    &[Need::Strict(&["type"])],
);

/// A call in an assistant's message.
pub(super) static TOOL_CALL: Table = Table::new(
    &[field("id", TEXT), field("type", TEXT), field("function", only(OBJECT)), field("custom", only(OBJECT))],
    &[Need::Strict(&["id"]), Need::Strict(&["type"])],
);

/// A tool of a chat.
pub(super) static TOOL: Table = Table::new(
    &[field("type", Rule::ToolType), field("function", Rule::Function), field("custom", Rule::Any)],
    &[Need::Strict(&["type"])],
);

/// A tool's function.
pub(super) static FUNCTION: Table = Table::new(
    &[
        field("name", Rule::FunctionName),
        field("description", TEXT),
        field("parameters", only(OBJECT)),
        field("strict", FLAG),
    ],
    &[Need::Said(&["name"])],
);

/// What `tool_choice` of a chat may be as an object.
static CHOICE: Table = Table::new(
    &[
        field("type", Rule::OneOf(&["function", "custom", "allowed_tools"])),
        field("function", Rule::Table(&CHOSEN)),
        field("custom", Rule::Table(&CHOSEN)),
        field("allowed_tools", only(OBJECT)),
    ],
    &[Need::Strict(&["type"]), Need::Strict(&["function", "custom", "allowed_tools"])],
);

/// What `tool_choice` of a response may be as an object.
static ANY_CHOICE: Table =
    Table::new(&[field("type", TEXT), field("name", Rule::ChosenName)], &[Need::Strict(&["type"])]);

/// `tool_choice.function`
static CHOSEN: Table = Table::new(&[field("name", Rule::ChosenName)], &[Need::Strict(&["name"])]);

/// A tool of a response.
static ANY_TOOL: Table = Table::new(&[field("type", TEXT), field("name", TEXT)], &[Need::Strict(&["type"])]);

/// A tool of an Anthropic message.
static OWN_TOOL: Table = Table::new(
    &[
        field("name", TEXT),
        field("mcp_server_name", TEXT),
        field("type", TEXT),
        field("description", TEXT),
        field("input_schema", only(OBJECT)),
    ],
    &[Need::Strict(&["name", "mcp_server_name"])],
);

/// `thinking`
static THINKING_OPTIONS: Table = Table::new(
    &[
        field("type", Rule::OneOf(&["enabled", "disabled", "adaptive"])),
        field("budget_tokens", Rule::Strictly(&Rule::Integer { least: 1024, most: i64::MAX })),
    ],
    &[Need::Strict(&["type"])],
);

/// `text` of a response.
static TEXT_OPTIONS: Table = Table::new(
    &[field("format", Rule::Table(&TEXT_FORMAT)), field("verbosity", Rule::OneOf(&["low", "medium", "high"]))],
    &[],
);

/// `text.format`
static TEXT_FORMAT: Table = Table::new(
    &[
        field("type", Rule::OneOf(&["text", "json_object", "json_schema"])),
        field("name", TEXT),
        field("schema", only(OBJECT)),
    ],
    &[Need::Strict(&["type"])],
);

/// `response_format`
pub(super) static FORMAT: Table = Table::new(
    &[field("type", Rule::FormatType), field("json_schema", Rule::FormatSchema)],
    &[Need::Strict(&["type"])],
);

/// `response_format.json_schema`
pub(super) static FORMAT_SCHEMA: Table = Table::new(
    &[field("name", TEXT), field("description", TEXT), field("schema", only(OBJECT)), field("strict", FLAG)],
    &[Need::Strict(&["name"])],
);

/// `stream_options`
static STREAM_OPTIONS: Table =
    Table::new(&[once("include_usage", Rule::IncludeUsage), field("include_obfuscation", FLAG)], &[]);

/// An item of a response's `input`.
pub(super) static ITEM: Table = Table::new(
    &[
        field("role", Rule::Strictly(&Rule::Role(&["user", "assistant", "system", "developer"]))),
        once("content", Rule::ItemContent),
        field("type", TEXT),
    ],
    &[],
);

/// A turn of an Anthropic conversation.
pub(super) static TURN: Table = Table::new(
    &[once("role", Rule::Role(&["user", "assistant"])), once("content", Rule::TurnContent)],
    &[Need::Said(&["role"]), Need::Present(&["content"])],
);

/// `tool_choice` of an Anthropic message.
static OWN_CHOICE_OBJECT: Table = Table::new(
    &[
        field("type", Rule::OneOf(&["auto", "any", "tool", "none"])),
        field("name", Rule::ChosenName),
        field("disable_parallel_tool_use", Rule::Any),
    ],
    &[Need::Strict(&["type"])],
);
