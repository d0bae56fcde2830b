//! llama.cpp's server, as recorded (`tests/fixtures/real`).

use std::fmt::Write as _;

use super::{
    Event,
    raw::{Same, array, index, inside, object, only},
};

/// What the pieces of one choice add up to.
#[derive(Debug, Default)]
struct Choice<'a> {
    text: String,
    logprobs: Option<Vec<&'a str>>,
    finish: Option<&'a str>,
    usage: Option<&'a str>,
    timings: Option<&'a str>,
}

/// What all events of a stream add up to.
#[derive(Debug, Default)]
struct Gathered<'a> {
    id: Same<'a>,
    model: Same<'a>,
    fingerprint: Same<'a>,
    /// Of the newest event: the plain answer is written when the last one is.
    created: &'a str,
    choices: Vec<Choice<'a>>,
    /// The choice that ended last: the usage event that follows is its.
    ended: Option<usize>,
}

impl<'a> Gathered<'a> {
    fn head(&mut self, id: &'a str, model: &'a str, fingerprint: &'a str, created: &'a str) -> Option<()> {
        self.created = created;
        self.id.is(id)?;
        self.model.is(model)?;
        self.fingerprint.is(fingerprint)
    }

    /// The choice of an event, which has not ended.
    fn choice(&mut self, at: &str) -> Option<(usize, &mut Choice<'a>)> {
        let at = index(at)?;
        while self.choices.len() <= at {
            self.choices.push(Choice::default());
        }
        self.choices.get_mut(at).filter(|choice| choice.finish.is_none()).map(|choice| (at, choice))
    }

    /// Whether the log probabilities are the same in both shapes. A plain answer has those of the token that ended it,
    /// too, and a stream none of tokens whose text was never sent: every token must be there.
    fn proven(&self) -> bool {
        !self.choices.is_empty()
            && self.choices.iter().all(|choice| {
                let complete = match &choice.logprobs {
                    None => true,
                    Some(tokens) => {
                        choice.finish == Some("\"length\"") && choice.completion_tokens() == Some(tokens.len())
                    }
                };
                complete && !choice.text.is_empty() && choice.finish.is_some() && choice.usage.is_some()
            })
    }
}

impl<'a> Choice<'a> {
    fn completion_tokens(&self) -> Option<usize> {
        let [completion, _, _, _] = usage_members(self.usage?)?;
        completion.parse().ok()
    }

    /// Adds an event's log probabilities.
    fn log(&mut self, logprobs: &'a str) -> Option<()> {
        let [content] = object(logprobs, ["content"])?;
        self.logprobs.get_or_insert_default().extend(array(content)?);
        Some(())
    }

    fn end(&mut self, finish: &'a str) -> Option<()> {
        inside(finish)?;
        self.finish = Some(finish);
        Some(())
    }

    fn logprobs(&self) -> Option<String> {
        self.logprobs.as_ref().map(|tokens| format!("{{\"content\":[{}]}}", tokens.join(",")))
    }
}

fn usage_members(usage: &str) -> Option<[&str; 4]> {
    object(usage, ["completion_tokens", "prompt_tokens", "total_tokens", "prompt_tokens_details"])
}

/// Takes the `[DONE]` off the end.
fn before_done<'a, 'e>(events: &'e [Event<'a>]) -> Option<&'e [Event<'a>]> {
    let (last, before) = events.split_last()?;
    (last.1 == "[DONE]" && before.iter().all(|event| event.0.is_empty())).then_some(before)
}

