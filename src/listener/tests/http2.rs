use super::*;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// An empty SETTINGS frame.
const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];

/// HPACK of `GET http://a/`: static entries, and a literal authority.
const HEADERS: &[u8] = &[0x82, 0x86, 0x84, 0x01, 1, b'a'];

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// Floods a listener with what `next` makes until it closes. The error code of its GOAWAY, and the bytes sent.
async fn flood(bench: &Bench, mut next: impl FnMut(u32) -> Vec<u8> + 'static) -> (Option<u32>, usize) {
    let (mut reading, mut writing) = bench.connect().await.into_split();
    writing.write_all(PREFACE).await.unwrap();
    writing.write_all(SETTINGS).await.unwrap();
    let sending = start(async move {
        let mut sent = 0;
        for n in 0..200_000 {
            let piece = next(n);
            sent += piece.len();
            if writing.write_all(&piece).await.is_err() {
                break;
            }
            if n % 16 == 0 {
                tokio::task::yield_now().await;
            }
        }
        sent
    });
    let mut seen = Vec::new();
    while let Ok(1..) = reading.read_buf(&mut seen).await {}
    let mut frames = &seen[..];
    let mut goaway = None;
    while let Some((head, rest)) = frames.split_at_checked(9) {
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let Some((payload, rest)) = rest.split_at_checked(length) else { break };
        if head[3] == 7 {
            goaway = Some(u32::from_be_bytes(payload[4..8].try_into().unwrap()));
        }
        frames = rest;
    }
    (goaway, sending.await.unwrap())
}

const ENHANCE_YOUR_CALM: u32 = 11;

