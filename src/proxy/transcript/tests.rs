//! One writer, many readers: what they get, what it holds, who is woken.

use std::{
    sync::{Barrier, mpsc},
    task::Wake,
    thread,
};

use proptest::prelude::*;
use tokio::runtime::{Builder, LocalOptions};

use super::*;

const CAP: usize = 1 << 20;

struct Flag(AtomicU64);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Relaxed);
    }
}

fn flag() -> (Arc<Flag>, Waker) {
    let flag = Arc::new(Flag(AtomicU64::new(0)));
    (Arc::clone(&flag), Waker::from(flag))
}

fn world() -> (Rc<Desk>, Live) {
    (Desk::new(), Live::new(64 << 20))
}

fn head(open: bool) -> Head {
    Head { status: StatusCode::OK, headers: HeaderMap::new(), open, told: true }
}

fn facts() -> Facts {
    Facts { usage: Usage::default(), finish: Finish::Stop, engine: None, took: Duration::from_secs(1), told: true }
}

fn whole(mut writer: Writer, last: &[u8]) -> Option<Bytes> {
    let last = Bytes::copy_from_slice(last);
    let sealed = writer.seal(&last);
    writer.whole(last, sealed.clone(), Whole { facts: facts(), entry: None });
    sealed
}

fn bytes(n: usize) -> Bytes {
    Bytes::from(vec![b'x'; n])
}

/// All there is to read now, and whether the end came.
fn drain(reader: &mut Reader) -> (Vec<u8>, Option<End>) {
    let mut read = Vec::new();
    loop {
        match reader.poll_next(None) {
            Poll::Ready(Next::Frame(frame)) => read.extend_from_slice(&frame),
            Poll::Ready(Next::Last(frame, whole)) => {
                read.extend_from_slice(&frame);
                return (read, Some(End::Whole(whole)));
            }
            Poll::Ready(Next::End(end)) => return (read, Some(end)),
            Poll::Pending => return (read, None),
        }
    }
}

#[test]
fn readers_start_at_the_beginning_and_follow() {
    let (desk, live) = world();
    let (mut writer, mut first) = Transcript::begin(&desk, CAP, &live);
    assert!(first.poll_head(None).is_pending());
    let mut second = first.transcript().join(&desk).unwrap();
    writer.head(head(true));
    assert!(first.poll_head(None).is_ready() && second.poll_head(None).is_ready());
    writer.push(&Bytes::from_static(b"one "));
    assert_eq!(drain(&mut first).0, b"one ");
    writer.push(&Bytes::from_static(b"two "));
    let mut third = first.transcript().join(&desk).unwrap();
    assert_eq!(drain(&mut third).0, b"one two ");
    let sealed = whole(writer, b"three").unwrap();
    assert_eq!(sealed, "one two three");
    let mut late = first.transcript().join(&desk).unwrap();
    for (reader, rest) in [(&mut first, "two three"), (&mut second, "one two three"), (&mut third, "three")] {
        let (read, end) = drain(reader);
        assert_eq!(read, rest.as_bytes());
        assert!(matches!(end, Some(End::Whole(_))));
    }
    assert_eq!(drain(&mut late).0, b"one two three");
}

proptest! {
    /// However the bytes are cut, and wherever a reader comes in, it reads the same, and the same is sealed.
    #[test]
    fn any_split_gives_the_same(body in prop::collection::vec(any::<u8>(), 1..9000), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12), at in any::<prop::sample::Index>()) {
        let (desk, live) = world();
        let (mut writer, mut leader) = Transcript::begin(&desk, CAP, &live);
        let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(body.len())).collect();
        cuts.sort_unstable();
        let mut pieces = Vec::new();
        let mut from = 0;
        for cut in cuts.into_iter().chain([body.len()]) {
            pieces.push(&body[from..cut]);
            from = cut;
        }
        let joins = at.index(pieces.len());
        writer.head(head(true));
        let mut follower = None;
        let mut read = Vec::new();
        let last = pieces.pop().unwrap();
        for (index, piece) in pieces.into_iter().enumerate() {
            if index == joins {
                follower = leader.transcript().join(&desk);
            }
            writer.push(&Bytes::copy_from_slice(piece));
            read.extend(drain(&mut leader).0);
        }
        let mut follower = follower.or_else(|| leader.transcript().join(&desk)).unwrap();
        let sealed = whole(writer, last).unwrap();
        read.extend(drain(&mut leader).0);
        prop_assert_eq!(&read, &body);
        prop_assert_eq!(&sealed[..], &body[..]);
        prop_assert_eq!(&drain(&mut follower).0, &body);
        drop((leader, follower, sealed));
        prop_assert_eq!(live.used(), 0);
    }
}