pub(super) fn chat_to_plain(events: &[Event<'_>]) -> Option<String> {
    let mut all = Gathered::default();
    for (_, data) in before_done(events)? {
        chat_event(&mut all, data)?;
    }
    if !all.proven() {
        return None;
    }
    let mut choices = Vec::with_capacity(all.choices.len());
    for (at, choice) in all.choices.iter().enumerate() {
        let logprobs = choice.logprobs().map_or_else(String::new, |logprobs| format!(",\"logprobs\":{logprobs}"));
        choices.push(format!(
            "{{\"finish_reason\":{},\"index\":{at},\"message\":{{\"role\":\"assistant\",\"content\":\"{}\"}}{logprobs}}}",
            choice.finish?, choice.text
        ));
    }
    let first = all.choices.first()?;
    Some(format!(
        "{{\"choices\":[{}],\"created\":{},\"model\":{},\"system_fingerprint\":{},\"object\":\"chat.completion\",\
         \"usage\":{},\"id\":{},\"timings\":{}}}",
        choices.join(","),
        all.created,
        all.model.get()?,
        all.fingerprint.get()?,
        first.usage?,
        all.id.get()?,
        first.timings?
    ))
}

fn chat_event<'a>(all: &mut Gathered<'a>, data: &'a str) -> Option<()> {
    const HEAD: [&str; 6] = ["choices", "created", "id", "model", "system_fingerprint", "object"];
    if let Some([choices, created, id, model, fingerprint, kind]) = object(data, HEAD) {
        chunk(kind)?;
        all.head(id, model, fingerprint, created)?;
        return chat_delta(all, only(choices)?);
    }
    let [a, b, c, d, e, f] = HEAD;
    let [choices, created, id, model, fingerprint, kind, usage, timings] =
        object(data, [a, b, c, d, e, f, "usage", "timings"])?;
    chunk(kind)?;
    all.head(id, model, fingerprint, created)?;
    usage_members(usage)?;
    if !array(choices)?.is_empty() {
        return None;
    }
    let choice = all.choices.get_mut(all.ended.take()?)?;
    (choice.usage, choice.timings) = (Some(usage), Some(timings));
    Some(())
}

fn chunk(kind: &str) -> Option<()> {
    (kind == "\"chat.completion.chunk\"").then_some(())
}

fn chat_delta<'a>(all: &mut Gathered<'a>, choice: &'a str) -> Option<()> {
    let (finish, at, delta, logprobs) =
        if let Some([finish, at, delta, logprobs]) = object(choice, ["finish_reason", "index", "delta", "logprobs"]) {
            (finish, at, delta, Some(logprobs))
        } else {
            let [finish, at, delta] = object(choice, ["finish_reason", "index", "delta"])?;
            (finish, at, delta, None)
        };
    let (at, choice) = all.choice(at)?;
    if let Some(logprobs) = logprobs {
        choice.log(logprobs)?;
    }
    if delta == "{}" {
        choice.end(finish)?;
        all.ended = Some(at);
        return Some(());
    }
    if finish != "null" {
        return None;
    }
    if let Some([text]) = object(delta, ["content"]) {
        choice.text.push_str(inside(text)?);
        return Some(());
    }
    let [role, content] = object(delta, ["role", "content"])?;
    (role == "\"assistant\"" && content == "null" && choice.text.is_empty()).then_some(())
}

