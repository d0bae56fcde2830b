use bytes::Bytes;
use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::protocol::endpoint::Endpoint;

const PROMPT: u64 = 12;
/// The prompt's ids as vLLM tells them.
const PROMPT_IDS: &str = "[11,12,13,14,15,16,17,18,19,20,21,22]";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Vllm,
    LlamaCpp,
    Sglang,
}

/// One answer, as each engine tells it.
#[derive(Clone, Debug)]
struct Answer {
    kind: Kind,
    tokens: Vec<String>,
    length: bool,
    ids: bool,
    id: &'static str,
    prompt: u64,
    /// Completion tokens told.
    told: u64,
}

fn quoted(text: &str) -> String {
    serde_json::to_string(text).unwrap()
}

impl Answer {
    fn event(&self, kind: &str, choices: &str, tail: &str) -> String {
        let id = self.id;
        match self.kind {
            Kind::LlamaCpp => format!(
                "data: {{\"choices\":{choices},\"created\":1795532073,\"id\":\"{id}\",\"model\":\"m\",\
                 \"system_fingerprint\":\"b0\",\"object\":\"{kind}\"{tail}}}\n\n"
            ),
            _ => format!(
                "data: {{\"id\":\"{id}\",\"object\":\"{kind}\",\"created\":1795521600,\"model\":\"m\",\
                 \"choices\":{choices}{tail}}}\n\n"
            ),
        }
    }

    fn usage(&self) -> String {
        let total = self.prompt + self.told;
        format!(
            ",\"usage\":{{\"prompt_tokens\":{},\"total_tokens\":{total},\"completion_tokens\":{}}}",
            self.prompt, self.told
        )
    }

