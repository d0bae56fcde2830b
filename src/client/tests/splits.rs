//! How an answer is cut into reads never changes what it means.

use proptest::prelude::*;

use super::{answers, *};
use crate::client::http1::decoder::{Event, ResponseDecoder};

/// What the pure decoder makes of pieces: head and trailers as text, content, how it ended.
fn decode<'a>(pieces: impl Iterator<Item = &'a [u8]>, to_head: bool) -> (String, Vec<u8>, String) {
    let mut decoder = ResponseDecoder::new(4096, to_head);
    let (mut said, mut data, mut ended) = (String::new(), Vec::new(), String::new());
    for piece in pieces {
        let pushed = decoder.push(piece, |event| match event {
            Event::Head(head) => said += &format!("{} {:?}\n", head.status(), fields(head.headers())),
            Event::Data(bytes) => data.extend_from_slice(&bytes),
            Event::Trailers(trailers) => said += &format!("{:?}\n", fields(&trailers)),
            Event::End => said += "end\n",
        });
        if let Err(fault) = pushed {
            return (said, data, format!("{fault:?}"));
        }
    }
    ended += &format!("reusable {}", decoder.is_reusable());
    let at_eof = decoder.eof(|_| {});
    (said, data, format!("{ended} {at_eof:?}"))
}

fn pieces<'a>(mut bytes: &'a [u8], sizes: &[usize]) -> Vec<&'a [u8]> {
    let mut pieces = Vec::new();
    for size in sizes {
        let (piece, rest) = bytes.split_at((*size).min(bytes.len()));
        pieces.push(piece);
        bytes = rest;
    }
    pieces.push(bytes);
    pieces
}

#[test]
fn the_decoder_sees_the_same_in_any_two_pieces_and_byte_by_byte() {
    for case in answers::all() {
        let to_head = case.method == Method::HEAD;
        let whole = decode(std::iter::once(&case.answer[..]), to_head);
        assert_eq!(decode(case.answer.chunks(1), to_head), whole, "{} byte by byte", case.name);
        for at in 0..case.answer.len().min(400) {
            let split = pieces(&case.answer, &[at]);
            assert_eq!(decode(split.into_iter(), to_head), whole, "{} at {at}", case.name);
        }
    }
}

proptest! {
    #[test]
    fn the_decoder_sees_the_same_in_any_pieces_of_damaged_answers(
        index in any::<prop::sample::Index>(),
        sizes in prop::collection::vec(0_usize..40, 0..20),
        damage in prop::collection::vec((any::<prop::sample::Index>(), prop::sample::select(&b"\r\n\0 ;:0a9-,xH\x7f\xff"[..])), 0..4),
    ) {
        let cases = answers::all();
        let case = index.get(&cases);
        let mut bytes = case.answer.clone();
        for (at, byte) in damage.iter().filter(|_| !case.answer.is_empty()) {
            let at = at.index(bytes.len());
            bytes[at] = *byte;
        }
        let to_head = case.method == Method::HEAD;
        let split = pieces(&bytes, &sizes);
        prop_assert_eq!(decode(split.into_iter(), to_head), decode(std::iter::once(&bytes[..]), to_head));
    }
}

/// One answer over a connection, a read per piece.
async fn over_wire(case: &answers::Case, sizes: &[usize]) -> Seen {
    let (client, _) = client();
    let target = nowhere();
    let mut backend = plug(&client, &target, 0);
    let serve = async {
        read_head(&mut backend).await;
        for piece in pieces(&case.answer, sizes) {
            // Refused once the client has seen enough.
            if backend.write_all(piece).await.is_err() {
                return;
            }
            tokio::task::yield_now().await;
        }
        if case.eof {
            backend.shutdown().await.unwrap();
        }
    };
    tokio::join!(fetch(&client, &target, case.method.clone(), Body::empty()), serve).0
}

#[tokio::test]
async fn the_sender_sees_the_same_in_any_two_pieces() {
    for case in answers::all() {
        let whole = over_wire(&case, &[]).await;
        for at in 0..case.answer.len().min(160) {
            assert_eq!(over_wire(&case, &[at]).await, whole, "{} at {at}", case.name);
        }
    }
}

#[tokio::test]
async fn the_sender_sees_the_same_byte_by_byte() {
    for case in answers::all().iter().filter(|case| case.answer.len() < 400) {
        let whole = over_wire(case, &[]).await;
        assert_eq!(over_wire(case, &vec![1; case.answer.len()]).await, whole, "{}", case.name);
    }
}
