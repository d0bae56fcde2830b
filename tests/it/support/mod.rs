//! The kit: a gateway in this process on a free port, simulated backends behind it, and a client that shows bytes.

pub mod coded;

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::Arc,
    thread::JoinHandle,
    time::Duration,
};

use sluicegate::{
    app::{App, Options, Stop},
    config::{Env, Flags, from_text},
    sim,
};

/// A gateway that runs until it is dropped.
pub struct Gateway {
    pub addr: SocketAddr,
    pub admin: SocketAddr,
    stop: Stop,
    thread: Option<JoinHandle<Result<(), String>>>,
}

impl Gateway {
    /// In front of `sims`, with `extra` lines of configuration.
    pub fn new(sims: &[&sim::Handle], extra: &str) -> Self {
        let backends: String =
            sims.iter().enumerate().map(|(i, sim)| format!("  - {{name: b{i}, url: '{}'}}\n", sim.url())).collect();
        Self::with_config(&format!("backends:\n{backends}{extra}"))
    }

    /// With `config`, whose listen addresses are set here.
    pub fn with_config(config: &str) -> Self {
        Self::run(&format!("admin: 127.0.0.1:0\n{config}"))
    }

    /// As [`Gateway::with_config`], with the admin plane where `config` says.
    pub fn on_one_port(config: &str) -> Self {
        Self::run(config)
    }

    fn run(config: &str) -> Self {
        let defaults = "listen: 127.0.0.1:0\n";
        let workers = if config.contains("workers:") { "" } else { "workers: 2\n" };
        let log = if config.contains("log:") { "" } else { "log: {access: false, level: error}\n" };
        let text = format!("{defaults}{workers}{log}{config}");
        let loaded = from_text(&text, None, &Env::default(), &Flags::default())
            .unwrap_or_else(|problems| panic!("{problems:?}\n{text}"));
        let app = App::bind(loaded.config, Options::default()).expect("the gateway binds");
        let addr = app.listens_at().expect("TCP");
        let (admin, stop) = (app.admin_at().unwrap_or(addr), app.stop());
        let thread = std::thread::spawn(move || app.run().map_err(|e| e.to_string()));
        Self { addr, admin, stop, thread: Some(thread) }
    }

    /// Sends one request on a connection of its own.
    pub fn request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: impl AsRef<[u8]>) -> Answer {
        Exchange::start(self.addr, method, path, headers, body.as_ref()).finish()
    }

    pub fn get(&self, path: &str) -> Answer {
        self.request("GET", path, &[], "")
    }

    pub fn post(&self, path: &str, json: &str) -> Answer {
        self.request("POST", path, &[("content-type", "application/json")], json)
    }

    /// Starts a request and lets the answer come.
    pub fn start(&self, path: &str, json: &str) -> Exchange {
        Exchange::start(self.addr, "POST", path, &[("content-type", "application/json")], json.as_bytes())
    }

    pub fn admin(&self, method: &str, path: &str) -> Answer {
        let head = format!("{method} {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n", self.admin);
        Exchange::raw(self.admin, head.as_bytes()).finish()
    }

    /// The value of a series on `/metrics`; 0 when it is not there.
    pub fn metric(&self, series: &str) -> f64 {
        let text = self.admin("GET", "/metrics").text();
        text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok()).unwrap_or_default()
    }

    /// Asks the admin plane until `wanted` holds: a state that another thread is about to reach.
    pub fn until(&self, path: &str, wanted: impl Fn(&str) -> bool) -> String {
        for _ in 0..2_000 {
            let text = self.admin("GET", path).text();
            if wanted(&text) {
                return text;
            }
            std::thread::park_timeout(Duration::from_millis(10));
        }
        panic!("{path} never showed it; now: {}", self.admin("GET", path).text());
    }

    /// Waits until every backend is known to be well.
    pub fn healthy(self) -> Self {
        self.until("/api/v1/backends", |text| {
            let view: serde_json::Value = serde_json::from_str(text).unwrap();
            view["backends"].as_array().unwrap().iter().all(|backend| backend["state"] == "healthy")
        });
        self
    }

    /// Begins the orderly end.
    pub fn terminate(&self) {
        self.stop.terminate();
    }

    /// Waits for the end.
    pub fn ended(mut self) -> Result<(), String> {
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.stop.at_once();
        if let Some(thread) = self.thread.take()
            && let Err(panic) = thread.join()
            && !std::thread::panicking()
        {
            std::panic::resume_unwind(panic);
        }
    }
}

/// A sim that is set by `change`.
pub fn sim(change: impl FnOnce(&mut sim::Config)) -> sim::Handle {
    let mut config = sim::Config::default();
    change(&mut config);
    sim::Sim::start(config).expect("a sim starts")
}

