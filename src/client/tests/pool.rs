//! Which connection a request travels on, and when one is closed.

use metrics::CounterFn;
use std::sync::atomic::{AtomicU64, Ordering};

use super::*;

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

#[derive(Default)]
struct Count(AtomicU64);

impl CounterFn for Count {
    fn increment(&self, value: u64) {
        self.0.fetch_add(value, Ordering::Relaxed);
    }

    fn absolute(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }
}

/// A client whose counters can be read: opened, reused, stale.
fn counted() -> (Client, Ticker, impl Fn() -> [u64; 3]) {
    let counts: [Arc<Count>; 3] = Default::default();
    let [opened, reused, stale] = counts.clone().map(metrics::Counter::from_arc);
    let ticker = Ticker::default();
    let settings = Settings::new(Duration::from_secs(1), 4096);
    let counters = Counters { opened, reused, stale };
    let client = Client::new(settings, ticker.clone(), Resolver::system(), counters);
    (client, ticker, move || counts.clone().map(|count| count.0.load(Ordering::Relaxed)))
}

async fn is_closed(backend: &mut (impl AsyncRead + Unpin)) -> bool {
    matches!(backend.read(&mut [0; 1]).await, Ok(0) | Err(_))
}

#[tokio::test]
async fn one_connection_carries_one_request_after_the_other() {
    let (client, _, counts) = counted();
    let (listener, target) = listen(Scheme::Http).await;
    let serve = async {
        let mut backend = accept(&listener).await;
        for _ in 0..3 {
            answer(&mut backend, OK).await;
        }
    };
    let thrice = async {
        for _ in 0..3 {
            assert!(get(&client, &target).await.is(b"ok"));
        }
    };
    tokio::join!(serve, thrice);
    assert_eq!(counts(), [1, 2, 0]);
}

#[tokio::test]
async fn a_whole_answer_frees_its_connection_before_it_is_read() {
    let (client, _) = client();
    let target = nowhere();
    let mut backend = plug(&client, &target, 0);
    let path = PathAndQuery::from_static("/x");
    let headers = HeaderMap::new();
    let head = Head { method: &Method::GET, path: &path, headers: &headers, extra: &[], repeatable: true };
    let (response, _) = tokio::join!(client.send(&target, head, Body::empty()), answer(&mut backend, OK));
    assert_eq!(client.idle(&target), 1);
    assert_eq!(&response.unwrap().body().as_whole().unwrap()[..], b"ok");
}

#[tokio::test]
async fn a_closed_idle_connection_is_found_without_a_request() {
    let (client, _, counts) = counted();
    let (listener, target) = listen(Scheme::Http).await;
    let serve = async {
        let mut first = accept(&listener).await;
        answer(&mut first, OK).await;
        drop(first);
        answer(&mut accept(&listener).await, OK).await;
    };
    let twice = async {
        assert!(get(&client, &target).await.is(b"ok"));
        // The FIN is seen by the time the socket says it can be read.
        while client.0.pool.is_quiet(&target) {
            tokio::task::yield_now().await;
        }
        assert!(get(&client, &target).await.is(b"ok"));
    };
    tokio::join!(serve, twice);
    assert_eq!(counts(), [2, 0, 1]);
}

#[tokio::test]
async fn a_connection_that_dies_under_a_request_is_replaced_once_with_the_same_body() {
    let bodies = [
        Body::whole(&b"hello"[..]),
        Body::whole(vec![b'x'; 100_000]),
        // Nothing of it was taken: it is still whole.
        Body::stream(Late { waits: 10 }),
    ];
    for (index, body) in bodies.into_iter().enumerate() {
        let (client, _, counts) = counted();
        let (listener, target) = listen(Scheme::Http).await;
        let mut old = plug(&client, &target, 1);
        let serve = async {
            read_head(&mut old).await;
            drop(old);
            let mut backend = accept(&listener).await;
            let head = read_head(&mut backend).await;
            let length = if index == 2 { b"5\r\nhello\r\n0\r\n\r\n".len() } else { length_in(&head) };
            let mut content = vec![0; length];
            backend.read_exact(&mut content).await.unwrap();
            backend.write_all(OK).await.unwrap();
            content
        };
        let (seen, content) = tokio::join!(fetch(&client, &target, Method::POST, body), serve);
        assert!(seen.is(b"ok"), "{seen:?}");
        assert!(content.starts_with(b"hello") || content.starts_with(b"xxxxx") || content.starts_with(b"5\r\nhello"));
        assert_eq!(counts(), [1, 1, 1]);
    }
}