pub(super) fn completion_to_plain(events: &[Event<'_>]) -> Option<String> {
    let mut all = Gathered::default();
    for (_, data) in before_done(events)? {
        completion_event(&mut all, data)?;
    }
    if !all.proven() {
        return None;
    }
    let mut choices = Vec::with_capacity(all.choices.len());
    for (at, choice) in all.choices.iter().enumerate() {
        choices.push(format!(
            "{{\"text\":\"{}\",\"index\":{at},\"logprobs\":{},\"finish_reason\":{}}}",
            choice.text,
            choice.logprobs().unwrap_or_else(|| "null".to_owned()),
            choice.finish?
        ));
    }
    let first = all.choices.first()?;
    Some(completion(
        &choices.join(","),
        all.created,
        all.model.get()?,
        all.fingerprint.get()?,
        first.usage?,
        all.id.get()?,
        first.timings?,
    ))
}

/// The plain form, and that of a stream's last event.
fn completion(
    choices: &str,
    created: &str,
    model: &str,
    fingerprint: &str,
    usage: &str,
    id: &str,
    timings: &str,
) -> String {
    format!(
        "{{\"choices\":[{choices}],\"created\":{created},\"model\":{model},\"system_fingerprint\":{fingerprint},\
         \"object\":\"text_completion\",\"usage\":{usage},\"id\":{id},\"timings\":{timings}}}"
    )
}

const COMPLETION: [&str; 8] = ["choices", "created", "model", "system_fingerprint", "object", "usage", "id", "timings"];

fn completion_event<'a>(all: &mut Gathered<'a>, data: &'a str) -> Option<()> {
    let last = object(data, COMPLETION);
    let [choices, created, model, fingerprint, kind, id] = match last {
        Some([choices, created, model, fingerprint, kind, _, id, _]) => {
            [choices, created, model, fingerprint, kind, id]
        }
        None => object(data, ["choices", "created", "model", "system_fingerprint", "object", "id"])?,
    };
    all.head(id, model, fingerprint, created)?;
    let [text, at, logprobs, finish] = object(only(choices)?, ["text", "index", "logprobs", "finish_reason"])?;
    let (_, choice) = all.choice(at)?;
    choice.text.push_str(inside(text)?);
    if logprobs != "null" {
        choice.log(logprobs)?;
    }
    if let Some([.., usage, _, timings]) = last {
        usage_members(usage)?;
        (choice.usage, choice.timings) = (Some(usage), Some(timings));
        choice.end(finish)?;
    } else if finish != "null" {
        return None;
    }
    (kind == "\"text_completion\"").then_some(())
}

const MESSAGE_ITEM: [&str; 5] = ["type", "status", "id", "content", "role"];
const TEXT_PART: [&str; 4] = ["type", "annotations", "logprobs", "text"];

pub(super) fn response_to_plain(events: &[Event<'_>]) -> Option<String> {
    // The last event holds the answer; one that reasons or calls tools has other items.
    let &(name, data) = events.last()?;
    let [kind, response, _timings] = object(data, ["type", "response", "timings"])?;
    if name != "response.completed" || kind != "\"response.completed\"" {
        return None;
    }
    let [id, of, created, status, model, output, usage] =
        object(response, ["id", "object", "created_at", "status", "model", "output", "usage"])?;
    let [item, item_status, item_id, content, role] = object(only(output)?, MESSAGE_ITEM)?;
    let [part, annotations, logprobs, text] = object(only(content)?, TEXT_PART)?;
    if of != "\"response\"" || item != "\"message\"" || part != "\"output_text\"" || inside(text)?.is_empty() {
        return None;
    }
    Some(format!(
        "{{\"completed_at\":{created},\"created_at\":{created},\"id\":{id},\"model\":{model},\"object\":\"response\",\
         \"output\":[{{\"content\":[{{\"type\":{part},\"annotations\":{annotations},\"logprobs\":{logprobs},\
         \"text\":{text}}}],\"id\":{item_id},\"role\":{role},\"status\":{item_status},\"type\":{item}}}],\
         \"status\":{status},\"usage\":{usage}}}"
    ))
}

const MESSAGE: [&str; 8] = ["id", "type", "role", "content", "model", "stop_reason", "stop_sequence", "usage"];
const MESSAGE_USAGE: [&str; 3] = ["cache_read_input_tokens", "input_tokens", "output_tokens"];

pub(super) fn message_to_plain(events: &[Event<'_>]) -> Option<String> {
    let [start, open, deltas @ .., close, delta, stop] = events else { return None };
    let [_, message] = object(named(start, "message_start")?, ["type", "message"])?;
    let [id, kind, role, content, model, _, _, usage] = object(message, MESSAGE)?;
    let [cached, input, _] = object(usage, MESSAGE_USAGE)?;
    let text_block = r#"{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}"#;
    let known = named(open, "content_block_start")? == text_block
        && named(close, "content_block_stop")? == r#"{"type":"content_block_stop","index":0}"#
        && named(stop, "message_stop")? == r#"{"type":"message_stop"}"#
        && content == "[]";
    let mut text = String::new();
    for event in deltas {
        let [_, at, delta] = object(named(event, "content_block_delta")?, ["type", "index", "delta"])?;
        let [kind, piece] = object(delta, ["type", "text"])?;
        if at != "0" || kind != "\"text_delta\"" {
            return None;
        }
        text.push_str(inside(piece)?);
    }
    let [_, delta, usage] = object(named(delta, "message_delta")?, ["type", "delta", "usage"])?;
    let [reason, sequence] = object(delta, ["stop_reason", "stop_sequence"])?;
    let [output] = object(usage, ["output_tokens"])?;
    if !known || text.is_empty() {
        return None;
    }
    Some(format!(
        "{{\"id\":{id},\"type\":{kind},\"role\":{role},\"content\":[{{\"type\":\"text\",\"text\":\"{text}\"}}],\
         \"model\":{model},\"stop_reason\":{reason},\"stop_sequence\":{sequence},\"usage\":{{\
         \"cache_read_input_tokens\":{cached},\"input_tokens\":{input},\"output_tokens\":{output}}}}}"
    ))
}

/// The data of an event of this name.
fn named<'a>(event: &Event<'a>, name: &str) -> Option<&'a str> {
    (event.0 == name).then_some(event.1)
}

