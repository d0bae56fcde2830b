//! What coding an answer costs and saves: `cargo bench --bench compress`. First a table of bytes, then times.
//!
//! Inputs: 500 events of a chat stream, of about 220 bytes as vLLM writes them; the recorded streams of real engines in
//! `tests/fixtures/real`, each in a frame of its own; a JSON answer of 16 KiB. `flushed` is a stream with a flush after
//! every event, or after every few where events are ready together. docs/compression.md has the figures.

#![expect(clippy::print_stdout, reason = "a bench prints its table")]

use std::{fmt::Write as _, fs, io::Write as _, path::Path};

use bytes::BytesMut;
use divan::{Bencher, counter::ItemsCount};
use flate2::{Compress, Compression, FlushCompress};
use sluicegate::proxy::compress::encoder::{Encoder, Kind};
use zstd::stream::raw::{self, Operation as _};

const EVENTS: usize = 500;
const STREAMS: [Kind; 3] = [Kind::GzipStream, Kind::Zstd, Kind::BrStream];
const WHOLES: [Kind; 3] = [Kind::GzipWhole, Kind::Zstd, Kind::BrWhole];

fn main() {
    table();
    divan::main();
}

/// A small random sequence, the same each time.
fn random(seed: u64) -> impl Iterator<Item = u64> {
    std::iter::successors(Some(seed), |state| {
        let mut next = state ^ state << 13;
        next ^= next >> 7;
        Some(next ^ next << 17)
    })
}

/// The words of a text, with one in five that is nowhere else.
fn words() -> impl Iterator<Item = String> {
    const WORDS: [&str; 16] = [
        " the", " of", " gateway", " stream", " token", " answer", " is", " model", " each", " and", " because",
        " number", " river", " light", " what", " comes",
    ];
    random(7).map(|n| if n % 5 == 0 { format!(" {:x}", n >> 40) } else { WORDS[(n >> 32) as usize % 16].to_owned() })
}

fn events() -> Vec<Vec<u8>> {
    let event = |word| {
        format!(
            "data: {{\"id\":\"chatcmpl-8f2b2d4c1a0e4f6f9d7b\",\"object\":\"chat.completion.chunk\",\"created\":1764000000,\
             \"model\":\"llama-3.1-8b-instruct\",\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{word}\"}},\
             \"logprobs\":null,\"finish_reason\":null}}]}}\n\n"
        )
    };
    words().take(EVENTS).map(|word| event(word).into_bytes()).collect()
}

/// One answer of prose, in JSON.
fn json() -> Vec<u8> {
    let mut text =
        String::from("{\"id\":\"chatcmpl-1\",\"object\":\"chat.completion\",\"choices\":[{\"message\":{\"content\":\"");
    let mut words = words();
    while text.len() < 16 * 1024 - 4 {
        text.extend(words.next());
    }
    text += "\"}}]}";
    text.into_bytes()
}

/// The streams that real engines sent.
fn recorded() -> Vec<Vec<Vec<u8>>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/real");
    let mut files: Vec<_> = fs::read_dir(folder).expect("the fixtures").flatten().map(|entry| entry.path()).collect();
    files.retain(|path| path.extension().is_some_and(|kind| kind == "sse"));
    files.sort();
    let split = |text: String| text.split_inclusive("\n\n").map(|event| event.as_bytes().to_vec()).collect();
    files.into_iter().filter_map(|path| fs::read_to_string(path).ok()).map(split).collect()
}

/// Bytes that `events` come to, flushed after every `together`.
fn flushed(encoder: &mut Encoder, events: &[Vec<u8>], together: usize, room: &mut Room) -> usize {
    room.out.clear();
    for group in events.chunks(together) {
        let (last, rest) = group.split_last().expect("chunks are not empty");
        for event in rest {
            encoder.take(event, &mut room.scratch, &mut room.out).expect("it encodes");
        }
        encoder.flush(last, &mut room.scratch, &mut room.out).expect("it encodes");
    }
    encoder.finish(b"", &mut room.scratch, &mut room.out).expect("it encodes");
    room.out.len()
}

struct Room {
    scratch: Vec<u8>,
    out: BytesMut,
}

impl Room {
    fn new() -> Self {
        Self { scratch: vec![0; 16 * 1024], out: BytesMut::new() }
    }
}

