//! Golden results for the recorded streams, and an independent reader that must see the same in them.

use std::{collections::BTreeMap, fs, path::PathBuf};

use proptest::prelude::*;
use serde_json::Value;

use super::*;

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// Every recorded stream of chat or completion chunks, by its path.
fn recorded() -> Vec<(String, Kind, Vec<u8>)> {
    let mut all = Vec::new();
    for folder in [fixtures(), fixtures().join("real")] {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|kind| kind != "sse") {
                continue;
            }
            let name = path.strip_prefix(fixtures()).unwrap().to_string_lossy().into_owned();
            let kind = if name.contains("completions") { Kind::Completions } else { Kind::Chat };
            all.push((name, kind, fs::read(path).unwrap()));
        }
    }
    all.sort_by(|a, b| a.0.cmp(&b.0));
    assert!(all.len() > 30);
    all
}

fn run<'a>(kind: Kind, merges: bool, limit: usize, chunks: impl IntoIterator<Item = &'a [u8]>) -> (Vec<u8>, Saved) {
    let mut slimmer = Slimmer::with_limit(kind, merges, limit);
    let mut out = Vec::new();
    for chunk in chunks {
        slimmer.push(chunk, &mut out);
    }
    slimmer.finish(&mut out);
    assert_eq!(slimmer.waiting(), None);
    (out, slimmer.take_saved())
}

fn slim(kind: Kind, merges: bool, stream: &[u8]) -> String {
    String::from_utf8(run(kind, merges, frame::LONGEST, [stream]).0).unwrap()
}

/// One event with `json`, slimmed.
fn one(kind: Kind, json: &str) -> String {
    let out = slim(kind, false, format!("data: {json}\n\n").as_bytes());
    out.strip_prefix("data: ").unwrap().strip_suffix("\n\n").unwrap().to_owned()
}

fn delta(delta: &str) -> String {
    format!(
        "data: {{\"id\":\"c\",\"created\":1,\"choices\":[{{\"index\":0,\"delta\":{{{delta}}},\"finish_reason\":null}}]}}\n\n"
    )
}

/// The deltas' events, merged, by what is in their `delta`.
fn merged(deltas: &[&str]) -> Vec<String> {
    let stream: String = deltas.iter().map(|own| delta(own)).collect();
    let out = slim(Kind::Chat, true, stream.as_bytes());
    out.split("\"delta\":{").skip(1).map(|rest| rest.split("},\"finish").next().unwrap().to_owned()).collect()
}

/// What a client takes from a stream, read by a full parser: per choice the text, reasoning, calls and ends in their
/// order, and what the chunks say themselves.
#[derive(Debug, Default, PartialEq)]
struct Client {
    choices: BTreeMap<u64, Choice>,
    usage: Vec<Value>,
    ids: Vec<String>,
    fingerprint: Option<Value>,
    timings: Option<Value>,
    other: Vec<String>,
}

#[derive(Debug, Default, PartialEq)]
struct Choice {
    /// Text, joined where nothing else came between.
    said: Vec<(String, String)>,
    finish: Vec<Value>,
}

fn read(stream: &[u8]) -> Client {
    let mut client = Client::default();
    let text = String::from_utf8_lossy(stream).replace("\r\n", "\n");
    for event in text.split("\n\n").map(|event| event.trim_start_matches('\n')) {
        let json = event.strip_prefix("data: ").map(serde_json::from_str::<Value>);
        let Some(Ok(chunk)) = json.filter(|json| json.as_ref().is_ok_and(|chunk| chunk["choices"].is_array())) else {
            client.other.push(event.to_owned());
            continue;
        };
        client.chunk(&chunk);
    }
    client.ids.dedup();
    client
}

