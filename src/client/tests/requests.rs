//! What is written for a request, byte for byte; upgrades; small GETs.

use http::{HeaderName, HeaderValue, header};

use super::*;

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

fn map(fields: &[(&'static str, &'static str)]) -> HeaderMap {
    fields.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
}

/// Sends a request, answers it, gives what the backend read: `length` bytes in all.
async fn written(
    (client, target): (&Client, &Arc<Target>),
    method: Method,
    (headers, extra): (HeaderMap, &[(HeaderName, HeaderValue)]),
    body: Body,
    end: &str,
) -> String {
    let mut backend = plug(client, target, 0);
    let path = PathAndQuery::from_static("/v1/chat?x=%20y");
    let head = Head { method: &method, path: &path, headers: &headers, extra, repeatable: true };
    let serve = async {
        let mut all = Vec::new();
        while !all.ends_with(end.as_bytes()) {
            all.push(backend.read_u8().await.unwrap());
        }
        backend.write_all(OK).await.unwrap();
        String::from_utf8(all).unwrap()
    };
    let (sent, all) = tokio::join!(client.send(target, head, body), serve);
    assert!(see(sent.unwrap()).await.is(b"ok"));
    all
}

#[tokio::test]
async fn a_head_is_written_anew() {
    let (client, _) = client();
    let with_base = BackendUrl { base_path: "/base".into(), ..url(Scheme::Http, "192.0.2.1", 8000) };
    let target = target(&with_base);
    assert_eq!(target.prefix(&PathAndQuery::from_static("*")), "");
    let headers = map(&[
        ("host", "client.example"),
        ("accept", "*/*"),
        ("connection", "keep-alive, x-a"),
        ("keep-alive", "timeout=9"),
        ("proxy-connection", "keep-alive"),
        ("te", "trailers"),
        ("upgrade", "h2c"),
        ("expect", "100-continue"),
        ("content-length", "99"),
        ("transfer-encoding", "chunked"),
        ("authorization", "Bearer client"),
        ("x-a", "1"),
    ]);
    let extra = [(header::AUTHORIZATION, HeaderValue::from_static("Bearer backend"))];
    let body = Body::whole(&b"hello"[..]);
    let all = written((&client, &target), Method::POST, (headers, &extra), body, "hello").await;
    assert_eq!(
        all,
        "POST /base/v1/chat?x=%20y HTTP/1.1\r\nhost: 192.0.2.1:8000\r\naccept: */*\r\nx-a: 1\r\n\
         authorization: Bearer backend\r\ncontent-length: 5\r\n\r\nhello"
    );
}

#[tokio::test]
async fn an_extra_host_takes_the_place_of_the_targets() {
    let (client, _) = client();
    let extra = [(header::HOST, HeaderValue::from_static("model.example"))];
    let all = written((&client, &nowhere()), Method::GET, (HeaderMap::new(), &extra), Body::empty(), "\r\n\r\n").await;
    assert_eq!(all, "GET /v1/chat?x=%20y HTTP/1.1\r\nhost: model.example\r\n\r\n");
}

#[tokio::test]
async fn no_body_says_a_length_only_where_the_method_has_one() {
    let (client, _) = client();
    for (method, has) in [(Method::POST, true), (Method::PUT, true), (Method::GET, false), (Method::DELETE, false)] {
        let all = written((&client, &nowhere()), method.clone(), Default::default(), Body::empty(), "\r\n\r\n").await;
        assert_eq!(all.contains("content-length: 0\r\n"), has, "{method}");
    }
}

#[tokio::test]
async fn streamed_bodies_are_chunked_or_of_known_length() {
    let (client, _) = client();
    let script = Script::data(&[b"hello ", b"", b"world"]);
    let all = written((&client, &nowhere()), Method::POST, Default::default(), Body::stream(script), "0\r\n\r\n").await;
    assert!(all.ends_with("transfer-encoding: chunked\r\n\r\n6\r\nhello \r\n5\r\nworld\r\n0\r\n\r\n"), "{all}");

    let script = Script::data(&[b"hello ", b"world"]).with_length(11);
    let all = written((&client, &nowhere()), Method::POST, Default::default(), Body::stream(script), "world").await;
    assert!(all.ends_with("content-length: 11\r\n\r\nhello world"), "{all}");
}

#[tokio::test]
async fn trailers_follow_the_last_chunk() {
    let (client, _) = client();
    let trailers = map(&[("x-sum", "1"), ("content-length", "5"), ("connection", "close")]);
    let frames = [Ok(Frame::data(Bytes::from_static(b"hello"))), Ok(Frame::trailers(trailers))];
    let body = Body::stream(Script::new(frames));
    let all = written((&client, &nowhere()), Method::POST, Default::default(), body, "\r\n0\r\nx-sum: 1\r\n\r\n").await;
    assert!(all.ends_with("5\r\nhello\r\n0\r\nx-sum: 1\r\n\r\n"), "{all}");
}