#[test]
fn what_is_held_is_counted_and_given_back() {
    let (desk, live) = world();
    let (mut writer, reader) = Transcript::begin(&desk, CAP, &live);
    writer.head(head(true));
    let big = bytes(64 * 1024);
    // Small slices of a large buffer pin nothing of it.
    for at in 0..100 {
        writer.push(&big.slice(at..at + 10));
    }
    let held = reader.transcript().held();
    assert_eq!(held as u64, live.used());
    assert_eq!(held, BLOCKS.0 + 100 * FRAME);
    assert!(big.is_unique());
    let sealed = whole(writer, b"").unwrap();
    assert_eq!(reader.transcript().held(), sealed.len() + 100 * FRAME);
    assert_eq!(reader.transcript().held() as u64, live.used());
    drop(reader);
    assert_eq!(live.used(), 0);
}

#[test]
fn who_waits_is_woken_once_and_leaves_nothing_at_the_desk() {
    let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default()).unwrap();
    let (desk, live) = world();
    let mail = runtime.spawn_local(Rc::clone(&desk).run());
    let settle = || {
        runtime.block_on(async {
            for _ in 0..5 {
                tokio::task::yield_now().await;
            }
        });
    };
    let (mut writer, first) = Transcript::begin(&desk, CAP, &live);
    let transcript = Arc::clone(writer.transcript());
    let mut readers = vec![first];
    readers.extend((1..4).map(|_| transcript.join(&desk).unwrap()));
    let flags: Vec<_> = readers.iter().map(|_| flag()).collect();
    let woken = || flags.iter().map(|(flag, _)| flag.0.load(Relaxed)).collect::<Vec<_>>();
    for round in 1..4 {
        // The last waits with two wakers, of which the second counts; another leaves while it waits.
        for (reader, (_, waker)) in readers.iter_mut().zip(&flags) {
            assert!(reader.poll_next(Some(waker)).is_pending());
        }
        assert!(readers.last_mut().unwrap().poll_next(Some(&flags[0].1)).is_pending());
        drop(readers.remove(1));
        let before = woken();
        writer.push(&bytes(10));
        settle();
        let after: Vec<_> = woken().iter().zip(&before).map(|(after, before)| after - before).collect();
        assert_eq!(after.iter().sum::<u64>(), readers.len() as u64, "round {round}");
        for reader in &mut readers {
            assert!(matches!(reader.poll_next(None), Poll::Ready(Next::Frame(_))));
        }
        if readers.len() < 2 {
            break;
        }
    }
    assert_eq!(desk.awaited(), 1);
    drop(readers);
    assert_eq!(desk.awaited(), 0);
    mail.abort();
}

#[test]
fn what_is_sealed_is_counted_beside_the_frames() {
    let (desk, live) = world();
    let (mut writer, reader) = Transcript::begin(&desk, CAP, &live);
    writer.push(&bytes(3000));
    let frames = live.used();
    let sealed = writer.seal(&bytes(1000)).unwrap();
    assert_eq!(live.used(), frames + 4000);
    writer.whole(bytes(1000), Some(sealed), Whole { facts: facts(), entry: None });
    assert_eq!(live.used(), reader.transcript().held() as u64);
    drop(reader);
    assert_eq!(live.used(), 0);

    // No room for both: it is not sealed, and goes on.
    let live = Live::new((BLOCKS.0 + FRAME + 3999) as u64);
    let (mut writer, mut reader) = Transcript::begin(&desk, CAP, &live);
    writer.push(&bytes(3000));
    assert_eq!(writer.seal(&bytes(1000)), None);
    writer.whole(bytes(1000), None, Whole { facts: facts(), entry: None });
    assert_eq!(drain(&mut reader).0.len(), 4000);
    drop(reader);
    assert_eq!(live.used(), 0);

    // Dropped between the two.
    let live = Live::new(64 << 20);
    let (mut writer, reader) = Transcript::begin(&desk, CAP, &live);
    writer.seal(&bytes(1000));
    drop((writer, reader));
    assert_eq!(live.used(), 0);
}