fn length_in(head: &str) -> usize {
    head.split("content-length: ").nth(1).unwrap().split("\r\n").next().unwrap().parse().unwrap()
}

/// `hello`, after some turns with nothing.
struct Late {
    waits: u32,
}

impl HttpBody for Late {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match self.waits {
            0 => {
                self.waits = u32::MAX;
                Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"hello")))))
            }
            u32::MAX => Poll::Ready(None),
            _ => {
                self.waits -= 1;
                cx.waker().wake_by_ref();
                Poll::Pending
            }
        }
    }
}

#[tokio::test]
async fn the_second_death_is_told() {
    let (client, _) = client();
    let (listener, target) = listen(Scheme::Http).await;
    let mut old = plug(&client, &target, 1);
    let serve = async {
        read_head(&mut old).await;
        drop(old);
        read_head(&mut accept(&listener).await).await;
    };
    let (seen, ()) = tokio::join!(get(&client, &target), serve);
    assert_eq!(seen, Seen::Failed(Stage::Reset));
}

#[tokio::test]
async fn a_death_after_the_first_byte_or_on_a_new_connection_is_told() {
    for (uses, bytes) in [(0, &b""[..]), (1, b"H"), (1, b"HTTP/1.1 100 Continue\r\n\r\n")] {
        let (client, _) = client();
        let target = nowhere();
        let mut backend = plug(&client, &target, uses);
        let serve = async {
            answer(&mut backend, bytes).await;
            drop(backend);
        };
        let (seen, ()) = tokio::join!(get(&client, &target), serve);
        assert_eq!(seen, Seen::Failed(Stage::Reset));
    }
}

#[tokio::test]
async fn a_streamed_body_of_which_something_was_taken_is_not_sent_twice() {
    let (client, _) = client();
    let target = nowhere();
    let mut backend = plug(&client, &target, 1);
    let serve = async {
        read_head(&mut backend).await;
        drop(backend);
    };
    let body = Body::stream(Script::data(&[b"hello"]).stays_open());
    let (seen, ()) = tokio::join!(fetch(&client, &target, Method::POST, body), serve);
    assert_eq!(seen, Seen::Failed(Stage::Reset));
}

#[tokio::test]
async fn surplus_that_comes_late_never_meets_the_next_request() {
    let (client, _, counts) = counted();
    let (listener, target) = listen(Scheme::Http).await;
    let mut poisoned = plug(&client, &target, 0);
    let (seen, _) = tokio::join!(get(&client, &target), answer(&mut poisoned, OK));
    poisoned.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil").await.unwrap();
    assert!(seen.is(b"ok"));
    let serve = async { answer(&mut accept(&listener).await, OK).await };
    let (seen, _) = tokio::join!(get(&client, &target), serve);
    assert!(seen.is(b"ok"), "{seen:?}");
    assert_eq!(counts()[2], 1);
}

#[tokio::test]
async fn idle_connections_are_closed_before_the_backend_does() {
    // Ticks until it is closed: 4 s of our own, 3 s where the backend says 4.
    for (fields, ticks) in [("", 40), ("keep-alive: timeout=5\r\n", 40), ("keep-alive: timeout=4\r\n", 30)] {
        let (client, ticker) = client();
        let target = nowhere();
        let mut backend = plug(&client, &target, 0);
        let sent = format!("HTTP/1.1 200 OK\r\n{fields}content-length: 0\r\n\r\n");
        let (seen, _) = tokio::join!(get(&client, &target), answer(&mut backend, sent.as_bytes()));
        assert!(seen.is(b""));
        for _ in 1..ticks {
            ticker.tick();
        }
        assert_eq!(client.idle(&target), 1);
        ticker.tick();
        assert_eq!(client.idle(&target), 0);
        assert!(is_closed(&mut backend).await);
    }
}

#[tokio::test]
async fn no_more_requests_than_the_backend_allows() {
    let (client, _) = client();
    let target = nowhere();
    let mut backend = plug(&client, &target, 0);
    let sent = b"HTTP/1.1 200 OK\r\nkeep-alive: timeout=5, max=3\r\ncontent-length: 0\r\n\r\n";
    for request in 1..=3 {
        let (seen, _) = tokio::join!(get(&client, &target), answer(&mut backend, sent));
        assert!(seen.is(b""));
        assert_eq!(client.idle(&target), usize::from(request < 3));
    }
    assert!(is_closed(&mut backend).await);
}

