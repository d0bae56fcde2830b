//! Any split, any flush: what was flushed decodes, and all of it in the end.

use proptest::prelude::*;

use super::{super::tests::decoded, *};

fn kind() -> impl Strategy<Value = Kind> {
    proptest::sample::select(&Kind::ALL[..])
}

/// Something like an answer: pieces that repeat and pieces that do not, and whether a flush follows.
fn pieces() -> impl Strategy<Value = Vec<(Vec<u8>, bool)>> {
    let repeated = (0..40_usize).prop_map(|n| format!("data: {{\"choices\":[{{\"delta\":{n}}}]}}\n\n").into_bytes());
    let bytes = proptest::collection::vec(any::<u8>(), 0..300);
    let long = (any::<u8>(), 0..40_000_usize).prop_map(|(byte, n)| vec![byte; n]);
    let random = (any::<u64>(), 0..40_000_usize).prop_map(|(mut state, n)| {
        let byte = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        };
        std::iter::repeat_with(byte).take(n).collect()
    });
    let piece = prop_oneof![6 => repeated, 2 => bytes, 1 => long, 1 => random];
    proptest::collection::vec((piece, any::<bool>()), 0..20)
}

fn encode(encoder: &mut Encoder, pieces: &[(Vec<u8>, bool)], scratch: &mut [u8]) -> BytesMut {
    let (mut coded, mut plain) = (BytesMut::new(), Vec::new());
    let coding = encoder.kind().coding();
    for (piece, flush) in pieces {
        plain.extend_from_slice(piece);
        if *flush {
            encoder.flush(piece, scratch, &mut coded).unwrap();
            assert!(decoded(coding, &coded) == plain, "not all was flushed");
        } else {
            encoder.take(piece, scratch, &mut coded).unwrap();
        }
    }
    encoder.finish(b"", scratch, &mut coded).unwrap();
    assert!(decoded(coding, &coded) == plain);
    coded
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn what_was_flushed_decodes(kind in kind(), pieces in pieces(), scratch in 16..3000_usize) {
        let mut encoder = Encoder::new(kind).unwrap();
        encode(&mut encoder, &pieces, &mut vec![0; scratch]);
        // And again, whatever room it is given: a flush that just fills it is made twice, so the bytes may differ.
        if let Some(mut encoder) = encoder.reset() {
            encode(&mut encoder, &pieces, &mut [0; 1000]);
        }
    }

    #[test]
    fn one_that_was_left_serves_again(kind in kind(), pieces in pieces()) {
        let (mut encoder, mut scratch, mut out) = (Encoder::new(kind).unwrap(), [0; 512], BytesMut::new());
        for (piece, flush) in &pieces {
            if *flush {
                encoder.flush(piece, &mut scratch, &mut out).unwrap();
            } else {
                encoder.take(piece, &mut scratch, &mut out).unwrap();
            }
        }
        if let Some(mut encoder) = encoder.reset() {
            encode(&mut encoder, &pieces, &mut scratch);
        }
    }
}

#[test]
fn nothing_at_all_is_a_frame_too() {
    for kind in Kind::ALL {
        let coded = encode(&mut Encoder::new(kind).unwrap(), &[], &mut [0; 64]);
        assert!(!coded.is_empty());
    }
}

#[test]
fn one_frame_however_often_it_is_flushed() {
    let mut encoder = Encoder::new(Kind::Zstd).unwrap();
    let events = vec![(b"data: {}\n\n".to_vec(), true); 50];
    let coded = encode(&mut encoder, &events, &mut [0; 512]);
    assert_eq!(memchr::memmem::find_iter(&coded, &[0x28, 0xb5, 0x2f, 0xfd]).count(), 1);
    let mut encoder = Encoder::new(Kind::GzipStream).unwrap();
    let coded = encode(&mut encoder, &events, &mut [0; 512]);
    assert_eq!(memchr::memmem::find_iter(&coded, &[0x1f, 0x8b, 0x08]).count(), 1);
}