#[test]
fn over_its_cap_a_lone_reader_goes_on_and_nothing_is_held() {
    let (desk, live) = world();
    let (mut writer, mut reader) = Transcript::begin(&desk, 1000, &live);
    writer.head(head(true));
    for _ in 0..100 {
        writer.push(&bytes(100));
        assert_eq!(drain(&mut reader).0.len(), 100);
    }
    assert!(!writer.is_recorded());
    assert!(reader.transcript().join(&desk).is_none(), "latecomers get a request of their own");
    assert_eq!((reader.transcript().held(), live.used()), (0, 0));
    assert_eq!(whole(writer, b"end"), None);
    assert_eq!(drain(&mut reader).0, b"end");
}

#[test]
fn without_live_memory_it_goes_on_unrecorded() {
    let (desk, live) = (Desk::new(), Live::new(5000));
    let (mut writer, mut reader) = Transcript::begin(&desk, CAP, &live);
    writer.head(head(true));
    writer.push(&bytes(100));
    assert!(writer.is_recorded());
    writer.push(&bytes(5000));
    assert!(!writer.is_recorded());
    assert_eq!(drain(&mut reader).0.len(), 5100);
    assert_eq!(live.used(), 0);
}

#[test]
fn a_reader_far_behind_the_others_is_cut_once_it_is_not_recorded() {
    let (desk, live) = world();
    let (mut writer, mut fast) = Transcript::begin(&desk, 1 << 10, &live);
    writer.head(head(true));
    let mut slow = fast.transcript().join(&desk).unwrap();
    let frame = bytes(64 * 1024);
    let mut most = 0;
    for _ in 0..40 {
        writer.push(&frame);
        drain(&mut fast);
        most = most.max(fast.transcript().held());
    }
    assert!(most as u64 <= 2 * WINDOW + 2 * frame.len() as u64, "{most}");
    let (read, end) = drain(&mut slow);
    assert!(read.is_empty());
    assert!(matches!(end, Some(End::Cut(error)) if error.kind() == Kind::StreamCut));
    assert_eq!(fast.transcript().held(), 0);
    // One that leaves lets go of what was held for it.
    whole(writer, b"end");
    assert_eq!(drain(&mut fast).0, b"end");
}

#[test]
fn a_stopped_reader_holds_nobody_up_while_it_is_recorded() {
    let (desk, live) = world();
    let (mut writer, mut fast) = Transcript::begin(&desk, CAP, &live);
    let (_, pump) = flag();
    let mut stopped = fast.transcript().join(&desk).unwrap();
    writer.head(head(true));
    for _ in 0..12 {
        assert_eq!(fast.transcript().room(&pump), Room::Go);
        writer.push(&bytes(60 * 1024));
        drain(&mut fast);
    }
    assert!(writer.is_recorded());
    whole(writer, b"");
    assert_eq!(drain(&mut stopped).0.len(), 12 * 60 * 1024);
}

#[test]
fn it_is_read_no_further_ahead_than_a_window() {
    let (desk, live) = world();
    let (mut writer, mut reader) = Transcript::begin(&desk, CAP, &live);
    let (woken, pump) = flag();
    writer.head(head(true));
    let mut ahead = 0;
    while reader.transcript().room(&pump) == Room::Go {
        writer.push(&bytes(10_000));
        ahead += 10_000;
    }
    assert!(ahead as u64 <= WINDOW + 10_000);
    assert_eq!(woken.0.load(Relaxed), 0);
    let Poll::Ready(Next::Frame(_)) = reader.poll_next(None) else { panic!("there is much") };
    assert_eq!(woken.0.load(Relaxed), 1, "there is room again");
    drop(reader);
    drop(writer);
}

#[test]
fn with_nobody_left_it_is_closed() {
    let (desk, live) = world();
    let (writer, reader) = Transcript::begin(&desk, CAP, &live);
    let (woken, pump) = flag();
    let transcript = Arc::clone(reader.transcript());
    assert_eq!(transcript.room(&pump), Room::Go);
    assert!(!transcript.close_if_idle());
    drop(reader);
    assert_eq!(woken.0.load(Relaxed), 1);
    assert_eq!(transcript.room(&pump), Room::Nobody);
    // Until it is closed, one may still come.
    let again = transcript.join(&desk).unwrap();
    assert!(!transcript.close_if_idle());
    drop(again);
    assert!(transcript.close_if_idle());
    assert!(transcript.join(&desk).is_none());
    drop(writer);
}

