//! HTTP/2 backends: streams shared and bounded, trailers, refusals told apart from losses.

use h2::{Reason, server};
use http::{HeaderValue, header};
use tokio::task::LocalSet;

use super::*;

type Backend = server::Connection<TcpStream, Bytes>;

async fn shake(listener: &TcpListener, streams: u32) -> Backend {
    let stream = accept(listener).await;
    server::Builder::new().max_concurrent_streams(streams).handshake(stream).await.unwrap()
}

/// Answers one stream with `ok` and a trailer.
fn respond(respond: &mut server::SendResponse<Bytes>) {
    let mut send = respond.send_response(Response::new(()), false).unwrap();
    send.send_data(Bytes::from_static(b"ok"), false).unwrap();
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    send.send_trailers(trailers).unwrap();
}

/// Keeps a backend's connection going.
async fn drive(backend: &mut Backend) {
    while let Some(Ok(_)) = backend.accept().await {}
}

/// Runs a request against a backend that goes on for as long as the request does.
async fn against<T>(request: impl Future<Output = T>, backend: impl Future<Output = ()>) -> T {
    let backend = async {
        backend.await;
        std::future::pending::<()>().await;
    };
    LocalSet::new()
        .run_until(async {
            tokio::select! {
                seen = request => seen,
                () = backend => unreachable!("it waits for ever"),
            }
        })
        .await
}

#[tokio::test]
async fn trailers_pass_and_one_connection_serves_many() {
    let (client, _) = client();
    let (listener, target) = listen(Scheme::H2c).await;
    let serve = async {
        let mut backend = shake(&listener, 100).await;
        while let Some(Ok((request, mut response))) = backend.accept().await {
            assert_eq!(request.uri().path(), "/x");
            assert_eq!(request.uri().authority().unwrap().as_str(), target.authority());
            respond(&mut response);
        }
    };
    let requests = async {
        for _ in 0..3 {
            let (a, b) = tokio::join!(get(&client, &target), get(&client, &target));
            let Seen::Answered { trailers, .. } = &a else { panic!("{a:?}") };
            assert!(a.is(b"ok") && b.is(b"ok"));
            assert_eq!(*trailers, [("grpc-status".to_owned(), "0".to_owned())]);
        }
    };
    against(requests, serve).await;
}

#[tokio::test]
async fn fields_of_http1_stay_behind_and_grpc_says_te() {
    let (client, _) = client();
    let (listener, target) = listen(Scheme::H2c).await;
    let serve = async {
        let mut backend = shake(&listener, 100).await;
        let (request, mut response) = backend.accept().await.unwrap().unwrap();
        let mut names: Vec<_> = request.headers().keys().map(|name| name.as_str().to_owned()).collect();
        names.sort();
        assert_eq!(names, ["content-length", "content-type", "te", "x-a"]);
        assert_eq!(request.headers()[header::CONTENT_LENGTH], "5");
        respond(&mut response);
        drive(&mut backend).await;
    };
    let request = async {
        let mut headers = HeaderMap::new();
        for name in ["connection", "keep-alive", "transfer-encoding", "upgrade", "expect", "host", "x-a"] {
            headers.insert(name, HeaderValue::from_static("x"));
        }
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("99"));
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc+proto"));
        let path = PathAndQuery::from_static("/x");
        let head = Head { method: &Method::POST, path: &path, headers: &headers, extra: &[], repeatable: true };
        let answered = client.send(&target, head, Body::whole(&b"hello"[..])).await.unwrap();
        assert!(see(answered).await.is(b"ok"));
    };
    against(request, serve).await;
}

#[tokio::test]
async fn a_full_connection_gets_a_second_one_beside_it() {
    let (client, _) = client();
    let (listener, target) = listen(Scheme::H2c).await;
    let serve = async {
        let mut first = shake(&listener, 1).await;
        let (_, mut one) = first.accept().await.unwrap().unwrap();
        let (_, mut second) = tokio::select! {
            second = shake(&listener, 1) => ((), second),
            () = drive(&mut first) => unreachable!("the stream is open"),
        };
        let (_, mut two) = second.accept().await.unwrap().unwrap();
        respond(&mut one);
        respond(&mut two);
        tokio::join!(drive(&mut first), drive(&mut second));
    };
    let requests = async {
        let first = get(&client, &target);
        let second = async {
            // The backend's SETTINGS must have come: the first request is on its way by then.
            while client.0.pool.room(&target) != Some(0) {
                tokio::task::yield_now().await;
            }
            get(&client, &target).await
        };
        let (a, b) = tokio::join!(first, second);
        assert!(a.is(b"ok") && b.is(b"ok"), "{a:?} {b:?}");
    };
    against(requests, serve).await;
}

#[tokio::test]
async fn a_refused_stream_was_not_processed_and_is_sent_again() {
    let (client, _) = client();
    let (listener, target) = listen(Scheme::H2c).await;
    let serve = async {
        let mut backend = shake(&listener, 100).await;
        let (_, mut refused) = backend.accept().await.unwrap().unwrap();
        refused.send_reset(Reason::REFUSED_STREAM);
        let (_, mut response) = backend.accept().await.unwrap().unwrap();
        respond(&mut response);
        drive(&mut backend).await;
    };
    assert!(against(get(&client, &target), serve).await.is(b"ok"));
}

