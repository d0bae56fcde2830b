//! Keeps an event whole: what a read ended inside is held back until the rest of it came, so that a cut never leaves
//! the client with half an event.

use bytes::{Bytes, BytesMut};

/// An event longer than this is passed on in pieces: nothing is unbounded.
const LONGEST: usize = 1 << 20;

/// What separates events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// A blank line (WHATWG event streams; LF, CRLF or CR).
    Sse,
    /// A line feed.
    Ndjson,
}

impl Framing {
    /// By content type; `None` for everything that is not a stream of events.
    pub(super) fn of(content_type: &[u8]) -> Option<Self> {
        let essence = content_type.split(|b| *b == b';').next().unwrap_or_default().trim_ascii();
        if essence.eq_ignore_ascii_case(b"text/event-stream") {
            Some(Self::Sse)
        } else if essence.eq_ignore_ascii_case(b"application/x-ndjson") {
            Some(Self::Ndjson)
        } else {
            None
        }
    }

    /// How many bytes of `data` belong to events that are complete.
    fn complete(self, data: &[u8]) -> usize {
        match self {
            Self::Ndjson => memchr::memrchr(b'\n', data).map_or(0, |at| at + 1),
            Self::Sse => memchr::memrchr2_iter(b'\n', b'\r', data)
                .map(|at| at + 1)
                .find(|end| ends_blank(&data[..*end]))
                .unwrap_or(0),
        }
    }
}

/// Whether `data` ends with two line ends in a row, of any kind.
fn ends_blank(data: &[u8]) -> bool {
    let line = data.strip_suffix(b"\r\n").or_else(|| data.strip_suffix(b"\n")).or_else(|| data.strip_suffix(b"\r"));
    line.is_some_and(|line| matches!(line.last(), Some(b'\n' | b'\r')))
}

/// The incomplete event at the end of what came.
#[derive(Debug)]
pub(super) struct HoldBack {
    framing: Framing,
    held: BytesMut,
}

impl HoldBack {
    pub(super) fn new(framing: Framing) -> Self {
        Self { framing, held: BytesMut::new() }
    }

    /// Takes what was read, gives what may go on; whole events are not copied.
    pub(super) fn push(&mut self, mut data: Bytes) -> Bytes {
        if self.held.is_empty() {
            let whole = self.framing.complete(&data);
            if whole == data.len() {
                return data;
            }
            let ready = data.split_to(whole);
            self.held.extend_from_slice(&data);
            return self.bounded(ready);
        }
        self.held.extend_from_slice(&data);
        let whole = self.framing.complete(&self.held);
        let ready = self.held.split_to(whole).freeze();
        self.bounded(ready)
    }

    /// Whether nothing is held.
    pub(super) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// What is left when the stream ended cleanly.
    pub(super) fn rest(&mut self) -> Bytes {
        std::mem::take(&mut self.held).freeze()
    }

    fn bounded(&mut self, ready: Bytes) -> Bytes {
        if self.held.len() <= LONGEST {
            return ready;
        }
        let rest = self.rest();
        if ready.is_empty() { rest } else { [&ready[..], &rest[..]].concat().into() }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pushed(framing: Framing, parts: &[&[u8]]) -> (Vec<Bytes>, Bytes) {
        let mut hold = HoldBack::new(framing);
        let out = parts.iter().map(|part| hold.push(Bytes::copy_from_slice(part))).collect();
        (out, hold.rest())
    }

    #[test]
    fn half_an_event_waits_for_its_other_half() {
        let (out, rest) = pushed(Framing::Sse, &[b"data: 1\n\ndata: 2\n", b"\ndata: 3\r\n\r", b"\ndata: 4"]);
        // A blank line is complete with its CR: a LF after it belongs to the same line end and comes later.
        assert_eq!(out, [&b"data: 1\n\n"[..], b"data: 2\n\ndata: 3\r\n\r", b""]);
        assert_eq!(rest, &b"\ndata: 4"[..]);
    }

    #[test]
    fn lines_of_ndjson() {
        let (out, rest) = pushed(Framing::Ndjson, &[b"{}\n{", b"}\n"]);
        assert_eq!(out, [&b"{}\n"[..], b"{}\n"]);
        assert!(rest.is_empty());
    }

    #[test]
    fn an_endless_event_is_not_held() {
        let mut hold = HoldBack::new(Framing::Sse);
        let long = Bytes::from(vec![b'x'; LONGEST + 1]);
        assert_eq!(hold.push(long.clone()), long);
        assert!(hold.rest().is_empty());
    }

    proptest! {
        #[test]
        fn nothing_is_lost_or_moved(text in "(data: [a-z]{0,5}(\n|\r\n|\r){1,2}){0,9}", cuts in proptest::collection::vec(0usize..99, 0..6)) {
            let bytes = text.as_bytes();
            let mut cuts: Vec<_> = cuts.into_iter().map(|c| c.min(bytes.len())).collect();
            cuts.sort_unstable();
            let mut parts = Vec::new();
            let mut from = 0;
            for cut in cuts.into_iter().chain([bytes.len()]) {
                parts.push(&bytes[from..cut]);
                from = cut;
            }
            let (out, rest) = pushed(Framing::Sse, &parts);
            for piece in &out {
                prop_assert!(piece.is_empty() || ends_blank(piece));
            }
            prop_assert_eq!([&out.concat()[..], &rest[..]].concat(), bytes);
        }
    }
}
