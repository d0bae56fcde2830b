//! The stage over a scripted inner service: what a cut stream goes on by, and when it does not.

use std::{cell::RefCell, collections::VecDeque, future::poll_fn, pin::Pin, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Method, uri::PathAndQuery};
use http_body::{Body as _, Frame};
use serde_json::{Value, json};
use tokio::{sync::mpsc, time::Instant};
use tower::ServiceExt;

use super::*;
use crate::{
    error::Kind,
    fleet::testing,
    listener::Peer,
    proxy::{
        call::{Asked, Payload},
        headers,
        memory::Memory,
        record::Record,
    },
    telemetry::metrics::Registry,
};

/// What comes of a stream.
type Given = Result<Bytes, Kind>;

/// What a backend does with one call.
enum Play {
    Stream(&'static str, mpsc::Receiver<Given>),
    Status(&'static str, u16, String),
    Fail(Kind),
}

/// One call as the stages below got it.
struct Sent {
    path: String,
    body: Value,
    avoid: Vec<u64>,
}

#[derive(Default)]
struct Script {
    plays: VecDeque<Play>,
    sent: Vec<Sent>,
}

struct Bench {
    ctx: Rc<Resume>,
    script: Rc<RefCell<Script>>,
}

struct Scripted(mpsc::Receiver<Given>);

impl http_body::Body for Scripted {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, Error>>> {
        let given = self.0.poll_recv(cx);
        given.map(|given| given.map(|given| given.map(Frame::data).map_err(|kind| Error::new(kind, "cut by the test"))))
    }
}

impl Bench {
    /// `a` and `b` run vLLM, `x` and `y` llama.cpp, `other` something unknown.
    fn new(config: config::Resume) -> Self {
        let engines = [
            ("a", Some(Engine::Vllm)),
            ("b", Some(Engine::Vllm)),
            ("x", Some(Engine::LlamaCpp)),
            ("y", Some(Engine::LlamaCpp)),
            ("other", None),
        ];
        let backends = engines.map(|(name, engine)| config::Backend { engine, ..testing::backend(name) });
        let fleet = Fleet::new(&testing::config(backends));
        // Only who has answered may take the place of one that goes.
        fleet.snapshot().backends.iter().for_each(|backend| backend.probe_passed(1));
        let ctx = Resume {
            config,
            fleet,
            live: Live::new(1 << 20),
            moves: Moves::new(),
            counters: Rc::new(Counters::new(&Registry::default().table())),
            mute: Rc::default(),
            forms: Forms {
                alike: |_| true,
                // What it is made of is tested with the forms.
                to_plain: |_, stream| {
                    told(std::str::from_utf8(stream).unwrap()).2.map(|_| Bytes::copy_from_slice(stream))
                },
            },
        };
        Self { ctx: Rc::new(ctx), script: Rc::default() }
    }

    fn play(&self, play: Play) {
        self.script.borrow_mut().plays.push_back(play);
    }

    /// A stream from `backend`, which the test gives.
    fn stream(&self, backend: &'static str) -> mpsc::Sender<Given> {
        let (give, given) = mpsc::channel(64);
        self.play(Play::Stream(backend, given));
        give
    }

    async fn ask(&self, call: Call) -> Result<Response, Error> {
        let (script, fleet) = (Rc::clone(&self.script), Arc::clone(&self.ctx.fleet));
        let inner = service_fn(move |call: Rc<Call>| {
            let (script, fleet) = (Rc::clone(&script), Arc::clone(&fleet));
            async move { answer(&script, &fleet, &call) }
        });
        resume(Rc::clone(&self.ctx), inner).oneshot(call).await
    }

    fn sent(&self, at: usize) -> Value {
        self.script.borrow().sent[at].body.clone()
    }

    fn path(&self, at: usize) -> String {
        self.script.borrow().sent[at].path.clone()
    }
}

fn answer(script: &RefCell<Script>, fleet: &Fleet, call: &Call) -> Result<Response, Error> {
    let play = script.borrow_mut().plays.pop_front().expect("a play for each call");
    let name = match &play {
        Play::Stream(name, _) | Play::Status(name, ..) => *name,
        Play::Fail(kind) => return Err(Error::new(*kind, "failed by the test")),
    };
    let backend = Arc::clone(fleet.snapshot().backend(name).unwrap());
    call.record.backend.replace(Some(Arc::clone(&backend)));
    call.record.attempts.set(1);
    let fitted = call.tailor.as_ref().map_or(Ok(None), |tailor| tailor.fit(&backend))?;
    let body = fitted.as_ref().map_or_else(|| call.payload.bytes().unwrap().clone(), |fitted| fitted.body.clone());
    let path = fitted.and_then(|fitted| fitted.path).unwrap_or_else(|| call.path.clone());
    script.borrow_mut().sent.push(Sent {
        path: path.to_string(),
        body: serde_json::from_slice(&body).unwrap(),
        avoid: call.avoid.clone(),
    });
    let (status, kind, body) = match play {
        Play::Stream(_, given) => (200, "text/event-stream", Body::stream(Scripted(given))),
        Play::Status(_, status, body) => (status, "application/json", Body::whole(body)),
        Play::Fail(_) => unreachable!(),
    };
    Ok(http::Response::builder().status(status).header("content-type", kind).body(body).unwrap())
}

fn chat(extra: Value) -> Call {
    let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": true});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    let head = http::Request::post("/v1/chat/completions").body(()).unwrap();
    let record = Rc::new(Record::new(Instant::now(), "id".parse().unwrap(), &head, Rc::new(Peer::default())));
    Call {
        endpoint: Endpoint::Chat,
        method: Method::POST,
        path: PathAndQuery::from_static("/v1/chat/completions"),
        headers: HeaderMap::new(),
        added: headers::Added::default(),
        payload: Payload::whole(Bytes::from(body.to_string()), Memory::new(1 << 20).reserve()),
        said: None,
        model: Some("m".into()),
        alias: None,
        edited: false,
        salt: None,
        stream: true,
        asked: Asked::default(),
        ask_usage: false,
        pinned: None,
        avoid: Vec::new(),
        tailor: None,
        deadline: Instant::now() + Duration::from_secs(600),
        wait_until: None,
        tunnel: false,
        repeatable: true,
        record,
    }
}

fn auto() -> config::Resume {
    config::Resume { mode: ResumeMode::Auto, attempts: 3, report: false, plain_as_stream: false }
}

/// A chunk of a chat stream.
fn chunk(id: &str, choice: Value) -> Given {
    let mut choice = choice;
    choice["index"] = json!(0);
    let chunk = json!({"id": id, "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]});
    Ok(format!("data: {chunk}\n\n").into())
}

fn says(id: &str, text: &str) -> Given {
    chunk(id, json!({"delta": {"content": text}, "finish_reason": null}))
}

fn stops(id: &str) -> Given {
    chunk(id, json!({"delta": {}, "finish_reason": "stop"}))
}

fn done() -> Given {
    Ok(Bytes::from_static(b"data: [DONE]\n\n"))
}

/// All that a client reads: the bytes, and the error at the end.
async fn read(response: Response) -> (String, Option<Error>) {
    let mut body = response.into_body();
    let mut text = String::new();
    loop {
        match poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
            Some(Ok(frame)) => text += std::str::from_utf8(frame.data_ref().unwrap()).unwrap(),
            Some(Err(error)) => return (text, Some(error)),
            None => return (text, None),
        }
    }
}

/// The ids, and the text of all deltas.
fn told(stream: &str) -> (Vec<String>, String, Option<String>) {
    let (mut ids, mut text, mut finish) = (Vec::new(), String::new(), None);
    for data in stream.split("\n\n").filter_map(|event| event.strip_prefix("data: ")) {
        let Ok(event) = serde_json::from_str::<Value>(data) else { continue };
        ids.push(event["id"].as_str().unwrap_or_default().to_owned());
        text += event["choices"][0]["delta"]["content"].as_str().unwrap_or_default();
        finish = event["choices"][0]["finish_reason"].as_str().map(str::to_owned).or(finish);
    }
    ids.dedup();
    (ids, text, finish)
}

#[tokio::test(start_paused = true)]
async fn a_cut_stream_goes_on_by_its_text() {
    let bench = Bench::new(auto());
    let first = bench.stream("x");
    for given in [says("one", "Hello"), says("one", " wor"), Err(Kind::StreamCut)] {
        first.try_send(given).unwrap();
    }
    let second = bench.stream("y");
    for given in [says("two", "ld"), says("two", "!"), stops("two"), done()] {
        second.try_send(given).unwrap();
    }
    drop(second);
    let call = chat(json!({}));
    let record = Rc::clone(&call.record);
    let (stream, error) = read(bench.ask(call).await.unwrap()).await;
    assert!(error.is_none(), "{error:?}");
    assert_eq!(told(&stream), (vec!["one".to_owned()], "Hello world!".to_owned(), Some("stop".to_owned())));
    assert!(stream.ends_with("data: [DONE]\n\n"), "{stream}");
    let sent = bench.sent(1);
    assert_eq!(sent["messages"][1], json!({"role": "assistant", "content": "Hello wor"}));
    assert_eq!((&sent["continue_final_message"], &sent["add_generation_prompt"]), (&json!(true), &json!(false)));
    let left = bench.ctx.fleet.snapshot().backend("x").unwrap().id;
    assert!(bench.script.borrow().sent[1].avoid.contains(&left), "not again to the one that cut it");
    let resumed = record.resumed.get();
    assert_eq!((resumed.times, resumed.mode), (1, "text"));
    assert_eq!(record.cut.get(), None);
    assert_eq!(record.backend.borrow().as_ref().map(|backend| backend.name().to_string()).as_deref(), Some("y"));
}

#[tokio::test(start_paused = true)]
async fn where_ids_are_told_it_goes_on_by_them() {
    let bench = Bench::new(auto());
    let first = bench.stream("a");
    let with_ids = |text: &str, id: u32| {
        chunk("one", json!({"delta": {"content": text}, "logprobs": null, "finish_reason": null, "token_ids": [id]}))
    };
    let mut role = json!({"id": "one", "object": "chat.completion.chunk", "created": 1, "model": "m",
        "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": null, "finish_reason": null, "token_ids": null}]});
    role["prompt_token_ids"] = json!([7, 8, 9]);
    first.try_send(Ok(format!("data: {role}\n\n").into())).unwrap();
    for given in [with_ids("Hel", 1), with_ids("lo", 2), Err(Kind::UpstreamSilent)] {
        first.try_send(given).unwrap();
    }
    let second = bench.stream("b");
    let completion = |text: &str, finish: Value, id: u32| -> Given {
        let chunk = json!({"id": "cmpl-2", "object": "text_completion", "created": 2, "model": "m",
            "choices": [{"index": 0, "text": text, "logprobs": null, "finish_reason": finish, "token_ids": [id]}]});
        Ok(format!("data: {chunk}\n\n").into())
    };
    for given in [completion(" you", Value::Null, 3), completion("!", json!("stop"), 4), done()] {
        second.try_send(given).unwrap();
    }
    drop(second);
    let (stream, error) = read(bench.ask(chat(json!({"max_tokens": 10}))).await.unwrap()).await;
    assert!(error.is_none(), "{error:?}");
    assert_eq!(bench.sent(0)["return_token_ids"], json!(true));
    assert_eq!(bench.path(1), "/v1/completions");
    assert_eq!(bench.sent(1)["prompt"], json!([7, 8, 9, 1, 2]));
    assert_eq!(bench.sent(1)["max_tokens"], json!(8));
    assert_eq!(told(&stream), (vec!["one".to_owned()], "Hello you!".to_owned(), Some("stop".to_owned())));
    assert!(!stream.contains("token_ids\":["), "{stream}");
    assert!(!stream.contains("text_completion"), "{stream}");
}

#[tokio::test(start_paused = true)]
async fn what_cannot_go_on_says_why() {
    let bench = Bench::new(auto());
    let first = bench.stream("x");
    first.try_send(says("one", "{\"a\":")).unwrap();
    first.try_send(Err(Kind::StreamCut)).unwrap();
    let call = chat(json!({"response_format": {"type": "json_object"}}));
    let record = Rc::clone(&call.record);
    let (stream, error) = read(bench.ask(call).await.unwrap()).await;
    let error = error.expect("an honest end");
    assert_eq!(error.kind(), Kind::StreamCut);
    assert!(error.message().contains("it was not continued"), "{}", error.message());
    assert!(!stream.contains("[DONE]"));
    assert_eq!(record.cut.get(), Some(Kind::StreamCut));
}

#[tokio::test(start_paused = true)]
async fn an_error_event_and_an_abort_are_cuts_too() {
    for last in [
        Ok(Bytes::from_static(b"data: {\"error\":{\"message\":\"engine died\"}}\n\ndata: [DONE]\n\n")),
        chunk("one", json!({"delta": {}, "finish_reason": "abort"})),
    ] {
        let bench = Bench::new(auto());
        let first = bench.stream("x");
        first.try_send(says("one", "Hello")).unwrap();
        first.try_send(last).unwrap();
        let second = bench.stream("y");
        for given in [says("two", " you"), stops("two"), done()] {
            second.try_send(given).unwrap();
        }
        drop(second);
        let (stream, error) = read(bench.ask(chat(json!({}))).await.unwrap()).await;
        assert!(error.is_none(), "{error:?}");
        assert_eq!(told(&stream).1, "Hello you");
        assert!(!stream.contains("died") && !stream.contains("abort"), "{stream}");
    }
}

#[tokio::test(start_paused = true)]
async fn it_goes_on_so_often_and_no_more() {
    let bench = Bench::new(config::Resume { attempts: 2, ..auto() });
    for backend in ["x", "y", "x"] {
        let stream = bench.stream(backend);
        stream.try_send(says(backend, "ha")).unwrap();
        stream.try_send(Err(Kind::StreamCut)).unwrap();
    }
    let (stream, error) = read(bench.ask(chat(json!({}))).await.unwrap()).await;
    assert_eq!(told(&stream).1, "hahaha");
    assert!(error.is_some_and(|error| error.message().contains("not continued")));
}

#[tokio::test(start_paused = true)]
async fn one_that_does_not_know_token_ids_is_not_asked_again() {
    let bench = Bench::new(auto());
    bench.play(Play::Status("a", 400, r#"{"error":{"message":"unknown field return_token_ids"}}"#.to_owned()));
    for _ in 0..2 {
        let stream = bench.stream("a");
        for given in [says("one", "Hi"), stops("one"), done()] {
            stream.try_send(given).unwrap();
        }
    }
    for _ in 0..2 {
        let (stream, error) = read(bench.ask(chat(json!({}))).await.unwrap()).await;
        assert!(error.is_none());
        assert_eq!(told(&stream).1, "Hi");
    }
    let asked: Vec<_> = (0..3).map(|at| bench.sent(at).get("return_token_ids").is_some()).collect();
    assert_eq!(asked, [true, false, false]);
}

#[tokio::test(start_paused = true)]
async fn without_memory_it_is_not_gone_on_from() {
    let bench = Bench::new(auto());
    bench.ctx.live.set_limit(100);
    let first = bench.stream("x");
    first.try_send(says("one", &"long ".repeat(1000))).unwrap();
    first.try_send(Err(Kind::StreamCut)).unwrap();
    let (stream, error) = read(bench.ask(chat(json!({}))).await.unwrap()).await;
    assert_eq!(told(&stream).1.len(), 5000);
    assert!(error.is_some_and(|error| error.message().contains("no memory")));
    assert_eq!(bench.ctx.live.used(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_end_that_was_lost_is_written() {
    let bench = Bench::new(auto());
    let first = bench.stream("x");
    for given in [says("one", "Hi"), stops("one"), Err(Kind::StreamCut)] {
        first.try_send(given).unwrap();
    }
    let (stream, error) = read(bench.ask(chat(json!({}))).await.unwrap()).await;
    assert!(error.is_none(), "{error:?}");
    assert!(stream.ends_with("data: [DONE]\n\n"));
    assert_eq!(stream.matches("\"stop\"").count(), 1);
    assert_eq!(bench.script.borrow().sent.len(), 1, "nothing more is computed");
}

#[tokio::test(start_paused = true)]
async fn what_no_backend_takes_up_ends_honestly() {
    let bench = Bench::new(auto());
    let first = bench.stream("x");
    first.try_send(says("one", "Hi")).unwrap();
    first.try_send(Err(Kind::StreamCut)).unwrap();
    bench.play(Play::Fail(Kind::NoHealthyBackend));
    let (_, error) = read(bench.ask(chat(json!({}))).await.unwrap()).await;
    assert!(error.is_some_and(|error| error.message().contains("failed by the test")));
}

/// Asks for a plain answer.
fn plainly() -> Call {
    let mut call = chat(json!({"stream": false}));
    call.stream = false;
    call
}

#[tokio::test(start_paused = true)]
async fn a_plain_answer_may_be_put_together_from_a_stream_that_was_cut() {
    let bench = Bench::new(config::Resume { plain_as_stream: true, ..auto() });
    let first = bench.stream("x");
    first.try_send(says("one", "Hello")).unwrap();
    first.try_send(Err(Kind::StreamCut)).unwrap();
    let second = bench.stream("y");
    for given in [says("two", " you"), stops("two"), done()] {
        second.try_send(given).unwrap();
    }
    drop(second);
    let response = bench.ask(plainly()).await.unwrap();
    assert_eq!(response.headers()["content-type"], "application/json");
    assert_eq!(told(std::str::from_utf8(response.body().as_whole().unwrap()).unwrap()).1, "Hello you");
    assert_eq!(
        (&bench.sent(0)["stream"], &bench.sent(0)["stream_options"]["include_usage"]),
        (&json!(true), &json!(true))
    );
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_makes_no_plain_answer_is_asked_for_plainly() {
    let bench = Bench::new(config::Resume { plain_as_stream: true, ..auto() });
    let first = bench.stream("x");
    first.try_send(says("one", "Hello")).unwrap();
    first.try_send(Err(Kind::StreamCut)).unwrap();
    bench.play(Play::Fail(Kind::NoHealthyBackend));
    bench.play(Play::Status("x", 200, "{}".to_owned()));
    let response = bench.ask(plainly()).await.unwrap();
    assert_eq!(response.body().as_whole().unwrap(), "{}");
    assert_eq!(bench.sent(1)["stream"], json!(false));
}

#[tokio::test(start_paused = true)]
async fn it_can_be_told_in_the_stream_that_it_was_joined() {
    let bench = Bench::new(config::Resume { report: true, ..auto() });
    let first = bench.stream("x");
    first.try_send(says("one", "Hello")).unwrap();
    first.try_send(Err(Kind::StreamCut)).unwrap();
    let second = bench.stream("y");
    for given in [says("two", " you"), stops("two"), done()] {
        second.try_send(given).unwrap();
    }
    drop(second);
    let (stream, _) = read(bench.ask(chat(json!({}))).await.unwrap()).await;
    assert!(stream.contains("\n\n: sluicegate resumed=1 mode=text tokens_kept="), "{stream}");
    assert_eq!(told(&stream).1, "Hello you");
}

#[tokio::test(start_paused = true)]
async fn off_it_touches_nothing() {
    let bench = Bench::new(config::Resume { mode: ResumeMode::Off, ..auto() });
    let first = bench.stream("a");
    first.try_send(says("one", "Hi")).unwrap();
    first.try_send(Err(Kind::StreamCut)).unwrap();
    let (stream, error) = read(bench.ask(chat(json!({}))).await.unwrap()).await;
    assert_eq!(told(&stream).1, "Hi");
    assert_eq!(error.unwrap().message(), "cut by the test");
    assert!(bench.sent(0).get("return_token_ids").is_none());
}

/// Lets what is ready run, and time pass.
async fn pass(time: Duration) {
    tokio::time::sleep(time).await;
}

/// A notice for `backend`, which goes after `lead`.
fn notice(bench: &Bench, backend: &str, lead: Duration) {
    let notice = crate::fleet::Notice {
        action: crate::fleet::Action::Terminate,
        at: Some(Instant::now() + lead),
        source: "test".into(),
    };
    bench.ctx.fleet.interrupt(backend, notice).unwrap();
}

/// Runs `test` beside the worker's register of streams.
async fn with_moves(bench: &Bench, test: impl Future<Output = ()>) {
    let moves = Rc::clone(&bench.ctx.moves).run(bench.ctx.fleet.interruptions());
    tokio::select! {
        () = test => {}
        () = moves => panic!("it runs for ever"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_leaves_a_machine_that_goes_and_not_before_the_other_answers() {
    let bench = Bench::new(auto());
    with_moves(&bench, async {
        let first = bench.stream("x");
        first.try_send(says("one", "Hello")).unwrap();
        let second = bench.stream("y");
        for given in [says("two", " you"), stops("two"), done()] {
            second.try_send(given).unwrap();
        }
        drop(second);
        let mut body = bench.ask(chat(json!({}))).await.unwrap().into_body();
        let hello = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await.unwrap().unwrap();
        assert!(hello.data_ref().unwrap().starts_with(b"data: "));
        notice(&bench, "x", Duration::from_secs(30));
        // It has no end in sight: it is to be off before the machine goes, and it is.
        let reading = async {
            let mut rest = String::new();
            while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
                rest += std::str::from_utf8(frame.unwrap().data_ref().unwrap()).unwrap();
            }
            rest
        };
        let begun = Instant::now();
        let rest = reading.await;
        assert_eq!(told(&rest).1, " you");
        assert!(begun.elapsed() < Duration::from_secs(28), "{:?}", begun.elapsed());
        assert!(first.is_closed(), "the old one was let go");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn one_that_cannot_move_stays_until_the_machine_goes() {
    let bench = Bench::new(auto());
    with_moves(&bench, async {
        let first = bench.stream("x");
        first.try_send(says("one", "{")).unwrap();
        let call = chat(json!({"response_format": {"type": "json_object"}}));
        let mut body = bench.ask(call).await.unwrap().into_body();
        notice(&bench, "x", Duration::from_secs(30));
        poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await.unwrap().unwrap();
        let begun = Instant::now();
        let later = async {
            pass(Duration::from_secs(20)).await;
            first.try_send(says("one", "}")).unwrap();
        };
        let (next, ()) = tokio::join!(poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)), later);
        assert!(next.unwrap().is_ok(), "it goes on where it is");
        let end = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await.unwrap();
        let error = end.unwrap_err();
        assert!(error.message().contains("taken away") && error.message().contains("grammar"), "{}", error.message());
        assert!(begun.elapsed() >= Duration::from_secs(30), "{:?}", begun.elapsed());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_move_that_fails_leaves_the_stream_where_it_is() {
    let bench = Bench::new(auto());
    with_moves(&bench, async {
        let first = bench.stream("x");
        first.try_send(says("one", "Hello")).unwrap();
        // It is tried again, and again: there may be room by then.
        for _ in 0..20 {
            bench.play(Play::Fail(Kind::QueueTimeout));
        }
        let mut body = bench.ask(chat(json!({}))).await.unwrap().into_body();
        poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await.unwrap().unwrap();
        notice(&bench, "x", Duration::from_secs(30));
        let later = async {
            pass(Duration::from_secs(25)).await;
            for given in [says("one", " you"), stops("one"), done()] {
                first.try_send(given).unwrap();
            }
            drop(first);
        };
        let reading = async {
            let mut rest = String::new();
            while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
                rest += std::str::from_utf8(frame.unwrap().data_ref().unwrap()).unwrap();
            }
            rest
        };
        let (rest, ()) = tokio::join!(reading, later);
        assert_eq!(told(&rest).1, " you");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn one_that_will_end_in_time_is_left_alone() {
    let bench = Bench::new(auto());
    with_moves(&bench, async {
        let first = bench.stream("x");
        let mut body = bench.ask(chat(json!({"max_tokens": 20}))).await.unwrap().into_body();
        let mut giving = tokio::time::interval(Duration::from_secs(1));
        let give = async {
            for at in 0..20 {
                giving.tick().await;
                if at == 2 {
                    notice(&bench, "x", Duration::from_secs(60));
                }
                first.try_send(says("one", "ha")).unwrap();
            }
            first.try_send(stops("one")).unwrap();
            first.try_send(done()).unwrap();
            drop(first);
        };
        let reading = async {
            let mut rest = String::new();
            while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
                rest += std::str::from_utf8(frame.unwrap().data_ref().unwrap()).unwrap();
            }
            rest
        };
        let (rest, ()) = tokio::join!(reading, give);
        assert_eq!(told(&rest).1, "ha".repeat(20));
        assert_eq!(bench.script.borrow().sent.len(), 1, "nothing was moved");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_stream_whose_attempt_was_replaced_is_where_the_other_is() {
    let bench = Bench::new(auto());
    with_moves(&bench, async {
        let first = bench.stream("x");
        let call = chat(json!({"response_format": {"type": "json_object"}}));
        let record = Rc::clone(&call.record);
        let mut body = bench.ask(call).await.unwrap().into_body();
        // Before its first byte another takes its place.
        let other = Arc::clone(bench.ctx.fleet.snapshot().backend("y").unwrap());
        record.backend.replace(Some(other));
        first.try_send(says("one", "{")).unwrap();
        poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await.unwrap().unwrap();
        notice(&bench, "x", Duration::from_secs(10));
        let later = async {
            pass(Duration::from_secs(20)).await;
            first.try_send(says("one", "}")).unwrap();
        };
        let (next, ()) = tokio::join!(poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)), later);
        assert!(next.unwrap().is_ok(), "the machine that went was not its own");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_bad_request_does_not_silence_a_backend() {
    let bench = Bench::new(auto());
    for _ in 0..2 {
        bench.play(Play::Status("a", 400, r#"{"error":"bad; you sent return_token_ids"}"#.to_owned()));
    }
    let stream = bench.stream("a");
    for given in [says("one", "Hi"), stops("one"), done()] {
        stream.try_send(given).unwrap();
    }
    drop(stream);
    assert_eq!(bench.ask(chat(json!({}))).await.unwrap().status(), 400);
    let _ = read(bench.ask(chat(json!({}))).await.unwrap()).await;
    assert!(bench.sent(2).get("return_token_ids").is_some(), "it is asked as before");
}
