//! Reads what a client got, strictly: exact, told, or wrong.

use std::collections::HashSet;

use serde_json::Value;

use super::{
    cell::{Cell, Endpoint, Mode, Outcome, Variant, parsed},
    support::Answer,
};

/// What came of a cell.
pub fn outcome(cell: &Cell, answer: &Answer) -> Outcome {
    match judge(cell, answer) {
        Ok(outcome) => outcome,
        Err(what) => Outcome::Wrong(format!("{what} in: {} {}", answer.status, answer.text())),
    }
}

fn judge(cell: &Cell, answer: &Answer) -> Result<Outcome, String> {
    if answer.status != 200 {
        let error = parsed(&answer.text())?;
        // SGLang's errors are flat.
        let told = answer.whole && (error["error"].is_object() || error["object"] == "error");
        return if told { Ok(Outcome::Told(format!("status {}", answer.status))) } else { Err("no error".into()) };
    }
    if cell.mode == Mode::Plain {
        return plain(cell, answer);
    }
    let text = answer.text();
    if has_ids(&text) {
        return Err("token ids that the client did not ask for".into());
    }
    let events = Event::all(&text)?;
    let fault = events.iter().position(Event::is_error);
    match (fault, answer.whole) {
        (Some(at), false) => told(cell, &events, at),
        (Some(_), true) => Err("an error event, and a whole body".into()),
        (None, false) => Err("cut without an error event".into()),
        (None, true) => {
            match cell.endpoint {
                Endpoint::Chat | Endpoint::Completions => chunks(cell, &events)?,
                Endpoint::Responses => responses(cell, &events)?,
                Endpoint::Messages => messages(cell, &events)?,
            }
            Ok(Outcome::Exact)
        }
    }
}

/// `null` is what some engines write where ids were not asked for.
fn has_ids(text: &str) -> bool {
    text.contains("token_ids\":[")
}

/// An error event is the last, what came before is right as far as it goes, and no end was told.
fn told(cell: &Cell, events: &[Event], at: usize) -> Result<Outcome, String> {
    same(at, events.len() - 1, "the error event is the last")?;
    let said: String = events.iter().filter_map(|event| event.text(cell.endpoint)).collect();
    if !cell.text().starts_with(&said) {
        return Err("text that is not the answer's".into());
    }
    let ends =
        |event: &Event| event.data == "[DONE]" || matches!(event.name.as_str(), "message_stop" | "response.completed");
    if events.iter().any(ends) {
        return Err("an error event, and a terminator".into());
    }
    let error = &events[at].json;
    let message = error["error"]["message"].as_str().or(error["message"].as_str());
    let message = message.filter(|message| !message.is_empty()).ok_or("an error without words")?;
    Ok(Outcome::Told(message.to_owned()))
}

/// One event.
#[derive(Debug)]
struct Event {
    name: String,
    data: String,
    json: Value,
}

impl Event {
    fn all(text: &str) -> Result<Vec<Self>, String> {
        // What is not ended by a blank line is no event (WHATWG).
        let whole = text.split_inclusive("\n\n").filter(|event| event.ends_with("\n\n"));
        let events = whole.map(|event| {
            let field = |name: &str| {
                let value = event.lines().find_map(|line| line.strip_prefix(name));
                value.unwrap_or_default().trim_start().to_owned()
            };
            let (name, data) = (field("event:"), field("data:"));
            let json = if data == "[DONE]" || data.is_empty() { Value::Null } else { parsed(&data)? };
            Ok(Self { name, data, json })
        });
        // Comments are nothing.
        let events: Result<Vec<Self>, String> = events.collect();
        Ok(events?.into_iter().filter(|event| !event.data.is_empty()).collect())
    }

    fn is_error(&self) -> bool {
        self.json.get("error").is_some_and(|error| !error.is_null()) || self.json["type"] == "error"
    }

    fn text(&self, endpoint: Endpoint) -> Option<&str> {
        match endpoint {
            Endpoint::Chat => self.json["choices"][0]["delta"]["content"].as_str(),
            Endpoint::Completions => self.json["choices"][0]["text"].as_str(),
            Endpoint::Responses if self.name == "response.output_text.delta" => self.json["delta"].as_str(),
            Endpoint::Messages => self.json["delta"]["text"].as_str(),
            Endpoint::Responses => None,
        }
    }
}

fn same<T: PartialEq + std::fmt::Debug>(got: T, must: T, what: &str) -> Result<(), String> {
    if got == must { Ok(()) } else { Err(format!("{what}: {got:?}, not {must:?}")) }
}

