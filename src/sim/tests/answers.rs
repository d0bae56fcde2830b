//! What it says: the same whole and streamed, the tokens that must be, in every dialect.

use super::*;

/// Path, body without `stream`, the text of the plain answer, the text of one event, tokens in the plain usage.
struct Dialect {
    path: &'static str,
    body: Value,
    whole: &'static str,
    piece: &'static str,
    used: &'static str,
}

fn dialects() -> Vec<Dialect> {
    let messages = json!([{"role": "user", "content": "hello"}]);
    vec![
        Dialect {
            path: "/v1/chat/completions",
            body: json!({"model": "sim", "messages": messages, "max_tokens": 30}),
            whole: "/choices/0/message/content",
            piece: "/choices/0/delta/content",
            used: "/usage/completion_tokens",
        },
        Dialect {
            path: "/v1/completions",
            body: json!({"model": "sim", "prompt": "hello", "max_tokens": 30}),
            whole: "/choices/0/text",
            piece: "/choices/0/text",
            used: "/usage/completion_tokens",
        },
        Dialect {
            path: "/v1/messages",
            body: json!({"model": "sim", "messages": messages, "max_tokens": 30}),
            whole: "/content/0/text",
            piece: "/delta/text",
            used: "/usage/output_tokens",
        },
        Dialect {
            path: "/v1/responses",
            body: json!({"model": "sim", "input": "hello", "max_output_tokens": 30}),
            whole: "/output/0/content/0/text",
            piece: "/delta",
            used: "/usage/output_tokens",
        },
        Dialect {
            path: "/api/chat",
            body: json!({"model": "sim", "messages": messages, "options": {"num_predict": 30}}),
            whole: "/message/content",
            piece: "/message/content",
            used: "/eval_count",
        },
    ]
}

#[tokio::test]
async fn plain_is_the_joined_stream_in_every_dialect_and_engine() {
    let must = expected("hello", "sim", 0, 30).concat();
    for engine in [Engine::Vllm, Engine::Sglang, Engine::LlamaCpp] {
        let sim = start(Config { engine, length: Some(50), ..Config::default() });
        for Dialect { path, mut body, whole, piece, used } in dialects() {
            body["stream"] = json!(false);
            let plain = ask_json(sim.addr(), path, &body).await.json();
            assert_eq!(plain.pointer(whole), Some(&json!(must)), "{engine:?} {path}: {plain}");
            assert_eq!(plain.pointer(used), Some(&json!(30)), "{engine:?} {path}");
            body["stream"] = json!(true);
            let reply = ask_json(sim.addr(), path, &body).await;
            let text = reply.text();
            let lines = text.lines().map(|line| line.strip_prefix("data: ").unwrap_or(line));
            let events = lines.filter_map(|line| serde_json::from_str::<Value>(line).ok());
            let said: String = events.filter_map(|event| Some(event.pointer(piece)?.as_str()?.to_owned())).collect();
            assert_eq!((said, reply.end), (must.clone(), End::Whole), "{engine:?} {path}");
        }
        assert_eq!(sim.state().served, 10);
        assert_eq!(sim.state().tokens, 300);
    }
}

#[tokio::test]
async fn the_stream_says_its_usage_when_asked() {
    for engine in [Engine::Vllm, Engine::Sglang, Engine::LlamaCpp] {
        let sim = start(Config { engine, ..Config::default() });
        let body = chat(json!({"stream": true, "max_tokens": 5, "stream_options": {"include_usage": true}}));
        let reply = ask_json(sim.addr(), "/v1/chat/completions", &body).await;
        assert!(reply.text().ends_with("data: [DONE]\n\n"));
        let last = reply.events().pop().unwrap();
        assert_eq!(last["choices"], json!([]));
        assert_eq!(last["usage"]["completion_tokens"], 5);
        assert_eq!(last["usage"]["prompt_tokens"], 3);
        assert_eq!(last["usage"]["total_tokens"], 8);
        let without = chat(json!({"stream": true, "max_tokens": 5}));
        let reply = ask_json(sim.addr(), "/v1/chat/completions", &without).await;
        assert!(reply.events().iter().all(|event| event.get("usage").is_none()));
    }
}

#[tokio::test]
async fn whole_blocks_of_a_prompt_are_cached_tokens() {
    let sim = start(Config::default());
    let prompt = ["word"; 40].join(" ");
    let body = json!({"model": "sim", "prompt": prompt, "max_tokens": 1});
    let usage = ask_json(sim.addr(), "/v1/completions", &body).await.json()["usage"].clone();
    // One to begin with, and one for three bytes.
    assert_eq!(usage["prompt_tokens"], 1 + (40 * 5 - 1_u64).div_ceil(3));
    assert_eq!(usage["prompt_tokens_details"]["cached_tokens"], 64);
}

