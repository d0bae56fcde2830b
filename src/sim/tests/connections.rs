//! Slots, clients that leave, kept-alive connections, transparency, tunnels, HTTP/2.

use bytes::Bytes;
use http_body::Body as _;
use http_body_util::Full;

use super::*;

const CHAT: &str = "/v1/chat/completions";

async fn begin(sim: &Handle, body: &Value) -> TcpStream {
    let mut stream = connect(sim.addr()).await;
    stream.write_all(&post(CHAT, body)).await.unwrap();
    stream
}

#[tokio::test]
async fn requests_wait_for_a_slot_and_are_shown() {
    for (engine, running, waiting) in [
        (
            Engine::Vllm,
            "vllm:num_requests_running{engine=\"0\",model_name=\"sim\"} 1.0",
            "num_requests_waiting{engine=\"0\",model_name=\"sim\"} 2.0",
        ),
        (
            Engine::Sglang,
            "sglang:num_running_reqs{model_name=\"sim\"} 1.0",
            "sglang:num_queue_reqs{model_name=\"sim\"} 2.0",
        ),
        (Engine::LlamaCpp, "llamacpp:requests_processing 1", "llamacpp:requests_deferred 2"),
    ] {
        let sim = start(Config { engine, slots: 1, ..Config::default() });
        sim.fault(Fault::new(Kind::Stall).times(1));
        let body = chat(json!({"stream": true, "max_tokens": 4}));
        let mut streams = vec![begin(&sim, &body).await];
        sim.until(|now| now.running == 1).await;
        streams.push(begin(&sim, &body).await);
        streams.push(begin(&sim, &body).await);
        sim.until(|now| now.waiting == 2).await;
        let metrics = ask(sim.addr(), &get("/metrics")).await.text();
        assert!(metrics.contains(running) && metrics.contains(waiting), "{metrics}");
        // One leaves the queue, the others are served.
        drop(streams.pop());
        sim.until(|now| now.waiting == 1 && now.cancelled == 1).await;
        sim.release();
        for mut stream in streams {
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes).await.unwrap();
            assert_eq!(parse(&bytes, false).end, End::Whole);
        }
        let now = sim.until(|now| now.served == 2).await;
        assert_eq!((now.running, now.waiting, now.tokens), (0, 0, 8));
    }
}

#[tokio::test]
async fn a_client_that_leaves_frees_its_slot_at_once() {
    let pace = Pace { ttft: Duration::from_secs(3600), ..Pace::default() };
    for stream in [true, false] {
        let sim = start(Config { pace, slots: 1, ..Config::default() });
        let client = begin(&sim, &chat(json!({"stream": stream}))).await;
        sim.until(|now| now.running == 1).await;
        drop(client);
        let now = sim.until(|now| now.running == 0).await;
        assert_eq!((now.cancelled, now.served, now.tokens), (1, 0, 0));
    }
}

#[tokio::test]
async fn a_slow_model_takes_its_time() {
    let pace = Pace { ttft: Duration::from_millis(40), tokens_per_second: 500.0, jitter: 0.0 };
    let sim = start(Config { pace, ..Config::default() });
    for stream in [true, false] {
        let began = Instant::now();
        let reply = ask_json(sim.addr(), CHAT, &chat(json!({"stream": stream, "max_tokens": 6}))).await;
        assert_eq!(reply.end, End::Whole);
        assert!(began.elapsed() >= Duration::from_millis(50));
    }
}

/// Sends small requests on one connection until it ends; how many were answered.
async fn answered_on_one_connection(sim: &Handle, most: usize) -> usize {
    let mut stream = connect(sim.addr()).await;
    let mut bytes = vec![0; 64 * 1024];
    for count in 0..most {
        let sent = stream.write_all(b"GET /sim/status HTTP/1.1\r\nhost: sim\r\n\r\n").await;
        let mut length = 0;
        while !bytes[..length].ends_with(b"}") {
            match stream.read(&mut bytes[length..]).await {
                Ok(n) if n > 0 && sent.is_ok() => length += n,
                _ => return count,
            }
        }
    }
    most
}

#[tokio::test]
async fn connections_are_kept_as_long_as_the_engine_does() {
    let llama = start(Config { engine: Engine::LlamaCpp, ..Config::default() });
    assert_eq!(answered_on_one_connection(&llama, 150).await, 100);
    let vllm = start(Config::default());
    assert_eq!(answered_on_one_connection(&vllm, 150).await, 150);
    let idle = start(Config { idle: Some(Duration::from_millis(20)), ..Config::default() });
    let mut stream = connect(idle.addr()).await;
    assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0);
}

