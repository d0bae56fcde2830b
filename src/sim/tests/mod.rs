//! A sim on loopback, asked by a client that shows every byte: what it says, and how it goes wrong.

mod answers;
mod connections;
mod continuation;
mod faults;

use std::{collections::BTreeMap, net::SocketAddr};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::*;

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// FIN after a body that is whole by its own framing.
    Whole,
    /// FIN before that.
    Truncated,
    /// RST.
    Reset,
}

/// An answer to one request on a connection of its own.
#[derive(Debug)]
struct Reply {
    status: u16,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
    /// What came after the body's end.
    surplus: Vec<u8>,
    end: End,
}

impl Reply {
    fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// The data of all events, `[DONE]` left out.
    fn events(&self) -> Vec<Value> {
        let text = self.text();
        let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
        data.filter(|data| *data != "[DONE]").map(|data| serde_json::from_str(data).unwrap()).collect()
    }
}

fn start(config: Config) -> Handle {
    Sim::start(config).unwrap()
}

fn post(path: &str, body: &Value) -> Vec<u8> {
    let body = body.to_string();
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: sim\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
         connection: close\r\n\r\n",
        body.len()
    );
    (head + &body).into_bytes()
}

fn get(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nhost: sim\r\nconnection: close\r\n\r\n").into_bytes()
}

fn chat(more: Value) -> Value {
    let mut body = json!({"model": "sim", "messages": [{"role": "user", "content": "hello"}]});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

async fn connect(addr: SocketAddr) -> TcpStream {
    TcpStream::connect(addr).await.unwrap()
}

/// Sends, and reads to the end of the connection.
async fn ask(addr: SocketAddr, request: &[u8]) -> Reply {
    let mut stream = connect(addr).await;
    stream.write_all(request).await.unwrap();
    let mut bytes = Vec::new();
    let read = stream.read_to_end(&mut bytes).await;
    parse(&bytes, read.is_err())
}

async fn ask_json(addr: SocketAddr, path: &str, body: &Value) -> Reply {
    ask(addr, &post(path, body)).await
}

/// Takes an answer apart; an answer without a head has status 0.
fn parse(bytes: &[u8], reset: bool) -> Reply {
    let mut reply = Reply { status: 0, headers: BTreeMap::new(), body: vec![], surplus: vec![], end: End::Truncated };
    if let Some(at) = find(bytes, b"\r\n\r\n") {
        let head = std::str::from_utf8(&bytes[..at]).unwrap();
        let mut lines = head.split("\r\n");
        reply.status = lines.next().unwrap()[9..12].parse().unwrap_or(0);
        reply.headers = lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .collect();
        let rest = &bytes[at + 4..];
        let whole = if reply.headers.contains_key("transfer-encoding") {
            dechunk(rest, &mut reply)
        } else {
            let length: usize = reply.headers.get("content-length").map_or(rest.len(), |n| n.parse().unwrap());
            reply.body = rest[..length.min(rest.len())].to_vec();
            reply.surplus = rest[length.min(rest.len())..].to_vec();
            rest.len() >= length
        };
        reply.end = if whole { End::Whole } else { End::Truncated };
    }
    if reset {
        reply.end = End::Reset;
    }
    reply
}

fn dechunk(mut rest: &[u8], reply: &mut Reply) -> bool {
    while let Some(at) = find(rest, b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..at]).unwrap(), 16).unwrap();
        rest = &rest[at + 2..];
        if size == 0 {
            let end = find(rest, b"\r\n").unwrap();
            reply.surplus = rest[end + 2..].to_vec();
            return true;
        }
        reply.body.extend_from_slice(&rest[..size.min(rest.len())]);
        rest = rest.get(size + 2..).unwrap_or_default();
    }
    false
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}