impl Client {
    fn chunk(&mut self, chunk: &Value) {
        let all = chunk["choices"].as_array().unwrap();
        self.ids.push(format!("{} {} {}", chunk["id"], chunk["model"], chunk["object"]));
        self.usage.extend(chunk.get("usage").filter(|usage| !usage.is_null()).cloned());
        // As openai's helper for Python: of the last chunk, whatever it has.
        self.fingerprint = chunk.get("system_fingerprint").filter(|told| !told.is_null()).cloned();
        if all.is_empty() || all.iter().any(|choice| !choice["finish_reason"].is_null()) {
            self.timings = chunk.get("timings").cloned();
        }
        for choice in all {
            let own = self.choices.entry(choice["index"].as_u64().unwrap()).or_default();
            let delta = choice["delta"].as_object().cloned().unwrap_or_default();
            for (name, value) in delta.into_iter().chain([("text".to_owned(), choice["text"].clone())]) {
                own.take(&name, &value);
            }
            for name in ["logprobs", "token_ids", "stop_reason", "matched_stop"] {
                own.take(name, &choice[name]);
            }
            own.finish.extend(Some(&choice["finish_reason"]).filter(|reason| !reason.is_null()).cloned());
        }
    }
}

impl Choice {
    fn take(&mut self, name: &str, value: &Value) {
        let said = match value {
            Value::Null => return,
            Value::Array(items) if items.is_empty() => return,
            Value::String(text) if text.is_empty() => return,
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        match self.said.last_mut() {
            Some((last, text)) if last == name && value.is_string() && name != "role" => text.push_str(&said),
            _ => self.said.push((name.to_owned(), said)),
        }
    }
}

#[test]
fn golden_results() {
    for name in ["vllm-chat", "vllm-completions", "sglang-chat", "llamacpp-chat-timings", "real/llamacpp-chat-usage"] {
        let stream = fs::read(fixtures().join(format!("{name}.sse"))).unwrap();
        let kind = if name.contains("completions") { Kind::Completions } else { Kind::Chat };
        for (suffix, merges) in [("slim", false), ("merged", true)] {
            let path = fixtures().join("slim").join(format!("{}.{suffix}", name.replace('/', "-")));
            let out = slim(kind, merges, &stream);
            if std::env::var_os("UPDATE").is_some() {
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(&path, &out).unwrap();
            }
            assert_eq!(out, fs::read_to_string(&path).unwrap_or_default(), "{}", path.display());
        }
    }
}

#[test]
fn clients_see_the_same_in_every_recorded_stream() {
    for (name, kind, stream) in recorded() {
        let before = read(&stream);
        for merges in [false, true] {
            let (out, saved) = run(kind, merges, frame::LONGEST, [&stream[..]]);
            assert_eq!(read(&out), before, "{name}, merging: {merges}");
            assert_eq!(out.len() as u64 + saved.slim + saved.merge, stream.len() as u64, "{name}");
            // What was slimmed has nothing left to lose.
            assert_eq!(run(kind, merges, frame::LONGEST, [&out[..]]).0, out, "{name}");
        }
    }
}

#[test]
fn named_and_native_events_pass_as_they_came() {
    for (name, kind, stream) in recorded() {
        let foreign = ["anthropic", "responses", "messages", "native"];
        if foreign.iter().any(|part| name.contains(part)) {
            assert_eq!(run(kind, true, frame::LONGEST, [&stream[..]]), (stream, Saved::default()), "{name}");
        }
    }
}

#[test]
fn members_go_with_the_comma_that_is_too_many() {
    for (json, expected) in [
        (r#"{"choices":[{"logprobs":null,"index":0,"delta":{}}]}"#, r#"{"choices":[{"index":0,"delta":{}}]}"#),
        (r#"{"choices":[{"index":0,"logprobs" : null , "delta":{}}]}"#, r#"{"choices":[{"index":0 , "delta":{}}]}"#),
        (r#"{ "usage":null , "choices":[] , "timings":{"a":1} }"#, r#"{ "choices":[] , "timings":{"a":1} }"#),
        (
            r#"{"usage":null,"service_tier":null,"choices":[{"delta":{"refusal":null,"audio":null}}]}"#,
            r#"{"choices":[{"delta":{}}]}"#,
        ),
        (
            r#"{"choices":[{"delta":{"role":null,"content":null,"tool_calls":[ ]}}],"usage":null}"#,
            r#"{"choices":[{"delta":{"content":null}}]}"#,
        ),
        (
            r#"{"choices":[{"delta":{"tool_calls":null,"content":"a","function_call":null,"x":null}}]}"#,
            r#"{"choices":[{"delta":{"content":"a","x":null}}]}"#,
        ),
        (
            r#"{"choices":[{"delta":{}}],"timings":{"a":[1]},"obfuscation":"pad"}"#,
            r#"{"choices":[{"delta":{}}],"obfuscation":"pad"}"#,
        ),
    ] {
        assert_eq!(one(Kind::Chat, json), expected, "{json}");
    }
    let completion = r#"{"choices":[{"index":0,"text":"a","logprobs":null,"finish_reason":null,"stop_reason":null}]}"#;
    assert_eq!(
        one(Kind::Completions, completion),
        r#"{"choices":[{"index":0,"text":"a","logprobs":null,"finish_reason":null}]}"#
    );
}

#[test]
fn what_is_not_certainly_a_chunk_passes() {
    for json in [
        r#"{"error":{"message":"x"},"usage":null}"#,
        r#"{"choices":[],"error":null,"usage":null}"#,
        r#"{"choices":null,"usage":null}"#,
        r#"{"choices":[null],"usage":null}"#,
        r#"{"choices":[{"delta":null,"logprobs":null}]}"#,
        r#"{"choices":[{"delta":{},"logprobs":{"content":[]},"logprobs":null}]}"#,
        r#"{"choices":[{"delta":{},"logprobs":null}]"#,
        r#"{"choices":[{"delta":{},"logprobs":null}]} x"#,
        r#"{"usage":null}"#,
        r#"[{"usage":null}]"#,
        "[DONE]",
        "",
    ] {
        assert_eq!(slim(Kind::Chat, true, format!("data: {json}\n\n").as_bytes()), format!("data: {json}\n\n"));
    }
    let slimmable = "{\"choices\":[],\"usage\":null}";
    for event in [
        format!("event: x\ndata: {slimmable}\n\n"),
        format!("data: {slimmable}\ndata:\n\n"),
        format!("id: 1\ndata: {slimmable}\n\n"),
        format!(": {slimmable}\n\n"),
        format!("data: {slimmable}\r\rdata: {slimmable}\n\n"),
        format!("data: {slimmable}"),
    ] {
        assert_eq!(slim(Kind::Chat, true, event.as_bytes()), event);
    }
    let invalid = b"data: {\"choices\":[],\"usage\":null,\"id\":\"\xff\"}\n\n";
    assert_eq!(run(Kind::Chat, true, 999, [&invalid[..]]).0, invalid);
    assert_eq!(
        slim(Kind::Chat, false, format!("data:{slimmable}\r\n\r\n\n: c\n\n").as_bytes()),
        "data:{\"choices\":[]}\r\n\r\n\n: c\n\n"
    );
}

#[test]
fn the_fingerprint_is_told_first_last_and_when_it_changes() {
    let chunk = |finish: &str, fingerprint: &str| {
        format!(
            "data: {{\"choices\":[{{\"delta\":{{}},\"finish_reason\":{finish}}}],\"system_fingerprint\":{fingerprint}}}\n\n"
        )
    };
    let all = [
        ("null", "\"a\""),
        ("null", "\"a\""),
        ("null", "\"b\""),
        ("null", "null"),
        ("null", "\"b\""),
        ("\"stop\"", "\"b\""),
    ];
    let stream: String = all.iter().map(|(finish, told)| chunk(finish, told)).collect();
    let out = slim(Kind::Chat, false, stream.as_bytes());
    let told: Vec<_> = out.split("\n\n").map(|event| event.split("fingerprint\":").nth(1)).collect();
    assert_eq!(told, [Some("\"a\"}"), None, Some("\"b\"}"), None, None, Some("\"b\"}"), None]);
}

#[test]
fn deltas_of_one_kind_become_one() {
    assert_eq!(merged(&[r#""content":"a""#, r#""content":"\n""#, r#""content":"é\"""#]), [r#""content":"a\né\"""#]);
    assert_eq!(
        merged(&[r#""reasoning_content":"a""#, r#""reasoning_content":"b""#, r#""content":"c""#, r#""content":"d""#]),
        [r#""reasoning_content":"ab""#, r#""content":"cd""#]
    );
    assert_eq!(merged(&[r#""content":"a","refusal":null"#, r#""content":"b""#]), [r#""content":"ab""#]);
    // Neither a role, a call, an unknown member nor two texts at once.
    for other in [
        r#""role":"assistant","content":"x""#,
        r#""tool_calls":[{"index":0}],"content":"x""#,
        r#""content":"x","new":1"#,
        r#""content":"x","reasoning_content":"y""#,
        r#""content":null"#,
        "",
    ] {
        let own = merged(&[r#""content":"a""#, other, other, r#""content":"b""#]);
        assert_eq!(own, [r#""content":"a""#, other, other, r#""content":"b""#], "{other}");
    }
}

#[test]
fn what_differs_does_not_merge_but_for_the_time() {
    let first = delta("\"content\":\"a\"");
    for (from, to, merges) in [
        ("\"created\":1", "\"created\":22", true),
        ("\"id\":\"c\"", "\"id\":\"d\"", false),
        ("\"index\":0", "\"index\":1", false),
        ("null", "\"stop\"", false),
        ("\"id\"", "\"usage\":{},\"id\"", false),
        ("\"id\"", "\"usage\":null,\"id\"", true),
        ("\"index\"", "\"token_ids\":[1],\"index\"", false),
        ("\"index\"", "\"logprobs\":{},\"index\"", false),
        ("\"index\"", "\"logprobs\":null,\"index\"", true),
        ("data: ", ": ping\n\ndata: ", false),
        ("data: ", "data:", false),
    ] {
        let second = first.replacen(from, to, 1);
        let out = slim(Kind::Chat, true, format!("{first}{second}{second}").as_bytes());
        assert_eq!(out.matches("aaa").count() == 1, merges, "{from} {to}\n{out}");
        if merges {
            assert_eq!(out, first.replace("\"a\"", "\"aaa\""));
        }
    }
}

#[test]
fn strings_that_cannot_stand_beside_others_stay_alone() {
    // Two halves would become a character that was not there.
    assert_eq!(merged(&[r#""content":"\ud83d""#, r#""content":"\uDE00""#]).len(), 2);
    assert_eq!(merged(&[r#""content":"\ud83d\ude00""#, r#""content":"\ud83d\ude00""#]).len(), 1);
    // A reader that refuses one would lose the others with it.
    for bad in [r"\x", r"\u12", r"\ud83d\u", r"\ud83d", r"\ude00", r"\ud83d\u0041", "\t"] {
        let own = merged(&[r#""content":"a""#, &format!(r#""content":"{bad}""#), r#""content":"b""#]);
        assert_eq!(own.len(), 3, "{bad:?}");
    }
}

#[test]
fn a_merged_event_has_a_bound() {
    let text = format!("\"content\":\"{}\"", "x".repeat(1000));
    let own = merged(&vec![&*text; 40]);
    assert!(own.len() == 3 && own.iter().all(|event| event.len() < (16 << 10) + 20));
}

#[test]
fn all_passes_behind_an_event_that_is_too_long() {
    let event = "data: {\"choices\":[],\"usage\":null}\n\n";
    let twice = event.repeat(2);
    assert_eq!(
        run(Kind::Chat, true, event.len(), [twice.as_bytes()]).0,
        twice.replace(",\"usage\":null", "").as_bytes()
    );
    assert_eq!(run(Kind::Chat, true, event.len() - 1, [twice.as_bytes()]).0, twice.as_bytes());
}

#[test]
fn white_space_of_json_goes_where_it_means_nothing() {
    let minified = |json: &str| {
        let (mut minifier, mut out) = (Minifier::default(), Vec::new());
        minifier.push(json.as_bytes(), &mut out);
        minifier.finish(&mut out);
        String::from_utf8(out).unwrap()
    };
    assert_eq!(
        minified("{ \"a b\" : [ 1 ,\t2.0 ] , \"c\" : \"x \\\" y\"\r\n}\n"),
        "{\"a b\":[1,2.0],\"c\":\"x \\\" y\"}\n"
    );
    // What is not JSON does not become it, and several texts stay apart.
    for same in ["[1 2]", "[\"a\" \"b\"]", "[nul l]", "{}\n{}", " 1 2 ", "[1  ", "]\n["] {
        assert_eq!(minified(same), same);
    }
}

/// Streams made of what matters here.
fn stream() -> impl Strategy<Value = Vec<u8>> {
    let first = delta("\"content\":\"a\"");
    let piece = prop_oneof![
        8 => Just(first.clone()),
        4 => Just(first.replace("\"a\"", "\"\\ud83d\"")),
        2 => Just(first.replace("\"a\"", "\"\\ude00\"")),
        2 => Just(first.replace("null", "null,\"logprobs\":null")),
        1 => Just(first.replace("\"index\":0", "\"index\":1")),
        1 => Just(first.replace("null", "\"stop\"")),
        1 => Just("data: {\"choices\":[],\"usage\":{\"total_tokens\":3}}\r\n\r\n".to_owned()),
        2 => prop::sample::select(vec![": ping\n\n", "data: [DONE]\n\n", "\n", "\r\n", "\r", "data: x", "event: e\n"])
            .prop_map(str::to_owned),
    ];
    prop::collection::vec(piece, 0..16).prop_map(|pieces| pieces.concat().into_bytes())
}

fn split<'a>(bytes: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
    let mut cuts: Vec<_> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
    cuts.push(bytes.len());
    cuts.sort_unstable();
    let mut from = 0;
    cuts.iter().map(|&to| &bytes[std::mem::replace(&mut from, to)..to]).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]
    #[test]
    fn any_split_gives_the_same_bytes(
        stream in stream(),
        cuts in prop::collection::vec(any::<usize>(), 0..6),
        merges in any::<bool>(),
        limit in prop_oneof![1_usize..200, Just(frame::LONGEST)],
    ) {
        let whole = run(Kind::Chat, merges, limit, [&stream[..]]);
        prop_assert_eq!(&run(Kind::Chat, merges, limit, split(&stream, &cuts)), &whole);
        prop_assert_eq!(&run(Kind::Chat, merges, limit, stream.chunks(1)), &whole);
    }

    #[test]
    fn recorded_streams_in_any_split(at in any::<prop::sample::Index>(), cuts in prop::collection::vec(any::<usize>(), 0..9)) {
        let all = recorded();
        let (_, kind, stream) = at.get(&all);
        for merges in [false, true] {
            let whole = run(*kind, merges, frame::LONGEST, [&stream[..]]);
            prop_assert_eq!(&run(*kind, merges, frame::LONGEST, split(stream, &cuts)), &whole);
        }
    }

    /// Whenever the delta that waits is let go, the client sees the same.
    #[test]
    fn a_flush_anywhere_changes_nothing(stream in stream(), flushes in prop::collection::vec(any::<bool>(), 1..9)) {
        let mut slimmer = Slimmer::new(Kind::Chat, true);
        let mut out = Vec::new();
        let mut flushes = flushes.iter().cycle();
        for piece in stream.split_inclusive(|byte| *byte == b'\n') {
            slimmer.push(piece, &mut out);
            if *flushes.next().unwrap() {
                slimmer.flush(&mut out);
            }
        }
        slimmer.finish(&mut out);
        prop_assert_eq!(read(&out), read(&stream));
    }

    #[test]
    fn minified_json_says_the_same(text in "[\\[{}\\]:,\" \n\\\\0-9a-z]{0,24}", cuts in prop::collection::vec(any::<usize>(), 0..4)) {
        let run = |chunks: &[&[u8]]| {
            let (mut minifier, mut out) = (Minifier::default(), Vec::new());
            chunks.iter().for_each(|chunk| minifier.push(chunk, &mut out));
            minifier.finish(&mut out);
            out
        };
        let out = run(&[text.as_bytes()]);
        prop_assert_eq!(&run(&split(text.as_bytes(), &cuts)), &out);
        let (before, after) = (serde_json::from_str::<Value>(&text), serde_json::from_slice::<Value>(&out));
        prop_assert_eq!(before.ok(), after.ok());
    }
}