#[tokio::test]
async fn a_silent_close_takes_the_next_request_with_it() {
    let sim = start(Config::default());
    sim.fault(Fault::new(Kind::SilentClose).times(1));
    let mut stream = connect(sim.addr()).await;
    let body = chat(json!({"max_tokens": 1})).to_string();
    let request = format!("POST {CHAT} HTTP/1.1\r\nhost: sim\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut bytes = vec![0; 4096];
    let mut length = 0;
    while parse(&bytes[..length], false).end != End::Whole {
        length += stream.read(&mut bytes[length..]).await.unwrap();
    }
    assert!(!parse(&bytes[..length], false).headers.contains_key("connection"));
    stream.write_all(request.as_bytes()).await.unwrap();
    let ended = stream.read(&mut bytes).await;
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    assert_eq!(sim.state().served, 1);
}

#[tokio::test]
async fn the_last_request_is_shown_as_it_came() {
    let sim = start(Config::default());
    let body = "{ \"model\" : \"sim\",\"messages\":[{\"content\":\"x\"}],  \"unknown\":1.0e0 }";
    let request = format!(
        "POST {CHAT}?a=b%20c HTTP/1.1\r\nHost: sim\r\nX-One: 1\r\nx-TWO: 2\r\nx-one: 3\r\ncontent-length: {}\r\n\
         connection: close\r\n\r\n{body}",
        body.len()
    );
    assert_eq!(ask(sim.addr(), request.as_bytes()).await.status, 200);
    assert_eq!(ask(sim.addr(), &get("/health")).await.status, 200);
    let last = ask(sim.addr(), &get("/sim/last")).await.json();
    assert_eq!(last["target"], format!("{CHAT}?a=b%20c"));
    assert_eq!(last["body"], body);
    assert_eq!(last["version"], "HTTP/1.1");
    assert_eq!(
        last["headers"].as_array().unwrap()[1..4],
        [json!(["X-One", "1"]), json!(["x-TWO", "2"]), json!(["x-one", "3"])]
    );
    assert_eq!(ask(sim.addr(), &get("/sim/last?path=/health")).await.json()["method"], "GET");
    assert_eq!(sim.last(None).unwrap().body, body);
}

#[tokio::test]
async fn bodies_are_echoed_chunk_by_chunk_and_expectations_met() {
    let sim = start(Config::default());
    let request = "POST /sim/echo HTTP/1.1\r\nhost: sim\r\ntransfer-encoding: chunked\r\nexpect: 100-continue\r\n\
                   connection: close\r\n\r\n";
    let mut stream = connect(sim.addr()).await;
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut bytes = vec![0; 25];
    stream.read_exact(&mut bytes).await.unwrap();
    assert_eq!(bytes, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"5\r\nhello\r\n6;x=y\r\n world\r\n0\r\ntrailer: t\r\n\r\n").await.unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.unwrap();
    assert_eq!(parse(&bytes, false).text(), "hello world");

    for query in ["n=100000", "n=100000&length=1"] {
        let reply = ask(sim.addr(), &get(&format!("/sim/bytes?{query}"))).await;
        assert_eq!((reply.body.len(), reply.end), (100_000, End::Whole));
        assert!(reply.body.iter().enumerate().all(|(place, byte)| *byte as usize == place % 251));
    }
    let raw = ask(sim.addr(), &post("/sim/raw", &json!("HTTP/1.1 204 x"))).await;
    assert_eq!((raw.status, raw.end), (0, End::Truncated));
}

#[tokio::test]
async fn what_is_ambiguous_is_refused() {
    let sim = start(Config::default());
    for fields in [
        "content-length: 1\r\ntransfer-encoding: chunked\r\n",
        "content-length: 1\r\ncontent-length: 2\r\n",
        "content-length: x\r\n",
        "transfer-encoding: gzip\r\n",
    ] {
        let request = format!("POST {CHAT} HTTP/1.1\r\nhost: sim\r\n{fields}\r\n0\r\n\r\n");
        assert_eq!(ask(sim.addr(), request.as_bytes()).await.status, 400, "{fields}");
    }
    assert_eq!(sim.state().requests, 0);
}

#[tokio::test]
async fn http_1_0_gets_no_chunks() {
    let sim = start(Config::default());
    let body = chat(json!({"stream": true, "max_tokens": 2})).to_string();
    let request = format!("POST {CHAT} HTTP/1.0\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let reply = ask(sim.addr(), request.as_bytes()).await;
    assert!(!reply.headers.contains_key("transfer-encoding"));
    assert!(reply.text().ends_with("data: [DONE]\n\n"));
}

#[tokio::test]
async fn a_websocket_echoes_and_closes() {
    let sim = start(Config::default());
    let mut stream = connect(sim.addr()).await;
    let request = "GET /v1/realtime?model=sim HTTP/1.1\r\nhost: sim\r\nupgrade: websocket\r\nconnection: Upgrade\r\n\
                   sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let hello = [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
    stream.write_all(&hello).await.unwrap();
    stream.write_all(&[0x88, 0x80, 0, 0, 0, 0]).await.unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.unwrap();
    let at = find(&bytes, b"\r\n\r\n").unwrap();
    let head = String::from_utf8_lossy(&bytes[..at]).into_owned();
    assert!(head.starts_with("HTTP/1.1 101 ") && head.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{head}");
    assert_eq!(bytes[at + 4..], *b"\x81\x05Hello\x88\x00");
}

// === HTTP/2 ===

/// The answer to one request over h2c: status, body and trailers, or how it failed.
async fn ask_h2(
    addr: SocketAddr,
    request: http::Request<Full<Bytes>>,
) -> std::result::Result<(u16, Vec<u8>, String), hyper::Error> {
    let io = io::Io::new(connect(addr).await, Bytes::new());
    let (mut sender, connection) = hyper::client::conn::http2::handshake(Spawn, io).await?;
    Spawn.run(connection);
    let response = sender.send_request(request).await?;
    let (status, mut body) = (response.status().as_u16(), response.into_body());
    let (mut bytes, mut trailers) = (Vec::new(), String::new());
    while let Some(frame) = std::future::poll_fn(|cx| std::pin::Pin::new(&mut body).poll_frame(cx)).await {
        match frame?.into_data() {
            Ok(data) => bytes.extend_from_slice(&data),
            Err(other) => trailers = format!("{:?}", other.into_trailers().unwrap()),
        }
    }
    Ok((status, bytes, trailers))
}

#[derive(Clone, Copy)]
struct Spawn;

impl Spawn {
    #[expect(clippy::disallowed_methods, reason = "the driver of a test's connection ends with the test")]
    fn run<F: Future<Output: Send> + Send + 'static>(self, task: F) {
        tokio::spawn(task);
    }
}

impl<F: Future<Output: Send> + Send + 'static> hyper::rt::Executor<F> for Spawn {
    fn execute(&self, task: F) {
        self.run(task);
    }
}

fn h2(path: &str, content_type: &str, body: impl Into<Bytes>) -> http::Request<Full<Bytes>> {
    let request = http::Request::post(format!("http://sim{path}")).header("content-type", content_type);
    request.body(Full::new(body.into())).unwrap()
}

#[tokio::test]
async fn http_2_streams_echoes_and_sends_trailers() {
    let sim = start(Config::default());
    let body = chat(json!({"stream": true, "max_tokens": 3})).to_string();
    let (status, bytes, _) = ask_h2(sim.addr(), h2(CHAT, "application/json", body)).await.unwrap();
    assert_eq!(status, 200);
    assert!(bytes.ends_with(b"data: [DONE]\n\n"));
    assert_eq!(sim.last(None).unwrap().version, "HTTP/2");
    let (_, bytes, _) = ask_h2(sim.addr(), h2("/sim/echo", "text/plain", "back")).await.unwrap();
    assert_eq!(bytes, b"back");
    let message = &b"\0\0\0\0\x02hi"[..];
    let (_, bytes, trailers) = ask_h2(sim.addr(), h2("/sim.Echo/Say", "application/grpc", message)).await.unwrap();
    assert_eq!(bytes, message);
    assert!(trailers.contains("\"grpc-status\": \"0\""), "{trailers}");
}

#[tokio::test]
async fn http_2_streams_are_reset_where_http_1_is_cut() {
    for kind in [Kind::Reset, Kind::CleanFin, Kind::CutEvent, Kind::BadHead] {
        let sim = start(Config { faults: vec![Fault::new(kind).after(1)], ..Config::default() });
        let body = chat(json!({"stream": true, "max_tokens": 3})).to_string();
        let cut = ask_h2(sim.addr(), h2(CHAT, "application/json", body)).await;
        assert!(cut.is_err(), "{kind:?}");
        // A bad head strikes before there is anything to fail.
        sim.until(|now| now.failed == u64::from(kind != Kind::BadHead) && now.running == 0).await;
    }
}