#[tokio::test]
async fn the_latest_used_is_used_next_and_the_number_is_bounded() {
    let (client, _) = client();
    let target = nowhere();
    let mut first = plug(&client, &target, 0);
    let mut second = plug(&client, &target, 0);
    let (seen, _) = tokio::join!(get(&client, &target), answer(&mut second, OK));
    assert!(seen.is(b"ok"));
    let mut more: Vec<_> = (0..client.0.settings.idle_per_target).map(|_| plug(&client, &target, 0)).collect();
    let last = more.last_mut().unwrap();
    let (seen, _) = tokio::join!(get(&client, &target), answer(last, OK));
    assert!(seen.is(b"ok"));
    assert!(is_closed(last).await, "no room on the shelf");
    let (seen, _) = tokio::join!(get(&client, &target), answer(&mut more[510], OK));
    assert!(seen.is(b"ok"));
    client.retire(&target);
    assert!(is_closed(&mut first).await);
}

#[tokio::test]
async fn a_retired_target_keeps_running_answers_and_nothing_else() {
    let (client, _) = client();
    let target = nowhere();
    let mut busy = plug(&client, &target, 0);
    let path = PathAndQuery::from_static("/x");
    let headers = HeaderMap::new();
    let head = Head { method: &Method::GET, path: &path, headers: &headers, extra: &[], repeatable: true };
    let half = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nhe";
    let (response, _) = tokio::join!(client.send(&target, head, Body::empty()), answer(&mut busy, half));
    let mut idle = plug(&client, &target, 0);
    client.retire(&target);
    assert!(is_closed(&mut idle).await);
    busy.write_all(b"re").await.unwrap();
    assert!(see(response.unwrap()).await.is(b"here"));
    assert_eq!(client.idle(&target), 0);
    assert!(is_closed(&mut busy).await);
}

#[tokio::test]
async fn a_dropped_request_closes_its_connection() {
    let (client, _) = client();
    let target = nowhere();
    let mut backend = plug(&client, &target, 0);
    {
        let mut request = std::pin::pin!(get(&client, &target));
        tokio::select! {
            biased;
            _ = &mut request => panic!("there is no answer"),
            _ = read_head(&mut backend) => {}
        }
    }
    assert!(is_closed(&mut backend).await);
}

#[tokio::test]
async fn a_dropped_body_closes_its_connection() {
    let (client, _) = client();
    let target = nowhere();
    let mut backend = plug(&client, &target, 0);
    let path = PathAndQuery::from_static("/x");
    let headers = HeaderMap::new();
    let head = Head { method: &Method::GET, path: &path, headers: &headers, extra: &[], repeatable: true };
    let started = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n";
    let (response, _) = tokio::join!(client.send(&target, head, Body::empty()), answer(&mut backend, started));
    let mut body = response.unwrap().into_body();
    assert_eq!(&next(&mut body).await.unwrap().unwrap().into_data().unwrap()[..], b"ok");
    drop(body);
    assert!(is_closed(&mut backend).await);
    assert_eq!(client.idle(&target), 0);
}

#[tokio::test]
async fn nobody_listens() {
    let (client, _) = client();
    let (listener, target) = listen(Scheme::Http).await;
    drop(listener);
    assert_eq!(get(&client, &target).await, Seen::Failed(Stage::Connect));
}

#[tokio::test(start_paused = true)]
async fn the_connect_timeout_covers_the_name() {
    let resolver = Resolver::new(Box::new(|_| Box::pin(std::future::pending())));
    let settings = Settings::new(Duration::from_secs(3), 4096);
    let client = Client::new(settings, Ticker::default(), resolver, Counters::noop());
    let target = target(&url(Scheme::Http, "silent.example", 80));
    let path = PathAndQuery::from_static("/x");
    let headers = HeaderMap::new();
    let head = Head { method: &Method::GET, path: &path, headers: &headers, extra: &[], repeatable: true };
    let start = tokio::time::Instant::now();
    let failure = client.send(&target, head, Body::empty()).await.unwrap_err();
    assert_eq!((failure.stage, failure.timed_out), (Stage::Connect, true));
    assert_eq!(start.elapsed().as_secs(), 3);
}
