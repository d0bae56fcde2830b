use proptest::{collection::vec, prelude::*};
use serde_json::{Value, json};

use super::*;

const CHAT: &str = r#"{"model":"m","messages":[{"role":"user","content":"hi"}],"stream":true"#;
const COMPLETION: &str = r#"{"model":"m","prompt":"Once","stream":true"#;
const RESPONSE: &str = r#"{"model":"m","input":"hi","stream":true"#;
const MESSAGE: &str = r#"{"model":"m","max_tokens":9,"messages":[{"role":"user","content":"hi"}],"stream":true"#;

/// The least body of each endpoint, with `more` members.
fn body(endpoint: Endpoint, more: &str) -> Bytes {
    let least = match endpoint {
        Endpoint::Chat => CHAT,
        Endpoint::Completions => COMPLETION,
        Endpoint::Responses => RESPONSE,
        _ => MESSAGE,
    };
    let comma = if more.is_empty() { "" } else { "," };
    Bytes::from(format!("{least}{comma}{more}}}"))
}

fn read(endpoint: Endpoint, text: &str) -> Result<Request, Refusal> {
    Request::read(endpoint, &Bytes::copy_from_slice(text.as_bytes()))
}

fn with(endpoint: Endpoint, more: &str) -> Request {
    Request::read(endpoint, &body(endpoint, more)).expect(more)
}

fn refusal(endpoint: Endpoint, more: &str) -> Option<Refusal> {
    Request::read(endpoint, &body(endpoint, more)).err()
}

fn text(form: Result<Form, Refusal>) -> String {
    let form = form.expect("a form");
    let path = match form.shape {
        Shape::Chat => "/v1/chat/completions",
        Shape::Completions => "/v1/completions",
    };
    assert_eq!(form.path, path);
    String::from_utf8(form.body.to_vec()).expect("text")
}

const ALL: [Endpoint; 4] = [Endpoint::Chat, Endpoint::Completions, Endpoint::Responses, Endpoint::Messages];
const ABLE: [Engine; 3] = [Engine::Vllm, Engine::Sglang, Engine::LlamaCpp];

