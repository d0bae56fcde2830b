use proptest::prelude::*;

use super::*;

/// What a meter says at the end of a stream.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Says {
    usage: (u32, u32, u32),
    finish: Finish,
    error: bool,
    done: bool,
    whole: bool,
    boundary: bool,
    events: u64,
    tokens: u64,
}

fn meter(endpoint: Endpoint, dialect: Dialect, chunks: &[&[u8]]) -> StreamMeter {
    let mut meter = StreamMeter::new(endpoint, dialect);
    for chunk in chunks {
        meter.push(chunk);
    }
    meter
}

fn says(meter: &StreamMeter) -> Says {
    let usage = meter.usage();
    Says {
        usage: (usage.input, usage.output, usage.cached),
        finish: meter.finish(),
        error: meter.saw_error(),
        done: meter.saw_done(),
        whole: meter.is_whole(),
        boundary: meter.at_boundary(),
        events: meter.events(),
        tokens: meter.token_events(),
    }
}

macro_rules! recorded {
    ($name:literal) => {
        include_bytes!(concat!("../../../tests/fixtures/", $name)).as_slice()
    };
}

const CHAT: (Endpoint, Dialect) = (Endpoint::Chat, Dialect::OpenAi);
const COMPLETIONS: (Endpoint, Dialect) = (Endpoint::Completions, Dialect::OpenAi);
const MESSAGES: (Endpoint, Dialect) = (Endpoint::Messages, Dialect::Anthropic);
const RESPONSES: (Endpoint, Dialect) = (Endpoint::Responses, Dialect::Responses);
const OLLAMA: (Endpoint, Dialect) = (Endpoint::Passthrough, Dialect::Ollama);
const NATIVE: (Endpoint, Dialect) = (Endpoint::Passthrough, Dialect::OpenAi);

const WHOLE: Says = Says {
    usage: (0, 0, 0),
    finish: Finish::Stop,
    error: false,
    done: true,
    whole: true,
    boundary: true,
    events: 0,
    tokens: 0,
};
const FAILED: Says = Says { finish: Finish::None, error: true, whole: false, ..WHOLE };

type Recording = (&'static str, (Endpoint, Dialect), &'static [u8], Says);