    fn reason(&self) -> &'static str {
        if self.length { "length" } else { "stop" }
    }

    fn chat(&self) -> Vec<String> {
        let kind = "chat.completion.chunk";
        let mut out = Vec::new();
        let chunk = |delta: &str, finish: &str, ids: &str, tail: &str| match self.kind {
            Kind::LlamaCpp => {
                self.event(kind, &format!("[{{\"finish_reason\":{finish},\"index\":0,\"delta\":{delta}}}]"), tail)
            }
            _ => self.event(
                kind,
                &format!("[{{\"index\":0,\"delta\":{delta},\"logprobs\":null,\"finish_reason\":{finish}{ids}}}]"),
                tail,
            ),
        };
        let prompt = if self.ids { format!(",\"prompt_token_ids\":{PROMPT_IDS}") } else { String::new() };
        out.push(match self.kind {
            Kind::LlamaCpp => chunk(r#"{"role":"assistant","content":null}"#, "null", "", ""),
            _ => chunk(r#"{"role":"assistant","content":""}"#, "null", "", &prompt),
        });
        let rides = self.kind == Kind::Vllm && !self.tokens.is_empty();
        for (i, token) in self.tokens.iter().enumerate() {
            let finish = if rides && i + 1 == self.tokens.len() { quoted(self.reason()) } else { "null".into() };
            let ids = if self.ids { format!(",\"token_ids\":[{}]", id_of(token)) } else { String::new() };
            let delta = match self.kind {
                Kind::Sglang => {
                    format!(
                        "{{\"role\":null,\"content\":{},\"reasoning_content\":null,\"tool_calls\":null}}",
                        quoted(token)
                    )
                }
                _ => format!("{{\"content\":{}}}", quoted(token)),
            };
            out.push(chunk(&delta, &finish, &ids, ""));
        }
        if !rides {
            out.push(chunk("{}", &quoted(self.reason()), "", ""));
        }
        out.push(self.event(kind, "[]", &self.usage()));
        out.push("data: [DONE]\n\n".into());
        out
    }

    fn completions(&self) -> Vec<String> {
        let kind = "text_completion";
        let mut out = Vec::new();
        let chunk = |text: &str, finish: &str, ids: &str, tail: &str| {
            let text = quoted(text);
            self.event(
                kind,
                &format!("[{{\"index\":0,\"text\":{text},\"logprobs\":null,\"finish_reason\":{finish}{ids}}}]"),
                tail,
            )
        };
        let rides = self.kind == Kind::Vllm && !self.tokens.is_empty();
        for (i, token) in self.tokens.iter().enumerate() {
            let finish = if rides && i + 1 == self.tokens.len() { quoted(self.reason()) } else { "null".into() };
            let mut ids = String::new();
            if self.ids {
                let prompt = if i == 0 { PROMPT_IDS } else { "null" };
                ids = format!(",\"stop_reason\":null,\"prompt_token_ids\":{prompt},\"token_ids\":[{}]", id_of(token));
            }
            out.push(chunk(token, &finish, &ids, ""));
        }
        if self.kind == Kind::LlamaCpp {
            out.push(chunk("", &quoted(self.reason()), "", &self.usage()));
        } else {
            if !rides {
                out.push(chunk("", &quoted(self.reason()), "", ""));
            }
            out.push(self.event(kind, "[]", &self.usage()));
        }
        out.push("data: [DONE]\n\n".into());
        out
    }

    fn messages(&self) -> Vec<String> {
        let event = |name: &str, members: &str| format!("event: {name}\ndata: {{\"type\":\"{name}\"{members}}}\n\n");
        let mut out = vec![
            event(
                "message_start",
                &format!(
                    ",\"message\":{{\"id\":\"msg_1\",\"type\":\"message\",\"role\":\"assistant\",\"content\":[],\
                     \"model\":\"m\",\"stop_reason\":null,\"stop_sequence\":null,\
                     \"usage\":{{\"input_tokens\":{PROMPT},\"output_tokens\":0}}}}"
                ),
            ),
            event("content_block_start", r#","index":0,"content_block":{"type":"text","text":""}"#),
            event("ping", ""),
        ];
        for token in &self.tokens {
            let text = quoted(token);
            out.push(event(
                "content_block_delta",
                &format!(",\"index\":0,\"delta\":{{\"type\":\"text_delta\",\"text\":{text}}}"),
            ));
        }
        let reason = if self.length { "max_tokens" } else { "end_turn" };
        out.push(event("content_block_stop", ",\"index\":0"));
        out.push(event(
            "message_delta",
            &format!(
                ",\"delta\":{{\"stop_reason\":\"{reason}\",\"stop_sequence\":null}},\"usage\":{{\"output_tokens\":{}}}",
                self.told
            ),
        ));
        out.push(event("message_stop", ""));
        out
    }

    fn responses(&self) -> Vec<String> {
        let text = self.tokens.concat();
        let status = if self.length { "incomplete" } else { "completed" };
        let mut number = 0;
        let mut event = |name: &str, members: &str| {
            number += 1;
            format!("event: {name}\ndata: {{\"type\":\"{name}\",\"sequence_number\":{},{members}}}\n\n", number - 1)
        };
        let object = |status: &str, output: &str, usage: &str| {
            format!(
                "\"response\":{{\"id\":\"resp_1\",\"object\":\"response\",\"created_at\":7,\"status\":\"{status}\",\
                 \"incomplete_details\":{},\"model\":\"m\",\"output\":{output},\"usage\":{usage},\"tools\":[]}}",
                if status == "incomplete" { r#"{"reason":"max_output_tokens"}"# } else { "null" }
            )
        };
        let part = |text: &str| {
            format!("{{\"type\":\"output_text\",\"text\":{},\"annotations\":[],\"logprobs\":[]}}", quoted(text))
        };
        let item = |status: &str, content: &str| {
            format!(
                "{{\"id\":\"msg_1\",\"type\":\"message\",\"role\":\"assistant\",\"status\":\"{status}\",\
                 \"content\":[{content}]}}"
            )
        };
        let place = "\"item_id\":\"msg_1\",\"output_index\":0,\"content_index\":0";
        let created = object("in_progress", "[]", "null");
        let mut out = vec![
            event("response.created", &created),
            event("response.in_progress", &created),
            event("response.output_item.added", &format!("\"output_index\":0,\"item\":{}", item("in_progress", ""))),
            event("response.content_part.added", &format!("{place},\"part\":{}", part(""))),
        ];
        for token in &self.tokens {
            out.push(event("response.output_text.delta", &format!("{place},\"delta\":{}", quoted(token))));
        }
        let done = item(status, &part(&text));
        out.push(event("response.output_text.done", &format!("{place},\"text\":{}", quoted(&text))));
        out.push(event("response.content_part.done", &format!("{place},\"part\":{}", part(&text))));
        out.push(event("response.output_item.done", &format!("\"output_index\":0,\"item\":{done}")));
        let usage = format!(
            "{{\"input_tokens\":{PROMPT},\"output_tokens\":{},\"total_tokens\":{}}}",
            self.told,
            PROMPT + self.told
        );
        out.push(event(&format!("response.{status}"), &object(status, &format!("[{done}]"), &usage)));
        out
    }

    fn stream(&self, endpoint: Endpoint) -> Vec<String> {
        match endpoint {
            Endpoint::Chat => self.chat(),
            Endpoint::Completions => self.completions(),
            Endpoint::Messages => self.messages(),
            _ => self.responses(),
        }
    }
}

/// An id that tells tokens apart.
fn id_of(token: &str) -> u32 {
    token.bytes().fold(7, |sum, byte| (sum * 31 + u32::from(byte)) % 150_000)
}

/// What a client makes of a stream.
#[derive(Debug, Default, PartialEq)]
struct Client {
    text: String,
    finish: String,
    input: u64,
    output: u64,
    ended: bool,
    roles: usize,
    ids: Vec<String>,
}

/// Reads a stream as a strict client does.
fn client(endpoint: Endpoint, stream: &[u8]) -> Client {
    let mut seen = Client::default();
    let mut number = 0;
    let mut order = Vec::new();
    crate::protocol::sse::Scanner::default().push(stream, |event| {
        assert!(!seen.ended, "something follows the end");
        if event.data == b"[DONE]" {
            seen.ended = true;
            return;
        }
        let value: Value = serde_json::from_slice(event.data).expect("JSON");
        match endpoint {
            Endpoint::Chat | Endpoint::Completions => seen.openai(endpoint, &value),
            Endpoint::Messages => seen.message(&value, &mut order),
            _ => {
                assert_eq!(value["sequence_number"], number);
                number += 1;
                seen.response(&value, &mut order);
            }
        }
        if !matches!(endpoint, Endpoint::Chat | Endpoint::Completions) {
            assert_eq!(event.name, value["type"].as_str().unwrap().as_bytes());
        }
    });
    seen.ids.dedup();
    assert!(seen.ids.len() <= 1, "{:?}", seen.ids);
    seen
}

impl Client {
    fn openai(&mut self, endpoint: Endpoint, value: &Value) {
        assert!(value.get("prompt_token_ids").is_none_or(Value::is_null));
        self.ids.push(value["id"].to_string() + &value["model"].to_string() + &value["created"].to_string());
        if let Some(choice) = value["choices"].get(0) {
            assert!(choice.get("token_ids").is_none_or(Value::is_null));
            assert!(self.finish.is_empty(), "a choice goes on behind its end");
            assert_eq!(choice["index"], 0);
            let text = if endpoint == Endpoint::Chat { &choice["delta"]["content"] } else { &choice["text"] };
            self.roles += usize::from(choice["delta"]["role"].is_string());
            self.text += text.as_str().unwrap_or("");
            self.finish += choice["finish_reason"].as_str().unwrap_or("");
        }
        if value["usage"].is_object() {
            assert!(!self.finish.is_empty() && self.output == 0);
            self.input = value["usage"]["prompt_tokens"].as_u64().unwrap();
            self.output = value["usage"]["completion_tokens"].as_u64().unwrap();
            assert_eq!(value["usage"]["total_tokens"], self.input + self.output);
        }
    }

    fn message(&mut self, value: &Value, order: &mut Vec<String>) {
        let kind = value["type"].as_str().unwrap();
        let last = order.last().map_or("", String::as_str);
        match kind {
            "ping" => return,
            "message_start" => {
                assert_eq!(last, "");
                self.roles += 1;
                self.input = value["message"]["usage"]["input_tokens"].as_u64().unwrap();
            }
            "content_block_start" => assert_eq!(last, "message_start"),
            "content_block_delta" => {
                assert!(matches!(last, "content_block_start" | "content_block_delta"), "{last}");
                assert_eq!(value["index"], 0);
                self.text += value["delta"]["text"].as_str().unwrap();
            }
            "content_block_stop" => assert!(matches!(last, "content_block_start" | "content_block_delta"), "{last}"),
            "message_delta" => {
                assert!(matches!(last, "content_block_stop" | "message_start"), "{last}");
                self.finish += value["delta"]["stop_reason"].as_str().unwrap();
                self.output = value["usage"]["output_tokens"].as_u64().unwrap();
                if let Some(input) = value["usage"]["input_tokens"].as_u64() {
                    self.input = input;
                }
            }
            "message_stop" => {
                assert_eq!(last, "message_delta");
                self.ended = true;
            }
            other => panic!("{other}"),
        }
        order.push(kind.to_owned());
    }

    fn response(&mut self, value: &Value, order: &mut Vec<String>) {
        let kind = value["type"].as_str().unwrap();
        let last = order.last().map_or("", String::as_str);
        let must = |before: &[&str]| assert!(before.contains(&last), "{kind} behind {last}");
        match kind {
            "response.created" => must(&[""]),
            "response.in_progress" => must(&["response.created"]),
            "response.output_item.added" => must(&["response.created", "response.in_progress"]),
            "response.content_part.added" => must(&["response.output_item.added"]),
            "response.output_text.delta" => {
                must(&["response.content_part.added", "response.output_text.delta"]);
                self.ids.push(value["item_id"].to_string());
                self.text += value["delta"].as_str().unwrap();
            }
            "response.output_text.done" => {
                must(&["response.content_part.added", "response.output_text.delta"]);
                self.ids.push(value["item_id"].to_string());
                assert_eq!(value["text"], self.text.as_str());
            }
            "response.content_part.done" => {
                must(&["response.output_text.done"]);
                assert_eq!(value["part"]["text"], self.text.as_str());
            }
            "response.output_item.done" => {
                must(&["response.content_part.done"]);
                self.ids.push(value["item"]["id"].to_string());
                assert_eq!(value["item"]["content"][0]["text"], self.text.as_str());
            }
            "response.completed" | "response.incomplete" => {
                must(&["response.output_item.done"]);
                self.ended = true;
                self.roles += 1;
                let response = &value["response"];
                assert_eq!(response["output"][0]["content"][0]["text"], self.text.as_str());
                assert_eq!(response["model"], "m");
                self.finish = response["status"].as_str().unwrap().to_owned()
                    + response["incomplete_details"]["reason"].as_str().unwrap_or("");
                self.input = response["usage"]["input_tokens"].as_u64().unwrap();
                self.output = response["usage"]["output_tokens"].as_u64().unwrap();
            }
            other => panic!("{other}"),
        }
        order.push(kind.to_owned());
    }
}

/// A stream that is cut where it is told, again and again.
#[derive(Clone, Debug)]
struct Case {
    endpoint: Endpoint,
    first: Kind,
    shape: Shape,
    second: Kind,
    tokens: Vec<String>,
    length: bool,
    ids: bool,
    /// Of each stream the share of its events that come.
    cuts: Vec<f64>,
}

impl Case {
    fn answer(&self, kind: Kind, ids: bool) -> Answer {
        let tokens = self.tokens.clone();
        let told = tokens.len() as u64;
        Answer { kind, tokens, length: self.length, ids, id: "first", prompt: PROMPT, told }
    }

    /// The whole stream as nobody cut it.
    fn uncut(&self) -> Client {
        client(self.endpoint, self.answer(self.first, false).stream(self.endpoint).concat().as_bytes())
    }

    fn run(&self, size: usize) -> (Client, Vec<u8>) {
        let mut tap = Tap::new(self.endpoint, self.ids);
        let mut out = Vec::new();
        let events = self.answer(self.first, self.ids).stream(self.endpoint);
        let mut cuts = self.cuts.iter();
        let share = cuts.next().copied().unwrap_or(1.0);
        let came = (share * events.len() as f64) as usize;
        for piece in events[..came].chunks(size) {
            let passed = tap.push(Bytes::from(piece.concat()), None);
            out.extend_from_slice(&passed.data);
            if passed.seen == Seen::Ended {
                return (client(self.endpoint, &out), out);
            }
        }
        // One continuation for each further cut, and one that comes to its end.
        for share in cuts.copied().map(Some).chain([None]) {
            let (mut splice, events) = self.continuation(&mut tap);
            let came = share.map_or(events.len(), |share| (share * events.len() as f64) as usize);
            for piece in events[..came].chunks(size) {
                let passed = splice.push(piece.concat().as_bytes(), &mut tap);
                out.extend_from_slice(&passed.data);
                match passed.seen {
                    Seen::Going => {}
                    Seen::Ended => return (client(self.endpoint, &out), out),
                    Seen::Cut(why) => panic!("{why}"),
                }
            }
        }
        panic!("it never ended");
    }

    fn continuation(&self, tap: &mut Tap) -> (Splice, Vec<String>) {
        let total = self.tokens.len() as u64;
        let delivered = tap.delivered();
        let text = delivered.text();
        assert!(self.tokens.concat().starts_with(&text));
        if delivered.is_closed() && delivered.finish().is_none() {
            tap.settle(if self.length { Finish::Length } else { Finish::Stop });
        }
        let delivered = tap.delivered();
        let ids = if self.ids && self.shape == Shape::Completions { delivered.settled_ids() } else { None };
        let (mut rest, swallow, said) = if let Some(ids) = &ids {
            let mut left = self.tokens.clone();
            let kept: String = left.drain(..ids.len()).collect();
            assert_eq!(kept, text);
            assert_eq!(ids, &self.tokens[..ids.len()].iter().map(|token| id_of(token)).collect::<Vec<_>>());
            (left, String::new(), ids.len() as u64)
        } else {
            let said = delivered.chunks().min(total);
            let sent = text.trim_end();
            let back = text[sent.len()..].to_owned();
            let mut rest = vec![back.clone()];
            rest.retain(|text| !text.is_empty());
            let mut at = 0;
            for token in &self.tokens {
                if at >= text.len() {
                    rest.push(token.clone());
                }
                at += token.len();
            }
            (rest, back, said)
        };
        let mut length = self.length;
        if delivered.finish().is_some() {
            (rest, length) = (vec![" more".to_owned()], true);
        }
        let answer = Answer {
            kind: self.second,
            tokens: rest,
            length,
            ids: ids.is_some(),
            id: "second",
            prompt: PROMPT + said,
            told: if delivered.finish().is_some() { 1 } else { total - said },
        };
        let seam = Seam { shape: self.shape, ids: ids.is_some(), swallow, said, stops: vec![], usage: true };
        let events = match self.shape {
            Shape::Chat => answer.chat(),
            Shape::Completions => answer.completions(),
        };
        (Splice::new(seam), events)
    }
}

fn cases(cuts: std::ops::Range<usize>) -> impl Strategy<Value = Case> {
    let endpoint =
        prop::sample::select(vec![Endpoint::Chat, Endpoint::Completions, Endpoint::Messages, Endpoint::Responses]);
    let kinds = || prop::sample::select(vec![Kind::Vllm, Kind::LlamaCpp, Kind::Sglang]);
    let shape = prop::sample::select(vec![Shape::Chat, Shape::Completions]);
    let token = prop_oneof![4 => "[a-z ]{1,4}", 1 => "[\n\t \"\\\\]{1,3}", 1 => "[é🌈中\u{1}/]{1,2}"];
    let tokens = prop::collection::vec(token, 1..9);
    let cuts = prop::collection::vec(0.0..1.0, cuts);
    (endpoint, kinds(), shape, kinds(), tokens, any::<(bool, bool)>(), cuts).prop_map(
        |(endpoint, first, shape, second, tokens, (length, ids), cuts)| {
            let ids = ids && first == Kind::Vllm && matches!(endpoint, Endpoint::Chat | Endpoint::Completions);
            let second = if ids && shape == Shape::Completions { Kind::Vllm } else { second };
            Case { endpoint, first, shape, second, tokens, length, ids, cuts }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(768))]
    #[test]
    fn a_cut_anywhere_gives_what_no_cut_gives(case in cases(1..2)) {
        let (seen, _) = case.run(1);
        let mut uncut = case.uncut();
        uncut.ids.clone_from(&seen.ids);
        if case.endpoint == Endpoint::Completions || case.endpoint == Endpoint::Responses || case.endpoint == Endpoint::Messages {
            uncut.roles = seen.roles;
        }
        prop_assert_eq!(seen, uncut);
    }

    #[test]
    fn further_cuts_give_what_no_cut_gives(case in cases(2..5)) {
        let (seen, _) = case.run(1);
        let mut uncut = case.uncut();
        (uncut.ids, uncut.roles) = (seen.ids.clone(), seen.roles);
        prop_assert_eq!(seen, uncut);
    }

    #[test]
    fn however_the_events_come_together(case in cases(1..3), size in 2_usize..6) {
        prop_assert_eq!(case.run(1).1, case.run(size).1);
    }
}

proptest! {
    /// Ids ahead of the text, or whose text is not proven, are taken back; their text comes again.
    #[test]
    fn ids_taken_back_come_again(case in cases(1..2), kept in 0.0..1.0, further in 0.0..1.0) {
        let case = Case { endpoint: Endpoint::Chat, ids: true, ..case };
        let mut tap = Tap::new(case.endpoint, true);
        let events = case.answer(Kind::Vllm, true).stream(case.endpoint);
        let came = ((case.cuts[0] * events.len() as f64) as usize).min(case.tokens.len());
        let mut out = tap.push(Bytes::from(events[..came].concat()), None).data.to_vec();
        for share in [Some(further), None] {
            let known = tap.delivered().ids().unwrap().all.len();
            let kept = (kept * known as f64) as usize;
            let text = tap.delivered().text();
            let mut rest = case.tokens.clone();
            let before: String = rest.drain(..kept).collect();
            let total = case.tokens.len() as u64;
            let answer = Answer {
                kind: Kind::Vllm, tokens: rest, length: case.length, ids: true, id: "second",
                prompt: PROMPT + kept as u64, told: total - kept as u64,
            };
            let swallow = text[before.len()..].to_owned();
            let seam = Seam {
                shape: Shape::Completions, ids: true, swallow, said: kept as u64, stops: vec![], usage: true,
            };
            let mut splice = Splice::new(seam);
            let events = answer.completions();
            let came = share.map_or(events.len(), |share| ((share * events.len() as f64) as usize).min(answer.tokens.len() - 1));
            for event in &events[..came] {
                let passed = splice.push(event.as_bytes(), &mut tap);
                prop_assert!(!matches!(passed.seen, Seen::Cut(_)), "{:?}", passed.seen);
                out.extend_from_slice(&passed.data);
            }
        }
        let seen = client(case.endpoint, &out);
        let mut uncut = Case { first: Kind::Vllm, ..case }.uncut();
        uncut.ids.clone_from(&seen.ids);
        prop_assert_eq!(seen, uncut);
    }
}

/// A chat stream of vLLM that said `text`, and stands open.
fn open(endpoint: Endpoint, text: &str) -> (Tap, Vec<u8>) {
    let tokens = if text.is_empty() { vec![] } else { vec![text.to_owned()] };
    let count = tokens.len();
    let answer = Answer { kind: Kind::Sglang, tokens, length: false, ids: false, id: "first", prompt: PROMPT, told: 1 };
    let opening = match endpoint {
        Endpoint::Chat => 1,
        Endpoint::Completions => 0,
        Endpoint::Messages => 3,
        _ => 4,
    };
    let mut tap = Tap::new(endpoint, false);
    let data = tap.push(answer.stream(endpoint)[..opening + count].concat().into(), None).data.to_vec();
    (tap, data)
}

fn seam(swallow: &str, stops: &[&str]) -> Seam {
    let stops = stops.iter().map(|stop| (*stop).to_owned()).collect();
    Seam { shape: Shape::Chat, ids: false, swallow: swallow.to_owned(), said: 1, stops, usage: true }
}

fn delta(members: &str, more: &str) -> String {
    format!("data: {{\"id\":\"b\",\"model\":\"n\",\"choices\":[{{\"index\":0,\"delta\":{{{members}}}{more}}}]}}\n\n")
}

fn say(text: &str) -> String {
    delta(&format!("\"content\":{}", quoted(text)), "")
}

const STOP: &str = ",\"finish_reason\":\"stop\"";

/// `texts` go through a seam: what the client has then.
fn joined(delivered: &str, seam: Seam, texts: &[&str]) -> Result<Client, String> {
    let (mut tap, mut out) = open(Endpoint::Chat, delivered);
    let mut splice = Splice::new(seam);
    let events = texts.iter().map(|text| say(text)).chain([delta("", STOP), "data: [DONE]\n\n".to_owned()]);
    for event in events {
        let passed = splice.push(event.as_bytes(), &mut tap);
        out.extend_from_slice(&passed.data);
        match passed.seen {
            Seen::Going => {}
            Seen::Ended => return Ok(client(Endpoint::Chat, &out)),
            Seen::Cut(why) => return Err(why),
        }
    }
    panic!("it never ended");
}

#[test]
fn white_space_comes_again_in_whole_in_part_or_not_at_all() {
    for (again, whole) in [
        (&["\n\nb"][..], "a\n\nb"),
        (&["\n", "\n", "b"], "a\n\nb"),
        (&["\nb"], "a\n\nb"),
        (&["\n", "b"], "a\n\nb"),
        (&["b"], "a\n\nb"),
        (&["\n\n\nb"], "a\n\n\nb"),
        (&[" b"], "a\n\n b"),
        (&["", "\n"], "a\n\n"),
        (&[], "a\n\n"),
    ] {
        assert_eq!(joined("a\n\n", seam("\n\n", &[]), again).unwrap().text, whole, "{again:?}");
    }
}

#[test]
fn a_text_that_does_not_come_again_is_a_cut() {
    for again in [&["two three"][..], &["one tow"], &["on", "x"], &["one"], &[]] {
        assert!(joined("zero one two", seam("one two", &[]), again).is_err(), "{again:?}");
    }
    assert_eq!(
        joined("zero one two", seam("one two", &[]), &["one", " two three"]).unwrap().text,
        "zero one two three"
    );
}

#[test]
fn stop_strings_are_found_across_the_seam() {
    for (delivered, texts, whole) in [
        ("say EN", &["D now"][..], "say EN"),
        ("say E", &["N", "D now"], "say E"),
        ("say E", &["N", "now"], "say ENnow"),
        ("say E", &["N"], "say EN"),
        ("say E", &["", "N", "", "D"], "say E"),
        ("say ", &["END"], "say END"),
        ("say <", &["/", "x"], "say </x"),
        ("say <", &["/s>"], "say <"),
        ("é", &["é!"], "é"),
    ] {
        let stops = ["END", "</s>", "éé"];
        assert_eq!(joined(delivered, seam("", &stops), texts).unwrap().text, whole, "{delivered:?} {texts:?}");
    }
    // Behind white space that comes again.
    assert_eq!(joined("a\n", seam("\n", &["\nQ"]), &["\n", "Q: b"]).unwrap().text, "a\n");
}

#[test]
fn a_stop_string_found_is_told_in_every_dialect() {
    for endpoint in [Endpoint::Chat, Endpoint::Completions, Endpoint::Messages, Endpoint::Responses] {
        let (mut tap, mut out) = open(endpoint, "say E");
        let mut splice = Splice::new(seam("", &["END"]));
        for text in ["N", "D", "x"] {
            out.extend_from_slice(&splice.push(say(text).as_bytes(), &mut tap).data);
        }
        let seen = client(endpoint, &out);
        assert!(seen.ended && seen.text == "say E", "{seen:?}");
        let out = String::from_utf8(out).unwrap();
        assert_eq!(out.contains("\"stop_sequence\":\"END\""), endpoint == Endpoint::Messages);
        assert_eq!(out.contains("\"stop_reason\":\"END\""), matches!(endpoint, Endpoint::Chat | Endpoint::Completions));
    }
}

#[test]
fn an_engines_stop_string_is_told_to_messages() {
    let (mut tap, mut out) = open(Endpoint::Messages, "a");
    let mut splice = Splice::new(seam("", &[]));
    let end = delta("\"content\":\"b\"", ",\"finish_reason\":\"stop\",\"stop_reason\":\"END\"") + "data: [DONE]\n\n";
    let passed = splice.push(end.as_bytes(), &mut tap);
    out.extend_from_slice(&passed.data);
    assert_eq!(passed.seen, Seen::Ended);
    assert_eq!(client(Endpoint::Messages, &out).finish, "stop_sequence");
}

#[test]
fn a_continuation_that_fails_is_a_cut_and_nothing_of_that_goes_on() {
    for (event, why) in [
        ("data: {\"error\":{\"message\":\"gone\"}}\n\ndata: [DONE]\n\n".to_owned(), "gone"),
        (delta("", ",\"finish_reason\":\"abort\""), "the engine ended the continuation with `abort`"),
        ("data: [DONE]\n\n".to_owned(), "the continuation ended without a finish reason"),
        ("event: error\ndata: {}\n\n".to_owned(), "the continuation failed"),
        ("data: x\n\n".to_owned(), "an event of the continuation is not JSON"),
        ("data: {\"cho".to_owned(), "an event of the continuation is too large to be read"),
        (delta("\"reasoning\":\"hm\"", ""), "the continuation takes the answer for reasoning"),
    ] {
        let (mut tap, _) = open(Endpoint::Chat, "a");
        let mut splice = Splice::new(seam("", &[]));
        let passed = splice.push((say("b") + &event).as_bytes(), &mut tap);
        assert_eq!(passed.seen, Seen::Cut(why.to_owned()));
        assert_eq!(client(Endpoint::Chat, &passed.data).text, "b");
        assert_eq!((tap.delivered().text().as_str(), tap.delivered().finish()), ("ab", None));
        let passed = splice.push(say("c").as_bytes(), &mut tap);
        assert!(passed.data.is_empty() && matches!(passed.seen, Seen::Cut(_)), "over is over");
        // And another goes on.
        let mut splice = Splice::new(seam("", &[]));
        let passed = splice.push((say("c") + &delta("", STOP) + "data: [DONE]").as_bytes(), &mut tap);
        assert_eq!(passed.seen, Seen::Ended);
        assert_eq!(tap.delivered().text(), "abc");
    }
}

#[test]
fn keep_alives_of_a_continuation_go_on() {
    let (mut tap, _) = open(Endpoint::Chat, "a");
    let mut splice = Splice::new(seam("", &[]));
    let passed = splice.push(b": ping\n\nevent: x\n\n\r\n", &mut tap);
    assert_eq!((passed.data, passed.seen), (": ping\n\n".into(), Seen::Going));
}

#[test]
fn tool_calls_pass_to_chat_alone() {
    let calls = r#""role":"assistant","content":null,"tool_calls":[{"index":0,"id":"call_1"}],"refusal":null"#;
    for (endpoint, passes) in [(Endpoint::Chat, true), (Endpoint::Messages, false), (Endpoint::Responses, false)] {
        let (mut tap, _) = open(endpoint, "a");
        let mut splice = Splice::new(seam("", &[]));
        let end = delta("", ",\"finish_reason\":\"tool_calls\"") + "data: [DONE]\n\n";
        let passed = splice.push((delta(calls, "") + &end).as_bytes(), &mut tap);
        assert_eq!(tap.delivered().refusal(), Some(crate::proxy::resume::refusal::Refusal::ToolCall));
        assert_eq!(passed.seen == Seen::Ended, passes);
        let out = String::from_utf8_lossy(&passed.data).into_owned();
        assert_eq!(out.contains(r#""delta":{"tool_calls":[{"index":0,"id":"call_1"}]}"#), passes, "{out}");
        assert_eq!(out.contains("\"finish_reason\":\"tool_calls\""), passes);
        assert!(!out.contains("role"));
    }
}

#[test]
fn a_stream_that_never_began_begins_once() {
    for endpoint in [Endpoint::Chat, Endpoint::Completions, Endpoint::Messages, Endpoint::Responses] {
        for kind in [Kind::Vllm, Kind::LlamaCpp, Kind::Sglang] {
            let mut tap = Tap::new(endpoint, false);
            let tokens = vec!["a".to_owned(), "b".to_owned()];
            let answer = Answer { kind, tokens, length: true, ids: false, id: "x", prompt: PROMPT, told: 2 };
            let mut splice = Splice::new(Seam { said: 0, ..seam("", &[]) });
            let passed = splice.push(answer.chat().concat().as_bytes(), &mut tap);
            assert_eq!(passed.seen, Seen::Ended);
            let seen = client(endpoint, &passed.data);
            assert_eq!((seen.text.as_str(), seen.input, seen.output, seen.ended), ("ab", PROMPT, 2, true));
            assert_eq!(seen.roles, usize::from(endpoint != Endpoint::Completions));
        }
    }
}

#[test]
fn reasoning_of_a_fresh_start_passes_to_chat() {
    let (mut tap, _) = open(Endpoint::Chat, "");
    let mut splice = Splice::new(Seam { said: 0, ..seam("", &[]) });
    let passed = splice.push((delta("\"reasoning\":\"hm\"", "") + &say("b")).as_bytes(), &mut tap);
    assert!(String::from_utf8_lossy(&passed.data).contains(r#""delta":{"reasoning":"hm"}"#));
    assert_eq!(client(Endpoint::Chat, &passed.data).text, "b");
}

#[test]
fn after_the_end_only_usage_is_wanted() {
    for endpoint in [Endpoint::Chat, Endpoint::Completions, Endpoint::Messages, Endpoint::Responses] {
        let (mut tap, mut out) = open(endpoint, "abc");
        tap.settle(Finish::Length);
        let mut splice = Splice::new(Seam { said: 3, ..seam("", &["c more"]) });
        let answer = Answer {
            kind: Kind::LlamaCpp,
            tokens: vec![" more".to_owned()],
            length: false,
            ids: false,
            id: "x",
            prompt: PROMPT + 3,
            told: 1,
        };
        let passed = splice.push(answer.chat().concat().as_bytes(), &mut tap);
        assert_eq!(passed.seen, Seen::Ended);
        out.extend_from_slice(&passed.data);
        let seen = client(endpoint, &out);
        assert_eq!((seen.text.as_str(), seen.input, seen.output), ("abc", PROMPT, 3), "{endpoint:?}");
        assert!(["length", "max_tokens", "incompletemax_output_tokens"].contains(&&seen.finish[..]));
    }
}

#[test]
fn usage_is_told_only_where_it_is_wanted_and_details_where_they_are() {
    let usage = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":13,\"completion_tokens\":2,\
                 \"prompt_tokens_details\":{\"cached_tokens\":13}}}\n\n";
    for wanted in [true, false] {
        let (mut tap, _) = open(Endpoint::Chat, "a");
        let mut splice = Splice::new(Seam { usage: wanted, ..seam("", &[]) });
        let passed = splice.push((say("b") + &delta("", STOP) + usage + "data: [DONE]\n\n").as_bytes(), &mut tap);
        let out = String::from_utf8_lossy(&passed.data).into_owned();
        let told = "\"usage\":{\"prompt_tokens\":12,\"total_tokens\":15,\"completion_tokens\":3,\
                    \"prompt_tokens_details\":{\"cached_tokens\":12}}";
        assert_eq!(out.contains(told), wanted, "{out}");
        assert_eq!(out.contains("usage"), wanted);
    }
}

/// Every event of a real stream is the last that came; a chat continuation goes on.
#[test]
fn real_streams_go_on_from_any_event() {
    for (name, endpoint) in [
        ("llamacpp-responses.sse", Endpoint::Responses),
        ("llamacpp-messages.sse", Endpoint::Messages),
        ("vllm-chat-usage.sse", Endpoint::Chat),
        ("vllm-completions.sse", Endpoint::Completions),
        ("llamacpp-chat-usage.sse", Endpoint::Chat),
        ("llamacpp-completions.sse", Endpoint::Completions),
    ] {
        let path = format!("{}/tests/fixtures/real/{name}", env!("CARGO_MANIFEST_DIR"));
        let stream = std::fs::read_to_string(path).unwrap();
        let events: Vec<_> = stream.split_inclusive("\n\n").filter(|event| !event.trim().is_empty()).collect();
        let mut whole = Tap::new(endpoint, false);
        whole.push(stream.clone().into(), None);
        for came in 0..events.len() {
            let mut tap = Tap::new(endpoint, false);
            let mut out = tap.push(events[..came].concat().into(), None).data.to_vec();
            let text = whole.delivered().text();
            let rest = text.strip_prefix(&tap.delivered().text()).unwrap();
            let reason = whole.delivered().finish().unwrap().name();
            let end = delta("", &format!(",\"finish_reason\":\"{reason}\""));
            let mut splice = Splice::new(Seam { said: tap.delivered().chunks(), ..seam("", &[]) });
            let passed = splice.push((say(rest) + &end + "data: [DONE]\n\n").as_bytes(), &mut tap);
            assert_eq!(passed.seen, Seen::Ended, "{name} {came}");
            out.extend_from_slice(&passed.data);
            let mut read = Tap::new(endpoint, false);
            assert_eq!(read.push(out.into(), None).seen, Seen::Ended, "{name} {came}");
            assert_eq!(read.delivered().text(), text, "{name} {came}");
            assert_eq!(read.delivered().finish(), whole.delivered().finish(), "{name} {came}");
        }
    }
}