/// One value for all.
fn one<'a>(values: impl Iterator<Item = &'a Value>, what: &str) -> Result<(), String> {
    let all: HashSet<String> = values.map(Value::to_string).collect();
    same(all.len(), 1, what)
}

fn usage(cell: &Cell, told: &Value, names: [&str; 2], must: (u64, u64)) -> Result<(), String> {
    let read = told["cache_read_input_tokens"].as_u64().unwrap_or(0);
    let prompt = told[names[0]].as_u64().map(|n| n + read);
    same(prompt, Some(must.0), "tokens of the prompt")?;
    let said = output(cell, &told[names[1]], must.1)?;
    match told["total_tokens"].as_u64() {
        Some(total) => same(total, must.0 + said, "total_tokens"),
        None => Ok(()),
    }
}

/// Tokens of the answer, as they were told.
fn output(cell: &Cell, told: &Value, must: u64) -> Result<u64, String> {
    let told = told.as_u64().ok_or("no count of tokens")?;
    let right = (must - cell.slack()..=must + cell.slack()).contains(&told);
    if right { Ok(told) } else { Err(format!("tokens of the answer: {told}, not {must}")) }
}

const OPENAI: [&str; 2] = ["prompt_tokens", "completion_tokens"];
const OTHERS: [&str; 2] = ["input_tokens", "output_tokens"];

fn finish(cell: &Cell) -> &'static str {
    match (cell.endpoint, cell.stops()) {
        (Endpoint::Chat | Endpoint::Completions, true) => "stop",
        (Endpoint::Chat | Endpoint::Completions, false) => "length",
        (Endpoint::Responses, true) => "completed",
        (Endpoint::Responses, false) => "incomplete",
        (Endpoint::Messages, true) if cell.variant == Variant::Stop && cell.names_stop() => "stop_sequence",
        (Endpoint::Messages, true) => "end_turn",
        (Endpoint::Messages, false) => "max_tokens",
    }
}

// === whole streams ===

fn chunks(cell: &Cell, events: &[Event]) -> Result<(), String> {
    let (last, before) = events.split_last().ok_or("no events")?;
    same(last.data.as_str(), "[DONE]", "the last event")?;
    let chunks: Vec<&Value> = before.iter().map(|event| &event.json).collect();
    for name in ["id", "created", "model", "object"] {
        one(chunks.iter().map(|chunk| &chunk[name]), name)?;
    }
    let said: String = before.iter().filter_map(|event| event.text(cell.endpoint)).collect();
    same(said, cell.text(), "the text")?;
    if cell.endpoint == Endpoint::Chat {
        let roles: Vec<usize> = places(&chunks, |chunk| chunk["choices"][0]["delta"].get("role").is_some());
        same(roles, vec![0], "the role's places")?;
    }
    let finishes = places(&chunks, |chunk| !chunk["choices"][0]["finish_reason"].is_null());
    same(finishes.len(), 1, "finishes")?;
    let at = finishes[0];
    same(chunks[at]["choices"][0]["finish_reason"].as_str(), Some(finish(cell)), "the finish")?;
    let usages = places(&chunks, |chunk| chunk.get("usage").is_some_and(Value::is_object));
    match (cell.usage(), usages.as_slice()) {
        (None, []) => {}
        (Some(must), [place]) if *place == chunks.len() - 1 => usage(cell, &chunks[*place]["usage"], OPENAI, must)?,
        // llama.cpp tells it with the finish of a completion, asked or not.
        (None, [place]) if *place == at && cell.tells_unasked() => {
            usage(cell, &chunks[*place]["usage"], OPENAI, cell.counts())?;
        }
        _ => return Err(format!("usage at {usages:?} of {}", chunks.len())),
    }
    let own = usages.first().is_some_and(|place| *place != at);
    same(chunks.len() - 1 - at, usize::from(own), "events behind the finish")
}

fn places(chunks: &[&Value], wanted: impl Fn(&Value) -> bool) -> Vec<usize> {
    chunks.iter().enumerate().filter(|(_, chunk)| wanted(chunk)).map(|(place, _)| place).collect()
}

/// The names of events in their order, deltas and pings counted as one each time they come in a row.
fn order(events: &[Event]) -> Vec<&str> {
    let mut names: Vec<&str> = events.iter().map(|event| event.name.as_str()).filter(|name| *name != "ping").collect();
    names.dedup();
    names
}