fn recordings() -> Vec<Recording> {
    vec![
        ("vllm-chat", CHAT, recorded!("vllm-chat.sse"), Says { usage: (12, 9, 8), events: 12, tokens: 9, ..WHOLE }),
        (
            "vllm-chat-n2",
            CHAT,
            recorded!("vllm-chat-n2.sse"),
            Says { finish: Finish::Length, events: 7, tokens: 4, ..WHOLE },
        ),
        (
            "vllm-chat-tools",
            CHAT,
            recorded!("vllm-chat-tools.sse"),
            Says { finish: Finish::ToolCalls, events: 5, tokens: 2, ..WHOLE },
        ),
        ("vllm-chat-error", CHAT, recorded!("vllm-chat-error.sse"), Says { events: 10, tokens: 7, ..FAILED }),
        (
            "vllm-chat-abort",
            CHAT,
            recorded!("vllm-chat-abort.sse"),
            Says { finish: Finish::Abort, error: false, events: 10, tokens: 7, ..FAILED },
        ),
        (
            "vllm-chat-cut",
            CHAT,
            recorded!("vllm-chat-cut.sse"),
            Says { error: false, done: false, boundary: false, events: 8, tokens: 7, ..FAILED },
        ),
        (
            "vllm-completions",
            COMPLETIONS,
            recorded!("vllm-completions.sse"),
            Says { usage: (3, 3, 0), finish: Finish::Length, events: 5, tokens: 3, ..WHOLE },
        ),
        ("sglang-chat", CHAT, recorded!("sglang-chat.sse"), Says { usage: (15, 6, 0), events: 9, tokens: 5, ..WHOLE }),
        ("sglang-chat-error", CHAT, recorded!("sglang-chat-error.sse"), Says { events: 8, tokens: 5, ..FAILED }),
        (
            "llamacpp-chat",
            CHAT,
            recorded!("llamacpp-chat.sse"),
            Says { usage: (31, 4, 30), events: 6, tokens: 3, ..WHOLE },
        ),
        (
            "llamacpp-chat-timings",
            CHAT,
            recorded!("llamacpp-chat-timings.sse"),
            Says { usage: (31, 2, 5), finish: Finish::Length, events: 4, tokens: 2, ..WHOLE },
        ),
        (
            "llamacpp-native",
            NATIVE,
            recorded!("llamacpp-native.sse"),
            Says { usage: (9, 2, 0), finish: Finish::Length, done: false, events: 3, tokens: 2, ..WHOLE },
        ),
        ("tgi-chat-error", CHAT, recorded!("tgi-chat-error.sse"), Says { events: 3, tokens: 1, ..FAILED }),
        (
            "transformers-chat",
            CHAT,
            recorded!("transformers-chat.sse"),
            Says { usage: (30, 2, 0), done: false, events: 3, tokens: 1, ..WHOLE },
        ),
        (
            "anthropic-messages",
            MESSAGES,
            recorded!("anthropic-messages.sse"),
            Says { usage: (68, 15, 40), events: 8, tokens: 2, ..WHOLE },
        ),
        (
            "anthropic-error",
            MESSAGES,
            recorded!("anthropic-error.sse"),
            Says { usage: (68, 1, 40), done: false, events: 6, tokens: 2, ..FAILED },
        ),
        (
            "responses",
            RESPONSES,
            recorded!("responses.sse"),
            Says { usage: (18, 2, 16), events: 10, tokens: 2, ..WHOLE },
        ),
        (
            "responses-incomplete",
            RESPONSES,
            recorded!("responses-incomplete.sse"),
            Says { usage: (18, 2, 16), finish: Finish::Length, events: 10, tokens: 2, ..WHOLE },
        ),
        (
            "responses-error",
            RESPONSES,
            recorded!("responses-error.sse"),
            Says { done: false, events: 7, tokens: 2, ..FAILED },
        ),
        (
            "responses-failed",
            RESPONSES,
            recorded!("responses-failed.sse"),
            Says { finish: Finish::Error, done: false, events: 7, tokens: 2, ..FAILED },
        ),
        (
            "ollama-chat",
            OLLAMA,
            recorded!("ollama-chat.ndjson"),
            Says { usage: (26, 3, 0), events: 3, tokens: 2, ..WHOLE },
        ),
        (
            "ollama-chat-error",
            OLLAMA,
            recorded!("ollama-chat-error.ndjson"),
            Says { done: false, events: 3, tokens: 2, ..FAILED },
        ),
        (
            "ollama-generate",
            OLLAMA,
            recorded!("ollama-generate.ndjson"),
            Says { usage: (4, 1, 0), finish: Finish::Length, events: 2, tokens: 1, ..WHOLE },
        ),
    ]
}

#[test]
fn every_recorded_stream_is_read_right() {
    for (name, (endpoint, dialect), bytes, expected) in recordings() {
        assert_eq!(says(&meter(endpoint, dialect, &[bytes])), expected, "{name}");
    }
}

#[test]
fn no_beginning_of_a_stream_that_tells_its_end_is_whole() {
    for (name, (endpoint, dialect), bytes, expected) in recordings() {
        if !expected.whole || (endpoint, dialect) == NATIVE {
            continue;
        }
        let first_whole = (0..=bytes.len()).find(|&end| meter(endpoint, dialect, &[&bytes[..end]]).is_whole()).unwrap();
        let seen = meter(endpoint, dialect, &[&bytes[..first_whole]]);
        assert_eq!((seen.finish(), seen.token_events()), (expected.finish, expected.tokens), "{name}");
    }
}

