//! What the pure parts of a request cost alone: `cargo bench --bench stages`.
//!
//! Inputs are of the sizes that docs/benchmarks.md speaks of: a 1 KiB and a 64 KiB chat request, events of about 240
//! bytes as vLLM writes them.

use std::{sync::Arc, time::Duration};

use divan::{Bencher, black_box, counter::BytesCount};
use sluicegate::config;
use sluicegate::protocol::{
    endpoint::{Dialect, Endpoint},
    json, multipart,
    rename::{Renamer, rename_in_answer},
    request,
    sse::Scanner,
    usage::{Finish, StreamMeter, Usage, of_answer},
};
use sluicegate::proxy::{
    cache::{Entry, Facts, Key, Shape, Store, Tenant},
    normalize::edit::Plan,
    resume::tap::Tap,
};
use tokio::time::Instant;

fn main() {
    divan::main();
}

const WORDS: &str = "The lock keeper opens the gate a little before the water has come to rest. ";

/// A chat request of about `size` bytes in one long message.
fn request(size: usize) -> Vec<u8> {
    let text = WORDS.repeat(size.div_ceil(WORDS.len()));
    let text = &text[..size.saturating_sub(180)];
    format!(
        r#"{{"model":"llama-3.1-8b-instruct","messages":[{{"role":"system","content":"You are terse."}},{{"role":"user","content":"{text}"}}],"temperature":0.7,"max_tokens":256,"stream":true}}"#
    )
    .into_bytes()
}

