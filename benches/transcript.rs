//! What it costs that many read one answer while it comes: `cargo bench --bench transcript`.
//!
//! One writer and its readers on one worker, an event of 240 bytes at a time; the next is written when all have read the
//! one before, as at the pace of a model. An item is one event at one reader: the wake of its task included, the write to
//! its socket not.

use std::{cell::Cell, future::poll_fn, rc::Rc, time::Duration};

use bytes::Bytes;
use divan::{Bencher, counter::ItemsCount};
use http::{HeaderMap, StatusCode};
use sluicegate::{
    protocol::usage::{Finish, Usage},
    proxy::transcript::{Desk, Facts, Head, Live, Next, Reader, Transcript, Whole},
};
use tokio::{
    runtime::{Builder, LocalOptions},
    task::{JoinHandle, yield_now},
};

const EVENTS: u64 = 50;

fn main() {
    divan::main();
}

#[divan::bench(args = [1, 100, 10_000], sample_count = 10, sample_size = 1)]
fn live_readers(bencher: Bencher<'_, '_>, readers: u64) {
    let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default()).expect("a runtime");
    let desk = Desk::new();
    let mail = runtime.spawn_local(Rc::clone(&desk).run());
    bencher.counter(ItemsCount::new(readers * EVENTS)).bench_local(|| runtime.block_on(answer(&desk, readers)));
    mail.abort();
}

/// One answer, from its first event to its end.
async fn answer(desk: &Rc<Desk>, readers: u64) {
    let live = Live::new(64 << 20);
    let (mut writer, first) = Transcript::begin(desk, 1 << 20, &live);
    let mut seats = vec![first];
    let transcript = std::sync::Arc::clone(writer.transcript());
    seats.extend((1..readers).map(|_| transcript.join(desk).expect("it is open")));
    let read = Rc::new(Cell::new(0));
    let tasks: Vec<_> = seats.into_iter().map(|seat| spawn(follow(seat, Rc::clone(&read)))).collect();
    writer.head(Head { status: StatusCode::OK, headers: HeaderMap::new(), open: true, told: true });
    let event = Bytes::from(vec![b'x'; 240]);
    for n in 1..=EVENTS {
        writer.push(&event);
        while read.get() < n * readers {
            yield_now().await;
        }
    }
    let facts = Facts { usage: Usage::default(), finish: Finish::Stop, engine: None, took: Duration::ZERO, told: true };
    writer.whole(Bytes::new(), None, Whole { facts, entry: None });
    for task in tasks {
        task.await.expect("a reader comes to the end");
    }
}

async fn follow(mut seat: Reader, read: Rc<Cell<u64>>) {
    while let Next::Frame(_) | Next::Last(..) = poll_fn(|cx| seat.poll_next(Some(cx.waker()))).await {
        read.set(read.get() + 1);
    }
}

#[expect(clippy::disallowed_methods, reason = "tasks of the bench's own runtime")]
fn spawn<T: 'static>(task: impl Future<Output = T> + 'static) -> JoinHandle<T> {
    tokio::task::spawn_local(task)
}
