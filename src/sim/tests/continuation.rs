//! What engines do around going on with an answer that was begun elsewhere.

use super::*;

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";
const ENGINES: [Engine; 3] = [Engine::Vllm, Engine::Sglang, Engine::LlamaCpp];

fn of(engine: Engine) -> Handle {
    start(Config { engine, length: Some(30), ..Config::default() })
}

/// Text and ids of a stream of chat or completions.
fn told(reply: &Reply) -> (String, Vec<u64>) {
    let (mut text, mut ids) = (String::new(), Vec::new());
    for event in reply.events() {
        let choice = &event["choices"][0];
        text += choice["delta"]["content"].as_str().or(choice["text"].as_str()).unwrap_or_default();
        ids.extend(choice["token_ids"].as_array().into_iter().flatten().filter_map(Value::as_u64));
    }
    (text, ids)
}

fn ids_of(list: &Value) -> Vec<u64> {
    list.as_array().into_iter().flatten().filter_map(Value::as_u64).collect()
}

fn begun(text: &str, more: Value) -> Value {
    let mut body = chat(more);
    body["messages"].as_array_mut().unwrap().push(json!({"role": "assistant", "content": text}));
    body
}

#[tokio::test]
async fn an_answer_by_ids_goes_on_where_they_end() {
    let must = Source::new("hello", "sim", 0);
    let sim = of(Engine::Vllm);
    let first = ask_json(sim.addr(), CHAT, &chat(json!({"stream": true, "return_token_ids": true}))).await;
    let prompt = ids_of(&first.events()[0]["prompt_token_ids"]);
    let (text, ids) = told(&first);
    assert_eq!((text, ids.len()), (must.text(30), 30));
    for engine in [Engine::Vllm, Engine::Sglang] {
        let sim = of(engine);
        let usage = json!({"include_usage": true});
        for cut in [0, 1, 17, 29, 30] {
            let joined: Vec<u64> = prompt.iter().chain(&ids[..cut]).copied().collect();
            let body = json!({"model": "sim", "prompt": joined, "max_tokens": 50, "stream": true,
                "return_token_ids": true, "stream_options": usage});
            let reply = ask_json(sim.addr(), COMPLETIONS, &body).await;
            let (text, rest) = told(&reply);
            assert_eq!(must.text(cut as u64) + &text, must.text(30), "{engine:?} {cut}");
            assert_eq!(rest, ids[cut..]);
            let events = reply.events();
            if cut < 30 {
                assert_eq!(ids_of(&events[0]["choices"][0]["prompt_token_ids"]), joined);
            }
            let last = events.last().unwrap();
            assert_eq!(last["usage"]["prompt_tokens"], joined.len());
            assert_eq!(last["usage"]["completion_tokens"], 30 - cut);
        }
    }
}

#[tokio::test]
async fn ids_are_refused_where_an_engine_does_not_give_them() {
    let asks = json!({"stream": true, "return_token_ids": true});
    let refused = ask_json(of(Engine::Sglang).addr(), CHAT, &chat(asks.clone())).await;
    assert_eq!(refused.status, 400);
    assert!(refused.text().contains("not supported with streaming"));
    let old = start(Config { token_ids: false, ..Config::default() });
    assert_eq!(ask_json(old.addr(), CHAT, &chat(asks.clone())).await.status, 400);
    let ignored = ask_json(of(Engine::LlamaCpp).addr(), CHAT, &chat(asks)).await;
    assert_eq!((ignored.status, told(&ignored).1.len()), (200, 0));
}

