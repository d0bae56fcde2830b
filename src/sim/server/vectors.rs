//! Endpoints whose answer is numbers: embeddings, rerank, score; and transcriptions, which only show which
//! model a form named.

use serde_json::{Value, json};

use super::{
    super::{coding::base64, generate::Source},
    Refusal, Shared,
    job::{count, model, text_of},
};

/// Length of a vector.
const WIDTH: u64 = 8;

pub(super) fn embeddings(shared: &Shared, body: &Value) -> Result<String, Refusal> {
    let model = model(shared, body)?;
    let inputs: Vec<String> = match &body["input"] {
        Value::Array(list) if list.first().is_some_and(Value::is_string) => list.iter().map(text_of).collect(),
        Value::Null => return Err(Refusal::bad("input: Field required", Some("input"))),
        Value::String(text) => vec![text.clone()],
        ids => vec![ids.to_string()],
    };
    let as_base64 = body["encoding_format"] == "base64";
    let data: Vec<Value> = inputs
        .iter()
        .enumerate()
        .map(|(index, input)| {
            let vector = vector(input, &model);
            let embedding = if as_base64 {
                let bytes: Vec<u8> = vector.iter().flat_map(|value| value.to_le_bytes()).collect();
                Value::from(base64(&bytes))
            } else {
                Value::from(vector)
            };
            json!({"index": index, "object": "embedding", "embedding": embedding})
        })
        .collect();
    let tokens: u64 = inputs.iter().map(|input| count(input)).sum();
    shared.add(&shared.counters.prompt_tokens, tokens);
    let usage = json!({"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0});
    Ok(json!({"id": "embd-sim", "object": "list", "created": super::job::STARTED, "model": model, "data": data,
        "usage": usage})
    .to_string())
}

fn vector(text: &str, model: &str) -> Vec<f32> {
    let source = Source::new(text, model, 0);
    // Eighths of whole numbers: written and read back without loss.
    (0..WIDTH).map(|i| (source.number(i) % 17) as f32 / 8.0 - 1.0).collect()
}

pub(super) fn rerank(shared: &Shared, body: &Value) -> Result<String, Refusal> {
    let model = model(shared, body)?;
    let query = text_of(&body["query"]);
    let documents = body["documents"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut results: Vec<(usize, String, f64)> = documents
        .iter()
        .enumerate()
        .map(|(index, document)| {
            let text = if document.is_object() { text_of(&document["text"]) } else { text_of(document) };
            let score = relevance(&query, &text, &model);
            (index, text, score)
        })
        .collect();
    results.sort_by(|(_, _, a), (_, _, b)| b.total_cmp(a));
    let most = body["top_n"].as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0);
    results.truncate(most.unwrap_or(usize::MAX));
    let tokens: u64 = results.iter().map(|(_, text, _)| count(text)).sum();
    let results: Vec<Value> = results
        .into_iter()
        .map(|(index, text, score)| json!({"index": index, "document": {"text": text}, "relevance_score": score}))
        .collect();
    let usage = json!({"total_tokens": tokens, "prompt_tokens": tokens});
    Ok(json!({"id": "rerank-sim", "model": model, "usage": usage, "results": results}).to_string())
}

pub(super) fn score(shared: &Shared, body: &Value) -> Result<String, Refusal> {
    let model = model(shared, body)?;
    let list = |value: &Value| match value {
        Value::Array(list) => list.iter().map(text_of).collect(),
        one => vec![text_of(one)],
    };
    let (ones, twos) = (list(&body["text_1"]), list(&body["text_2"]));
    let data: Vec<Value> = twos
        .iter()
        .enumerate()
        .map(|(index, two)| {
            let one = ones.get(index).or(ones.first()).map_or("", String::as_str);
            json!({"index": index, "object": "score", "score": relevance(one, two, &model)})
        })
        .collect();
    let tokens: u64 = ones.iter().chain(&twos).map(|text| count(text)).sum();
    let usage = json!({"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0});
    Ok(json!({"id": "score-sim", "object": "list", "created": super::job::STARTED, "model": model, "data": data,
        "usage": usage})
    .to_string())
}

fn relevance(query: &str, text: &str, model: &str) -> f64 {
    (Source::new(&format!("{query}\n{text}"), model, 0).number(0) % 1025) as f64 / 1024.0
}

/// Takes any form and says which model it names.
pub(super) fn transcription(form: &[u8]) -> String {
    let text = String::from_utf8_lossy(form);
    let model = text
        .split_once("name=\"model\"")
        .and_then(|(_, rest)| rest.split_once("\r\n\r\n"))
        .and_then(|(_, rest)| rest.split_once("\r\n"))
        .map(|(model, _)| model);
    json!({"text": format!("{} bytes heard", form.len()), "model": model}).to_string()
}