fn total(events: &[Vec<u8>]) -> usize {
    events.iter().map(Vec::len).sum()
}

/// Bytes after by bytes before.
fn table() {
    let (events, recorded, json, mut room) = (events(), recorded(), json(), Room::new());
    let new = |kind| Encoder::new(kind).expect("an encoder");
    println!("{:12} {:>8} {:>8} {:>8} {:>10}", "bytes", "1 event", "of 4", "of 16", "recorded");
    for kind in STREAMS {
        let mut line = String::new();
        for together in [1, 4, 16] {
            let coded = flushed(&mut new(kind), &events, together, &mut room);
            let _fits = write!(line, " {:8.4}", coded as f64 / total(&events) as f64);
        }
        let coded: usize = recorded.iter().map(|stream| flushed(&mut new(kind), stream, 1, &mut room)).sum();
        let before: usize = recorded.iter().map(|stream| total(stream)).sum();
        println!("{:12}{line} {:10.4}", format!("{kind:?}"), coded as f64 / before as f64);
    }
    for kind in WHOLES {
        room.out.clear();
        new(kind).finish(&json, &mut room.scratch, &mut room.out).expect("it encodes");
        println!("{:12} 16 KiB of JSON: {:.4}", format!("{kind:?}"), room.out.len() as f64 / json.len() as f64);
    }
}

/// A stream, as the gateway sends it; an item is an event.
#[divan::bench(args = STREAMS)]
fn stream(bencher: Bencher<'_, '_>, kind: Kind) {
    let (events, mut room) = (events(), Room::new());
    let mut encoder = Encoder::new(kind).ok();
    bencher.counter(ItemsCount::new(EVENTS)).bench_local(|| {
        // Brotli's cannot be used again: that is a part of its price.
        let mut next = encoder.take().unwrap_or_else(|| Encoder::new(kind).expect("an encoder"));
        let coded = flushed(&mut next, &events, 1, &mut room);
        encoder = next.reset();
        coded
    });
}

/// A plain answer of 16 KiB.
#[divan::bench(args = WHOLES)]
fn whole(bencher: Bencher<'_, '_>, kind: Kind) {
    let (json, mut room) = (json(), Room::new());
    let mut encoder = Encoder::new(kind).ok();
    bencher.bench_local(|| {
        let mut next = encoder.take().unwrap_or_else(|| Encoder::new(kind).expect("an encoder"));
        room.out.clear();
        next.finish(&json, &mut room.scratch, &mut room.out).expect("it encodes");
        encoder = next.reset();
        room.out.len()
    });
}

/// What other levels would cost: gzip with a partial flush.
#[divan::bench(args = [1, 2, 4, 6])]
fn gzip_level(bencher: Bencher<'_, '_>, level: u32) {
    let (events, mut out) = (events(), vec![0; 16 * 1024]);
    let mut encoder = Compress::new_gzip(Compression::new(level), 15);
    bencher.counter(ItemsCount::new(EVENTS)).bench_local(|| {
        encoder.reset();
        for event in &events {
            encoder.compress(event, &mut out, FlushCompress::Partial).expect("it encodes");
        }
        encoder.total_out()
    });
}

/// zstd, with the windows of its levels.
#[divan::bench(args = [-1, 1, 3])]
fn zstd_level(bencher: Bencher<'_, '_>, level: i32) {
    let (events, mut out) = (events(), vec![0; 16 * 1024]);
    let mut encoder = raw::Encoder::new(level).expect("an encoder");
    bencher.counter(ItemsCount::new(EVENTS)).bench_local(|| {
        encoder.reinit().expect("it serves again");
        for event in &events {
            encoder.run_on_buffers(event, &mut out).expect("it encodes");
            encoder.flush(&mut raw::OutBuffer::around(&mut out[..])).expect("it encodes");
        }
    });
}

/// brotli, with a window of 64 KiB.
#[divan::bench(args = [0, 1, 2, 3, 5])]
fn br_quality(bencher: Bencher<'_, '_>, quality: u32) {
    let events = events();
    bencher.counter(ItemsCount::new(EVENTS)).bench_local(|| {
        let mut encoder = brotli::CompressorWriter::new(Vec::with_capacity(128 * 1024), 4096, quality, 16);
        for event in &events {
            encoder.write_all(event).expect("it encodes");
            encoder.flush().expect("it encodes");
        }
        encoder.get_ref().len()
    });
}