#[tokio::test]
async fn an_answer_by_text_goes_on_in_each_engines_own_way() {
    let must = Source::new("hello", "sim", 0).text(30);
    let cuts: Vec<usize> = must.char_indices().map(|(at, _)| at).filter(|at| *at > 0).collect();
    for engine in ENGINES {
        let sim = of(engine);
        let pair = json!({"stream": true, "continue_final_message": true, "add_generation_prompt": false});
        for cut in cuts.iter().filter(|cut| !must[..**cut].ends_with(char::is_whitespace)) {
            let reply = ask_json(sim.addr(), CHAT, &begun(&must[..*cut], pair.clone())).await;
            assert_eq!(must[..*cut].to_owned() + &told(&reply).0, must, "{engine:?} {cut}");
        }
        let prompt = "Question?\nAnswer:";
        let whole = json!({"model": "sim", "prompt": prompt, "max_tokens": 40});
        let must = ask_json(sim.addr(), COMPLETIONS, &whole).await.json()["choices"][0]["text"].clone();
        let must = must.as_str().unwrap();
        let (cut, _) = must.char_indices().find(|(at, c)| *at > 20 && !c.is_whitespace()).unwrap();
        let cut = if must[..cut].ends_with(char::is_whitespace) { cut + 1 } else { cut };
        let body = json!({"model": "sim", "prompt": format!("{prompt}{}", &must[..cut]), "max_tokens": 40});
        let rest = ask_json(sim.addr(), COMPLETIONS, &body).await.json();
        assert_eq!(rest["choices"][0]["text"], must[cut..], "{engine:?}");
    }
}

#[tokio::test]
async fn a_text_that_ends_in_white_space_is_gone_on_otherwise() {
    let must = Source::new("hello", "sim", 0).text(30);
    let (cut, space) = must.char_indices().find(|(at, c)| *at > 20 && *c == ' ').unwrap();
    let cut = cut + space.len_utf8();
    let pair = json!({"continue_final_message": true, "add_generation_prompt": false});
    let answer = ask_json(of(Engine::Vllm).addr(), CHAT, &begun(&must[..cut], pair)).await.json();
    assert_ne!(answer["choices"][0]["message"]["content"], must[cut..]);
}

#[tokio::test]
async fn without_the_pair_a_turn_is_closed_or_refused() {
    let must = Source::new("hello", "sim", 0).text(30);
    let spoken = &must[..must.find(' ').map_or(1, |at| at + 4)];
    let content = async |engine, more| {
        let answer = ask_json(of(engine).addr(), CHAT, &begun(spoken, more)).await;
        (answer.status, answer.json()["choices"][0]["message"]["content"].as_str().unwrap_or_default().to_owned())
    };
    assert_eq!(content(Engine::Vllm, json!({"continue_final_message": true})).await.0, 400);
    for engine in [Engine::Vllm, Engine::Sglang] {
        let second = Source::new(&format!("hello\n{spoken}"), "sim", 0).text(30);
        assert_eq!(content(engine, json!({})).await, (200, second));
    }
    // llama.cpp goes on by itself, and its plain answer has the beginning in it.
    assert_eq!(content(Engine::LlamaCpp, json!({})).await, (200, must.clone()));
    let mut twice = begun(spoken, json!({}));
    twice["messages"].as_array_mut().unwrap().push(json!({"role": "assistant", "content": "x"}));
    assert_eq!(ask_json(of(Engine::LlamaCpp).addr(), CHAT, &twice).await.status, 400);
}

#[tokio::test]
async fn stop_strings_end_every_dialect_and_vllm_tells_ids_before_text() {
    let must = Source::new("hello", "sim", 0).text(30);
    // Something from the middle, over a boundary of tokens.
    let (from, _) = must.char_indices().nth(40).unwrap();
    let (to, _) = must.char_indices().nth(48).unwrap();
    let (stop, said) = (&must[from..to], &must[..must.find(&must[from..to]).unwrap()]);
    for engine in ENGINES {
        let sim = of(engine);
        let plain = ask_json(sim.addr(), CHAT, &chat(json!({"stop": stop}))).await.json();
        assert_eq!(plain["choices"][0]["message"]["content"], said, "{engine:?}");
        assert_eq!(plain["choices"][0]["finish_reason"], "stop");
        let streamed = chat(json!({"stream": true, "stop": [stop, "never"], "max_tokens": 99}));
        let reply = ask_json(sim.addr(), CHAT, &streamed).await;
        assert_eq!(told(&reply).0, said, "{engine:?}");
        let body = json!({"model": "sim", "prompt": "hello", "stop": [stop], "max_tokens": 99, "stream": true});
        assert_eq!(told(&ask_json(sim.addr(), COMPLETIONS, &body).await).0, said);
        let body = json!({"model": "sim", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 99,
            "stop_sequences": [stop]});
        let answer = ask_json(sim.addr(), "/v1/messages", &body).await.json();
        assert_eq!((&answer["stop_reason"], &answer["stop_sequence"]), (&json!("stop_sequence"), &json!(stop)));
        assert_eq!(answer["content"][0]["text"], said);
    }
    let asks = json!({"stream": true, "return_token_ids": true, "stop": [stop], "max_tokens": 99});
    let events = ask_json(of(Engine::Vllm).addr(), CHAT, &chat(asks)).await.events();
    let first = &events[1]["choices"][0];
    assert_eq!((first["delta"]["content"].as_str(), ids_of(&first["token_ids"]).len()), (Some(""), 1));
}

