//! The demo's client: one request on one connection, its answer checked token by token.

use std::{convert::Infallible, net::SocketAddr, pin::Pin};

use bytes::Bytes;
use http_body::Body as _;
use http_body_util::Full;
use hyper::body::Incoming;
use serde_json::{Value, json};
use tokio::net::TcpStream;

use super::MODEL;
use crate::sim::{Source, io::Io};

/// The longest answer; longer ones are wrong.
const MOST: usize = 1024 * 1024;

/// What a client asks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Question<'a> {
    pub(super) prompt: &'a str,
    pub(super) streamed: bool,
    /// At temperature 0: there is one answer, which may be shared and kept.
    pub(super) greedy: bool,
}

/// What a client saw of one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answered {
    pub(super) outcome: Outcome,
    /// Tries that the gateway says it took; 1 when it does not say.
    pub(super) attempts: u32,
    /// Where the gateway says the answer came from.
    pub(super) origin: Origin,
}

/// Where an answer came from, as `Cache-Status` says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Origin {
    #[default]
    Backend,
    /// An answer that was running for another client already.
    Collapsed,
    Kept,
}

impl Origin {
    fn told(status: &str) -> Self {
        if status.contains("sluicegate;hit") {
            Self::Kept
        } else if status.contains("collapsed") {
            Self::Collapsed
        } else {
            Self::Backend
        }
    }
}

/// How a request ended for its client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Whole {
        tokens: u64,
    },
    /// A stream that ended in an error event.
    Cut {
        tokens: u64,
        reason: String,
    },
    /// No answer, an error status, or a stream that ended without a word.
    Failed {
        reason: String,
    },
    /// Other tokens than it must be.
    Wrong {
        what: String,
    },
}

fn failed(reason: impl ToString) -> Outcome {
    Outcome::Failed { reason: reason.to_string() }
}

/// Asks the gateway at `to`.
pub(super) async fn ask(to: SocketAddr, question: Question<'_>) -> Answered {
    let mut told = Told { attempts: 1, origin: Origin::Backend };
    let outcome = match exchange(to, question, &mut told).await {
        Ok(outcome) => outcome,
        Err(error) => failed(error),
    };
    Answered { outcome, attempts: told.attempts, origin: told.origin }
}

/// What the head of an answer says about its way.
struct Told {
    attempts: u32,
    origin: Origin,
}

type Failure = Box<dyn std::error::Error>;

async fn exchange(to: SocketAddr, question: Question<'_>, told: &mut Told) -> Result<Outcome, Failure> {
    let Question { prompt, streamed, greedy } = question;
    let stream = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(Io::new(stream, Bytes::new())).await?;
    let mut body = json!({"model": MODEL, "messages": [{"role": "user", "content": prompt}], "stream": streamed});
    if greedy {
        body["temperature"] = json!(0);
    }
    let request = http::Request::post("/v1/chat/completions")
        .header("host", to.to_string())
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(body.to_string())))?;
    let answer = async {
        let response = sender.send_request(request).await?;
        if let Some(tries) = response.headers().get("x-sluicegate-attempts") {
            told.attempts = tries.to_str()?.parse()?;
        }
        if let Some(status) = response.headers().get("cache-status") {
            told.origin = Origin::told(status.to_str()?);
        }
        let status = response.status().as_u16();
        let mut body = response.into_body();
        Ok(if streamed && status == 200 {
            read_stream(&mut body, prompt).await
        } else {
            read_plain(&mut body, status, prompt).await
        })
    };
    // How the connection ends is told by the answer.
    let driven = async {
        let _ = connection.await;
        std::future::pending::<Infallible>().await
    };
    tokio::select! {
        answered = answer => answered,
        never = driven => match never {},
    }
}

async fn next(body: &mut Incoming) -> Option<Result<Bytes, hyper::Error>> {
    loop {
        match std::future::poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await? {
            // Trailers say nothing here.
            Ok(frame) => {
                if let Ok(data) = frame.into_data() {
                    return Some(Ok(data));
                }
            }
            Err(error) => return Some(Err(error)),
        }
    }
}

async fn read_plain(body: &mut Incoming, status: u16, prompt: &str) -> Outcome {
    let mut whole = Vec::new();
    while let Some(piece) = next(body).await {
        match piece {
            Ok(piece) if whole.len() + piece.len() <= MOST => whole.extend_from_slice(&piece),
            Ok(_) => return failed("an answer of more than 1 MiB"),
            Err(error) => return failed(error),
        }
    }
    let answer: Value = serde_json::from_slice(&whole).unwrap_or_default();
    if status != 200 {
        return failed(format!("{status} {}", answer["error"]["message"].as_str().unwrap_or("without a reason")));
    }
    let text = answer["choices"][0]["message"]["content"].as_str().unwrap_or_default();
    judge(prompt, text)
}

