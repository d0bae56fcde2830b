//! However a stream and its continuation come together, the client gets the same bytes; nothing panics, and what we
//! close reads as whole.

#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use sluicegate::{
    protocol::{
        endpoint::Endpoint,
        usage::{Finish, Usage},
    },
    proxy::resume::{
        request::Shape,
        splice::{Seam, Splice},
        tap::{Seen, Tap},
    },
};

const ENDPOINTS: [Endpoint; 4] = [Endpoint::Chat, Endpoint::Completions, Endpoint::Messages, Endpoint::Responses];

// The first byte chooses the form, the second the size of the pieces; a zero byte parts stream and continuation.
fuzz_target!(|input: &[u8]| {
    let [form, size, streams @ ..] = input else { return };
    let mut streams = streams.split(|byte| *byte == 0);
    let (first, second) = (streams.next().unwrap_or_default(), streams.next().unwrap_or_default());
    let case = |size| run(*form, first, second, size);
    assert_eq!(case(usize::from(*size).max(1)), case(usize::MAX));
});

fn run(form: u8, first: &[u8], second: &[u8], size: usize) -> (Vec<u8>, String, String) {
    let endpoint = ENDPOINTS[usize::from(form & 3)];
    let (ids, white, shape) = (form & 4 > 0, form & 8 > 0, form & 16 > 0);
    let mut tap = Tap::new(endpoint, ids);
    let mut out = Vec::new();
    for piece in pieces(first, size) {
        let passed = tap.push(Bytes::from(piece));
        out.extend_from_slice(&passed.data);
    }
    let delivered = tap.delivered();
    let text = delivered.text();
    let sent = if white { text.trim_end() } else { &text };
    let settled = delivered.settled_ids().filter(|_| ids);
    assert!(delivered.sure_ids(3).is_none_or(|sure| Some(sure.len()) <= delivered.ids().map(|ids| ids.all.len())));
    let seam = Seam {
        shape: if shape { Shape::Chat } else { Shape::Completions },
        ids: settled.is_some(),
        swallow: text[sent.len()..].to_owned(),
        said: settled.map_or(delivered.chunks(), |ids| ids.len() as u64),
        stops: vec!["ab".to_owned(), "\n\nQ".to_owned()],
        usage: form & 32 > 0,
    };
    let mut splice = Splice::new(seam);
    let mut seen = Seen::Going;
    for piece in pieces(second, size) {
        let passed = splice.push(&piece, &mut tap);
        out.extend_from_slice(&passed.data);
        seen = passed.seen;
    }
    out.extend_from_slice(&tap.close(Finish::Stop, Some(Usage { input: 1, output: 2, cached: 0 }), Some("x")));
    assert!(tap.held() < 64 * (first.len() + second.len()) + (64 << 10));
    let delivered = tap.delivered();
    (
        out,
        delivered.text(),
        format!("{seen:?} {:?} {:?} {:?}", delivered.ids(), delivered.finish(), delivered.refusal()),
    )
}

/// Whole events, `size` of them together; what is left at the end comes alone.
fn pieces(stream: &[u8], size: usize) -> Vec<Vec<u8>> {
    let mut events: Vec<Vec<u8>> = vec![Vec::new()];
    for line in stream.split_inclusive(|byte| *byte == b'\n') {
        if let Some(event) = events.last_mut() {
            event.extend_from_slice(line);
        }
        if line == b"\n" {
            events.push(Vec::new());
        }
    }
    let rest = events.pop().unwrap_or_default();
    let mut all: Vec<_> = events.chunks(size.min(events.len().max(1))).map(<[Vec<u8>]>::concat).collect();
    all.push(rest);
    all
}
