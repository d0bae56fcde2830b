//! Each event when it was produced; the end, trailers and failures as they come.

use std::{cell::RefCell, rc::Rc, task::Waker};

use http::HeaderMap;
use proptest::prelude::*;

use super::{
    super::{
        encoder::Kind,
        pool::{Budget, Pool},
        tests::decoded,
    },
    *,
};
use crate::{error, protocol::coding::Coding, telemetry::metrics::Registry};

/// A body that gives what a test puts in.
#[derive(Clone, Default)]
struct Pipe(Rc<RefCell<VecDeque<Polled>>>);

impl Pipe {
    fn put(&self, text: &str) {
        self.0.borrow_mut().push_back(Some(Ok(Frame::data(Bytes::copy_from_slice(text.as_bytes())))));
    }

    fn end(&self) {
        self.0.borrow_mut().push_back(None);
    }
}

impl HttpBody for Pipe {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Polled> {
        self.0.borrow_mut().pop_front().map_or(Poll::Pending, Poll::Ready)
    }
}

struct Kit {
    pipe: Pipe,
    body: Encoded,
    pool: Rc<Pool>,
    coded: Vec<u8>,
}

fn kit(coding: Coding, pace: Pace) -> Kit {
    let (pipe, pool) = (Pipe::default(), Pool::new(Budget::new(1 << 30), &Registry::new().table()));
    let kind = Kind::of(coding, !matches!(pace, Pace::End));
    let lease = pool.lease(kind).unwrap().unwrap();
    Kit { body: Encoded::new(Body::stream(pipe.clone()), lease, pace), pipe, pool, coded: Vec::new() }
}

impl Kit {
    fn poll(&mut self) -> Poll<Polled> {
        Pin::new(&mut self.body).poll_frame(&mut Context::from_waker(Waker::noop()))
    }

    /// Takes what is ready; gives how many frames that was, and what ended them.
    fn take(&mut self) -> (usize, Option<Polled>) {
        for frames in 0.. {
            match self.poll() {
                Poll::Pending => return (frames, None),
                Poll::Ready(Some(Ok(frame))) if frame.is_data() => self.coded.extend(frame.into_data().unwrap()),
                Poll::Ready(other) => return (frames, Some(other)),
            }
        }
        unreachable!("it ends")
    }

    fn text(&self, coding: Coding) -> String {
        String::from_utf8(decoded(coding, &self.coded)).unwrap()
    }
}

#[test]
fn events_that_are_ready_together_share_a_flush() {
    for coding in Coding::ALL {
        let mut kit = kit(coding, Pace::Event);
        assert!(kit.poll().is_pending());
        kit.pipe.put("data: 1\n\n");
        assert_eq!(kit.take().0, 1);
        assert_eq!(kit.text(coding), "data: 1\n\n");
        for n in 2..5 {
            kit.pipe.put(&format!("data: {n}\n\n"));
        }
        assert_eq!(kit.take().0, 1);
        assert_eq!(kit.text(coding), "data: 1\n\ndata: 2\n\ndata: 3\n\ndata: 4\n\n");
        kit.pipe.put("");
        assert_eq!(kit.take().0, 0, "nothing is nothing");
        kit.pipe.end();
        let (frames, end) = kit.take();
        assert!(frames == 1 && matches!(end, Some(None)) && kit.body.is_end_stream());
        assert!(matches!(kit.poll(), Poll::Ready(None)));
    }
}

#[test]
fn what_never_pauses_is_flushed_by_size() {
    let mut kit = kit(Coding::Gzip, Pace::Event);
    let big = "x".repeat(MOST / 2);
    (0..6).for_each(|_| kit.pipe.put(&big));
    assert_eq!(kit.take().0, 3);
    assert_eq!(kit.text(Coding::Gzip).len(), 3 * MOST);
}