#[tokio::test]
async fn tokens_that_end_inside_a_character_are_told_before_they_are_shown() {
    for engine in ENGINES {
        let sim = start(Config { engine, length: Some(60), split_utf8: true, ..Config::default() });
        let source = Source::new("hello", "sim", 0);
        let body = json!({"model": "sim", "prompt": "hello", "max_tokens": 80, "stream": true,
            "return_token_ids": true});
        let reply = ask_json(sim.addr(), COMPLETIONS, &body).await;
        let (text, ids) = told(&reply);
        assert_eq!(text, source.text(60), "{engine:?}");
        let empty = reply.events().iter().filter(|event| event["choices"][0]["text"] == "").count();
        if engine == Engine::LlamaCpp {
            // Only the finish.
            assert_eq!((ids.len(), empty), (0, 1));
        } else {
            assert_eq!(ids, (0..60).map(|i| u64::from(source.id(i))).collect::<Vec<_>>());
            assert!(empty > 1);
        }
        // Numbers have no holes where a token showed nothing.
        let body = json!({"model": "sim", "input": "hello", "stream": true});
        let events = ask_json(sim.addr(), "/v1/responses", &body).await.events();
        let numbers: Vec<_> = events.iter().map(|event| event["sequence_number"].as_u64().unwrap()).collect();
        assert_eq!(numbers, (0..events.len() as u64).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn texts_are_tokenized_as_each_engine_answers() {
    for (engine, name) in [(Engine::Vllm, "prompt"), (Engine::Sglang, "text"), (Engine::LlamaCpp, "content")] {
        let sim = of(engine);
        let both = json!({"model": "sim", "prompt": " the river", "content": " the river",
            "add_special_tokens": false, "add_special": false});
        let answer = ask_json(sim.addr(), "/tokenize", &both).await.json();
        assert_eq!(answer["tokens"], json!([3, 0]));
        assert_eq!(answer.get("count").is_some(), engine != Engine::LlamaCpp);
        let back = json!({"model": "sim", "tokens": [3, 0]});
        assert_eq!(ask_json(sim.addr(), "/detokenize", &back).await.json()[name], " the river");
    }
    let sim = of(Engine::Vllm);
    let prompt = ask_json(sim.addr(), "/tokenize", &chat(json!({}))).await.json();
    let plain = ask_json(sim.addr(), CHAT, &chat(json!({}))).await.json();
    assert_eq!((&prompt["count"], &prompt["max_model_len"]), (&plain["usage"]["prompt_tokens"], &json!(1 << 24)));
}

#[tokio::test]
async fn completions_are_short_unless_told_and_the_context_is_bounded() {
    let sim = of(Engine::Vllm);
    let answer = ask_json(sim.addr(), COMPLETIONS, &json!({"model": "sim", "prompt": "hello"})).await.json();
    assert_eq!(answer["usage"]["completion_tokens"], 16);
    let body = json!({"model": "sim", "prompt": "hello", "max_tokens": 1 << 24});
    assert_eq!(ask_json(sim.addr(), COMPLETIONS, &body).await.status, 400);
}