pub(super) fn chat_to_stream(body: &str) -> Option<String> {
    const HEAD: [&str; 8] = ["choices", "created", "model", "system_fingerprint", "object", "usage", "id", "timings"];
    let [choices, created, model, fingerprint, kind, usage, id, timings] = object(body, HEAD)?;
    usage_members(usage)?;
    let choice = only(choices)?;
    let (finish, at, message, logprobs) = if let Some([finish, at, message, logprobs]) =
        object(choice, ["finish_reason", "index", "message", "logprobs"])
    {
        (finish, at, message, Some(logprobs))
    } else {
        let [finish, at, message] = object(choice, ["finish_reason", "index", "message"])?;
        (finish, at, message, None)
    };
    let [role, content] = object(message, ["role", "content"])?;
    let text = inside(content)?;
    if kind != "\"chat.completion\"" || at != "0" || role != "\"assistant\"" || text.is_empty() || !starts_whole(text) {
        return None;
    }
    let tail = format!(
        "\"created\":{created},\"id\":{id},\"model\":{model},\"system_fingerprint\":{fingerprint},\
         \"object\":\"chat.completion.chunk\""
    );
    let event = |choices: &str, more: &str| format!("data: {{\"choices\":[{choices}],{tail}{more}}}\n\n");
    let delta =
        |delta: &str, more: &str| event(&format!("{{\"finish_reason\":null,\"index\":0,\"delta\":{delta}{more}}}"), "");
    let mut out = delta(r#"{"role":"assistant","content":null}"#, "");
    for (text, log) in pieces(content, finish, logprobs)? {
        let log = log.map_or_else(String::new, |log| format!(",\"logprobs\":{{\"content\":[{log}]}}"));
        out += &delta(&format!("{{\"content\":{text}}}"), &log);
    }
    out += &event(&format!("{{\"finish_reason\":{finish},\"index\":0,\"delta\":{{}}}}"), "");
    out += &event("", &format!(",\"usage\":{usage},\"timings\":{timings}"));
    Some(out + "data: [DONE]\n\n")
}

pub(super) fn completion_to_stream(body: &str) -> Option<String> {
    let [choices, created, model, fingerprint, kind, usage, id, timings] = object(body, COMPLETION)?;
    usage_members(usage)?;
    let [text, at, logprobs, finish] = object(only(choices)?, ["text", "index", "logprobs", "finish_reason"])?;
    if kind != "\"text_completion\"" || at != "0" || inside(text)?.is_empty() {
        return None;
    }
    let mut out = String::new();
    for (text, log) in pieces(text, finish, Some(logprobs).filter(|logprobs| *logprobs != "null"))? {
        let log = log.map_or_else(|| "null".to_owned(), |log| format!("{{\"content\":[{log}]}}"));
        // Writing to a string cannot fail.
        let _ = write!(
            out,
            "data: {{\"choices\":[{{\"text\":{text},\"index\":0,\"logprobs\":{log},\"finish_reason\":null}}],\
             \"created\":{created},\"model\":{model},\"system_fingerprint\":{fingerprint},\
             \"object\":\"text_completion\",\"id\":{id}}}\n\n"
        );
    }
    let last = format!("{{\"text\":\"\",\"index\":0,\"logprobs\":null,\"finish_reason\":{finish}}}");
    let last = completion(&last, created, model, fingerprint, usage, id, timings);
    Some(format!("{out}data: {last}\n\ndata: [DONE]\n\n"))
}

/// Whether the first token's text was complete: the stream of a text that begins with a part of a character lacks its
/// first event, with the role or the id. A token may hold such a part at its end, so all that the longest token could hold is looked at.
fn starts_whole(text: &str) -> bool {
    text.as_bytes().iter().take(256).all(u8::is_ascii)
}

/// The text's pieces, each with its log probability: token by token where they tell the tokens apart, else all at once.
/// The token that ended the answer has no text, and no event.
fn pieces<'a>(text: &'a str, finish: &str, logprobs: Option<&'a str>) -> Option<Vec<(&'a str, Option<&'a str>)>> {
    let Some(logprobs) = logprobs else { return Some(vec![(text, None)]) };
    let [content] = object(logprobs, ["content"])?;
    let mut pieces = Vec::new();
    let mut rest = inside(text)?;
    for entry in array(content)? {
        let [_, token, _, _, _] = object(entry, ["id", "token", "bytes", "logprob", "top_logprobs"])?;
        let piece = inside(token)?;
        if piece.is_empty() {
            continue;
        }
        rest = rest.strip_prefix(piece)?;
        pieces.push((token, Some(entry)));
    }
    (rest.is_empty() && (finish == "\"length\"" || finish == "\"stop\"")).then_some(pieces)
}