#[test]
fn trailers_pass_after_the_frame() {
    let mut kit = kit(Coding::Zstd, Pace::Event);
    kit.pipe.put("all");
    let trailers: HeaderMap = [(http::header::ETAG, "x".parse().unwrap())].into_iter().collect();
    kit.pipe.0.borrow_mut().push_back(Some(Ok(Frame::trailers(trailers.clone()))));
    let (frames, end) = kit.take();
    assert_eq!(frames, 1);
    assert_eq!(end.unwrap().unwrap().unwrap().into_trailers().unwrap(), trailers);
    assert_eq!(zstd::decode_all(&kit.coded[..]).unwrap(), b"all");
    assert!(matches!(kit.poll(), Poll::Ready(None)));
}

#[test]
fn a_failure_comes_after_what_came_before_it_and_no_end() {
    let mut kit = kit(Coding::Zstd, Pace::Event);
    kit.pipe.put("data: 1\n\n");
    let cut = || Some(Err(Error::new(error::Kind::StreamCut, "cut")));
    kit.pipe.0.borrow_mut().push_back(cut());
    let (frames, end) = kit.take();
    assert!(frames == 1 && matches!(end, Some(Some(Err(_)))));
    assert_eq!(kit.text(Coding::Zstd), "data: 1\n\n");
    assert!(zstd::decode_all(&kit.coded[..]).is_err(), "it does not look whole");
    assert_eq!(kit.pool.idle(), 1, "the encoder serves again");
}

#[test]
fn a_client_that_leaves_frees_its_encoder() {
    let mut kit = kit(Coding::Gzip, Pace::Event);
    kit.pipe.put("data: 1\n\n");
    kit.take();
    assert_eq!(kit.pool.idle(), 0);
    drop(kit.body);
    assert_eq!(kit.pool.idle(), 1);
}

#[test]
fn a_plain_body_is_not_flushed_when_it_pauses() {
    let mut kit = kit(Coding::Gzip, Pace::End);
    for n in 0..20 {
        kit.pipe.put(&format!("{{\"part\":{n}}}"));
        kit.take();
    }
    assert!(kit.coded.len() <= 10, "no more than the header: {}", kit.coded.len());
    kit.pipe.end();
    kit.take();
    assert!(kit.text(Coding::Gzip).ends_with("{\"part\":19}"));
}

#[tokio::test(start_paused = true)]
async fn a_period_is_the_least_between_flushes() {
    let period = Duration::from_millis(50);
    let mut kit = kit(Coding::Gzip, Pace::every(period));
    kit.pipe.put("1");
    kit.take();
    assert_eq!(kit.text(Coding::Gzip), "1", "the first waits for nothing");
    kit.pipe.put("2");
    assert_eq!(kit.take().0, 0);
    tokio::time::advance(period / 2).await;
    kit.pipe.put("3");
    assert_eq!(kit.take().0, 0);
    let start = Instant::now();
    let frame = poll_fn(|cx| Pin::new(&mut kit.body).poll_frame(cx)).await;
    kit.coded.extend(frame.unwrap().unwrap().into_data().unwrap());
    assert_eq!(kit.text(Coding::Gzip), "123");
    assert!(start.elapsed() <= period / 2 + Duration::from_millis(1));
    tokio::time::advance(period * 2).await;
    kit.pipe.put("4");
    assert_eq!(kit.take().0, 1, "it was silent for longer");
    kit.pipe.put("5");
    kit.pipe.end();
    kit.take();
    assert_eq!(kit.text(Coding::Gzip), "12345");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn any_split_decodes_and_each_pause_shows_all(
        coding in proptest::sample::select(&Coding::ALL[..]),
        bursts in proptest::collection::vec(proptest::collection::vec("[a-d\n]{0,30}", 0..5), 0..12),
    ) {
        let mut kit = kit(coding, Pace::Event);
        let mut plain = String::new();
        for burst in &bursts {
            for piece in burst {
                kit.pipe.put(piece);
                plain += piece;
            }
            kit.take();
            assert_eq!(kit.text(coding), plain);
        }
        kit.pipe.end();
        kit.take();
        assert_eq!(kit.text(coding), plain);
        assert_eq!(kit.pool.idle(), usize::from(coding != Coding::Br));
    }
}