#[tokio::test]
async fn it_stops_by_itself_or_at_the_bound() {
    let sim = start(Config { length: Some(12), ..Config::default() });
    for (more, tokens, finish) in [
        (json!({}), 12, "stop"),
        (json!({"max_tokens": 12}), 12, "stop"),
        (json!({"max_tokens": 11}), 11, "length"),
        (json!({"max_completion_tokens": 3}), 3, "length"),
        (json!({"min_tokens": 20}), 20, "stop"),
        (json!({"ignore_eos": true, "max_tokens": 90}), 90, "length"),
    ] {
        let answer = ask_json(sim.addr(), "/v1/chat/completions", &chat(more.clone())).await.json();
        assert_eq!(answer["choices"][0]["finish_reason"], finish, "{more}");
        assert_eq!(answer["usage"]["completion_tokens"], tokens, "{more}");
    }
}

#[tokio::test]
async fn the_finish_is_where_each_engine_puts_it() {
    for (engine, rides) in [(Engine::Vllm, true), (Engine::Sglang, false), (Engine::LlamaCpp, false)] {
        let sim = start(Config { engine, ..Config::default() });
        let body = chat(json!({"stream": true, "max_tokens": 2}));
        let events = ask_json(sim.addr(), "/v1/chat/completions", &body).await.events();
        let last = &events.last().unwrap()["choices"][0];
        assert_eq!(last["finish_reason"], "length");
        assert_eq!(last["delta"]["content"].is_string(), rides, "{engine:?}");
        assert_eq!(events[0]["choices"][0]["delta"]["role"], "assistant");
        // llama.cpp has no text yet, not even an empty one.
        assert_eq!(events[0]["choices"][0]["delta"]["content"].is_null(), engine == Engine::LlamaCpp);
    }
}

#[tokio::test]
async fn two_choices_are_two_answers() {
    let sim = start(Config::default());
    let body = chat(json!({"n": 2, "max_tokens": 9}));
    let answer = ask_json(sim.addr(), "/v1/chat/completions", &body).await.json();
    for choice in 0..2 {
        let must = expected("hello", "sim", choice, 9).concat();
        assert_eq!(answer["choices"][choice as usize]["message"]["content"], must);
    }
    assert_eq!(answer["usage"]["completion_tokens"], 18);
    let none = ask_json(sim.addr(), "/v1/chat/completions", &chat(json!({"n": 0}))).await;
    assert_eq!((none.status, &none.json()["error"]["param"]), (400, &json!("n")));
}

#[tokio::test]
async fn log_probabilities_and_ids_name_the_tokens() {
    let sim = start(Config::default());
    let source = Source::new("hello", "sim", 0);
    let body = chat(json!({"logprobs": true, "max_tokens": 3}));
    let answer = ask_json(sim.addr(), "/v1/chat/completions", &body).await.json();
    let content = answer["choices"][0]["logprobs"]["content"].as_array().unwrap().clone();
    let named: Vec<_> = content.iter().map(|token| token["token"].as_str().unwrap()).collect();
    assert_eq!(named, expected("hello", "sim", 0, 3));
    let streamed = chat(json!({"stream": true, "return_token_ids": true, "max_tokens": 3}));
    let events = ask_json(sim.addr(), "/v1/chat/completions", &streamed).await.events();
    let ids: Vec<_> = events.iter().filter_map(|event| event["choices"][0]["token_ids"][0].as_u64()).collect();
    assert_eq!(ids, (0..3).map(|i| u64::from(source.id(i))).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_required_tool_is_called_with_the_text() {
    let sim = start(Config::default());
    let tools = json!([{"type": "function", "function": {"name": "say", "parameters": {}}}]);
    let body = chat(json!({"tools": tools, "tool_choice": "required", "max_tokens": 7}));
    let answer = ask_json(sim.addr(), "/v1/chat/completions", &body).await.json();
    let call = &answer["choices"][0]["message"]["tool_calls"][0]["function"];
    let arguments: Value = serde_json::from_str(call["arguments"].as_str().unwrap()).unwrap();
    assert_eq!((&call["name"], &arguments["text"]), (&json!("say"), &json!(expected("hello", "sim", 0, 7).concat())));
    assert_eq!(answer["choices"][0]["finish_reason"], "tool_calls");

    let mut body = body;
    body["stream"] = json!(true);
    let events = ask_json(sim.addr(), "/v1/chat/completions", &body).await.events();
    let pieces = events.iter().filter_map(|event| {
        event.pointer("/choices/0/delta/tool_calls/0/function/arguments")?.as_str().map(str::to_owned)
    });
    assert_eq!(pieces.collect::<String>(), call["arguments"].as_str().unwrap());
}

#[tokio::test]
async fn an_answer_is_gone_on_with_where_it_stopped() {
    let sim = start(Config { length: Some(20), ..Config::default() });
    let must = expected("hello", "sim", 0, 20).concat();
    let (cut, _) = must.char_indices().nth(17).unwrap();
    let body = json!({"model": "sim", "continue_final_message": true, "add_generation_prompt": false,
        "messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": must[..cut]}]});
    let answer = ask_json(sim.addr(), "/v1/chat/completions", &body).await.json();
    assert_eq!(answer["choices"][0]["message"]["content"], must[cut..]);
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
}