#[test]
fn what_is_never_continued() {
    use Endpoint::{Chat, Completions, Messages, Responses};
    let cases: &[(&[Endpoint], &[&str], Refusal)] = &[
        (
            &[Chat, Completions],
            &[
                r#""response_format":{"type":"json_object"}"#,
                r#""response_format":{"type":"json_schema","json_schema":{}}"#,
                r#""response_format":{}"#,
                r#""guided_json":{"type":"object"}"#,
                r#""guided_regex":"a+""#,
                r#""guided_choice":["a","b"]"#,
                r#""guided_grammar":"root ::= a""#,
                r#""structured_outputs":{"choice":["a"]}"#,
                r#""structural_tag":"{}""#,
                r#""json_schema":{}"#,
                r#""regex":"a""#,
                r#""ebnf":"a""#,
                r#""grammar":"root ::= a""#,
                r#""gr\u0061mmar":"root ::= a""#,
                r#""choice":["a"]"#,
                r#""custom_logit_processor":"x""#,
            ],
            Refusal::Structured,
        ),
        (&[Responses], &[r#""text":{"format":{"type":"json_schema","name":"a"}}"#], Refusal::Structured),
        (&[Messages], &[r#""output_config":{"format":{"type":"json_schema"}}"#, r#""output_format":{}"#], {
            Refusal::Structured
        }),
        (
            &[Chat, Responses],
            &[
                r#""tool_choice":"required""#,
                r#""tool_choice":{"type":"function","function":{"name":"f"}}"#,
                r#""function_call":{"name":"f"}"#,
            ],
            Refusal::ForcedTool,
        ),
        (&[Messages], &[r#""tool_choice":{"type":"any"}"#, r#""tool_choice":{"type":"tool","name":"f"}"#], {
            Refusal::ForcedTool
        }),
        (
            &[Chat, Completions],
            &[r#""n":2"#, r#""n":"2""#, r#""best_of":3"#, r#""n_cmpl":2"#, r#""use_beam_search":true"#],
            Refusal::Choices,
        ),
        (&[Chat, Completions], &[r#""echo":true"#], Refusal::Echo),
        (&[Chat, Completions], &[r#""prompt_logprobs":0"#], Refusal::PromptLogprobs),
        (&[Chat], &[r#""logprobs":true"#, r#""top_logprobs":2"#, r#""logprob_token_ids":[1]"#], Refusal::Logprobs),
        (&[Completions], &[r#""logprobs":0"#, r#""logprobs":5"#, r#""n_probs":1"#], Refusal::Logprobs),
        (&[Responses], &[r#""include":["message.output_text.logprobs"]"#, r#""top_logprobs":1"#], Refusal::Logprobs),
        (
            &ALL,
            &[r#""frequency_penalty":0.5"#, r#""presence_penalty":-1"#, r#""bad_words":["a b"]"#],
            Refusal::Penalties,
        ),
        (&[Chat, Completions, Responses], &[r#""stop":"x","include_stop_str_in_output":true"#], Refusal::Stops),
        (&[Chat], &[r#""no_stop_trim":true,"stop":["","y"]"#, r#""stop_regex":"a|b""#], Refusal::Stops),
        (&[Chat, Completions], &[r#""return_token_ids":true"#], Refusal::TokenIds),
        (&ALL, &[r#""model":"openai/gpt-oss-120b""#, r#""model":"GPT-OSS""#], Refusal::Harmony),
        (&[Chat], &[r#""include_reasoning":false"#], Refusal::Reasoning),
        (&[Completions], &[r#""prompt_embeds":"AAAA""#], Refusal::Multimodal),
        (&[Chat], &[r#""modalities":["text","audio"]"#], Refusal::Multimodal),
        (&[Chat, Completions], &[r#""kv_transfer_params":{"a":1}"#, r#""session_params":{"id":"a"}"#], {
            Refusal::Stateful
        }),
        (
            &[Responses],
            &[
                r#""previous_response_id":"resp_1""#,
                r#""conversation":"c""#,
                r#""prompt":{"id":"p"}"#,
                r#""store":true"#,
                r#""background":true"#,
            ],
            Refusal::Stateful,
        ),
        (
            &[Chat],
            &[
                r#""messages":[]"#,
                r#""messages":null"#,
                r#""max_tokens":1e2"#,
                r#""min_tokens":5.0"#,
                r#""input_ids":[1]"#,
            ],
            Refusal::Untranslatable,
        ),
        (&[Completions], &[r#""prompt":["a","b"]"#, r#""prompt":[[1],[2]]"#, r#""prompt":[1,"a"]"#], Refusal::Choices),
        (
            &[Completions],
            &[r#""prompt":["a"]"#, r#""prompt":[[1,2]]"#, r#""prompt":[]"#, r#""prompt":null"#, r#""suffix":"end""#],
            Refusal::Untranslatable,
        ),
    ];
    for (endpoints, members, expected) in cases {
        for (endpoint, more) in endpoints.iter().flat_map(|endpoint| members.iter().map(move |more| (*endpoint, more)))
        {
            assert_eq!(refusal(endpoint, more), Some(*expected), "{endpoint:?} {more}");
        }
    }
}

#[test]
fn what_says_nothing_refuses_nothing() {
    for endpoint in ALL {
        for more in [
            "",
            r#""response_format":null,"guided_json":null,"grammar":"","json_schema":null,"structured_outputs":null"#,
            r#""tool_choice":"auto""#,
            r#""tool_choice":"none","n":1,"best_of":null"#,
            r#""tool_choice":{"type":"auto"}"#,
            r#""echo":false,"logprobs":false,"top_logprobs":0,"prompt_logprobs":null"#,
            r#""frequency_penalty":0.0,"presence_penalty":-0e5"#,
            r#""include_stop_str_in_output":true"#,
            r#""store":false,"background":false,"previous_response_id":null"#,
            r#""return_token_ids":false"#,
        ] {
            assert_eq!(refusal(endpoint, more), None, "{endpoint:?} {more}");
        }
    }
    assert_eq!(refusal(Endpoint::Chat, r#""response_format":{"type":"text"},"store":true"#), None);
    assert_eq!(refusal(Endpoint::Responses, r#""text":{"format":{"type":"text"}}"#), None);
}

#[test]
fn bodies_that_are_none() {
    for text in ["", "[]", "{", r#"{"model":"m"} x"#, r#"{"a":}"#, "null"] {
        assert_eq!(read(Endpoint::Chat, text).err(), Some(Refusal::Unreadable), "{text}");
    }
    let many: Vec<String> = (0..600).map(|i| format!("\"k{i}\":0")).collect();
    assert_eq!(refusal(Endpoint::Chat, &many.join(",")), Some(Refusal::Unreadable));
    assert_eq!(refusal(Endpoint::Chat, &many[..500].join(",")), None);
    for endpoint in [Endpoint::Embeddings, Endpoint::Passthrough] {
        assert_eq!(read(endpoint, &format!("{CHAT}}}")).err(), Some(Refusal::Untranslatable));
    }
}

#[test]
fn limits_as_each_engine_goes_by_them() {
    use Engine::{LlamaCpp, Sglang, Vllm};
    for (endpoint, more, vllm, sglang, llamacpp) in [
        (Endpoint::Chat, "", None, None, None),
        (Endpoint::Chat, r#""max_tokens":7"#, Some(7), Some(7), Some(7)),
        (Endpoint::Chat, r#""max_tokens":7,"max_completion_tokens":5"#, Some(5), Some(5), Some(5)),
        (Endpoint::Chat, r#""max_tokens":7,"max_completion_tokens":null"#, Some(7), Some(7), Some(7)),
        (Endpoint::Chat, r#""max_tokens":7,"n_predict":3"#, Some(7), Some(7), Some(3)),
        (Endpoint::Chat, r#""max_tokens":-1"#, None, None, None),
        (Endpoint::Completions, "", Some(16), Some(16), None),
        (Endpoint::Completions, r#""max_tokens":null"#, Some(16), None, None),
        (Endpoint::Completions, r#""max_tokens":40"#, Some(40), Some(40), Some(40)),
        (Endpoint::Completions, r#""max_completion_tokens":40"#, Some(16), Some(16), Some(40)),
        (Endpoint::Responses, r#""max_output_tokens":12"#, Some(12), Some(12), Some(12)),
        (Endpoint::Responses, "", None, None, None),
        (Endpoint::Messages, "", Some(9), Some(9), Some(9)),
        (Endpoint::Messages, r#""max_tokens":null"#, None, None, Some(4096)),
    ] {
        let request = with(endpoint, more);
        let limits = [Vllm, Sglang, LlamaCpp].map(|engine| request.limit(engine));
        assert_eq!(limits, [vllm, sglang, llamacpp], "{endpoint:?} {more}");
    }
}

#[test]
fn stop_strings_by_each_name() {
    assert_eq!(with(Endpoint::Chat, r#""stop":"\n\n""#).stops(), ["\n\n"]);
    assert_eq!(with(Endpoint::Completions, r#""stop":["a","","\u00e9"]"#).stops(), ["a", "é"]);
    assert_eq!(with(Endpoint::Messages, r#""stop_sequences":["END"],"stop":"x""#).stops(), ["END"]);
    assert!(with(Endpoint::Chat, r#""stop":null,"stop_sequences":["END"]"#).stops().is_empty());
}

#[test]
fn ids_where_they_are_all_that_is_needed() {
    let may = |endpoint, more| ABLE.map(|engine| with(endpoint, more).may_ask_ids(engine));
    assert_eq!(may(Endpoint::Chat, ""), [true, false, false]);
    assert_eq!(may(Endpoint::Chat, r#""tools":[]"#), [true, false, false]);
    assert_eq!(may(Endpoint::Completions, ""), [true, true, false]);
    assert_eq!(may(Endpoint::Completions, r#""prompt":[1,2]"#), [true, true, false]);
    for more in [
        r#""tools":[{"type":"function"}]"#,
        r#""return_token_ids":null"#,
        r#""messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:,"}}]}]"#,
        r#""messages":[{"role":"system","content":"a","tools":[{"type":"function"}]},{"role":"user","content":"a"}]"#,
    ] {
        assert_eq!(may(Endpoint::Chat, more), [false; 3], "{more}");
    }
    assert_eq!(may(Endpoint::Responses, ""), [false; 3]);
    assert_eq!(may(Endpoint::Messages, ""), [false; 3]);
}

#[test]
fn the_same_body_with_ids() {
    let request = read(Endpoint::Chat, " { \"messages\" : [ {\"role\":\"user\"} ] , \"x\":1.50 } ").expect("a request");
    let expected = " {\"return_token_ids\":true, \"messages\" : [ {\"role\":\"user\"} ] , \"x\":1.50 } ";
    assert_eq!(request.with_ids(), expected);
}

#[test]
fn a_chat_starts_again() {
    let more = r#""temperature":0.70,"n":1,"stream_options":{"include_usage":false,"x":1},"seed":12345678901234567890,"max_tokens":20,"min_tokens":4"#;
    let request = with(Endpoint::Chat, more);
    for engine in ABLE {
        assert_eq!(
            text(request.restart(engine)),
            r#"{"model":"m","messages":[{"role":"user","content":"hi"}],"temperature":0.70,"seed":12345678901234567890,"max_tokens":20,"min_tokens":4,"stream":true,"stream_options":{"include_usage":true}}"#
        );
    }
}

#[test]
fn a_chat_by_text() {
    let more = r#""temperature":0.70,"seed":7,"max_completion_tokens":20,"max_tokens":30,"min_tokens":8,"request_id":"a","add_generation_prompt":true,"tools":[{"a": 1.0}]"#;
    let request = with(Endpoint::Chat, more);
    let expected = |seed: &str| {
        format!(
            r#"{{"model":"m","messages":[{{"role":"user","content":"hi"}},{{"role":"assistant","content":"so \"far\"\n1"}}],"temperature":0.70,{seed}"tools":[{{"a": 1.0}}],"add_generation_prompt":false,"continue_final_message":true,"max_completion_tokens":15,"min_tokens":3,"stream":true,"stream_options":{{"include_usage":true}}}}"#
        )
    };
    let form = |engine| text(request.by_text(engine, "so \"far\"\n1", Some(15), 5));
    assert_eq!(form(Engine::Vllm), expected(r#""seed":7,"#));
    assert_eq!(form(Engine::Sglang), expected(""));
    assert_eq!(form(Engine::LlamaCpp), expected(""));
}

#[test]
fn a_seed_stays_where_it_changes_nothing() {
    for (temperature, kept) in [("0", true), ("0.0", true), ("-0e1", true), ("0.1", false), ("null", false)] {
        let request = with(Endpoint::Chat, &format!(r#""temperature":{temperature},"seed":7"#));
        for engine in [Engine::Sglang, Engine::LlamaCpp] {
            let form = text(request.by_text(engine, "a", None, 1));
            assert_eq!(form.contains(r#""seed":7"#), kept, "{temperature} {engine:?}");
            // Nothing was said: it draws what it would have drawn.
            assert!(text(request.by_text(engine, "", Some(3), 0)).contains(r#""seed":7"#));
        }
    }
}

#[test]
fn a_chat_that_was_begun_by_the_client() {
    let messages = r#""messages":[{"role":"user","content":"hi"}, {"role":"assistant","content":"Once \u0075"} ]"#;
    let begun =
        with(Endpoint::Chat, &format!(r#"{messages},"continue_final_message":true,"add_generation_prompt":false"#));
    let form = text(begun.by_text(Engine::Vllm, "pon", None, 1));
    assert!(form.contains(r#"{"role":"assistant","content":"Once \u0075pon"} ],"#), "{form}");
    assert!(
        text(begun.restart(Engine::Vllm)).contains(r#""continue_final_message":true,"add_generation_prompt":false"#)
    );
    assert!(begun.by_ids(Engine::Vllm, &[1], &[2], Some(9)).is_ok());

    let closed = with(Endpoint::Chat, messages);
    assert_eq!(closed.by_text(Engine::Vllm, "a", None, 1).err(), Some(Refusal::Prefill));
    assert!(closed.restart(Engine::Vllm).is_ok() && closed.by_ids(Engine::Vllm, &[1], &[2], Some(9)).is_ok());
    for last in [
        r#"{"role":"assistant","content":[{"type":"text","text":"a"}]}"#,
        r#"{"role":"assistant","content":"a","tool_calls":[{"id":"1"}]}"#,
        r#"{"role":"assistant","content":"a","reasoning_content":"b"}"#,
        r#"{"role":"assistant","content":null}"#,
    ] {
        let request = with(Endpoint::Chat, &format!(r#""messages":[{last}],"continue_final_message":true"#));
        assert_eq!(request.by_text(Engine::Sglang, "a", None, 1).err(), Some(Refusal::Prefill), "{last}");
    }
}

#[test]
fn a_chat_by_ids() {
    let more = r#""temperature":0.70,"top_p":0.9,"seed":7,"max_completion_tokens":20,"min_tokens":8,"stop":["x"],"logprobs":false,"tool_choice":"none","chat_template_kwargs":{"a":1},"response_format":{"type":"text"},"future":1e0,"prompt":"no""#;
    let request = with(Endpoint::Chat, more);
    assert_eq!(
        text(request.by_ids(Engine::Vllm, &[1, 2, 4_294_967_295], &[30, 4], Some(18))),
        r#"{"model":"m","temperature":0.70,"top_p":0.9,"seed":7,"stop":["x"],"future":1e0,"prompt":[1,2,4294967295,30,4],"max_tokens":18,"return_token_ids":true,"min_tokens":6,"stream":true,"stream_options":{"include_usage":true}}"#
    );
    // The client's limit, less what was said, where the caller says none.
    assert!(text(request.by_ids(Engine::Vllm, &[1], &[30, 4], None)).contains(r#""max_tokens":18"#));
    assert!(text(request.by_ids(Engine::Vllm, &[1], &[30; 20], None)).contains(r#""max_tokens":1,"#));
    // Without any a completion would be given 16.
    let unlimited = with(Endpoint::Chat, "");
    assert_eq!(unlimited.by_ids(Engine::Vllm, &[1], &[2], None).err(), Some(Refusal::Untranslatable));
    assert!(text(unlimited.by_ids(Engine::Vllm, &[1], &[2], Some(99))).contains(r#""max_tokens":99"#));
}

#[test]
fn ids_that_do_not_help() {
    let media = r#""messages":[{"role":"user","content":[{"type":"input_audio"}]}]"#;
    assert_eq!(with(Endpoint::Chat, media).by_ids(Engine::Vllm, &[1], &[2], None).err(), Some(Refusal::Multimodal));
    assert!(with(Endpoint::Chat, media).by_text(Engine::Vllm, "a", None, 1).is_ok());
    for (endpoint, engine) in [
        (Endpoint::Chat, Engine::Sglang),
        (Endpoint::Chat, Engine::LlamaCpp),
        (Endpoint::Completions, Engine::LlamaCpp),
        (Endpoint::Responses, Engine::Vllm),
        (Endpoint::Messages, Engine::Vllm),
        (Endpoint::Completions, Engine::OpenAi),
    ] {
        assert_eq!(with(endpoint, "").by_ids(engine, &[1], &[2], None).err(), Some(Refusal::Engine), "{engine:?}");
    }
}

#[test]
fn engines_that_are_not_known_to_go_on() {
    for engine in [Engine::Tgi, Engine::Ollama, Engine::Triton, Engine::OpenAi] {
        for endpoint in ALL {
            let request = with(endpoint, "");
            assert_eq!(request.restart(engine).err(), Some(Refusal::Engine));
            assert_eq!(request.by_text(engine, "a", None, 1).err(), Some(Refusal::Engine));
        }
    }
}

#[test]
fn a_completion_by_text_and_by_ids() {
    let more = r#""max_tokens":20,"temperature":0,"seed":3,"logprobs":null,"truncate_prompt_tokens":null,"user":"u""#;
    let request = with(Endpoint::Completions, more);
    assert_eq!(
        text(request.by_text(Engine::LlamaCpp, " upon\ta", Some(17), 3)),
        r#"{"model":"m","prompt":"Once upon\ta","temperature":0,"seed":3,"logprobs":null,"truncate_prompt_tokens":null,"user":"u","max_tokens":17,"stream":true,"stream_options":{"include_usage":true}}"#
    );
    assert_eq!(
        text(request.by_ids(Engine::Sglang, &[5], &[6, 7], Some(18))),
        r#"{"model":"m","temperature":0,"seed":3,"logprobs":null,"user":"u","prompt":[5,6,7],"max_tokens":18,"return_token_ids":true,"stream":true,"stream_options":{"include_usage":true}}"#
    );
    // No limit means 16 of them there, and none to llama.cpp.
    let plain = with(Endpoint::Completions, "");
    assert!(text(plain.by_text(Engine::Vllm, "a", None, 3)).contains(r#""max_tokens":13"#));
    assert!(text(plain.by_ids(Engine::Sglang, &[5], &[6; 4], None)).contains(r#""max_tokens":12"#));
    assert!(!text(plain.by_text(Engine::LlamaCpp, "a", None, 3)).contains("max_tokens"));
    assert!(!text(plain.restart(Engine::Vllm)).contains("max_tokens"));
}

#[test]
fn a_completion_of_ids_has_no_text_to_go_on_from() {
    let ids = with(Endpoint::Completions, r#""prompt":[1, 2]"#);
    assert_eq!(ids.by_text(Engine::Vllm, "a", None, 1).err(), Some(Refusal::Untranslatable));
    assert!(text(ids.restart(Engine::LlamaCpp)).contains(r#""prompt":[1, 2]"#));
    assert!(text(ids.by_ids(Engine::Vllm, &[1, 2], &[3], None)).contains(r#""prompt":[1,2,3]"#));
    let cut = with(Endpoint::Completions, r#""truncate_prompt_tokens":5"#);
    assert_eq!(cut.by_text(Engine::Vllm, "a", None, 1).err(), Some(Refusal::Untranslatable));
    assert!(!text(cut.by_ids(Engine::Vllm, &[1], &[3], None)).contains("truncate"));
}

#[test]
fn a_response_as_a_chat() {
    let request = read(
        Endpoint::Responses,
        r#"{"model":"m\u0041","instructions":"Be \u0062rief","input":[
            {"role":"developer","content":"d"},
            {"type":"message","role":"user","content":[{"type":"input_text","text":"one"},{"type":"input_text","text":"t\"wo"}]},
            {"id":"msg_1","type":"message","status":"completed","role":"assistant","content":[{"type":"output_text","text":"yes","annotations":[]}]},
            {"role":"user","content":"go"}],
            "max_output_tokens":50,"temperature":1.0,"top_p":0.950,"top_k":40,"seed":1,"metadata":{"a":"b"},"user":"u",
            "text":{"format":{"type":"text"}},"tools":[],"tool_choice":"auto","store":false,"truncation":"disabled",
            "reasoning":{"effort":null},"parallel_tool_calls":true,"stream":true}"#,
    )
    .expect("a request");
    let messages = r#"{"role":"system","content":"Be \u0062rief"},{"role":"developer","content":"d"},{"role":"user","content":[{"type":"text","text":"one"},{"type":"text","text":"t\"wo"}]},{"role":"assistant","content":"yes"},{"role":"user","content":"go"}"#;
    assert_eq!(
        text(request.restart(Engine::Vllm)),
        format!(
            r#"{{"model":"m\u0041","messages":[{messages}],"temperature":1.0,"top_p":0.950,"top_k":40,"seed":1,"max_tokens":50,"stream":true,"stream_options":{{"include_usage":true}}}}"#
        )
    );
    assert_eq!(
        text(request.by_text(Engine::LlamaCpp, "so", Some(48), 2)),
        format!(
            r#"{{"model":"m\u0041","messages":[{messages},{{"role":"assistant","content":"so"}}],"add_generation_prompt":false,"continue_final_message":true,"temperature":1.0,"top_p":0.950,"top_k":40,"max_tokens":48,"stream":true,"stream_options":{{"include_usage":true}}}}"#
        )
    );
}

#[test]
fn instructions_that_say_nothing() {
    for (instructions, llamacpp) in [(r#""""#, true), ("null", true), ("", false)] {
        let more = if instructions.is_empty() { String::new() } else { format!(r#""instructions":{instructions}"#) };
        let request = with(Endpoint::Responses, &more);
        let system = r#"{"role":"system","content":""}"#;
        assert!(!text(request.restart(Engine::Vllm)).contains(system));
        assert_eq!(text(request.restart(Engine::LlamaCpp)).contains(system), llamacpp, "{instructions}");
    }
}

#[test]
fn responses_that_are_no_chat() {
    for (more, expected) in [
        (r#""tools":[{"type":"function","name":"f"}]"#, Refusal::Untranslatable),
        (r#""reasoning":{"effort":"low"}"#, Refusal::Untranslatable),
        (r#""truncation":"auto""#, Refusal::Untranslatable),
        (r#""text":{"verbosity":"low"}"#, Refusal::Untranslatable),
        (r#""instructions":["a"]"#, Refusal::Untranslatable),
        (r#""something_new":1"#, Refusal::Untranslatable),
        (r#""input":null"#, Refusal::Untranslatable),
        (r#""input":[]"#, Refusal::Untranslatable),
        (r#""input":[{"role":"user","content":[]}]"#, Refusal::Untranslatable),
        (r#""input":[{"role":"user","content":[{"type":"input_image","image_url":"a"}]}]"#, Refusal::Untranslatable),
        (r#""input":[{"role":"tool","content":"a"}]"#, Refusal::Untranslatable),
        (r#""input":[{"type":"function_call_output","call_id":"1","output":"a"}]"#, Refusal::Untranslatable),
        (r#""input":[{"type":"reasoning","summary":[]}]"#, Refusal::Untranslatable),
        (
            r#""input":[{"role":"assistant","content":"a"},{"role":"assistant","content":"b"},{"role":"user","content":"c"}]"#,
            Refusal::Untranslatable,
        ),
        (r#""input":[{"type":"item_reference","id":"msg_1"}]"#, Refusal::Stateful),
        (r#""input":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]"#, Refusal::Prefill),
    ] {
        let request = with(Endpoint::Responses, more);
        assert_eq!(request.restart(Engine::Vllm).err(), Some(expected), "{more}");
        assert_eq!(request.by_text(Engine::LlamaCpp, "a", None, 1).err(), Some(expected), "{more}");
    }
}

#[test]
fn a_message_as_a_chat() {
    let request = read(
        Endpoint::Messages,
        r#"{"max_tokens":64,"model":"m","system":[{"type":"text","text":"Be ","cache_control":{"type":"ephemeral"}},{"type":"text","text":"\"good\""}],
            "messages":[{"role":"user","content":[{"type":"text","text":"one"}]},{"role":"assistant","content":"two"},
            {"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]}],
            "stop_sequences":["E\u004eD"],"temperature":0.50,"top_k":5,"metadata":{"user_id":"u"},"tools":[],
            "tool_choice":{"type":"auto"},"stream":true}"#,
    )
    .expect("a request");
    let messages = r#"{"role":"system","content":"Be \"good\""},{"role":"user","content":"one"},{"role":"assistant","content":"two"},{"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]}"#;
    assert_eq!(
        text(request.restart(Engine::LlamaCpp)),
        format!(
            r#"{{"model":"m","messages":[{messages}],"stop":["E\u004eD"],"temperature":0.50,"top_k":5,"max_tokens":64,"stream":true,"stream_options":{{"include_usage":true}}}}"#
        )
    );
    assert_eq!(
        text(request.by_text(Engine::Vllm, "so", Some(60), 4)),
        format!(
            r#"{{"model":"m","messages":[{messages},{{"role":"assistant","content":"so"}}],"add_generation_prompt":false,"continue_final_message":true,"stop":["E\u004eD"],"temperature":0.50,"top_k":5,"max_tokens":60,"stream":true,"stream_options":{{"include_usage":true}}}}"#
        )
    );
}

#[test]
fn messages_that_are_no_chat() {
    for (more, expected) in [
        (r#""tools":[{"name":"f","input_schema":{}}]"#, Refusal::Untranslatable),
        (r#""thinking":{"type":"enabled","budget_tokens":1024}"#, Refusal::Untranslatable),
        (r#""thinking":{"type":"disabled"}"#, Refusal::Untranslatable),
        (r#""output_config":{"effort":"low"}"#, Refusal::Untranslatable),
        (r#""system":"x-anthropic-billing-header: cch=1;""#, Refusal::Untranslatable),
        (r#""system":{"a":1}"#, Refusal::Untranslatable),
        (r#""messages":[]"#, Refusal::Untranslatable),
        (r#""messages":"hi""#, Refusal::Untranslatable),
        (r#""messages":[{"role":"user","content":[]}]"#, Refusal::Untranslatable),
        (r#""messages":[{"role":"user","content":[{"type":"text","text":""}]}]"#, Refusal::Untranslatable),
        (r#""messages":[{"role":"user","content":[{"type":"image","source":{}}]}]"#, Refusal::Untranslatable),
        (r#""messages":[{"role":"system","content":"a"},{"role":"user","content":"b"}]"#, Refusal::Untranslatable),
        (r#""messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]"#, Refusal::Prefill),
    ] {
        let request = with(Endpoint::Messages, more);
        assert_eq!(request.restart(Engine::Vllm).err(), Some(expected), "{more}");
        assert_eq!(request.by_text(Engine::LlamaCpp, "a", None, 1).err(), Some(expected), "{more}");
    }
}

#[test]
fn tokens_and_text_of_each_engine() {
    let request = with(Endpoint::Chat, "");
    let (path, body) = request.tokenize("a\n");
    assert_eq!(path, "/tokenize");
    assert_eq!(body, r#"{"model":"m","prompt":"a\n","content":"a\n","add_special_tokens":false,"add_special":false}"#);
    let (path, body) = request.detokenize(&[1, 20]);
    assert_eq!(path, "/detokenize");
    assert_eq!(body, r#"{"model":"m","tokens":[1,20]}"#);
    let nameless = read(Endpoint::Completions, r#"{"prompt":"a"}"#).expect("a request");
    assert_eq!(nameless.detokenize(&[]).1, r#"{"tokens":[]}"#);

    for (answer, count) in [
        (r#"{"count":3,"max_model_len":2048,"tokens":[1,2,3],"token_strs":null}"#, Some(3)),
        (r#"{"tokens":[1,2]}"#, Some(2)),
        (r#"{"tokens":[{"id":1,"piece":"a"}]}"#, Some(1)),
        (r#"{"tokens":[]}"#, Some(0)),
        (r#"{"error":{}}"#, None),
        (r#"{"tokens":[1,2"#, None),
    ] {
        assert_eq!(token_count(answer.as_bytes()), count, "{answer}");
    }
    for (answer, text) in [
        (r#"{"prompt":"a\u00e9"}"#, Some("aé")),
        (r#"{"text":""}"#, Some("")),
        (r#"{"content":"b"}"#, Some("b")),
        (r#"{"text":["b"]}"#, None),
        (r#"{"prompt":"b""#, None),
    ] {
        assert_eq!(detokenized(answer.as_bytes()).as_deref(), text, "{answer}");
    }
}

/// JSON as clients may spell it: numbers that no double keeps, escapes that are not needed, white space.
fn spelled() -> impl Strategy<Value = String> {
    let scalar = prop_oneof![
        Just("null".to_owned()),
        Just("true".to_owned()),
        "-?[1-9][0-9]{0,30}(\\.[0-9]{1,20})?([eE][+-]?[0-9]{1,2})?",
        "\"([a-z \u{e9}\u{1f308}]|\\\\n|\\\\\"|\\\\u00e9|\\\\ud83c\\\\udf08){0,12}\"",
    ];
    scalar.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(|all| format!("[ {} ]", all.join(" , "))),
            vec(("[a-z]{1,6}", inner), 0..4).prop_map(|all| {
                let all: Vec<_> = all.into_iter().map(|(name, value)| format!("\"{name}\" :\t{value}")).collect();
                format!("{{{}\n}}", all.join(","))
            }),
        ]
    })
}

/// A chat with members that no engine knows.
fn chats() -> impl Strategy<Value = String> {
    (vec(("x_[a-z]{1,3}", spelled()), 0..8), 0..3_usize).prop_map(|(members, at)| {
        let mut all: Vec<_> = members.into_iter().map(|(name, value)| format!(" \"{name}\": {value}")).collect();
        let at = at.min(all.len());
        all.insert(at, r#""messages": [ {"role":"user", "content":"hi"} ] "#.to_owned());
        format!("\n{{ {} }} ", all.join(","))
    })
}

proptest! {
    #[test]
    fn with_ids_changes_nothing_but_the_member(chat in chats()) {
        let request = read(Endpoint::Chat, &chat).expect("a request");
        let with = String::from_utf8(request.with_ids().to_vec()).expect("text");
        prop_assert_eq!(with.replacen(r#""return_token_ids":true,"#, "", 1), chat.clone());
        let mut told: Value = serde_json::from_str(&with).expect("json");
        prop_assert_eq!(told["return_token_ids"].take(), json!(true));
    }

    #[test]
    fn whatever_is_not_ours_stays_as_it_is_spelled(chat in chats(), so_far in ".{0,40}", left in 1..9_u64) {
        let request = read(Endpoint::Chat, &chat).expect("a request");
        for form in [
            request.restart(Engine::Sglang),
            request.by_text(Engine::LlamaCpp, &so_far, Some(left), 3),
            request.by_ids(Engine::Vllm, &[1, 2], &[3], Some(left)),
        ] {
            let body = form.expect("a form").body;
            let written = Object::read(&body, 512, |reader, _| reader.skip()).expect("an object");
            let told: Value = serde_json::from_slice(&body).expect("json");
            prop_assert_eq!(&told["stream"], &json!(true));
            for member in request.object.members() {
                let name = member.name(&request.body);
                if &*name == b"messages" {
                    continue;
                }
                let same = written.get(&body, &name).is_some_and(|own| own.0 == member.value(&request.body).0);
                prop_assert!(same, "{:?}", String::from_utf8_lossy(&name));
            }
        }
    }

    #[test]
    fn the_text_so_far_is_what_the_engine_reads(so_far in any::<String>(), begun in any::<bool>()) {
        prop_assume!(!so_far.is_empty());
        let messages = r#""messages":[{"role":"assistant","content":"Once"}],"continue_final_message":true"#;
        let chat = with(Endpoint::Chat, if begun { messages } else { "" });
        let form = chat.by_text(Engine::Vllm, &so_far, None, 1).expect("a form");
        let told: Value = serde_json::from_slice(&form.body).expect("json");
        let content = &told["messages"].as_array().and_then(|all| all.last()).expect("a message")["content"];
        let before = if begun { "Once" } else { "" };
        prop_assert_eq!(content, &json!(format!("{before}{so_far}")));

        let form = with(Endpoint::Completions, "").by_text(Engine::Vllm, &so_far, None, 1).expect("a form");
        let told: Value = serde_json::from_slice(&form.body).expect("json");
        prop_assert_eq!(&told["prompt"], &json!(format!("Once{so_far}")));
    }

    #[test]
    fn damaged_bodies_do_no_harm(
        endpoint in prop::sample::select(&ALL[..]),
        damage in vec((any::<prop::sample::Index>(), prop::sample::select(&b"\"\\[]{},:0-ntu x\xff"[..])), 0..4),
        cut in proptest::option::of(any::<prop::sample::Index>()),
    ) {
        let more = r#""stop":["a"],"max_tokens":9,"input":[{"role":"user","content":[{"type":"text","text":"a"}]}],"system":"b""#;
        let mut bytes = body(endpoint, more).to_vec();
        for (at, byte) in damage {
            *at.get_mut(&mut bytes) = byte;
        }
        bytes.truncate(cut.map_or(usize::MAX, |cut| cut.index(bytes.len())));
        let sound = serde_json::from_slice::<Value>(&bytes).is_ok();
        let _ = (token_count(&bytes), detokenized(&bytes));
        if let Ok(request) = Request::read(endpoint, &Bytes::from(bytes)) {
            for engine in ABLE {
                let forms =
                    [request.restart(engine), request.by_text(engine, "a", None, 1), request.by_ids(engine, &[1], &[2], None)];
                for form in forms.into_iter().flatten() {
                    prop_assert!(!sound || serde_json::from_slice::<Value>(&form.body).is_ok(), "{:?}", form.body);
                }
            }
        }
    }
}

/// What is looked for across a seam is bounded, in number and length.
#[test]
fn too_many_stop_strings_or_too_long_ones() {
    let read = |stops: Vec<String>| {
        let body = serde_json::json!({"messages": [{"role": "user", "content": "x"}], "stop": stops});
        Request::read(Endpoint::Chat, &Bytes::from(body.to_string())).map(|_| ())
    };
    assert_eq!(read(vec!["\n".to_owned(); 256]), Ok(()));
    assert_eq!(read(vec!["\n".to_owned(); 257]), Err(Refusal::Stops));
    assert_eq!(read(vec!["x".repeat(4096)]), Ok(()));
    assert_eq!(read(vec!["x".repeat(4097)]), Err(Refusal::Stops));
}