fn responses(cell: &Cell, events: &[Event]) -> Result<(), String> {
    let last = format!("response.{}", finish(cell));
    let right = [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        &last,
    ];
    same(order(events), right.to_vec(), "the order")?;
    let mut ids = Vec::new();
    for (number, event) in events.iter().enumerate() {
        same(event.json["type"].as_str(), Some(event.name.as_str()), "a type")?;
        same(event.json["sequence_number"].as_u64(), Some(number as u64), "a sequence number")?;
        ids.extend(event.json.get("item_id"));
        ids.extend(event.json.pointer("/item/id"));
    }
    let whole = |at: usize| &events[at].json["response"];
    let end = events.len() - 1;
    ids.extend(whole(end).pointer("/output/0/id"));
    one(ids.into_iter(), "item ids")?;
    for name in ["id", "created_at", "model", "object"] {
        one([0, 1, end].iter().map(|at| &whole(*at)[name]), name)?;
    }
    let said: String = events.iter().filter_map(|event| event.text(cell.endpoint)).collect();
    same(said, cell.text(), "the text")?;
    for (at, place) in [(end - 3, "/text"), (end - 2, "/part/text"), (end - 1, "/item/content/0/text")] {
        same(events[at].json.pointer(place).and_then(Value::as_str), Some(cell.text().as_str()), place)?;
    }
    same(events[end - 1].json.pointer("/item/status").and_then(Value::as_str), Some(finish(cell)), "item status")?;
    response(cell, whole(end))
}

fn response(cell: &Cell, response: &Value) -> Result<(), String> {
    same(response["status"].as_str(), Some(finish(cell)), "the status")?;
    let reason = response["incomplete_details"]["reason"].as_str();
    same(reason, (!cell.stops()).then_some("max_output_tokens"), "the reason")?;
    let text = response.pointer("/output/0/content/0/text").and_then(Value::as_str);
    same(text, Some(cell.text().as_str()), "the text of the whole")?;
    usage(cell, &response["usage"], OTHERS, cell.usage().ok_or("no usage")?)
}

fn messages(cell: &Cell, events: &[Event]) -> Result<(), String> {
    let right = [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ];
    same(order(events), right.to_vec(), "the order")?;
    for event in events {
        same(event.json["type"].as_str(), Some(event.name.as_str()), "a type")?;
    }
    let said: String = events.iter().filter_map(|event| event.text(cell.endpoint)).collect();
    same(said, cell.text(), "the text")?;
    let delta = &events[events.len() - 2].json;
    let reason = delta["delta"]["stop_reason"].as_str();
    // Told by the engine that began; where it was cut, llama.cpp's chat tells that one stopped it, not which.
    let whole = cell.variant == Variant::Stop && !cell.names_stop() && reason == Some("stop_sequence");
    same(reason, if whole { Some("stop_sequence") } else { Some(finish(cell)) }, "the stop reason")?;
    if reason == Some("stop_sequence") {
        same(delta["delta"]["stop_sequence"].as_str(), Some(cell.stop_string().as_str()), "the stop sequence")?;
    }
    let must = cell.usage().ok_or("no usage")?;
    output(cell, &delta["usage"]["output_tokens"], must.1)?;
    let start = &events[0].json["message"];
    same(start["usage"]["input_tokens"].as_u64().map(|n| n + read(&start["usage"])), Some(must.0), "input tokens")?;
    match delta["usage"]["input_tokens"].as_u64() {
        Some(input) => same(input + read(&delta["usage"]), must.0, "input tokens at the end"),
        None => Ok(()),
    }
}

fn read(usage: &Value) -> u64 {
    usage["cache_read_input_tokens"].as_u64().unwrap_or(0)
}

// === plain answers ===

fn plain(cell: &Cell, answer: &Answer) -> Result<Outcome, String> {
    if !answer.whole {
        return Ok(Outcome::Told("cut".to_owned()));
    }
    let body = parsed(&answer.text())?;
    if has_ids(&answer.text()) {
        return Err("token ids that the client did not ask for".into());
    }
    let (text, ended) = match cell.endpoint {
        Endpoint::Chat => ("/choices/0/message/content", "/choices/0/finish_reason"),
        Endpoint::Completions => ("/choices/0/text", "/choices/0/finish_reason"),
        Endpoint::Responses => ("/output/0/content/0/text", "/status"),
        Endpoint::Messages => ("/content/0/text", "/stop_reason"),
    };
    let (text, ended) = (body.pointer(text).and_then(Value::as_str), body.pointer(ended).and_then(Value::as_str));
    if matches!(ended, Some("abort" | "failed")) {
        return Ok(Outcome::Told("abort".to_owned()));
    }
    same(text, Some(cell.text().as_str()), "the text")?;
    same(ended, Some(finish(cell)), "the finish")?;
    let names = if matches!(cell.endpoint, Endpoint::Chat | Endpoint::Completions) { OPENAI } else { OTHERS };
    usage(cell, &body["usage"], names, cell.usage().ok_or("no usage")?)?;
    Ok(Outcome::Exact)
}
