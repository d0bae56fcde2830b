use proptest::prelude::*;

use super::{strip::Strip, *};

const EVENT: &str = r#"{"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":["#;

fn edit(strip_usage: bool, alias: Option<&str>) -> Edit {
    Edit { endpoint: Endpoint::Chat, alias: alias.map(Arc::from), strip_usage }
}

fn stripped(stream: &str) -> String {
    let out = edit(true, None).whole(Shape::Stream, &Bytes::copy_from_slice(stream.as_bytes()));
    String::from_utf8(out.to_vec()).unwrap()
}

fn fixture(name: &str) -> String {
    std::fs::read_to_string(format!("{}/tests/fixtures/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

fn vllm(usage: bool) -> String {
    let (fingerprint, last) = if usage {
        let last = r#"data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[],"usage":{"prompt_tokens":2,"total_tokens":4,"completion_tokens":2},"system_fingerprint":"vllm-0.32.0-1a2b3c4d"}"#;
        ("", format!("{last}\n\n"))
    } else {
        (r#","system_fingerprint":"vllm-0.32.0-1a2b3c4d""#, String::new())
    };
    format!(
        "data: {EVENT}{{\"index\":0,\"delta\":{{\"role\":\"assistant\",\"content\":\"\"}},\"logprobs\":null,\"finish_reason\":null}}]}}\n\n\
         data: {EVENT}{{\"index\":0,\"delta\":{{\"content\":\"\\\"usage\\\": [DONE]\"}},\"logprobs\":null,\"finish_reason\":null}}]}}\n\n\
         data: {EVENT}{{\"index\":0,\"delta\":{{\"content\":\".\"}},\"logprobs\":null,\"finish_reason\":\"stop\",\"stop_reason\":null}}]{fingerprint}}}\n\n\
         {last}data: [DONE]\n\n"
    )
}

#[test]
fn vllm_as_if_it_had_not_been_asked() {
    assert_eq!(stripped(&vllm(true)), vllm(false));
    assert_eq!(stripped(&vllm(false)), vllm(false));
}

/// Two recordings differ in id, times and timings; the usage event's own timings belong into the finish event.
#[test]
fn llamacpp_as_if_it_had_not_been_asked() {
    for name in ["chat", "chat-n2", "chat-logprobs"] {
        let asked = fixture(&format!("real/llamacpp-{name}-usage.sse"));
        let plain = fixture(&format!("real/llamacpp-{name}.sse"));
        let events = |text: &str| text.split("\n\n").map(str::to_owned).collect::<Vec<_>>();
        // What differs from run to run: numbers of the clock and the id.
        let shape = |event: &String| {
            let value: serde_json::Value = event
                .strip_prefix("data: ")
                .and_then(|json| serde_json::from_str(json).ok())
                .unwrap_or(serde_json::Value::Null);
            let names = event.split('"').skip(1).step_by(2).filter(|text| !text.starts_with("chatcmpl-"));
            (names.map(str::to_owned).collect::<Vec<_>>(), value["choices"].clone())
        };
        let (mut ours, mut theirs): (Vec<_>, Vec<_>) =
            (events(&stripped(&asked)).iter().map(shape).collect(), events(&plain).iter().map(shape).collect());
        if name == "chat-n2" {
            // Two choices run side by side: in each, the order holds.
            for list in [&mut ours, &mut theirs] {
                list.sort_by_key(|(_, choices)| choices[0]["index"].as_u64().map_or(u64::MAX, |index| index));
            }
        }
        assert_eq!(ours, theirs, "{name}");
    }
}

#[test]
fn timings_go_back_verbatim() {
    let event = |tail: &str| {
        format!(
            "data: {{\"choices\":[{{\"finish_reason\":\"stop\",\"index\":0,\"delta\":{{}}}}],\"system_fingerprint\":\"b1\"{tail}}}\n\n"
        )
    };
    let usage = "data: {\"choices\":[],\"system_fingerprint\":\"b1\",\"usage\":{\"completion_tokens\":1},\"timings\":{\"cache_n\":5,\"x\":1.50}}\n\n";
    let asked = event("") + usage + "data: [DONE]\n\n";
    assert_eq!(stripped(&asked), event(",\"timings\":{\"cache_n\":5,\"x\":1.50}") + "data: [DONE]\n\n");
}

#[test]
fn usage_that_everyone_gets_stays() {
    // In the finish event, in every event, as null, or in a stream without [DONE].
    for name in ["transformers-chat", "sglang-chat-error", "vllm-chat-cut", "vllm-chat-n2", "tgi-chat-error"] {
        let stream = fixture(&format!("{name}.sse"));
        assert_eq!(stripped(&stream), stream, "{name}");
    }
    let stream = fixture("real/llamacpp-completions.sse");
    assert_eq!(stripped(&stream), stream);
    // SGLang: one event more, nothing moves.
    let stream = fixture("sglang-chat.sse");
    let (before, _) = stream.split_once("data: {\"id\":\"0f9c1d2e3b4a\",\"object\":\"chat.completion.chunk\",\"created\":1795521600,\"model\":\"smollm2-135m\",\"choices\":[],").unwrap();
    assert_eq!(stripped(&stream), format!("{before}data: [DONE]\n\n"));
}

#[test]
fn other_shapes_and_endpoints_pass() {
    let plain = Bytes::from_static(br#"{"model":"m","choices":[],"usage":{"prompt_tokens":1}}"#);
    assert_eq!(edit(true, None).whole(Shape::Plain, &plain), plain);
    assert_eq!(
        edit(true, Some("x")).whole(Shape::Plain, &plain),
        &br#"{"model":"x","choices":[],"usage":{"prompt_tokens":1}}"#[..]
    );
    let messages = Edit { endpoint: Endpoint::Messages, ..edit(true, None) };
    assert!(messages.is_none() && edit(false, None).is_none() && !edit(false, Some("x")).is_none());
}

#[test]
fn ordinary_events_are_not_copied_or_delayed() {
    let stream = vllm(true);
    let mut editor = edit(true, None).editor();
    let mut late = Vec::new();
    for event in stream.split_inclusive("\n\n").map(|event| Bytes::copy_from_slice(event.as_bytes())) {
        let out = editor.push(event.clone());
        late.push(out == event && out.as_ptr() == event.as_ptr());
    }
    // The second one's text looks like the end: it is read, not held.
    assert_eq!(late, [true, false, false, false, false]);
}

#[test]
fn a_finish_event_that_nothing_follows_comes_at_the_end() {
    let stream = vllm(false);
    let cut = stream.strip_suffix("data: [DONE]\n\n").unwrap();
    assert_eq!(stripped(cut), cut);
}

/// Any of these, in any order, is a stream.
fn event() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => "[a-z\"\\\\]{0,6}".prop_map(|text| {
            format!("data: {EVENT}{{\"index\":0,\"delta\":{{\"content\":{}}},\"finish_reason\":null}}]}}", serde_json::to_string(&text).unwrap())
        }),
        2 => Just(format!("data: {EVENT}{{\"index\":0,\"delta\":{{}},\"finish_reason\":\"stop\"}}]}}")),
        2 => Just(r#"data: {"choices":[],"usage":{"prompt_tokens":1},"system_fingerprint":"f","timings":{"n":1},"model":"m"}"#.to_owned()),
        1 => Just("data: [DONE]".to_owned()),
        1 => Just(": ping".to_owned()),
        1 => Just("event: x\ndata: {\"usage\":{}}".to_owned()),
        1 => Just("data: {\"usage\":".to_owned()),
        1 => Just(String::new()),
    ]
}

proptest! {
    #[test]
    fn any_split_gives_the_same(
        events in proptest::collection::vec((event(), "\n\n|\r\n\r\n|\n|\r\n|\r"), 0..9),
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..12),
        limit in prop_oneof![Just(usize::MAX / 2), 1usize..200],
    ) {
        let stream: String = events.iter().map(|(event, end)| format!("{event}{end}")).collect();
        let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).chain([0, stream.len()]).collect();
        cuts.sort_unstable();
        let run = |cuts: &[usize]| {
            let mut strip = Strip::with_limit(limit);
            let mut out = Vec::new();
            for part in cuts.windows(2) {
                out.extend_from_slice(&strip.push(Bytes::copy_from_slice(&stream.as_bytes()[part[0]..part[1]])));
            }
            out.extend_from_slice(&strip.finish());
            String::from_utf8(out).unwrap()
        };
        let each: Vec<_> = (0..=stream.len()).collect();
        let whole = run(&[0, stream.len()]);
        prop_assert_eq!(run(&cuts), whole.clone());
        prop_assert_eq!(run(&each), whole);
    }

    #[test]
    fn nothing_but_the_usage_event_goes(cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..6)) {
        let stream = fixture("vllm-chat.sse");
        let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(stream.len())).chain([0, stream.len()]).collect();
        cuts.sort_unstable();
        let mut editor = edit(true, Some("gpt-4")).editor();
        let mut out = Vec::new();
        for part in cuts.windows(2) {
            out.extend_from_slice(&editor.push(Bytes::copy_from_slice(&stream.as_bytes()[part[0]..part[1]])));
        }
        out.extend_from_slice(&editor.finish());
        prop_assert_eq!(String::from_utf8(out).unwrap(), stripped(&stream).replace("smollm2-135m", "gpt-4"));
    }
}