pub(super) fn message_to_stream(body: &str) -> Option<String> {
    let [id, kind, role, content, model, reason, sequence, usage] = object(body, MESSAGE)?;
    let [cached, input, output] = object(usage, MESSAGE_USAGE)?;
    let [block, text] = object(only(content)?, ["type", "text"])?;
    let (whole, text_begins) = (kind == "\"message\"" && block == "\"text\"" && reason != "null", inside(text)?);
    if !whole || text_begins.is_empty() || !starts_whole(text_begins) {
        return None;
    }
    let event = |name: &str, members: &str| format!("event: {name}\ndata: {{\"type\":\"{name}\"{members}}}\n\n");
    Some(
        event(
            "message_start",
            &format!(
                ",\"message\":{{\"id\":{id},\"type\":{kind},\"role\":{role},\"content\":[],\"model\":{model},\
                 \"stop_reason\":null,\"stop_sequence\":null,\"usage\":{{\"cache_read_input_tokens\":{cached},\
                 \"input_tokens\":{input},\"output_tokens\":0}}}}"
            ),
        ) + &event("content_block_start", r#","index":0,"content_block":{"type":"text","text":""}"#)
            + &event("content_block_delta", &format!(r#","index":0,"delta":{{"type":"text_delta","text":{text}}}"#))
            + &event("content_block_stop", r#","index":0"#)
            + &event(
                "message_delta",
                &format!(
                    ",\"delta\":{{\"stop_reason\":{reason},\"stop_sequence\":{sequence}}},\
                     \"usage\":{{\"output_tokens\":{output}}}"
                ),
            )
            + &event("message_stop", ""),
    )
}