/// The same size in many short turns with escapes in them.
fn conversation(size: usize) -> Vec<u8> {
    let turn = format!(r#"{{"role":"user","content":"{WORDS}\n\"{WORDS}\""}}"#);
    let turns = vec![turn; size.div_ceil(2 * WORDS.len() + 36)].join(",");
    format!(r#"{{"model":"llama-3.1-8b-instruct","stream":true,"messages":[{turns}]}}"#).into_bytes()
}

/// `count` token events of a vLLM chat stream.
fn events(count: usize) -> Vec<u8> {
    let event = |word: &str| {
        format!(
            "data: {{\"id\":\"chatcmpl-8f3d2a51c0b94e6f8f3d2a51c0b94e6f\",\"object\":\"chat.completion.chunk\",\
             \"created\":1795521600,\"model\":\"llama-3.1-8b-instruct\",\"choices\":[{{\"index\":0,\"delta\":\
             {{\"content\":\"{word} \"}},\"logprobs\":null,\"finish_reason\":null,\"token_ids\":null}}]}}\n\n"
        )
    };
    WORDS.split(' ').cycle().take(count).map(event).collect::<String>().into_bytes()
}

fn answer(size: usize) -> Vec<u8> {
    let text = WORDS.repeat(size.div_ceil(WORDS.len()));
    format!(
        r#"{{"id":"chatcmpl-1","object":"chat.completion","created":1795521600,"model":"llama-3.1-8b-instruct","choices":[{{"index":0,"message":{{"role":"assistant","content":"{text}"}},"finish_reason":"stop"}}],"usage":{{"prompt_tokens":9,"completion_tokens":200,"total_tokens":209}}}}"#
    )
    .into_bytes()
}

#[divan::bench(args = [1 << 10, 64 << 10])]
fn scan_request(bencher: Bencher<'_, '_>, size: usize) {
    let body = request(size);
    bencher.counter(BytesCount::new(body.len())).bench(|| json::scan(black_box(&body)).is_ok());
}

#[divan::bench(args = [1 << 10, 64 << 10])]
fn scan_conversation(bencher: Bencher<'_, '_>, size: usize) {
    let body = conversation(size);
    bencher.counter(BytesCount::new(body.len())).bench(|| json::scan(black_box(&body)).is_ok());
}

/// As the scans, and judged: the light level, which every body passes that was not seen before.
#[divan::bench(args = [1 << 10, 64 << 10])]
fn judge_request(bencher: Bencher<'_, '_>, size: usize) {
    let body = request(size);
    let judge = || request::read(Endpoint::Chat, black_box(&body), request::Level::Light).is_ok();
    bencher.counter(BytesCount::new(body.len())).bench(judge);
}

#[divan::bench(args = [1 << 10, 64 << 10])]
fn judge_conversation(bencher: Bencher<'_, '_>, size: usize) {
    let body = conversation(size);
    let judge = || request::read(Endpoint::Chat, black_box(&body), request::Level::Light).is_ok();
    bencher.counter(BytesCount::new(body.len())).bench(judge);
}

/// With one long string and with many short turns: `"content"` before `"role"` moves each of them.
#[divan::bench(args = [1 << 10, 64 << 10])]
fn canonical_request(bencher: Bencher<'_, '_>, size: usize) {
    canonical(bencher, &request(size));
}

#[divan::bench(args = [1 << 10, 64 << 10])]
fn canonical_conversation(bencher: Bencher<'_, '_>, size: usize) {
    canonical(bencher, &conversation(size));
}

fn canonical(bencher: Bencher<'_, '_>, body: &[u8]) {
    let omit = json::Omit { members: &["user", "metadata"], further: &[], stream: true, usage: true };
    let (mut canonicaliser, mut out) = (json::Canonicaliser::default(), Vec::new());
    bencher.counter(BytesCount::new(body.len())).bench_local(|| {
        out.clear();
        canonicaliser.write(black_box(body), &omit, &mut out).is_ok()
    });
}

/// What edits add to the scan: a limit that is given, and everything with a body that has no white space.
#[divan::bench(args = [Edits::Limits, Edits::All])]
fn edit_conversation_64k(bencher: Bencher<'_, '_>, edits: Edits) {
    edit(bencher, &conversation(64 << 10), edits);
}

/// As `json.dumps(body, indent=2)` writes it: an eighth of it is white space.
#[divan::bench(args = [Edits::Limits, Edits::All])]
fn edit_indented_64k(bencher: Bencher<'_, '_>, edits: Edits) {
    let value: serde_json::Value = serde_json::from_slice(&conversation(56 << 10)).unwrap_or_default();
    edit(bencher, &serde_json::to_vec_pretty(&value).unwrap_or_default(), edits);
}

#[derive(Clone, Copy, Debug)]
enum Edits {
    Limits,
    All,
}

fn edit(bencher: Bencher<'_, '_>, body: &[u8], edits: Edits) {
    let all = matches!(edits, Edits::All);
    let prompt = ("terse".into(), "You are terse.".into());
    let plan = Plan::new(&config::Normalize {
        validate: config::Validate::Off,
        minify: all,
        nulls: all,
        dedupe_images: false,
        max_tokens_cap: Some(4096),
        default_max_tokens: Some(256),
        strip: if all { vec!["user".to_owned(), "metadata.trace".to_owned()] } else { Vec::new() },
        system_prompts: if all { [prompt].into() } else { [].into() },
        max_pixels: None,
        isolate_prefix_cache: false,
    });
    bencher.counter(BytesCount::new(body.len())).bench(|| {
        let edits = plan.edits(Endpoint::Chat, black_box(body), None).unwrap_or_default();
        edits.apply(body).len()
    });
}

#[divan::bench]
fn scan_1000_events(bencher: Bencher<'_, '_>) {
    let stream = events(1000);
    bencher.counter(BytesCount::new(stream.len())).bench(|| {
        let mut data = 0;
        Scanner::default().push(black_box(&stream), |event| data += event.data.len());
        data
    });
}

#[divan::bench]
fn meter_1000_events(bencher: Bencher<'_, '_>) {
    let stream = events(1000);
    bencher.counter(BytesCount::new(stream.len())).bench(|| {
        let mut meter = StreamMeter::new(Endpoint::Chat, Dialect::OpenAi);
        meter.push(black_box(&stream));
        meter.token_events()
    });
}

#[divan::bench]
fn rename_1000_events(bencher: Bencher<'_, '_>) {
    let stream = bytes::Bytes::from(events(1000));
    bencher
        .counter(BytesCount::new(stream.len()))
        .bench(|| Renamer::new(Dialect::OpenAi, "gpt-4o-mini").push(black_box(stream.clone())));
}

/// What a stream that could be resumed costs: an event a push, as they come.
#[divan::bench(args = [false, true])]
fn tap_1000_events(bencher: Bencher<'_, '_>, ids: bool) {
    let stream = String::from_utf8(events(1000)).unwrap_or_default();
    let told = if ids { "\"token_ids\":[128009]" } else { "\"token_ids\":null" };
    let stream = stream.replace("\"token_ids\":null", told);
    let events: Vec<_> = stream.split_inclusive("\n\n").map(|event| bytes::Bytes::from(event.to_owned())).collect();
    bencher.counter(BytesCount::new(stream.len())).bench(|| {
        let mut tap = Tap::new(Endpoint::Chat, ids);
        for event in &events {
            black_box(tap.push(event.clone(), None));
        }
        tap.delivered().chunks()
    });
}

#[divan::bench(args = [1 << 10, 16 << 10])]
fn usage_of_answer(bencher: Bencher<'_, '_>, size: usize) {
    let body = answer(size);
    bencher.counter(BytesCount::new(body.len())).bench(|| of_answer(Endpoint::Chat, black_box(&body)));
}

#[divan::bench]
fn usage_of_embeddings(bencher: Bencher<'_, '_>) {
    let numbers = vec!["-0.01234567"; 1536 * 8].join(",");
    let body = format!(r#"{{"data":[{{"embedding":[{numbers}]}}],"usage":{{"prompt_tokens":8,"total_tokens":8}}}}"#);
    bencher.counter(BytesCount::new(body.len())).bench(|| of_answer(Endpoint::Embeddings, black_box(body.as_bytes())));
}

#[divan::bench]
fn rename_answer_1k(bencher: Bencher<'_, '_>) {
    let body = answer(1 << 10);
    bencher.bench(|| rename_in_answer(black_box(&body), "gpt-4o-mini"));
}

#[divan::bench]
fn model_in_a_form_of_1m(bencher: Bencher<'_, '_>) {
    let mut body = b"--b0undary\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\n\r\n".to_vec();
    body.resize(1 << 20, 0x5a);
    body.extend_from_slice(
        b"\r\n--b0undary\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nwhisper-1\r\n--b0undary--\r\n",
    );
    bencher
        .counter(BytesCount::new(body.len()))
        .bench(|| multipart::model("multipart/form-data; boundary=b0undary", black_box(&body)).is_some());
}

/// A kept answer of about a chat answer's size, under a key of a chat request's.
fn kept(n: u64, body: &bytes::Bytes) -> (Key, Arc<Entry>) {
    let mut material = [b'x'; 600];
    material[..8].copy_from_slice(&n.to_le_bytes());
    let key = Key::new(&material, n.wrapping_mul(0x9e37_79b9_7f4a_7c15), |_| [0; 32], Shape::Plain);
    let now = Instant::now();
    let facts =
        Facts { usage: Usage::default(), finish: Finish::Stop, engine: None, took: Duration::from_secs(1), told: true };
    let entry = Entry {
        endpoint: Endpoint::Chat,
        shape: Shape::Plain,
        headers: http::HeaderMap::new(),
        body: body.clone(),
        facts,
        model: None,
        tenant: Tenant::default(),
        stored: now,
        expires: now + Duration::from_secs(3600),
        strict: false,
    };
    (key, Arc::new(entry))
}

/// A look-up that finds, in a store of as many answers as it holds.
#[divan::bench(args = [100, 100_000])]
fn store_get(bencher: Bencher<'_, '_>, entries: u64) {
    let store = Store::new(1 << 30);
    let body = bytes::Bytes::from(answer(600));
    let keys: Vec<_> = (0..entries)
        .map(|n| {
            let (key, entry) = kept(n, &body);
            store.put(key.clone(), entry);
            key
        })
        .collect();
    let (mut next, now) = (0, Instant::now());
    bencher.bench_local(|| {
        next = (next + 1) % keys.len();
        store.get(black_box(&keys[next]), now, Duration::ZERO).is_some()
    });
}

/// Putting answers into a full store, so that each pushes one out: the mean of 1,000, maintenance included.
#[divan::bench]
fn store_put_1000_when_full(bencher: Bencher<'_, '_>) {
    let store = Store::new(64 << 20);
    let body = bytes::Bytes::from(answer(600));
    let mut next = 0;
    let mut batch = || {
        next += 1000;
        (next..next + 1000).map(|n| kept(n, &body)).collect::<Vec<_>>()
    };
    for _ in 0..60 {
        batch().into_iter().for_each(|(key, entry)| store.put(key, entry));
    }
    bencher.with_inputs(batch).bench_local_values(|batch| {
        batch.into_iter().for_each(|(key, entry)| store.put(key, entry));
    });
}