async fn read_stream(body: &mut Incoming, prompt: &str) -> Outcome {
    let mut said = Said::default();
    while let Some(piece) = next(body).await {
        match piece {
            Ok(piece) => said.push(&piece),
            // The error event that came before is the honest end.
            Err(_) if said.error.is_some() => break,
            Err(error) => return failed(format!("cut without a word after {} tokens: {error}", said.tokens)),
        }
        if said.unread.len() > MOST {
            return failed("an event of more than 1 MiB");
        }
    }
    said.judge(prompt)
}

/// What a stream has said.
#[derive(Debug, Default)]
struct Said {
    unread: Vec<u8>,
    text: String,
    tokens: u64,
    finished: bool,
    done: bool,
    error: Option<String>,
}

impl Said {
    fn push(&mut self, piece: &[u8]) {
        self.unread.extend_from_slice(piece);
        while let Some(end) = self.unread.windows(2).position(|pair| pair == b"\n\n") {
            let event: Vec<u8> = self.unread.drain(..end + 2).collect();
            for line in String::from_utf8_lossy(&event).lines() {
                if let Some(data) = line.strip_prefix("data: ") {
                    self.event(data);
                }
            }
        }
    }

    fn event(&mut self, data: &str) {
        if data == "[DONE]" {
            self.done = true;
            return;
        }
        let event: Value = serde_json::from_str(data).unwrap_or_default();
        if let Some(error) = event.get("error") {
            self.error = Some(error["message"].as_str().unwrap_or("no reason given").to_owned());
        }
        let choice = &event["choices"][0];
        if let Some(text) = choice["delta"]["content"].as_str().filter(|text| !text.is_empty()) {
            self.text.push_str(text);
            self.tokens += 1;
        }
        self.finished |= choice["finish_reason"].is_string();
    }

    fn judge(self, prompt: &str) -> Outcome {
        match self.error {
            Some(reason) if spoken(prompt, &self.text) => Outcome::Cut { tokens: self.tokens, reason },
            None if self.finished && self.done => judge(prompt, &self.text),
            None if spoken(prompt, &self.text) => failed(format!("ended without a word after {} tokens", self.tokens)),
            _ => Outcome::Wrong { what: format!("other tokens than `{prompt}` must give") },
        }
    }
}

/// Whether `text` is a beginning of the right answer.
fn spoken(prompt: &str, text: &str) -> bool {
    Source::new(prompt, MODEL, 0).after(text).is_some()
}

/// Compares a whole answer with what it must be.
fn judge(prompt: &str, text: &str) -> Outcome {
    let source = Source::new(prompt, MODEL, 0);
    let tokens = source.natural();
    if text == source.text(tokens) {
        Outcome::Whole { tokens }
    } else {
        Outcome::Wrong { what: format!("other tokens than `{prompt}` must give") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(prompt: &str, tokens: u64, end: &str) -> Outcome {
        let source = Source::new(prompt, MODEL, 0);
        let mut bytes = String::new();
        for i in 0..tokens {
            let chunk = json!({"choices": [{"delta": {"content": source.token(i)}, "finish_reason": null}]});
            bytes += &format!("data: {chunk}\n\n");
        }
        bytes += end;
        let mut said = Said::default();
        bytes.as_bytes().chunks(7).for_each(|piece| said.push(piece));
        said.judge(prompt)
    }

    const FINISH: &str = "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n";

    #[test]
    fn a_stream_is_whole_cut_silent_or_wrong() {
        let all = Source::new("p", MODEL, 0).natural();
        assert_eq!(stream("p", all, FINISH), Outcome::Whole { tokens: all });
        assert!(matches!(stream("p", all - 1, FINISH), Outcome::Wrong { .. }));
        let error = "data: {\"error\":{\"message\":\"gone\"}}\n\n";
        assert_eq!(stream("p", 3, error), Outcome::Cut { tokens: 3, reason: "gone".to_owned() });
        assert!(matches!(stream("p", 3, ""), Outcome::Failed { .. }));
        assert!(matches!(stream("p", 3, "data: [DONE]\n\n"), Outcome::Failed { .. }));
    }
}