#[test]
fn errors_are_for_all_and_no_writer_leaves_them_hanging() {
    let (desk, live) = world();
    let (writer, mut reader) = Transcript::begin(&desk, CAP, &live);
    let mut other = reader.transcript().join(&desk).unwrap();
    writer.fail(Error::new(Kind::UpstreamConnect, "no"), false);
    for reader in [&mut reader, &mut other] {
        let Poll::Ready(Err(failure)) = reader.poll_head(None) else { panic!("it failed") };
        assert_eq!(failure.error.kind(), Kind::UpstreamConnect);
    }
    assert!(reader.transcript().join(&desk).is_none());

    let (mut writer, mut reader) = Transcript::begin(&desk, CAP, &live);
    writer.head(head(true));
    writer.push(&bytes(3));
    drop(writer);
    let (read, end) = drain(&mut reader);
    assert_eq!(read, b"xxx");
    assert!(matches!(end, Some(End::Cut(error)) if error.kind() == Kind::Internal));
}

#[test]
fn a_head_may_close_it_to_others() {
    let (desk, live) = world();
    let (mut writer, mut reader) = Transcript::begin(&desk, CAP, &live);
    let mut follower = reader.transcript().join(&desk).unwrap();
    writer.head(head(false));
    assert!(reader.transcript().join(&desk).is_none());
    writer.push(&bytes(2));
    assert_eq!((drain(&mut reader).0.len(), drain(&mut follower).0.len()), (2, 2));
}

/// Reads to the end as a task of the worker does.
async fn read(mut reader: Reader) -> Vec<u8> {
    let mut read = Vec::new();
    loop {
        let next = std::future::poll_fn(|cx| reader.poll_next(Some(cx.waker()))).await;
        match next {
            Next::Frame(frame) => read.extend_from_slice(&frame),
            Next::Last(frame, _) => {
                read.extend_from_slice(&frame);
                return read;
            }
            Next::End(_) => return read,
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "tasks of a test's own runtime")]
fn spawn<T: 'static>(task: impl Future<Output = T> + 'static) -> tokio::task::JoinHandle<T> {
    tokio::task::spawn_local(task)
}

fn worker<T>(main: impl AsyncFnOnce(Rc<Desk>) -> T) -> T {
    let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default()).unwrap();
    runtime.block_on(async {
        let desk = Desk::new();
        spawn(Rc::clone(&desk).run());
        main(desk).await
    })
}

#[test]
fn a_thousand_readers_on_several_workers_get_every_byte() {
    const WORKERS: usize = 4;
    const EACH: usize = 250;
    let (give, take): (mpsc::Sender<Arc<Transcript>>, _) = mpsc::channel();
    let met = Arc::new(Barrier::new(WORKERS + 1));
    let leader = {
        let met = Arc::clone(&met);
        thread::spawn(move || {
            worker(async move |desk| {
                let (mut writer, reader) = Transcript::begin(&desk, CAP, &Live::new(64 << 20));
                for _ in 0..WORKERS {
                    give.send(Arc::clone(reader.transcript())).unwrap();
                }
                writer.head(head(true));
                met.wait();
                let reading = spawn(read(reader));
                for n in 0..500_u32 {
                    writer.push(&Bytes::from(format!("{n} ")));
                    tokio::task::yield_now().await;
                }
                let sealed = whole(writer, b"end").unwrap();
                assert_eq!(reading.await.unwrap(), sealed);
                sealed
            })
        })
    };
    let followers: Vec<_> = (0..WORKERS)
        .map(|_| {
            let (transcript, met) = (take.recv().unwrap(), Arc::clone(&met));
            thread::spawn(move || {
                worker(async move |desk| {
                    let tasks: Vec<_> = (0..EACH).map(|_| spawn(read(transcript.join(&desk).unwrap()))).collect();
                    met.wait();
                    let mut all = Vec::new();
                    for task in tasks {
                        all.push(task.await.unwrap());
                    }
                    all
                })
            })
        })
        .collect();
    let sealed = leader.join().unwrap();
    for follower in followers {
        let all = follower.join().unwrap();
        assert_eq!(all.len(), EACH);
        assert!(all.iter().all(|read| *read == sealed));
    }
}