#[tokio::test]
async fn hosts_are_written_as_urls_write_them() {
    for (scheme, host, port, want) in [
        (Scheme::Http, "a.example", 80, "a.example"),
        (Scheme::Http, "a.example", 8000, "a.example:8000"),
        (Scheme::H2c, "a.example", 80, "a.example"),
        (Scheme::Https, "a.example", 443, "a.example"),
        (Scheme::Https, "a.example", 80, "a.example:80"),
        (Scheme::Http, "::1", 8000, "[::1]:8000"),
    ] {
        assert_eq!(target(&url(scheme, host, port)).authority(), want);
    }
}

async fn upgrade(client: &Client, target: &Arc<Target>) -> Result<Upgraded, Failure> {
    let path = PathAndQuery::from_static("/v1/realtime");
    let headers = map(&[("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")]);
    client
        .upgrade(target, Head { method: &Method::GET, path: &path, headers: &headers, extra: &[], repeatable: true })
        .await
}

#[tokio::test]
async fn a_websocket_is_handed_over_with_the_bytes_that_came_along() {
    let (client, _) = client();
    let (listener, target) = listen(Scheme::Http).await;
    let serve = async {
        let mut backend = accept(&listener).await;
        let switch = b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\n\r\nfirst";
        let head = answer(&mut backend, switch).await;
        assert!(head.contains("connection: upgrade\r\nupgrade: websocket\r\n"), "{head}");
        let mut echo = [0; 4];
        backend.read_exact(&mut echo).await.unwrap();
        backend.write_all(&echo).await.unwrap();
        backend.shutdown().await.unwrap();
    };
    let talk = async {
        let upgraded = upgrade(&client, &target).await.unwrap();
        assert_eq!(upgraded.response.status(), 101);
        assert_eq!(upgraded.response.headers()[header::UPGRADE], "websocket");
        let mut stream = upgraded.stream.unwrap();
        stream.write_all(b"ping").await.unwrap();
        let mut all = String::new();
        stream.read_to_string(&mut all).await.unwrap();
        assert_eq!(all, "firstping");
    };
    tokio::join!(serve, talk);
    assert_eq!(client.idle(&target), 0);
}

#[tokio::test]
async fn a_refused_websocket_is_an_answer() {
    let (client, _) = client();
    let (listener, target) = listen(Scheme::Http).await;
    let refuse = b"HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\n\r\nno";
    let serve = async { answer(&mut accept(&listener).await, refuse).await };
    let (upgraded, _) = tokio::join!(upgrade(&client, &target), serve);
    let upgraded = upgraded.unwrap();
    assert!(upgraded.stream.is_none());
    let seen = see(upgraded.response).await;
    assert!(matches!(&seen, Seen::Answered { status: 403, data, .. } if data == b"no"), "{seen:?}");
}

#[tokio::test]
async fn a_small_get_is_capped() {
    let (client, _) = client();
    let target = nowhere();
    for (cap, fits) in [(2, true), (1, false)] {
        let mut backend = plug(&client, &target, 0);
        let (path, headers) = (PathAndQuery::from_static("/health"), HeaderMap::new());
        let (got, _) = tokio::join!(client.get(&target, &path, &headers, cap), answer(&mut backend, OK));
        match got {
            Ok((parts, body)) => assert_eq!((fits, parts.status.as_u16(), &body[..]), (true, 200, &b"ok"[..])),
            Err(failure) => assert_eq!((fits, failure.stage), (false, Stage::Protocol)),
        }
    }
}

#[tokio::test]
async fn a_unix_socket_is_a_backend() {
    let path = std::env::temp_dir().join(format!("sluicegate-client-{}.sock", std::process::id()));
    let _ = std::fs::remove_file(&path);
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    let target = target(&BackendUrl { unix: Some(path.clone()), ..url(Scheme::Unix, "", 0) });
    let (client, _) = client();
    let serve = async {
        let mut backend = listener.accept().await.unwrap().0;
        assert!(answer(&mut backend, OK).await.contains("host: localhost\r\n"));
        answer(&mut backend, OK).await;
    };
    let twice = async {
        assert!(get(&client, &target).await.is(b"ok"));
        assert!(get(&client, &target).await.is(b"ok"));
    };
    tokio::join!(serve, twice);
    std::fs::remove_file(&path).unwrap();
}
