//! However a stream is split, and wherever its deltas are let go, a slimmed one says the same; nothing panics, and JSON
//! without its white space is the same JSON.

#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use sluicegate::protocol::slim::{Kind, Minifier, Slimmer};

// The first byte chooses the form, the second the size of the pieces.
fuzz_target!(|input: &[u8]| {
    let [form, size, stream @ ..] = input else { return };
    let kind = if form & 1 > 0 { Kind::Completions } else { Kind::Chat };
    let (merges, limit) = (form & 2 > 0, if form & 4 > 0 { 64 } else { 1 << 20 });
    let size = usize::from(*size).max(1);
    let whole = slim(kind, merges, limit, &mut [stream].into_iter(), false);
    assert_eq!(slim(kind, merges, limit, &mut stream.chunks(size), false), whole);
    assert!(whole.len() <= stream.len());
    assert_eq!(said(&whole), said(stream));
    assert_eq!(said(&slim(kind, merges, limit, &mut stream.chunks(size), true)), said(stream));

    let minified = minify(&mut [stream].into_iter());
    assert_eq!(minify(&mut stream.chunks(size)), minified);
    let read = |text: &[u8]| serde_json::from_slice::<Value>(text).ok();
    assert_eq!(read(&minified), read(stream));
});

fn slim<'a>(
    kind: Kind,
    merges: bool,
    limit: usize,
    chunks: &mut dyn Iterator<Item = &'a [u8]>,
    flushes: bool,
) -> Vec<u8> {
    let mut slimmer = Slimmer::with_limit(kind, merges, limit);
    let mut out = Vec::new();
    for chunk in chunks {
        slimmer.push(chunk, &mut out);
        if flushes {
            slimmer.flush(&mut out);
        }
    }
    slimmer.finish(&mut out);
    out
}

fn minify<'a>(chunks: &mut dyn Iterator<Item = &'a [u8]>) -> Vec<u8> {
    let (mut minifier, mut out) = (Minifier::default(), Vec::new());
    chunks.for_each(|chunk| minifier.push(chunk, &mut out));
    minifier.finish(&mut out);
    out
}

/// By choice, the texts that a full parser finds in it, each joined, and every finish reason and usage.
fn said(stream: &[u8]) -> BTreeMap<(String, &'static str), String> {
    let mut all = BTreeMap::new();
    // Where the bytes are not UTF-8 no event is one that is touched, and this reader cannot tell them apart.
    let Ok(text) = std::str::from_utf8(stream) else { return all };
    // Timings are cut as they are: with a fault in them goes what made this reader refuse the event.
    if text.contains("timings") {
        return all;
    }
    let text = text.replace("\r\n", "\n");
    for event in text.split("\n\n") {
        let Some(json) = event.trim_start_matches('\n').strip_prefix("data:") else { continue };
        let Ok(chunk) = serde_json::from_str::<Value>(json) else { continue };
        for choice in chunk["choices"].as_array().into_iter().flatten() {
            let delta = &choice["delta"];
            for (name, value) in [
                ("content", &delta["content"]),
                ("reasoning_content", &delta["reasoning_content"]),
                ("text", &choice["text"]),
                ("finish_reason", &choice["finish_reason"]),
            ] {
                if let Some(said) = value.as_str() {
                    all.entry((choice["index"].to_string(), name)).or_insert_with(String::new).push_str(said);
                }
            }
        }
        if !chunk["usage"].is_null() {
            all.insert((String::new(), "usage"), chunk["usage"].to_string());
        }
    }
    all
}