/// An answer that is being read.
pub struct Exchange {
    stream: TcpStream,
    read: Vec<u8>,
}

impl Exchange {
    pub fn start(addr: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Self {
        let mut head = format!("{method} {path} HTTP/1.1\r\nhost: gate.test\r\nconnection: close\r\n");
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        if !body.is_empty() {
            head += &format!("content-length: {}\r\n", body.len());
        }
        head += "\r\n";
        Self::raw(addr, &[head.as_bytes(), body].concat())
    }

    /// Sends `bytes` as they are.
    pub fn raw(addr: SocketAddr, bytes: &[u8]) -> Self {
        let mut stream = TcpStream::connect(addr).expect("the gateway accepts");
        // Refused before it was read whole: the answer says why.
        let _early = stream.write_all(bytes);
        Self { stream, read: Vec::new() }.within(Duration::from_secs(60))
    }

    /// What does not come within `time` fails the test.
    pub fn within(self, time: Duration) -> Self {
        self.stream.set_read_timeout(Some(time)).unwrap();
        self
    }

    /// Sends more.
    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// Reads until `text` came; gives all that came so far.
    pub fn until(&mut self, text: &str) -> String {
        self.until_it(|read| read.contains(text))
    }

    /// Reads until what came is as `wanted`.
    pub fn until_it(&mut self, wanted: impl Fn(&str) -> bool) -> String {
        loop {
            let read = String::from_utf8_lossy(&self.read).into_owned();
            if wanted(&read) {
                return read;
            }
            assert!(self.more(), "the end came too early: {read}");
        }
    }

    fn more(&mut self) -> bool {
        let mut buffer = [0; 16 * 1024];
        match self.stream.read(&mut buffer) {
            Ok(0) => false,
            Ok(n) => {
                self.read.extend_from_slice(&buffer[..n]);
                true
            }
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => false,
            Err(error) => panic!("{error}: {}", String::from_utf8_lossy(&self.read)),
        }
    }

    /// Reads to the end, and tells whether it was a reset.
    pub fn is_reset(&mut self) -> bool {
        let mut buffer = [0; 16 * 1024];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return false,
                Ok(_) => {}
                Err(error) => return error.kind() == std::io::ErrorKind::ConnectionReset,
            }
        }
    }

    /// Reads to the end of the connection.
    pub fn finish(mut self) -> Answer {
        while self.more() {}
        Answer::parse(&self.read)
    }
}

/// An answer as it came.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Whether its framing says that it is complete.
    pub whole: bool,
}

impl Answer {
    fn parse(read: &[u8]) -> Self {
        let end = memchr::memmem::find(read, b"\r\n\r\n")
            .unwrap_or_else(|| panic!("no head: {:?}", String::from_utf8_lossy(read)));
        let head = String::from_utf8_lossy(&read[..end]).into_owned();
        let mut lines = head.split("\r\n");
        let status = lines.next().and_then(|line| line.split(' ').nth(1)).and_then(|code| code.parse().ok()).unwrap();
        let headers: Vec<(String, String)> = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        let rest = &read[end + 4..];
        let find = |name: &str| headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
        let (body, whole) = if find("transfer-encoding") == Some("chunked") {
            dechunk(rest)
        } else {
            let length = find("content-length").and_then(|n| n.parse::<usize>().ok());
            (rest.to_vec(), length.is_none_or(|length| length == rest.len()))
        };
        Self { status, headers, body, whole }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }

    /// `error.code` of an error of ours.
    pub fn code(&self) -> String {
        self.json()["error"]["code"].as_str().unwrap_or_default().to_owned()
    }
}

fn dechunk(mut rest: &[u8]) -> (Vec<u8>, bool) {
    let mut body = Vec::new();
    while let Some(end) = memchr::memmem::find(rest, b"\r\n") {
        let Ok(size) = usize::from_str_radix(&String::from_utf8_lossy(&rest[..end]), 16) else { break };
        rest = &rest[end + 2..];
        if size == 0 {
            return (body, true);
        }
        body.extend_from_slice(&rest[..size.min(rest.len())]);
        if rest.len() < size + 2 {
            break;
        }
        rest = &rest[size + 2..];
    }
    (body, false)
}

/// Runs `work` on `n` threads at once and gives what each gave.
pub fn at_once<T: Send + 'static>(n: usize, work: impl Fn(usize) -> T + Send + Sync + 'static) -> Vec<T> {
    let work = Arc::new(work);
    let threads: Vec<_> = (0..n)
        .map(|i| {
            let work = Arc::clone(&work);
            std::thread::spawn(move || work(i))
        })
        .collect();
    threads.into_iter().map(|thread| thread.join().unwrap()).collect()
}
