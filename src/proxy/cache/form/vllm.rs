//! vLLM 0.32, by its own response models (`tests/fixtures/real`).
//!
//! Its plain form writes every member its version knows, `null` or not: only a fingerprint of that version proves which.
//! Log probabilities are left alone (its two shapes write numbers by two writers), and so is text that a reasoning or
//! tool parser could have read: the plain form is parsed where the stream is not. A reasoning parser shows in `usage`.

use super::{
    Event,
    raw::{Same, array, index, inside, object, only},
};

const VERSION: &str = "\"vllm-0.32.";

/// What the pieces of one choice add up to.
#[derive(Debug, Default)]
struct Choice<'a> {
    text: String,
    finish: Option<(&'a str, &'a str)>,
}

#[derive(Debug, Default)]
struct Gathered<'a> {
    id: Same<'a>,
    created: Same<'a>,
    model: Same<'a>,
    choices: Vec<Choice<'a>>,
    /// Usage and fingerprint.
    last: Option<(Usage<'a>, &'a str)>,
}

/// Counts, in the engine's order; details where they are told.
#[derive(Clone, Copy, Debug)]
struct Usage<'a> {
    counts: [&'a str; 3],
    /// Cached tokens, and those written to the cache.
    details: Option<[&'a str; 2]>,
}

const HEAD: [&str; 5] = ["id", "object", "created", "model", "choices"];

impl<'a> Usage<'a> {
    /// As the stream's last event tells it: without what is `null`.
    fn streamed(json: &'a str) -> Option<Self> {
        if let Some(counts) = object(json, ["prompt_tokens", "total_tokens", "completion_tokens"]) {
            return Some(Self { counts, details: None });
        }
        let [a, b, c, details] =
            object(json, ["prompt_tokens", "total_tokens", "completion_tokens", "prompt_tokens_details"])?;
        let details = match object(details, ["cached_tokens"]) {
            Some([cached]) => [cached, "null"],
            None => object(details, ["cached_tokens", "created_cache_tokens"])?,
        };
        Some(Self { counts: [a, b, c], details: Some(details) })
    }

    /// As the plain answer tells it.
    fn plain(json: &'a str) -> Option<Self> {
        let [a, b, c, details, reasoning] = object(
            json,
            [
                "prompt_tokens",
                "total_tokens",
                "completion_tokens",
                "prompt_tokens_details",
                "completion_tokens_details",
            ],
        )?;
        if reasoning != "null" {
            return None;
        }
        if details == "null" {
            return Some(Self { counts: [a, b, c], details: None });
        }
        let [cached, written, modal] = object(details, ["cached_tokens", "created_cache_tokens", "multimodal_tokens"])?;
        (modal == "null" && cached != "null").then_some(Self { counts: [a, b, c], details: Some([cached, written]) })
    }

    fn counts(&self) -> String {
        let [prompt, total, completion] = self.counts;
        format!("\"prompt_tokens\":{prompt},\"total_tokens\":{total},\"completion_tokens\":{completion}")
    }

    fn to_plain(self) -> String {
        let details = self.details.map_or_else(
            || "null".to_owned(),
            |[cached, written]| {
                format!("{{\"cached_tokens\":{cached},\"created_cache_tokens\":{written},\"multimodal_tokens\":null}}")
            },
        );
        format!("{{{},\"prompt_tokens_details\":{details},\"completion_tokens_details\":null}}", self.counts())
    }

    fn to_stream(self) -> String {
        let details = match self.details {
            None => String::new(),
            Some([cached, "null"]) => format!(",\"prompt_tokens_details\":{{\"cached_tokens\":{cached}}}"),
            Some([cached, written]) => {
                format!(",\"prompt_tokens_details\":{{\"cached_tokens\":{cached},\"created_cache_tokens\":{written}}}")
            }
        };
        format!("{{{}{details}}}", self.counts())
    }
}

/// Whether a parser, if the engine has one, would have left the text alone: none has a mark without one of these.
fn is_plain_text(text: &str) -> bool {
    !text.is_empty() && !text.contains(['<', '◁']) && !text.contains("[TOOL") && !text.contains("[THINK")
}

fn is_known(fingerprint: &str) -> Option<()> {
    fingerprint.starts_with(VERSION).then_some(())
}

impl<'a> Gathered<'a> {
    /// The events of a stream; `delta` reads one entry of `choices`.
    fn read(events: &[Event<'a>], kind: &str, delta: impl Fn(&mut Self, &'a str) -> Option<()>) -> Option<Self> {
        let (done, before) = events.split_last()?;
        let (last, before) = before.split_last()?;
        if done.1 != "[DONE]" || events.iter().any(|event| !event.0.is_empty()) {
            return None;
        }
        let mut all = Self::default();
        for (_, data) in before {
            let [a, b, c, d, e] = HEAD;
            let head = object(data, HEAD).or_else(|| {
                // The first event of each choice.
                let [id, of, created, model, choices, ids, text] =
                    object(data, [a, b, c, d, e, "prompt_token_ids", "prompt_text"])?;
                (ids == "null" && text == "null").then_some([id, of, created, model, choices])
            })?;
            all.head(head, kind)?;
            delta(&mut all, only(head[4])?)?;
        }
        let [a, b, c, d, e] = HEAD;
        let [id, of, created, model, choices, usage, fingerprint] =
            object(last.1, [a, b, c, d, e, "usage", "system_fingerprint"])?;
        all.head([id, of, created, model, choices], kind)?;
        is_known(fingerprint)?;
        all.last = Some((Usage::streamed(usage)?, fingerprint));
        let whole = array(choices)?.is_empty()
            && !all.choices.is_empty()
            && all.choices.iter().all(|choice| choice.finish.is_some() && !choice.text.is_empty());
        whole.then_some(all)
    }

    fn head(&mut self, [id, of, created, model, _]: [&'a str; 5], kind: &str) -> Option<()> {
        self.id.is(id)?;
        self.created.is(created)?;
        self.model.is(model)?;
        (inside(of)? == kind).then_some(())
    }

    /// The choice of an event, which has not ended.
    fn choice(&mut self, at: &str) -> Option<&mut Choice<'a>> {
        let at = index(at)?;
        while self.choices.len() <= at {
            self.choices.push(Choice::default());
        }
        self.choices.get_mut(at).filter(|choice| choice.finish.is_none())
    }

    /// The plain answer with these entries of `choices`, and what follows `usage` in it.
    fn plain(&self, kind: &str, choices: &[String], tail: &str) -> Option<String> {
        let (usage, fingerprint) = self.last?;
        Some(format!(
            "{{\"id\":{},\"object\":\"{kind}\",\"created\":{},\"model\":{},\"choices\":[{}],\"service_tier\":null,\
             \"system_fingerprint\":{fingerprint},\"usage\":{}{tail}}}",
            self.id.get()?,
            self.created.get()?,
            self.model.get()?,
            choices.join(","),
            usage.to_plain()
        ))
    }
}

const CHAT_TAIL: [&str; 6] =
    ["prompt_logprobs", "prompt_token_ids", "prompt_text", "kv_transfer_params", "ec_transfer_params", "metrics"];
const COMPLETION_TAIL: [&str; 3] = ["kv_transfer_params", "ec_transfer_params", "metrics"];

fn nulls(names: &[&str]) -> String {
    names.iter().map(|name| format!(",\"{name}\":null")).collect()
}

pub(super) fn chat_to_plain(events: &[Event<'_>]) -> Option<String> {
    let all = Gathered::read(events, "chat.completion.chunk", chat_delta)?;
    let mut choices = Vec::with_capacity(all.choices.len());
    for (at, choice) in all.choices.iter().enumerate() {
        let (finish, stop) = choice.finish.filter(|_| is_plain_text(&choice.text))?;
        choices.push(format!(
            "{{\"index\":{at},\"message\":{{\"role\":\"assistant\",\"content\":\"{}\"{}}},\"logprobs\":null,\
             \"finish_reason\":{finish},\"stop_reason\":{stop}{}}}",
            choice.text,
            nulls(&["refusal", "annotations", "audio", "function_call", "reasoning"]),
            nulls(&["token_ids", "routed_experts"]),
        ));
    }
    all.plain("chat.completion", &choices, &nulls(&CHAT_TAIL))
}

fn chat_delta<'a>(all: &mut Gathered<'a>, choice: &'a str) -> Option<()> {
    if let Some([at, delta, "null", "null"]) = object(choice, ["index", "delta", "logprobs", "finish_reason"]) {
        let [role, content] = object(delta, ["role", "content"])?;
        let first = all.choice(at)?.text.is_empty();
        return (first && role == "\"assistant\"" && content == "\"\"").then_some(());
    }
    let (at, delta, logprobs, ends, ids) = if let Some([at, delta, logprobs, finish, ids]) =
        object(choice, ["index", "delta", "logprobs", "finish_reason", "token_ids"])
    {
        (finish == "null").then_some((at, delta, logprobs, None, ids))?
    } else {
        let [at, delta, logprobs, finish, stop, ids] =
            object(choice, ["index", "delta", "logprobs", "finish_reason", "stop_reason", "token_ids"])?;
        inside(finish)?;
        (at, delta, logprobs, Some((finish, stop)), ids)
    };
    let [content] = object(delta, ["content"])?;
    let choice = all.choice(at)?;
    choice.text.push_str(inside(content)?);
    choice.finish = ends;
    (logprobs == "null" && ids == "null").then_some(())
}

const COMPLETION_DELTA: [&str; 7] =
    ["index", "text", "logprobs", "finish_reason", "stop_reason", "prompt_token_ids", "token_ids"];

pub(super) fn completion_to_plain(events: &[Event<'_>]) -> Option<String> {
    let all = Gathered::read(events, "text_completion", |all, choice| {
        let [at, text, logprobs, finish, stop, prompt, ids] = object(choice, COMPLETION_DELTA)?;
        let choice = all.choice(at)?;
        choice.text.push_str(inside(text)?);
        choice.finish = (finish != "null").then_some((finish, stop));
        (logprobs == "null" && prompt == "null" && ids == "null").then_some(())
    })?;
    let mut choices = Vec::with_capacity(all.choices.len());
    for (at, choice) in all.choices.iter().enumerate() {
        let (finish, stop) = choice.finish?;
        choices.push(format!(
            "{{\"index\":{at},\"text\":\"{}\",\"logprobs\":null,\"finish_reason\":{finish},\"stop_reason\":{stop}{}}}",
            choice.text,
            nulls(&["token_ids", "prompt_logprobs", "prompt_token_ids", "routed_experts"]),
        ));
    }
    all.plain("text_completion", &choices, &nulls(&COMPLETION_TAIL))
}

/// A plain answer: what is in every event, its `choices`, and the event with its usage.
struct Plain<'a> {
    head: String,
    choices: Vec<&'a str>,
    last: String,
}

impl<'a> Plain<'a> {
    /// `rest` is what follows `model`, in its order: `choices` to `usage`, and members that are `null`.
    fn new(
        [id, created, model]: [&'a str; 3],
        kind: &str,
        [choices, tier, fingerprint, usage]: [&'a str; 4],
        rest: &[&str],
    ) -> Option<Self> {
        is_known(fingerprint)?;
        if tier != "null" || rest.iter().any(|value| *value != "null") {
            return None;
        }
        let head = format!("\"id\":{id},\"object\":\"{kind}\",\"created\":{created},\"model\":{model}");
        let usage = Usage::plain(usage)?.to_stream();
        let last = format!(
            "data: {{{head},\"choices\":[],\"usage\":{usage},\"system_fingerprint\":{fingerprint}}}\n\ndata: [DONE]\n\n"
        );
        Some(Self { head, choices: array(choices)?, last })
    }

    fn event(&self, choice: &str, more: &str) -> String {
        format!("data: {{{},\"choices\":[{choice}]{more}}}\n\n", self.head)
    }
}

pub(super) fn chat_to_stream(body: &str) -> Option<String> {
    let [a, b, c, d, e] = HEAD;
    let [f, g, h, i, j, k] = CHAT_TAIL;
    let [id, of, created, model, choices, tier, fingerprint, usage, rest @ ..] =
        object(body, [a, b, c, d, e, "service_tier", "system_fingerprint", "usage", f, g, h, i, j, k])?;
    let of = inside(of).filter(|of| *of == "chat.completion")?;
    let plain = Plain::new([id, created, model], &format!("{of}.chunk"), [choices, tier, fingerprint, usage], &rest)?;
    let (mut opening, mut texts) = (String::new(), String::new());
    for (n, choice) in plain.choices.iter().enumerate() {
        let [at, message, logprobs, finish, stop, ids, experts] = object(
            choice,
            ["index", "message", "logprobs", "finish_reason", "stop_reason", "token_ids", "routed_experts"],
        )?;
        let [role, content, others @ ..] =
            object(message, ["role", "content", "refusal", "annotations", "audio", "function_call", "reasoning"])?;
        let unknown = [logprobs, ids, experts].iter().chain(&others).any(|value| *value != "null");
        if unknown || index(at)? != n || role != "\"assistant\"" || !is_plain_text(inside(content)?) {
            return None;
        }
        inside(finish)?;
        opening += &plain.event(
            &format!(
                "{{\"index\":{at},\"delta\":{{\"role\":\"assistant\",\"content\":\"\"}},\"logprobs\":null,\
                 \"finish_reason\":null}}"
            ),
            &nulls(&["prompt_token_ids", "prompt_text"]),
        );
        texts += &plain.event(
            &format!(
                "{{\"index\":{at},\"delta\":{{\"content\":{content}}},\"logprobs\":null,\"finish_reason\":{finish},\
                 \"stop_reason\":{stop},\"token_ids\":null}}"
            ),
            "",
        );
    }
    (!plain.choices.is_empty()).then(|| opening + &texts + &plain.last)
}

pub(super) fn completion_to_stream(body: &str) -> Option<String> {
    let [a, b, c, d, e] = HEAD;
    let [f, g, h] = COMPLETION_TAIL;
    let [id, of, created, model, choices, tier, fingerprint, usage, rest @ ..] =
        object(body, [a, b, c, d, e, "service_tier", "system_fingerprint", "usage", f, g, h])?;
    let of = inside(of).filter(|of| *of == "text_completion")?;
    let plain = Plain::new([id, created, model], of, [choices, tier, fingerprint, usage], &rest)?;
    let mut texts = String::new();
    for (n, choice) in plain.choices.iter().enumerate() {
        let [at, text, logprobs, finish, stop, others @ ..] = object(
            choice,
            [
                "index",
                "text",
                "logprobs",
                "finish_reason",
                "stop_reason",
                "token_ids",
                "prompt_logprobs",
                "prompt_token_ids",
                "routed_experts",
            ],
        )?;
        let unknown = logprobs != "null" || others.iter().any(|value| *value != "null");
        if unknown || index(at)? != n || inside(text)?.is_empty() {
            return None;
        }
        inside(finish)?;
        texts += &plain.event(
            &format!(
                "{{\"index\":{at},\"text\":{text},\"logprobs\":null,\"finish_reason\":{finish},\"stop_reason\":{stop},\
                 \"prompt_token_ids\":null,\"token_ids\":null}}"
            ),
            "",
        );
    }
    (!plain.choices.is_empty()).then(|| texts + &plain.last)
}
