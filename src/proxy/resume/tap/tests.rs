use bytes::Bytes;
use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::{
    protocol::usage::{StreamMeter, Usage},
    proxy::resume::refusal::Refusal,
};

fn fixture(name: &str) -> String {
    let path = format!("{}/tests/fixtures/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"))
}

fn pushed(endpoint: Endpoint, ids: bool, stream: &str) -> (Tap, Passed) {
    let mut tap = Tap::new(endpoint, ids);
    let passed = tap.push(Bytes::copy_from_slice(stream.as_bytes()), None);
    (tap, passed)
}

fn endpoint_of(name: &str) -> Endpoint {
    let all = [("completions", Endpoint::Completions), ("messages", Endpoint::Messages)];
    let named = all.into_iter().find(|(part, _)| name.contains(part)).map(|(_, endpoint)| endpoint);
    let anthropic = name.contains("anthropic").then_some(Endpoint::Messages);
    named.or(anthropic).unwrap_or(if name.contains("responses") { Endpoint::Responses } else { Endpoint::Chat })
}

#[test]
fn real_streams_pass_as_the_same_bytes() {
    let folder = format!("{}/tests/fixtures/real", env!("CARGO_MANIFEST_DIR"));
    let mut count = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if !name.ends_with(".sse") {
            continue;
        }
        let stream = Bytes::from(fixture(&format!("real/{name}")));
        let mut tap = Tap::new(endpoint_of(&name), false);
        let passed = tap.push(stream.clone(), None);
        assert_eq!(passed.data.as_ptr(), stream.as_ptr(), "{name}: copied");
        assert_eq!((passed.data, passed.seen), (stream, Seen::Ended), "{name}");
        let delivered = tap.delivered();
        assert!(delivered.finish().is_some(), "{name}");
        let refusal = if name.contains("-n2") {
            Some(Refusal::Choices)
        } else if name.contains("logprobs") {
            Some(Refusal::Logprobs)
        } else {
            None
        };
        assert_eq!(delivered.refusal(), refusal, "{name}");
        assert_eq!(delivered.is_empty(), name.contains("empty"), "{name}");
        count += 1;
    }
    assert!(count > 20);
}

/// Upstream's word for it stands for the tap's own comparison: with it and without, the same is read and passed on.
#[test]
fn what_upstream_compared_is_not_compared_again() {
    let folder = format!("{}/tests/fixtures/real", env!("CARGO_MANIFEST_DIR"));
    let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut spared = 0;
    for name in names.filter(|name| name.ends_with(".sse")) {
        let (stream, endpoint) = (fixture(&format!("real/{name}")), endpoint_of(&name));
        for ids in [false, true] {
            let mut meter = StreamMeter::new(endpoint, crate::protocol::endpoint::dialect(path_of(endpoint)));
            let (mut told, mut untold) = (Tap::new(endpoint, ids), Tap::new(endpoint, ids));
            for event in stream.split_inclusive("\n\n") {
                let event = Bytes::copy_from_slice(event.as_bytes());
                let alike = meter.push(&event);
                spared += usize::from(alike.is_some_and(|alike| told.known == Some(alike.around)));
                let (left, right) = (told.push(event.clone(), alike), untold.push(event, None));
                assert_eq!((left.data, left.seen), (right.data, right.seen), "{name}");
            }
            let of = |tap: &Tap| {
                let delivered = tap.delivered();
                (delivered.text(), delivered.ids().map(|ids| ids.all), delivered.chunks(), delivered.usage())
            };
            assert_eq!(of(&told), of(&untold), "{name}");
        }
    }
    assert!(spared > 100, "{spared}");
}

fn path_of(endpoint: Endpoint) -> &'static str {
    match endpoint {
        Endpoint::Messages => "/v1/messages",
        Endpoint::Responses => "/v1/responses",
        _ => "/v1/chat/completions",
    }
}