#[tokio::test]
async fn models_are_refused_ignored_or_late_as_the_engine_does() {
    let late = LateModel { name: "lora".to_owned(), after: 2 };
    let sim = start(Config { late_models: vec![late], ..Config::default() });
    let ask_lora = async || {
        let body = json!({"model": "lora", "prompt": "p", "max_tokens": 1});
        ask_json(sim.addr(), "/v1/completions", &body).await
    };
    let refused = ask_lora().await;
    assert_eq!(refused.status, 404);
    assert_eq!(refused.json()["error"]["code"], 404);
    assert_eq!(refused.json()["error"]["type"], "NotFoundError");
    let ids = async || {
        let list = ask(sim.addr(), &get("/v1/models")).await.json();
        list["data"].as_array().unwrap().iter().map(|model| model["id"].clone()).collect::<Vec<_>>()
    };
    assert_eq!((ids().await, ids().await), (vec![json!("sim")], vec![json!("sim")]));
    assert_eq!(ids().await, [json!("sim"), json!("lora")]);
    assert_eq!(ask_lora().await.status, 200);
    sim.remove_model("lora");
    assert_eq!(ask_lora().await.status, 404);

    let llama = start(Config { engine: Engine::LlamaCpp, ..Config::default() });
    let body = json!({"model": "any", "prompt": "p", "max_tokens": 1});
    assert_eq!(ask_json(llama.addr(), "/v1/completions", &body).await.status, 200);
}

#[tokio::test]
async fn responses_are_numbered_and_stay_with_their_backend() {
    let (sim, other) = (start(Config::default()), start(Config::default()));
    let body = json!({"model": "sim", "input": "hello", "stream": true});
    let events = ask_json(sim.addr(), "/v1/responses", &body).await.events();
    let numbers: Vec<_> = events.iter().map(|event| event["sequence_number"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (0..events.len() as u64).collect::<Vec<_>>());
    let last = events.last().unwrap();
    assert_eq!(last["type"], "response.completed");
    let id = last["response"]["id"].as_str().unwrap();
    let path = format!("/v1/responses/{id}");
    assert_eq!(ask(sim.addr(), &get(&path)).await.json(), last["response"]);
    assert_eq!(ask(other.addr(), &get(&path)).await.status, 404);
    let next = json!({"model": "sim", "input": "more", "previous_response_id": id});
    assert_eq!(ask_json(sim.addr(), "/v1/responses", &next).await.status, 200);
    assert_eq!(ask_json(other.addr(), "/v1/responses", &next).await.status, 404);
}

#[tokio::test]
async fn numbers_repeat_themselves() {
    let sim = start(Config::default());
    for (path, body, pointer) in [
        ("/v1/embeddings", json!({"model": "sim", "input": ["a", "b"]}), "/data/1/embedding/7"),
        ("/v1/rerank", json!({"model": "sim", "query": "q", "documents": ["a", "b"]}), "/results/1/relevance_score"),
        ("/v1/score", json!({"model": "sim", "text_1": "q", "text_2": ["a", "b"]}), "/data/1/score"),
        ("/tokenize", json!({"model": "sim", "prompt": "a b"}), "/tokens/1"),
        (
            "/v1/messages/count_tokens",
            json!({"model": "sim", "messages": [{"role": "user", "content": "a b"}]}),
            "/input_tokens",
        ),
    ] {
        let first = ask_json(sim.addr(), path, &body).await;
        assert_eq!(first.status, 200, "{path}");
        assert!(first.json().pointer(pointer).unwrap().is_number(), "{path} {}", first.text());
        assert_eq!(first.body, ask_json(sim.addr(), path, &body).await.body, "{path}");
    }
    let coded = json!({"model": "sim", "input": "a", "encoding_format": "base64"});
    let vector = ask_json(sim.addr(), "/v1/embeddings", &coded).await.json();
    assert_eq!(vector["data"][0]["embedding"].as_str().unwrap().len(), 44);
}

#[tokio::test]
async fn a_form_names_its_model() {
    let sim = start(Config::default());
    let form = "--x\r\ncontent-disposition: form-data; name=\"model\"\r\n\r\nwhisper\r\n--x--\r\n";
    let head = format!(
        "POST /v1/audio/transcriptions HTTP/1.1\r\nhost: sim\r\ncontent-type: multipart/form-data; boundary=x\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n{form}",
        form.len()
    );
    assert_eq!(ask(sim.addr(), head.as_bytes()).await.json()["model"], "whisper");
}

#[tokio::test]
async fn mistakes_are_answered_in_the_dialect() {
    let sim = start(Config::default());
    let bad = ask_json(sim.addr(), "/v1/chat/completions", &json!({"model": "sim"})).await;
    assert_eq!((bad.status, &bad.json()["error"]["type"]), (400, &json!("BadRequestError")));
    let anthropic = ask_json(sim.addr(), "/v1/messages", &json!({"model": "sim"})).await;
    assert_eq!((anthropic.status, &anthropic.json()["type"]), (400, &json!("error")));
    let unknown = ask(sim.addr(), &get("/no/such")).await;
    assert_eq!((unknown.status, unknown.text()), (404, r#"{"detail":"Not Found"}"#.to_owned()));
    assert_eq!(ask(sim.addr(), &get("/v1/chat/completions")).await.status, 405);
}
