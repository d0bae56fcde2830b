//! However a stream is split, the meter and the renamer say the same of it; nothing panics.

#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use sluicegate::protocol::{
    endpoint::{Dialect, Endpoint},
    rename::Renamer,
    sse::Scanner,
    usage::{StreamMeter, of_answer},
};

const SHAPES: [(Endpoint, Dialect); 4] = [
    (Endpoint::Chat, Dialect::OpenAi),
    (Endpoint::Responses, Dialect::Responses),
    (Endpoint::Messages, Dialect::Anthropic),
    (Endpoint::Passthrough, Dialect::Ollama),
];

// The first byte says how long the pieces are.
fuzz_target!(|input: &[u8]| {
    let Some((&size, stream)) = input.split_first() else { return };
    let size = usize::from(size).max(1);
    for limit in [16, 4096] {
        assert_eq!(events(&mut stream.chunks(size), limit), events(&mut [stream].into_iter(), limit));
    }
    for (endpoint, dialect) in SHAPES {
        let whole = metered(endpoint, dialect, &mut [stream].into_iter());
        assert_eq!(metered(endpoint, dialect, &mut stream.chunks(size)), whole);
        let renamed = renamed(dialect, &mut [stream].into_iter());
        assert_eq!(self::renamed(dialect, &mut stream.chunks(size)), renamed);
        of_answer(endpoint, stream);
    }
});

fn events<'a>(chunks: &mut dyn Iterator<Item = &'a [u8]>, limit: usize) -> (Vec<(Vec<u8>, Vec<u8>)>, bool, bool) {
    let mut scanner = Scanner::new(limit);
    let mut all = Vec::new();
    for chunk in chunks {
        scanner.push(chunk, |event| all.push((event.name.to_vec(), event.data.to_vec())));
    }
    (all, scanner.at_boundary(), scanner.overflowed())
}

fn metered<'a>(endpoint: Endpoint, dialect: Dialect, chunks: &mut dyn Iterator<Item = &'a [u8]>) -> String {
    let mut meter = StreamMeter::new(endpoint, dialect);
    chunks.for_each(|chunk| meter.push(chunk));
    format!(
        "{:?} {:?} {} {} {} {} {} {} {:?}",
        meter.usage(),
        meter.finish(),
        meter.saw_error(),
        meter.saw_done(),
        meter.is_whole(),
        meter.at_boundary(),
        meter.events(),
        meter.token_events(),
        meter.next_sequence(),
    )
}

fn renamed<'a>(dialect: Dialect, chunks: &mut dyn Iterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut renamer = Renamer::with_limit(dialect, "new \"name\"", 64);
    let mut out = Vec::new();
    for chunk in chunks {
        out.extend_from_slice(&renamer.push(Bytes::copy_from_slice(chunk)));
    }
    out.extend_from_slice(&renamer.finish());
    out
}
