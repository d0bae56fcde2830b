//! Bombs and large bodies: what is inside of a body costs no more than the limits say.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
};

use flate2::{Compress, Compression, FlushCompress};

use crate::{
    kit::{Gate, Kept, Peak, Sim, alone, until},
    support::{Answer, Exchange, at_once, coded::encode},
};

const MIB: usize = 1 << 20;
const CHAT: &str = r#"{"model":"sim","messages":[{"role":"user","content":"hi"}],"max_tokens":2}"#;
const PATH: &str = "/v1/chat/completions";

/// The last is what the gateway meets first.
const BOMBS: [&str; 9] =
    ["gzip", "deflate", "br", "zstd", "gzip, gzip", "br, zstd", "zstd, br", "deflate, br, gzip", "br, br, br"];
/// Of the whole gateway, while a bomb is in it.
const MOST: f64 = 100.0;

const IMAGES: usize = 8;
const IMAGE: usize = 20 * MIB;
/// Of the whole gateway, while it has all of them.
const MOST_WITH_IMAGES: f64 = 300.0;

fn post(gate: &Gate, codings: &str, body: &[u8]) -> Answer {
    let headers = [("content-type", "application/json"), ("content-encoding", codings)];
    Exchange::start(gate.addr, "POST", PATH, &headers, body).finish()
}

fn gate(sim: &Sim) -> Gate {
    Gate::start(&format!("backends: [{{name: a, url: 'http://{}'}}]\nlog: {{access: false}}\n", sim.addr)).healthy()
}

#[test]
fn bombs_cost_no_memory_and_hold_nobody_up() {
    let _turn = alone();
    let sim = Sim::start(&[]);
    let gate = gate(&sim);
    let (addr, over) = (gate.addr, Arc::new(AtomicBool::new(false)));
    let others = thread::spawn({
        let over = Arc::clone(&over);
        move || {
            let (mut client, mut served) = (Kept::to(addr), 0);
            while !over.load(Relaxed) {
                assert_eq!(client.ask("POST", PATH, CHAT).unwrap().0, 200);
                served += 1;
            }
            served
        }
    });
    for codings in BOMBS {
        let bomb = bomb(codings);
        let watched = Peak::of(&gate);
        let answer = post(&gate, codings, &bomb);
        let peak = watched.peak();
        assert_eq!((answer.status, &*answer.code()), (413, "payload_too_large"), "{codings}");
        println!("1 GiB in {} bytes of {codings}: peak RSS {peak:.1} MiB", bomb.len());
        assert!(peak <= MOST, "{codings}: {peak} MiB");
    }
    over.store(true, Relaxed);
    println!("{} others served meanwhile", others.join().unwrap());
    gate.until_metric("sluicegate_body_memory_bytes", |n| n == 0.0);
}

#[test]
fn large_images_are_held_once() {
    let _turn = alone();
    let sim = Sim::start(&[]);
    let gate = gate(&sim);
    let image = image();
    let coded = encode("gzip", &image);
    for (codings, body) in [("identity", &image), ("gzip", &coded)] {
        // All of them are held at the backend before the first is answered.
        sim.post("/sim/fault", &format!(r#"{{"fault":"hang","times":{IMAGES}}}"#));
        let watched = Peak::of(&gate);
        let (addr, body) = (gate.addr, body.clone());
        let uploads = thread::spawn(move || {
            at_once(IMAGES, move |_| {
                let headers = [("content-type", "application/json"), ("content-encoding", codings)];
                Exchange::start(addr, "POST", PATH, &headers, &body).finish().status
            })
        });
        gate.until_metric(r#"sluicegate_backend_in_flight{backend="a"}"#, |n| n == IMAGES as f64);
        assert_eq!(gate.metric("sluicegate_body_memory_bytes"), (IMAGES * image.len()) as f64);
        until("all are answered", || {
            sim.post("/sim/release", "");
            uploads.is_finished().then_some(())
        });
        assert_eq!(uploads.join().unwrap(), [200; IMAGES], "{codings}");
        let peak = watched.peak();
        println!("{IMAGES} bodies of {} MiB, {codings}: peak RSS {peak:.1} MiB", image.len() / MIB);
        assert!(peak <= MOST_WITH_IMAGES, "{codings}: {peak} MiB");
    }
}

/// A chat with an image of so many bytes that no coding makes much smaller.
fn image() -> Vec<u8> {
    let (head, tail) = (
        r#"{"model":"sim","max_tokens":1,"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:image/png;base64,"#,
        r#""}}]}]}"#,
    );
    let digits = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut state = 1_u64;
    let mut random = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        digits[(state >> 58) as usize]
    };
    let mut body = head.as_bytes().to_vec();
    body.extend((0..IMAGE - head.len() - tail.len()).map(|_| random()));
    body.extend_from_slice(tail.as_bytes());
    body
}

/// What a bomb is made of so many times.
const TIMES: usize = 64;
const PART: usize = 1 << 24;

/// 1 GiB of zeros in `codings`; the first of them does the most.
fn bomb(codings: &str) -> Vec<u8> {
    let (first, others) = codings.split_once(", ").unwrap_or((codings, ""));
    let bomb = match first {
        // Members and frames may follow each other.
        "gzip" | "zstd" => encode(first, &vec![0; PART]).repeat(TIMES),
        "deflate" => {
            // Each part ends on a byte; the last block is empty.
            [deflate(&vec![0; PART]).repeat(TIMES), vec![3, 0]].concat()
        }
        "br" => brotli_bomb(),
        other => panic!("no bomb in {other}"),
    };
    if others.is_empty() { bomb } else { encode(others, &bomb) }
}

/// RFC 7932: each part one literal and one copy of all the rest.
fn brotli_bomb() -> Vec<u8> {
    let mut bits = Bits::default();
    // WBITS: a window of 64 KiB.
    bits.put(1, 0);
    for _ in 0..TIMES {
        // Not the last; six nibbles of length - 1, compressed.
        bits.put(1, 0);
        bits.put(2, 2);
        bits.put(24, PART as u64 - 1);
        bits.put(1, 0);
        // One block type of each kind; NPOSTFIX, NDIRECT; the literals' one context; one tree of either kind.
        bits.put(3, 0);
        bits.put(6, 0);
        bits.put(2, 0);
        bits.put(2, 0);
        // Codes of one symbol each, so that none of them takes a bit: the literal 0; insert 1, copy 2118 and more; the
        // distance 1 behind, as 16: 1 + one extra bit.
        for (width, symbol) in [(8, 0), (10, 384 + (1 << 3) + 7), (6, 16)] {
            bits.put(2, 1);
            bits.put(2, 0);
            bits.put(width, symbol);
        }
        // The copy's 24 extra bits; the distance's own.
        bits.put(24, PART as u64 - 1 - 2118);
        bits.put(1, 0);
    }
    // Last and empty.
    bits.put(2, 3);
    bits.bytes
}

#[derive(Default)]
struct Bits {
    bytes: Vec<u8>,
    /// Of the last byte.
    used: u32,
}

impl Bits {
    fn put(&mut self, width: u32, value: u64) {
        for i in 0..width {
            if self.used == 0 {
                self.bytes.push(0);
            }
            *self.bytes.last_mut().unwrap() |= ((value >> i & 1) as u8) << self.used;
            self.used = (self.used + 1) % 8;
        }
    }
}

/// Bare, up to the end of a byte.
fn deflate(content: &[u8]) -> Vec<u8> {
    let mut coded = Vec::with_capacity(content.len() + 1024);
    Compress::new(Compression::best(), false).compress_vec(content, &mut coded, FlushCompress::Full).unwrap();
    coded
}