#[test]
fn done_alone_proves_nothing_and_nothing_said_is_not_whole() {
    for stream in ["", "data: [DONE]\n\n", "data: {\"choices\":[]}\n\ndata: [DONE]\n\n"] {
        assert!(!meter(Endpoint::Chat, Dialect::OpenAi, &[stream.as_bytes()]).is_whole(), "{stream:?}");
    }
    let one_of_two = "data: {\"choices\":[{\"index\":0,\"delta\":{}},{\"index\":1,\"finish_reason\":\"stop\"}]}\n\n";
    assert!(!meter(Endpoint::Chat, Dialect::OpenAi, &[one_of_two.as_bytes()]).is_whole());
}

#[test]
fn words_inside_text_are_text() {
    let text = r#"data: {"choices":[{"index":0,"delta":{"content":"\"finish_reason\":\"stop\",\"error\":{},\"usage\":{\"prompt_tokens\":9}"}}]}"#;
    let seen = says(&meter(Endpoint::Chat, Dialect::OpenAi, &[text.as_bytes(), b"\n\n"]));
    assert_eq!(seen, Says { error: false, done: false, events: 1, tokens: 1, ..FAILED });
}

#[test]
fn the_number_that_comes_next_is_known_in_responses_streams() {
    let seen = meter(Endpoint::Responses, Dialect::Responses, &[recorded!("responses-error.sse")]);
    assert_eq!(seen.next_sequence(), Some(7));
    let cut = recorded!("responses.sse");
    let at = memmem::find(cut, b"event: response.output_text.done").unwrap();
    assert_eq!(meter(Endpoint::Responses, Dialect::Responses, &[&cut[..at]]).next_sequence(), Some(6));
}

#[test]
fn plain_answers() {
    let usage = |input, output, cached| Usage { input, output, cached };
    for (endpoint, body, expected) in [
        (
            Endpoint::Chat,
            r#"{"id":"c","choices":[{"index":0,"message":{"content":"\"usage\":{\"prompt_tokens\":1}","usage":{}},
            "finish_reason":"length"}],"usage":{"prompt_tokens":5,"completion_tokens":7,"total_tokens":12,
            "prompt_tokens_details":{"cached_tokens":4}}}"#,
            (usage(5, 7, 4), Finish::Length),
        ),
        (
            Endpoint::Messages,
            r#"{"type":"message","content":[{"type":"text","text":"a"}],"stop_reason":"tool_use",
            "usage":{"input_tokens":5,"cache_read_input_tokens":2,"output_tokens":3}}"#,
            (usage(7, 3, 2), Finish::ToolCalls),
        ),
        (
            Endpoint::Responses,
            r#"{"status":"completed","error":null,"output":[{"type":"function_call"}],
            "usage":{"input_tokens":5,"input_tokens_details":{"cached_tokens":1},"output_tokens":3}}"#,
            (usage(5, 3, 1), Finish::ToolCalls),
        ),
        (
            Endpoint::Responses,
            r#"{"incomplete_details":{"reason":"max_output_tokens"},"status":"incomplete","usage":null}"#,
            (usage(0, 0, 0), Finish::Length),
        ),
        (
            Endpoint::Embeddings,
            r#"{"data":[{"embedding":[0.1,-2e-3]}],"usage":{"prompt_tokens":8,"total_tokens":8},"model":"m"}"#,
            (usage(8, 0, 0), Finish::None),
        ),
        (
            // Not at the top level: only the walk from the front finds the right one.
            Endpoint::Embeddings,
            r#"{"usage":{"prompt_tokens":8},"data":[{"usage":{"prompt_tokens":1}}]}"#,
            (usage(8, 0, 0), Finish::None),
        ),
        (
            Endpoint::Rerank,
            r#"{"usage":{"prompt_tokens":8},"results":[{"text":"x \"usage\": {\"prompt_tokens\":1}"}]}"#,
            (usage(8, 0, 0), Finish::None),
        ),
        (
            Endpoint::Passthrough,
            r#"{"model":"m","message":{"content":"x"},"done":true,"done_reason":"stop","prompt_eval_count":4,"eval_count":2}"#,
            (usage(4, 2, 0), Finish::Stop),
        ),
        (Endpoint::Models, r#"{"usage":{"prompt_tokens":8}}"#, (usage(0, 0, 0), Finish::None)),
        (Endpoint::Chat, r#"{"usage":{"prompt_tokens":8}"#, (usage(0, 0, 0), Finish::None)),
        (Endpoint::Chat, r#"{"usage":{"prompt_tokens":99999999999}}"#, (usage(u32::MAX, 0, 0), Finish::None)),
    ] {
        assert_eq!(of_answer(endpoint, body.as_bytes()), expected, "{body}");
    }
}

#[test]
fn the_bytes_of_an_open_event_are_told() {
    let mut meter = StreamMeter::new(Endpoint::Chat, Dialect::OpenAi);
    for (chunk, pending) in [("data: a\n\nda", 2), ("ta: b", 7), ("\n", 8), ("\n", 0), (": c", 3)] {
        meter.push(chunk.as_bytes());
        assert_eq!((meter.pending(), meter.at_boundary()), (pending, pending == 0), "{chunk:?}");
    }
}

fn split<'a>(bytes: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
    let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
    cuts.push(bytes.len());
    cuts.sort_unstable();
    let mut from = 0;
    cuts.into_iter().map(|to| &bytes[std::mem::replace(&mut from, to)..to]).collect()
}