#[test]
fn what_a_real_stream_said() {
    let (tap, _) = pushed(Endpoint::Chat, false, &fixture("real/vllm-chat-usage.sse"));
    assert_eq!(tap.delivered().text(), "The rainbow is \"a\\\nband 🌈\u{1}\u{7f}\u{2028}/é.");
    assert_eq!(tap.delivered().finish(), Some(Finish::Stop));
    assert_eq!(tap.delivered().usage(), Some(Usage { input: 12, output: 8, cached: 8 }));
    assert_eq!(tap.delivered().chunks(), 8);
    assert_eq!((tap.delivered().ids(), tap.delivered().prompt_ids()), (None, None));
    let (tap, _) = pushed(Endpoint::Responses, false, &fixture("real/llamacpp-responses.sse"));
    assert_eq!(tap.delivered().text(), "I'm glad you're");
    assert_eq!(tap.delivered().usage(), Some(Usage { input: 37, output: 5, cached: 0 }));
    let (tap, _) = pushed(Endpoint::Messages, false, &fixture("real/llamacpp-messages.sse"));
    assert_eq!(tap.delivered().text(), "I'm glad you're");
    assert_eq!(tap.delivered().finish(), Some(Finish::Length));
    assert_eq!(tap.delivered().usage(), Some(Usage { input: 37, output: 5, cached: 0 }));
}

