//! Answers of a backend: no input panics, and how the bytes are split into reads never changes what they mean.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sluicegate::client::http1::decoder::{AtEof, Event, ResponseDecoder};

/// Everything a reader of the answer could see.
#[derive(Debug, Default, PartialEq)]
struct Seen {
    head: Option<(u16, Vec<(String, Vec<u8>)>)>,
    data: Vec<u8>,
    trailers: Vec<(String, Vec<u8>)>,
    whole: bool,
    fault: Option<String>,
    reusable: bool,
}

fn fields(map: &http::HeaderMap) -> Vec<(String, Vec<u8>)> {
    map.iter().map(|(name, value)| (name.to_string(), value.as_bytes().to_vec())).collect()
}

fn read<'a>(pieces: impl Iterator<Item = &'a [u8]>, to_head: bool) -> Seen {
    let mut seen = Seen::default();
    let mut decoder = ResponseDecoder::new(4096, to_head);
    let mut on = |seen: &mut Seen, event| match event {
        Event::Head(head) => seen.head = Some((head.status().as_u16(), fields(head.headers()))),
        Event::Data(data) => seen.data.extend_from_slice(&data),
        Event::Trailers(trailers) => seen.trailers = fields(&trailers),
        Event::End => seen.whole = true,
    };
    for piece in pieces {
        if let Err(fault) = decoder.push(piece, |event| on(&mut seen, event)) {
            seen.fault = Some(fault.to_string());
            return seen;
        }
    }
    seen.reusable = decoder.is_reusable();
    assert_eq!(decoder.eof(|event| on(&mut seen, event)) == AtEof::Whole, seen.whole);
    seen
}

fuzz_target!(|input: (u8, bool, &[u8])| {
    let (step, to_head, bytes) = input;
    let at_once = read(std::iter::once(bytes), to_head);
    let split = read(bytes.chunks(usize::from(step).max(1)), to_head);
    assert_eq!(at_once, split);
});
