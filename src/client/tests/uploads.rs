//! Large and streamed request bodies: answers that come early, back-pressure, failures of either side.

use super::*;

const LARGE: usize = 30 * 1024 * 1024;
const TOO_LARGE: &[u8] = b"HTTP/1.1 413 Payload Too Large\r\ncontent-length: 2\r\n\r\nno";

fn megabytes(count: usize) -> Script {
    let piece = Bytes::from(vec![7; 1024 * 1024]);
    Script::new((0..count).map(|_| Ok(Frame::data(piece.clone()))))
}

#[tokio::test]
async fn an_early_answer_is_returned_while_30_mib_wait() {
    for body in [Body::whole(vec![7; LARGE]), Body::stream(megabytes(30))] {
        let (client, _) = client();
        let (listener, target) = listen(Scheme::Http).await;
        let serve = async {
            let mut backend = accept(&listener).await;
            answer(&mut backend, TOO_LARGE).await;
            backend
        };
        let (seen, mut backend) = tokio::join!(fetch(&client, &target, Method::POST, body), serve);
        assert!(matches!(&seen, Seen::Answered { status: 413, data, error: None, .. } if data == b"no"), "{seen:?}");
        assert_eq!(client.idle(&target), 0, "a connection with half a request on it is not used again");
        let mut rest = Vec::new();
        let _ = backend.read_to_end(&mut rest).await;
        assert!(rest.len() < LARGE, "closed, not drained");
    }
}

#[tokio::test]
async fn an_early_answer_is_seen_also_when_the_backend_closed_at_once() {
    let (client, _) = client();
    let target = nowhere();
    let mut backend = plug(&client, &target, 0);
    let serve = async {
        answer(&mut backend, TOO_LARGE).await;
        drop(backend);
    };
    let body = Body::whole(vec![7; LARGE]);
    let (seen, ()) = tokio::join!(fetch(&client, &target, Method::POST, body), serve);
    assert!(matches!(seen, Seen::Answered { status: 413, error: None, .. }), "{seen:?}");
}

#[tokio::test]
async fn an_echo_of_30_mib_flows_both_ways_at_once() {
    let (client, _) = client();
    let (listener, target) = listen(Scheme::Http).await;
    let serve = async {
        let mut backend = accept(&listener).await;
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {LARGE}\r\n\r\n");
        answer(&mut backend, head.as_bytes()).await;
        let (mut read, mut write) = backend.split();
        let mut content = (&mut read).take(LARGE as u64);
        tokio::io::copy(&mut content, &mut write).await.unwrap();
    };
    let body = Body::stream(megabytes(30).with_length(LARGE as u64));
    let (seen, ()) = tokio::join!(fetch(&client, &target, Method::POST, body), serve);
    assert!(seen.is(&vec![7; LARGE]));
    assert_eq!(client.idle(&target), 1);
}

#[tokio::test]
async fn a_backend_that_does_not_read_holds_the_upload_back() {
    let (client, _) = client();
    let target = nowhere();
    let mut backend = plug(&client, &target, 0);
    let body = megabytes(30);
    let taken = body.taken();
    let serve = async {
        read_head(&mut backend).await;
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        let so_far = *taken.borrow();
        backend.write_all(TOO_LARGE).await.unwrap();
        so_far
    };
    let (_, so_far) = tokio::join!(fetch(&client, &target, Method::POST, Body::stream(body)), serve);
    assert_eq!(so_far, 1, "one frame is held, the next is not asked for");
}

#[tokio::test]
async fn a_body_that_fails_is_the_requests_fault() {
    let gone = || Err(Error::new(Kind::ClientGone, "gone"));
    let short = || Script::data(&[b"hel"]).with_length(5);
    let long = || Script::data(&[b"hello world"]).with_length(5);
    let bodies = [
        (Script::new([Ok(Frame::data(Bytes::from_static(b"hel"))), gone()]), Kind::ClientGone),
        (Script::new([gone()]), Kind::ClientGone),
        (short(), Kind::ClientGone),
        (long(), Kind::BadRequest),
    ];
    for (body, kind) in bodies {
        let (client, _) = client();
        let target = nowhere();
        let mut backend = plug(&client, &target, 0);
        let path = PathAndQuery::from_static("/x");
        let head =
            Head { method: &Method::POST, path: &path, headers: &HeaderMap::new(), extra: &[], repeatable: true };
        let failure = client.send(&target, head, Body::stream(body)).await.unwrap_err();
        assert_eq!(failure.stage, Stage::Request);
        assert_eq!(failure.cause.downcast_ref::<Error>().unwrap().kind(), kind);
        let mut rest = Vec::new();
        backend.read_to_end(&mut rest).await.unwrap();
        assert!(!rest.ends_with(b"0\r\n\r\n"), "never looks whole");
    }
}

#[tokio::test]
async fn a_body_that_fails_after_the_head_cuts_the_answer() {
    let (client, _) = client();
    let target = nowhere();
    let mut backend = plug(&client, &target, 0);
    let sent = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n";
    let path = PathAndQuery::from_static("/x");
    let headers = HeaderMap::new();
    let head = Head { method: &Method::POST, path: &path, headers: &headers, extra: &[], repeatable: true };
    let body = Body::stream(Fails { after: 3 });
    let (sent, _) = tokio::join!(client.send(&target, head, body), answer(&mut backend, sent));
    let seen = see(sent.unwrap()).await;
    assert!(matches!(&seen, Seen::Answered { data, error: Some(Kind::ClientGone), .. } if data == b"ok"), "{seen:?}");
}

/// A body that is polled a few times before it fails.
struct Fails {
    after: u32,
}

impl HttpBody for Fails {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        if self.after == 0 {
            return Poll::Ready(Some(Err(Error::new(Kind::ClientGone, "gone"))));
        }
        self.after -= 1;
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}