/// The events of a message, cut by the engine itself or ended well, in pieces of each size.
#[test]
fn the_end_of_a_text_block_waits_for_the_reason() {
    let event = |name: &str, rest: &str| format!("event: {name}\ndata: {{\"type\":\"{name}\"{rest}}}\n\n");
    let start = event("message_start", r#","message":{"id":"m","usage":{"input_tokens":3,"output_tokens":0}}"#)
        + &event("content_block_start", r#","index":0,"content_block":{"type":"text","text":""}"#)
        + &event("content_block_delta", r#","index":0,"delta":{"type":"text_delta","text":"a"}"#);
    let stop = event("content_block_stop", r#","index":0"#);
    let reason = |reason: &str| {
        event("message_delta", &format!(r#","delta":{{"stop_reason":"{reason}"}},"usage":{{"output_tokens":1}}"#))
            + &event("message_stop", "")
    };
    let ping = event("ping", "");
    let tool = event("content_block_start", r#","index":1,"content_block":{"type":"tool_use","id":"t"}"#);
    let whole = format!("{start}{stop}{ping}{}", reason("end_turn"));
    for (stream, right, closed) in [
        (whole.clone(), whole, true),
        (format!("{start}{stop}{}", reason("abort")), start.clone(), false),
        (format!("{start}{stop}{}", event("error", r#","error":{"message":"x"}"#)), start.clone(), false),
        (format!("{start}{stop}{}", event("message_stop", "")), start.clone(), false),
        (format!("{start}{stop}{tool}"), format!("{start}{stop}{tool}"), false),
    ] {
        let events: Vec<&str> = stream.split_inclusive("\n\n").collect();
        for size in 1..=events.len() {
            let mut tap = Tap::new(Endpoint::Messages, false);
            let pieces = events.chunks(size).map(|piece| tap.push(Bytes::from(piece.concat()), None).data);
            let passed = pieces.collect::<Vec<_>>().concat();
            let got = String::from_utf8(passed).unwrap();
            // A ping may come before what waits.
            let sorted = |text: &str| {
                let mut events: Vec<String> = text.split_inclusive("\n\n").map(str::to_owned).collect();
                events.retain(|event| !event.contains("ping"));
                events.concat()
            };
            assert_eq!(sorted(&got), sorted(&right), "{size}");
            assert_eq!(tap.delivered().is_closed(), closed, "{size}: {stream}");
        }
    }
}

/// A vLLM stream as it is when ids were asked for.
fn with_ids(stream: &str) -> String {
    let mut out = String::new();
    let (mut id, mut first) = (40, true);
    for event in stream.split_inclusive("\n\n") {
        let ids = format!("\"token_ids\":[{id}]");
        let event = event.replace("\"token_ids\":null", &ids);
        let prompt = if first { "\"prompt_token_ids\":[1, 2,300000]" } else { "\"prompt_token_ids\":null" };
        out += &event.replace("\"prompt_token_ids\":null", prompt);
        (id, first) = (id + 1, false);
    }
    // The ids' own member was renamed with the prompt's.
    out.replace("\"prompt_\"token_ids\"", "\"prompt_token_ids\"")
}

#[test]
fn ids_are_taken_out_to_the_bytes_that_would_have_come_without() {
    for (name, endpoint, opening) in
        [("real/vllm-chat-usage.sse", Endpoint::Chat, 1), ("real/vllm-completions-usage.sse", Endpoint::Completions, 0)]
    {
        let plain = fixture(name);
        let asked = with_ids(&plain);
        assert_ne!(asked, plain);
        let (tap, passed) = pushed(endpoint, true, &asked);
        assert_eq!(passed.data, plain);
        assert_eq!(passed.seen, Seen::Ended);
        let delivered = tap.delivered();
        assert_eq!(delivered.prompt_ids(), Some(vec![1, 2, 300_000]));
        let ids = delivered.ids().unwrap();
        assert_eq!(ids.all, (40 + opening..48 + opening).collect::<Vec<u32>>());
        assert_eq!(ids.marks.last().map(|mark| (mark.ids, mark.text)), Some((8, delivered.text().len())));
    }
}

fn chunk(delta: &str, more: &str, tail: &str) -> String {
    format!(
        "data: {{\"id\":\"a\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\",\"choices\":[{{\"index\":0,\
         \"delta\":{delta},\"finish_reason\":null{more}}}]{tail}}}\n\n"
    )
}

fn text(text: &str, ids: &str) -> String {
    chunk(&format!("{{\"content\":\"{text}\"}}"), &format!(",\"token_ids\":[{ids}]"), "")
}

#[test]
fn members_vanish_wherever_they_stand() {
    let mut tap = Tap::new(Endpoint::Chat, true);
    for (asked, plain) in [
        (
            r#"{"token_ids":[1],"choices":[{"index":0,"delta":{"content":"a"}}]}"#,
            r#"{"choices":[{"index":0,"delta":{"content":"a"}}]}"#,
        ),
        (
            r#"{"choices":[{"token_ids": [1 ] , "index":0,"delta":{"content":"a"}}]}"#,
            r#"{"choices":[{ "index":0,"delta":{"content":"a"}}]}"#,
        ),
        (
            r#"{"choices":[{"token_ids":[1],"prompt_token_ids":[2],"index":0,"delta":{"content":"a"}}]}"#,
            r#"{"choices":[{"index":0,"delta":{"content":"a"}}]}"#,
        ),
        (
            r#"{"choices":[{"index":0,"delta":{"content":"a"} , "prompt_token_ids":[2],"token_ids":[3]}]}"#,
            r#"{"choices":[{"index":0,"delta":{"content":"a"} }]}"#,
        ),
        (
            r#"{"choices":[{"index":0,"delta":{"content":"a"}}],"prompt_token_ids":[]}"#,
            r#"{"choices":[{"index":0,"delta":{"content":"a"}}]}"#,
        ),
        (r#"{"prompt_token_ids":[2]}"#, "{}"),
    ] {
        // Twice: the second time by the template, where one was learnt.
        for _ in 0..2 {
            let passed = tap.push(format!("data: {asked}\r\n\r\n").into(), None);
            assert_eq!(passed.data, format!("data: {plain}\r\n\r\n"));
        }
        let lines = asked.replace("\"choices\"", "\n\"choices\"").replace('\n', "\ndata: ");
        let passed = tap.push(format!("data: {lines}\n\n").into(), None);
        let joined = String::from_utf8(passed.data.to_vec()).unwrap().replace("\ndata: ", "").replace("data: ", "");
        assert_eq!(joined.trim_end().replace(' ', ""), plain.replace(' ', ""));
    }
}

#[test]
fn an_event_that_was_sent_for_its_ids_alone_does_not_go_on() {
    let stream = text("a", "1") + &chunk("{}", ",\"token_ids\":[2]", "") + &text("b", "3");
    let (tap, passed) = pushed(Endpoint::Chat, true, &stream);
    let plain = |text: &str| chunk(&format!("{{\"content\":\"{text}\"}}"), "", "");
    assert_eq!(passed.data, plain("a") + &plain("b"));
    assert_eq!(tap.delivered().ids().unwrap().all, [1, 2, 3]);
}

#[test]
fn which_ids_were_delivered() {
    // A character of three tokens, and one chunk of two.
    let stream = text("a", "1") + &text("", "2") + &text("🌈", "3") + &text("bc", "4,5") + &text("", "6");
    let (tap, _) = pushed(Endpoint::Chat, true, &stream);
    let delivered = tap.delivered();
    assert_eq!(delivered.ids().unwrap().all, [1, 2, 3, 4, 5, 6]);
    assert_eq!(delivered.settled_ids(), Some(vec![1, 2, 3, 4, 5]));
    assert!(!delivered.settled_is_sure());
    // "a🌈bc": behind the first chunk at most longest - 1 characters are held, and half a one.
    assert_eq!(delivered.sure_ids(1), Some(vec![1, 2, 3]));
    assert_eq!(delivered.sure_ids(2), Some(vec![1, 2, 3]));
    assert_eq!(delivered.sure_ids(3), Some(vec![1, 2]));
    assert_eq!(delivered.sure_ids(4), Some(vec![]));
    assert_eq!(delivered.sure_ids(usize::MAX), Some(vec![]));
    let (tap, _) = pushed(Endpoint::Chat, true, &text("a", "1"));
    assert!(tap.delivered().settled_is_sure());
}

#[test]
fn text_without_ids_makes_them_unknown() {
    let (tap, _) = pushed(Endpoint::Chat, true, &(text("a", "1") + &chunk(r#"{"content":"b"}"#, "", "")));
    assert_eq!((tap.delivered().ids(), tap.delivered().settled_ids()), (None, None));
    assert_eq!(tap.delivered().text(), "ab");
}

#[test]
fn ids_that_are_taken_back_leave_their_text() {
    let stream = text("a", "1") + &text("b", "2,3") + &text("c", "4");
    for kept in 0..=4 {
        let (mut tap, _) = pushed(Endpoint::Chat, true, &stream);
        tap.continues(true, kept);
        let mut out = Vec::new();
        tap.write_text(&mut out, b"d", &[9], None);
        let ids = tap.delivered().ids().unwrap();
        let expected: Vec<u32> = [1, 2, 3, 4].into_iter().take(kept as usize).chain([9]).collect();
        assert_eq!(ids.all, expected);
        assert_eq!(ids.marks.last().map(|mark| (mark.ids, mark.text)), Some((expected.len(), 4)));
        assert_eq!(tap.delivered().text(), "abcd");
        assert_eq!(tap.delivered().prompt_ids(), None);
    }
}

#[test]
fn an_error_is_a_cut_with_its_words() {
    for (name, message) in [
        ("vllm-chat-error.sse", ""),
        ("sglang-chat-error.sse", "The server is shutting down"),
        ("tgi-chat-error.sse", "Request failed during generation: out of memory"),
        ("responses-error.sse", "The engine stopped."),
        ("responses-failed.sse", "The engine stopped."),
        ("anthropic-error.sse", ""),
        ("vllm-chat-abort.sse", "the engine ended the answer with `abort`"),
    ] {
        let stream = fixture(name);
        for size in [1, 99] {
            let mut tap = Tap::new(endpoint_of(name), false);
            let (mut out, mut seen) = (Vec::new(), Seen::Going);
            let events: Vec<_> = stream.split_inclusive("\n\n").collect();
            for piece in events.chunks(size) {
                let passed = tap.push(piece.concat().into(), None);
                out.extend_from_slice(&passed.data);
                seen = passed.seen;
            }
            let Seen::Cut(why) = seen else { panic!("{name}: {seen:?}") };
            assert!(!why.is_empty() && (message.is_empty() || why == message), "{name}: {why}");
            let out = String::from_utf8(out).unwrap();
            assert!(stream.starts_with(&out), "{name}");
            assert!(!out.contains("rror\":{") && !out.contains("abort") && !out.contains("[DONE]"), "{name}: {out}");
            assert!(!out.contains("event: error") && !out.contains("response.failed"), "{name}");
            assert_eq!(tap.delivered().finish(), None);
        }
    }
}

#[test]
fn further_forms_of_errors() {
    for (event, message) in [
        ("data: {\"error\":\"gone\"}\n\n", "gone"),
        ("data: {\"object\":\"error\",\"message\":\"old\",\"code\":1}\n\n", "old"),
        ("data: {\"error\":{\"code\":500,\"message\":\"cut \\\"off\\\"\"}}\r\n\r\n", "cut \"off\""),
        ("event: error\ndata: gone\n\n", "gone"),
        ("event: error\ndata: {\"message\":\"m\"}\n\n", "{\"message\":\"m\"}"),
        ("data: [DONE]\n\n", "the stream ended without a finish reason"),
    ] {
        let before = chunk(r#"{"content":"a"}"#, "", "");
        let (tap, passed) = pushed(Endpoint::Chat, false, &format!("{before}{event}{before}"));
        assert_eq!((passed.data, passed.seen), (before.into(), Seen::Cut(message.to_owned())), "{event}");
        assert_eq!(tap.delivered().text(), "a");
    }
    let harmless = "data: {\"error\":null,\"choices\":[]}\n\n";
    assert_eq!(pushed(Endpoint::Chat, false, harmless).1.seen, Seen::Going);
    let long = format!("data: {{\"error\":\"{}\"}}\n\n", "é".repeat(5000));
    let Seen::Cut(why) = pushed(Endpoint::Chat, false, &long).1.seen else { panic!() };
    assert!(why.len() <= 1024);
}

#[test]
fn a_tool_that_failed_ends_nothing() {
    let item = "data: {\"type\":\"response.output_item.done\",\"item\":{\"type\":\"mcp_call\",\"error\":\"no\"}}\n\n";
    let (_, passed) = pushed(Endpoint::Responses, false, item);
    assert_eq!((passed.data, passed.seen), (item.into(), Seen::Going));
}

#[test]
fn message_stop_without_a_reason_is_a_cut() {
    let stream = fixture("anthropic-messages.sse");
    let events: Vec<_> = stream.split_inclusive("\n\n").filter(|event| !event.contains("message_delta")).collect();
    let (_, passed) = pushed(Endpoint::Messages, false, &events.concat());
    assert!(matches!(passed.seen, Seen::Cut(_)));
    assert!(!passed.data.ends_with(b"{\"type\":\"message_stop\"}\n\n"));
}

#[test]
fn comments_pings_and_what_is_unknown_pass() {
    let a = chunk(r#"{"content":"a"}"#, "", "");
    let stream = format!("\u{feff}: ping\n\n{a}:\n\nretry: 3\n\n{a}\n\ndata\n\n");
    let (tap, passed) = pushed(Endpoint::Chat, false, &stream);
    assert_eq!((passed.data, passed.seen), (stream.into(), Seen::Going));
    assert_eq!(tap.delivered().text(), "aa");
    // The empty event at the end is no JSON.
    assert_eq!(tap.delivered().refusal(), Some(Refusal::Oversize));
    let ping = "event: ping\ndata: {\"type\":\"ping\"}\n\n";
    assert_eq!(pushed(Endpoint::Messages, false, ping).1.data, ping);
}

#[test]
fn an_event_in_pieces_passes_unread() {
    let a = chunk(r#"{"content":"a"}"#, "", "");
    for line in ["\n", "\r\n"] {
        let a = a.replace('\n', line);
        let long = format!("data: {{\"x\":\"{}\"}}{line}{line}", "y".repeat(99));
        let stream = format!("{a}{long}{a}");
        for cut in a.len() + 1..a.len() + long.len() {
            let mut tap = Tap::new(Endpoint::Chat, false);
            let mut out = Vec::new();
            for piece in [&stream[..cut], &stream[cut..]] {
                let passed = tap.push(piece.to_owned().into(), None);
                assert_eq!(passed.seen, Seen::Going);
                out.extend_from_slice(&passed.data);
            }
            assert_eq!(out, stream.as_bytes());
            assert_eq!(tap.delivered().text(), "aa", "{cut}");
        }
    }
    let (tap, passed) = pushed(Endpoint::Chat, false, "data: {\"cho");
    assert_eq!((passed.data, passed.seen), ("data: {\"cho".into(), Seen::Going));
    assert_eq!(tap.delivered().refusal(), Some(Refusal::Oversize));
    assert!(!tap.delivered().is_empty());
}

#[test]
fn a_terminator_without_its_blank_line_counts_at_the_end() {
    for name in ["real/vllm-chat.sse", "real/llamacpp-messages.sse", "real/llamacpp-responses.sse"] {
        let stream = fixture(name);
        for ids in [false, true] {
            let (tap, passed) = pushed(endpoint_of(name), ids, stream.trim_end());
            assert_eq!((passed.seen, tap.delivered().refusal()), (Seen::Ended, None), "{name}");
            assert_eq!(passed.data, stream.trim_end());
        }
    }
}

#[test]
fn the_ids_of_a_long_prompt_come_in_pieces() {
    let ids = vec!["123456"; 200_000].join(",");
    let long = chunk(r#"{"role":"assistant","content":""}"#, "", &format!(",\"prompt_token_ids\":[{ids}]"));
    let stream = long + &text("a", "1");
    let mut tap = Tap::new(Endpoint::Chat, true);
    let mut out = Vec::new();
    let (first, second) = stream.split_at(PIECE + 7);
    for piece in [first, second] {
        out.extend_from_slice(&tap.push(piece.to_owned().into(), None).data);
    }
    let plain = |delta: &str| chunk(delta, "", "");
    assert_eq!(out, (plain(r#"{"role":"assistant","content":""}"#) + &plain(r#"{"content":"a"}"#)).as_bytes());
    assert_eq!(tap.delivered().prompt_ids().unwrap().len(), 200_000);
    assert!(tap.held() < 1 << 20, "{}", tap.held());
    // What is longer than any prompt is not held.
    let endless = "data: ".to_owned() + &"1".repeat(LONGEST);
    let (tap, passed) = pushed(Endpoint::Chat, true, &endless);
    assert_eq!(passed.data.len(), endless.len());
    assert_eq!(tap.delivered().refusal(), Some(Refusal::Oversize));
}

#[test]
fn what_is_said_forbids_a_continuation() {
    let said = |delta: &str| pushed(Endpoint::Chat, false, &chunk(delta, "", "")).0.delivered().refusal();
    assert_eq!(said(r#"{"tool_calls":[{"index":0}]}"#), Some(Refusal::ToolCall));
    assert_eq!(said(r#"{"tool_calls":[],"reasoning_content":null,"content":"a"}"#), None);
    assert_eq!(said(r#"{"reasoning":"hm"}"#), Some(Refusal::Reasoning));
    assert_eq!(said(r#"{"reasoning":""}"#), None);
    let thought = chunk(r#"{"reasoning":"hm"}"#, ",\"token_ids\":[1]", "");
    assert_eq!(pushed(Endpoint::Chat, true, &thought).0.delivered().refusal(), Some(Refusal::Reasoning));
    let both = thought + &text("a", "2");
    let (tap, _) = pushed(Endpoint::Chat, true, &both);
    assert_eq!(tap.delivered().refusal(), None);
    assert_eq!(tap.delivered().settled_ids(), Some(vec![1, 2]));
    assert_eq!(pushed(Endpoint::Chat, false, &both).0.delivered().refusal(), Some(Refusal::Reasoning));
    let (tap, _) = pushed(Endpoint::Chat, false, &fixture("vllm-chat-tools.sse"));
    assert_eq!(tap.delivered().refusal(), Some(Refusal::ToolCall));
    let block = "data: {\"type\":\"content_block_start\",\"index\":0,\"content_block\":{\"type\":\"KIND\"}}\n\n";
    for (kind, refusal) in
        [("text", None), ("thinking", Some(Refusal::Reasoning)), ("tool_use", Some(Refusal::ToolCall))]
    {
        let (tap, _) = pushed(Endpoint::Messages, false, &block.replace("KIND", kind));
        assert_eq!(tap.delivered().refusal(), refusal, "{kind}");
    }
}

#[test]
fn what_is_forgotten_holds_nothing_and_ids_still_vanish() {
    let (mut tap, _) = pushed(Endpoint::Chat, true, &text(&"a".repeat(9000), "1"));
    assert!(tap.held() > 9000);
    tap.forget();
    assert!(tap.held() < 1000, "{}", tap.held());
    for _ in 0..2 {
        let passed = tap.push(text("b", "2").into(), None);
        assert_eq!(passed.data, chunk(r#"{"content":"b"}"#, "", ""));
    }
    assert_eq!(tap.delivered().text(), "");
    assert!(!tap.delivered().is_empty());
    assert!(tap.held() < 2000, "{}", tap.held());
}

/// Each event of a real stream is the last that came, and we close it.
#[test]
fn closing_from_wherever_it_stands() {
    for (name, tells) in [
        ("real/llamacpp-messages.sse", true),
        ("real/llamacpp-responses.sse", true),
        ("responses.sse", true),
        ("real/vllm-chat-usage.sse", true),
        ("real/llamacpp-completions-usage.sse", true),
        ("real/llamacpp-chat.sse", false),
    ] {
        let stream = fixture(name);
        let events: Vec<_> = stream.split_inclusive("\n\n").filter(|event| !event.trim().is_empty()).collect();
        for came in 1..events.len() {
            let (mut tap, passed) = pushed(endpoint_of(name), false, &events[..came].concat());
            assert_eq!(passed.seen, Seen::Going, "{name} {came}");
            let usage = Usage { input: 37, output: 5, cached: 0 };
            let rest = tap.close(Finish::Length, tells.then_some(usage), None);
            let all = [&passed.data[..], &rest].concat();
            // What we wrote reads as a whole stream, with the same text.
            let (read, passed) = pushed(endpoint_of(name), false, std::str::from_utf8(&all).unwrap());
            assert_eq!(passed.seen, Seen::Ended, "{name} {came}: {}", String::from_utf8_lossy(&all));
            assert_eq!(read.delivered().text(), tap.delivered().text());
            assert!(read.delivered().finish().is_some());
            assert_eq!(read.delivered().usage().is_some(), tells, "{name} {came}");
            assert!(tap.close(Finish::Stop, None, None).is_empty(), "closed once");
            assert_no_kind_twice(&all, name);
        }
    }
}

fn assert_no_kind_twice(stream: &[u8], name: &str) {
    let mut seen = Vec::new();
    crate::protocol::sse::Scanner::default().push(stream, |event| {
        if event.data == DONE {
            return;
        }
        let value: Value = serde_json::from_slice(event.data).unwrap();
        let kind = value["type"].as_str().unwrap_or_default().to_owned();
        if !kind.is_empty() && !kind.ends_with("delta") {
            assert!(!seen.contains(&kind), "{name}: {kind} twice");
            seen.push(kind);
        }
    });
}

#[test]
fn the_closed_response_is_the_one_that_was_created() {
    let stream = fixture("responses.sse");
    let events: Vec<_> = stream.split_inclusive("\n\n").collect();
    let (mut tap, _) = pushed(Endpoint::Responses, false, &events[..6].concat());
    let usage = Usage { input: 18, output: 2, cached: 16 };
    let rest = tap.close(Finish::Stop, Some(usage), None);
    let mut mine = Vec::new();
    crate::protocol::sse::Scanner::default()
        .push(&rest, |event| mine.push(serde_json::from_slice::<Value>(event.data).unwrap()));
    let mut theirs = Vec::new();
    crate::protocol::sse::Scanner::default().push(events[6..].concat().as_bytes(), |event| {
        theirs.push(serde_json::from_slice::<Value>(event.data).unwrap())
    });
    assert_eq!(mine, theirs);
}

#[test]
fn a_stop_string_is_told() {
    let start = fixture("real/llamacpp-messages.sse");
    let events: Vec<_> = start.split_inclusive("\n\n").collect();
    let (mut tap, _) = pushed(Endpoint::Messages, false, &events[..4].concat());
    let rest = String::from_utf8(tap.close(Finish::Stop, None, Some("\"END\n")).to_vec()).unwrap();
    assert!(rest.contains(r#""stop_reason":"stop_sequence","stop_sequence":"\"END\n""#), "{rest}");
    // No engine told usage: the prompt's is known from the first event, one event is taken for a token.
    assert!(rest.contains(r#""usage":{"input_tokens":37,"output_tokens":2}"#), "{rest}");
    let (mut tap, _) = pushed(Endpoint::Chat, false, &chunk(r#"{"content":"a"}"#, "", ""));
    let rest = String::from_utf8(tap.close(Finish::Stop, None, Some("END")).to_vec()).unwrap();
    assert!(rest.contains(r#""finish_reason":"stop","stop_reason":"END""#), "{rest}");
    assert!(!rest.contains("usage"));
}

#[test]
fn a_string_that_holds_a_line_end_cannot_break_an_event() {
    let stream =
        "data: {\"id\":\"a\",\ndata: \"choices\":[{\"index\":0,\"delta\":{\"content\":\"x\ndata: \ndata: y\"}}]}\n\n";
    let (mut tap, passed) = pushed(Endpoint::Chat, false, stream);
    assert_eq!(passed.data, stream);
    let text = tap.delivered().text();
    let mut out = Vec::new();
    tap.write_text(&mut out, b"z", &[], None);
    assert_eq!(text, "x\n\ny");
    assert_eq!(out.iter().filter(|byte| **byte == b'\n').count(), 2);
}

proptest! {
    #[test]
    fn ids_vanish_and_are_kept(tokens in prop::collection::vec(("[a-zé\\\\\"\n]{0,3}", prop::collection::vec(any::<u32>(), 1..4)), 0..12), size in 1_usize..5) {
        let mut tap = Tap::new(Endpoint::Chat, true);
        let events: Vec<_> = tokens.iter().map(|(said, ids)| {
            let literal = serde_json::to_string(said).unwrap();
            let ids: Vec<_> = ids.iter().map(ToString::to_string).collect();
            text(&literal[1..literal.len() - 1], &ids.join(","))
        }).collect();
        let mut out = Vec::new();
        for piece in events.chunks(size) {
            out.extend_from_slice(&tap.push(piece.concat().into(), None).data);
        }
        let plain: String = tokens.iter().map(|(said, _)| chunk(&format!("{{\"content\":{}}}", serde_json::to_string(said).unwrap()), "", "")).collect();
        prop_assert_eq!(String::from_utf8(out).unwrap(), plain);
        let ids = tap.delivered().ids().unwrap();
        prop_assert_eq!(ids.all, tokens.iter().flat_map(|(_, ids)| ids.clone()).collect::<Vec<_>>());
        prop_assert_eq!(tap.delivered().text(), tokens.iter().map(|(said, _)| &said[..]).collect::<String>());
    }

    #[test]
    fn any_bytes_pass(bytes in prop::collection::vec(any::<u8>(), 0..200), ids in any::<bool>()) {
        for endpoint in [Endpoint::Chat, Endpoint::Completions, Endpoint::Messages, Endpoint::Responses] {
            let mut tap = Tap::new(endpoint, ids);
            let stream = Bytes::from([b"data: {\"choices\":[{\"index\":0,\"text\":\"", &bytes[..], b"\"}]}\n\n"].concat());
            let passed = tap.push(stream.clone(), None);
            if passed.seen == Seen::Going {
                prop_assert_eq!(&passed.data, &stream);
            }
        }
    }
}