proptest! {
    #[test]
    fn any_split_gives_the_same_meter(which in 0_usize..23, cuts in prop::collection::vec(any::<usize>(), 0..6)) {
        let (name, (endpoint, dialect), bytes, expected) = recordings()[which];
        prop_assert_eq!(says(&meter(endpoint, dialect, &split(bytes, &cuts))), expected, "{}", name);
    }

    /// The template is a short cut: with and without it the meter says the same.
    #[test]
    fn the_short_cut_changes_nothing(texts in prop::collection::vec("[a\"\\\\ü\n]{0,3}", 1..12), index in 0_u8..2) {
        let mut stream = String::new();
        let mut tokens = 0;
        for text in &texts {
            let content = serde_json::Value::from(text.as_str());
            stream += &format!("data: {{\"choices\":[{{\"index\":{index},\"delta\":{{\"content\":{content}}}}}]}}\n\n");
            tokens += u64::from(!text.is_empty());
        }
        let seen = meter(Endpoint::Chat, Dialect::OpenAi, &[stream.as_bytes()]);
        prop_assert_eq!((seen.events(), seen.token_events()), (texts.len() as u64, tokens));
    }

    #[test]
    fn any_bytes_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        for (endpoint, dialect) in [CHAT, MESSAGES, RESPONSES, OLLAMA] {
            let _ = says(&meter(endpoint, dialect, &[b"data: ", &bytes, b"\n\n"]));
            let _ = of_answer(endpoint, &bytes);
        }
    }
}

/// Ids of tokens differ in every event, and say nothing here: the template holds for them too.
#[test]
fn events_with_token_ids_are_counted() {
    let event = |text: &str, ids: &str| {
        format!(
            "data: {{\"id\":\"c\",\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{text}\"}},\"finish_reason\":null,\"token_ids\":{ids}}}]}}\n\n"
        )
    };
    let mut meter = StreamMeter::new(Endpoint::Chat, Dialect::OpenAi);
    for (text, ids) in [("a", "[1]"), ("b", "[22,3]"), ("", "[4]"), ("c", "[]"), ("d [5", "[5, 6]"), ("e", "null")] {
        meter.push(event(text, ids).as_bytes());
    }
    assert_eq!((meter.events(), meter.token_events()), (6, 5));
    assert!(!meter.is_whole());
    meter.push(b"data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\",\"token_ids\":[7]}]}\n\n");
    assert!(meter.is_whole());
}