#[tokio::test]
async fn a_reset_stream_is_told() {
    let (client, _) = client();
    let (listener, target) = listen(Scheme::H2c).await;
    let serve = async {
        let mut backend = shake(&listener, 100).await;
        let (_, mut response) = backend.accept().await.unwrap().unwrap();
        response.send_reset(Reason::INTERNAL_ERROR);
        drive(&mut backend).await;
    };
    assert_eq!(against(get(&client, &target), serve).await, Seen::Failed(Stage::Reset));
}

#[tokio::test]
async fn a_lost_connection_is_told() {
    let (client, _) = client();
    let (listener, target) = listen(Scheme::H2c).await;
    let serve = async {
        let mut backend = shake(&listener, 100).await;
        let _ = backend.accept().await.unwrap().unwrap();
    };
    assert_eq!(against(get(&client, &target), serve).await, Seen::Failed(Stage::Reset));
}

#[tokio::test]
async fn a_stream_that_is_reset_in_its_body_is_cut() {
    // NO_ERROR too: hyper would let that one look whole.
    for reason in [Reason::CANCEL, Reason::INTERNAL_ERROR, Reason::NO_ERROR] {
        reset_in_body(reason).await;
    }
}

async fn reset_in_body(reason: Reason) {
    let (client, _) = client();
    let (listener, target) = listen(Scheme::H2c).await;
    let (head_came, mut seen_head) = tokio::sync::oneshot::channel();
    let serve = async {
        let mut backend = shake(&listener, 100).await;
        let (_, mut response) = backend.accept().await.unwrap().unwrap();
        let mut send = response.send_response(Response::new(()), false).unwrap();
        send.send_data(Bytes::from_static(b"hel"), false).unwrap();
        tokio::select! {
            came = &mut seen_head => came.unwrap(),
            () = drive(&mut backend) => unreachable!("the stream is open"),
        }
        send.send_reset(reason);
        drive(&mut backend).await;
    };
    let request = async {
        let (path, headers) = (PathAndQuery::from_static("/x"), HeaderMap::new());
        let head = Head { method: &Method::GET, path: &path, headers: &headers, extra: &[], repeatable: true };
        let response = client.send(&target, head, Body::empty()).await.unwrap();
        head_came.send(()).unwrap();
        see(response).await
    };
    let seen = against(request, serve).await;
    assert!(matches!(seen, Seen::Answered { error: Some(Kind::StreamCut), .. }), "{seen:?}");
}

#[tokio::test]
async fn after_goaway_the_next_request_takes_a_new_connection() {
    let (client, _) = client();
    let (listener, target) = listen(Scheme::H2c).await;
    let serve = async {
        for _ in 0..2 {
            let mut backend = shake(&listener, 100).await;
            let (_, mut response) = backend.accept().await.unwrap().unwrap();
            backend.graceful_shutdown();
            respond(&mut response);
            drive(&mut backend).await;
        }
    };
    let requests = async {
        assert!(get(&client, &target).await.is(b"ok"));
        while client.0.pool.room(&target).is_some() {
            tokio::task::yield_now().await;
        }
        assert!(get(&client, &target).await.is(b"ok"));
    };
    against(requests, serve).await;
}

#[tokio::test]
async fn a_body_that_fails_is_the_requests_fault() {
    let (client, _) = client();
    let (listener, target) = listen(Scheme::H2c).await;
    let serve = async {
        let mut backend = shake(&listener, 100).await;
        drive(&mut backend).await;
    };
    let gone = Err(Error::new(Kind::ClientGone, "gone"));
    let body = Body::stream(Script::new([Ok(Frame::data(Bytes::from_static(b"hel"))), gone]));
    let seen = against(fetch(&client, &target, Method::POST, body), serve).await;
    assert_eq!(seen, Seen::Failed(Stage::Request));
}

#[tokio::test]
async fn a_dropped_request_resets_its_stream_alone() {
    let (client, _) = client();
    let (listener, target) = listen(Scheme::H2c).await;
    let (arrived, seen_arrived) = tokio::sync::oneshot::channel();
    let (cancelled, seen_cancelled) = tokio::sync::oneshot::channel();
    let serve = async {
        let mut backend = shake(&listener, 100).await;
        let (_, mut response) = backend.accept().await.unwrap().unwrap();
        arrived.send(()).unwrap();
        let reset = poll_fn(|cx| response.poll_reset(cx));
        let reset = tokio::select! {
            reset = reset => reset.unwrap(),
            next = backend.accept() => unreachable!("{next:?}"),
        };
        assert_eq!(reset, Reason::CANCEL);
        cancelled.send(()).unwrap();
        let (_, mut response) = backend.accept().await.unwrap().unwrap();
        respond(&mut response);
        drive(&mut backend).await;
    };
    let requests = async {
        {
            let mut first = std::pin::pin!(get(&client, &target));
            tokio::select! {
                _ = &mut first => panic!("there is no answer"),
                arrived = seen_arrived => arrived.unwrap(),
            }
        }
        seen_cancelled.await.unwrap();
        assert!(get(&client, &target).await.is(b"ok"));
    };
    against(requests, serve).await;
}