#[test]
fn prior_knowledge_and_http1_share_a_port() {
    paused(async {
        let bench = Bench::echo();
        let (mut send, connection) = h2::client::handshake(bench.connect().await).await.unwrap();
        start(connection);
        let request = Request::builder().method("POST").uri("http://a/2").body(()).unwrap();
        let (answer, mut body) = send.send_request(request, false).unwrap();
        body.send_data("two".into(), true).unwrap();
        let mut body = answer.await.unwrap().into_body();
        assert_eq!(body.data().await.unwrap().unwrap(), "POST /2 two");

        // The preface a byte at a time.
        let mut client = bench.connect().await;
        for byte in PREFACE {
            client.write_all(&[*byte]).await.unwrap();
            tokio::task::yield_now().await;
        }
        client.write_all(SETTINGS).await.unwrap();
        let mut first = [0; 9];
        client.read_exact(&mut first).await.unwrap();
        assert_eq!(first[3], 4, "SETTINGS");

        // Begins like the preface, but is not.
        let mut client = bench.connect().await;
        client.write_all(b"P").await.unwrap();
        tokio::task::yield_now().await;
        client.write_all(b"RINT /1 HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        until(&mut client, "PRINT /1 ").await;
    });
}

/// HEADERS of the `n`th stream, and RST_STREAM right behind.
fn reset(n: u32) -> Vec<u8> {
    let mut pair = frame(1, 5, 2 * n + 1, HEADERS);
    pair.extend(frame(3, 0, 2 * n + 1, &8_u32.to_be_bytes()));
    pair
}

#[test]
fn a_rapid_reset_ends_the_connection() {
    paused(async {
        let hold = Hold::default();
        let service = hold.clone();
        let bench = Bench::new(settings(), move |_, _| service.answer());
        // In packets of many, most are reset before they are accepted; one by one, after.
        for at_once in [100, 1] {
            hold.0.borrow_mut().clear();
            let pieces = move |n| (n * at_once..(n + 1) * at_once).flat_map(reset).collect();
            let (goaway, sent) = flood(&bench, pieces).await;
            assert!(goaway.is_some(), "{at_once}");
            assert!(sent < 1_000_000, "{at_once}: {sent} bytes taken");
            assert!(hold.0.borrow().len() < 1000, "{at_once}: {} calls", hold.0.borrow().len());
            assert!(hold.0.borrow().iter().all(tokio::sync::oneshot::Sender::is_closed));
        }
        assert_eq!(bench.limit.open(), 0);
    });
}

#[test]
fn a_head_of_endless_continuations_ends_the_connection() {
    paused(async {
        let bench = Bench::echo();
        // A literal of the largest size a frame holds, never the last.
        let field = [&[0x00, 1, b'x', 0x7f, 0x81, 0x7e][..], &[b'y'; 16_000]].concat();
        let (goaway, sent) =
            flood(&bench, move |n| if n == 0 { frame(1, 1, 1, HEADERS) } else { frame(9, 0, 1, &field) }).await;
        assert!(goaway.is_some());
        assert!(sent < 8_000_000, "{sent} bytes taken");

        let (goaway, sent) =
            flood(&bench, move |n| if n == 0 { frame(1, 1, 1, HEADERS) } else { frame(9, 0, 1, &[]) }).await;
        assert_eq!(goaway, Some(ENHANCE_YOUR_CALM));
        assert!(sent < 2_000_000, "{sent} bytes taken");
        assert_eq!(bench.limit.open(), 0);
    });
}

#[test]
fn pings_and_settings_that_nobody_takes_the_answers_of_are_cut() {
    paused(async {
        let bench = Bench::echo();
        let pieces: [(u8, &[u8]); 2] = [(6, &[0; 8]), (4, &[])];
        for (kind, payload) in pieces {
            let mut client = bench.connect().await;
            client.write_all(PREFACE).await.unwrap();
            client.write_all(SETTINGS).await.unwrap();
            let many: Vec<u8> = (0..1000).flat_map(|_| frame(kind, 0, 0, payload)).collect();
            // We read no more once our answers are not taken, and cut it for not answering our own ping.
            let mut sent = 0;
            while client.write_all(&many).await.is_ok() {
                sent += many.len();
            }
            assert!(sent < 32_000_000, "{sent} bytes taken");
            secs(1).await;
            assert_eq!(bench.limit.open(), 0);
        }
    });
}

#[test]
fn streams_are_bounded_and_a_stalled_one_is_reset() {
    paused(async {
        let bench = Bench::new(settings(), |_, _| Box::pin(async { Ok(Response::new(Body::stream(Endless))) }));
        let (send, connection) = h2::client::handshake(bench.connect().await).await.unwrap();
        start(connection);
        let mut send = send.ready().await.unwrap();
        let (answer, _) = send.send_request(Request::builder().uri("http://a/").body(()).unwrap(), true).unwrap();
        let mut body = answer.await.unwrap().into_body();
        assert_eq!(send.current_max_send_streams(), 128);
        body.data().await.unwrap().unwrap();
        secs(70).await;
        assert_eq!(count(&bench.counts.stalled), 1);
        let ended = loop {
            match body.data().await {
                Some(Ok(_)) => {}
                end => break end,
            }
        };
        assert!(ended.unwrap().unwrap_err().is_reset(), "reset, not ended");
        assert_eq!(bench.limit.open(), 1, "the connection lives");
    });
}

#[test]
fn a_client_that_never_takes_the_end_of_an_answer_is_let_go() {
    paused(async {
        let bench = Bench::new(settings(), |_, _| Box::pin(async { Ok(Response::new(Body::whole(vec![0; 1 << 20]))) }));
        let (mut send, connection) = h2::client::handshake(bench.connect().await).await.unwrap();
        let connection = start(connection);
        let (answer, _) = send.send_request(Request::builder().uri("http://a/").body(()).unwrap(), true).unwrap();
        let answer = answer.await.unwrap();
        // 75 s without a request, then 60 s to take what is left.
        secs(130).await;
        assert_eq!(bench.limit.open(), 1);
        secs(10).await;
        assert_eq!(bench.limit.open(), 0);
        drop((answer, connection));
    });
}

#[test]
fn an_idle_connection_is_told_to_go() {
    paused(async {
        let bench = Bench::echo();
        let (mut send, connection) = h2::client::handshake(bench.connect().await).await.unwrap();
        let connection = start(connection);
        let (answer, _) = send.send_request(Request::builder().uri("http://a/").body(()).unwrap(), true).unwrap();
        answer.await.unwrap();
        secs(60).await;
        assert_eq!(bench.limit.open(), 1);
        connection.await.unwrap().unwrap();
        secs(1).await;
        assert_eq!(bench.limit.open(), 0);
    });
}
