use std::io::Write as _;

use flate2::{
    Compression,
    write::{DeflateEncoder, GzEncoder, ZlibEncoder},
};
use http::HeaderValue;
use proptest::{collection::vec, prelude::*, sample::Index};

use super::*;

const TEXT: &[u8] = br#"{"model":"m","messages":[{"role":"user","content":"hello hello hello hello"}]}"#;
const ALL: [Coding; 4] = [Coding::Gzip, Coding::Deflate, Coding::Brotli, Coding::Zstd];
const CAP: usize = 1 << 20;

fn encode(coding: Coding, content: &[u8]) -> Vec<u8> {
    let level = Compression::new(1);
    match coding {
        Coding::Gzip => {
            let mut encoder = GzEncoder::new(Vec::new(), level);
            encoder.write_all(content).unwrap();
            encoder.finish().unwrap()
        }
        Coding::Deflate => {
            let mut encoder = ZlibEncoder::new(Vec::new(), level);
            encoder.write_all(content).unwrap();
            encoder.finish().unwrap()
        }
        Coding::Brotli => brotli(content, 18),
        Coding::Zstd => {
            let mut coded = Vec::with_capacity(zstd::zstd_safe::compress_bound(content.len()));
            zstd::zstd_safe::compress(&mut coded, content, 1).unwrap();
            coded
        }
    }
}

fn brotli(mut content: &[u8], window: i32) -> Vec<u8> {
    let params =
        brotli::enc::BrotliEncoderParams { quality: 3, lgwin: window, large_window: window > 24, ..Default::default() };
    let mut coded = Vec::new();
    brotli::BrotliCompress(&mut content, &mut coded, &params).unwrap();
    coded
}

fn encode_all(codings: &[Coding], content: &[u8]) -> Vec<u8> {
    codings.iter().fold(content.to_vec(), |content, &coding| encode(coding, &content))
}

fn decode<'a>(codings: &[Coding], pieces: impl IntoIterator<Item = &'a [u8]>, cap: usize) -> Result<Vec<u8>, Stop> {
    let mut chain = Chain::new(codings, cap);
    let mut whole = Vec::new();
    for mut piece in pieces {
        while chain.step(&mut piece, |made| {
            whole.extend_from_slice(made);
            Ok::<_, Stop>(())
        })? != Turn::Hungry
        {}
        assert!(piece.is_empty(), "all of it is taken");
    }
    chain.finish()?;
    Ok(whole)
}

fn fault(coding: Coding, coded: &[u8]) -> Fault {
    match decode(&[coding], [coded], CAP) {
        Err(Stop::Fault { fault, .. }) => fault,
        other => panic!("{coding:?}: {other:?}"),
    }
}

fn headers(values: &[&'static str]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for value in values {
        headers.append(header::CONTENT_ENCODING, HeaderValue::from_static(value));
    }
    headers.append("content-digest", HeaderValue::from_static("sha-256=:AA==:"));
    headers.append(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers
}

#[test]
fn the_head_says_the_codings_in_their_order() {
    use Coding::*;
    for (values, codings) in [
        (&["gzip"][..], &[Gzip][..]),
        (&["X-GZip"], &[Gzip]),
        (&["gzip, zstd"], &[Gzip, Zstd]),
        (&["identity, deflate ,", "br"], &[Deflate, Brotli]),
    ] {
        let mut headers = headers(values);
        assert_eq!(Codings::take(&mut headers).unwrap(), Some(Codings(codings.to_vec())));
        assert_eq!(headers.keys().collect::<Vec<_>>(), [header::CONTENT_TYPE]);
    }
}

#[test]
fn no_coding_leaves_the_sums_alone() {
    for values in [&["identity"][..], &[""], &[" , "]] {
        let mut headers = headers(values);
        assert_eq!(Codings::take(&mut headers).unwrap(), None);
        assert_eq!(headers.len(), 2);
    }
}

#[test]
fn unknown_codings_and_too_many_are_refused() {
    for (values, part) in [
        (&["compress"][..], r#""compress""#),
        (&["gzip, aws-chunked"], r#""aws-chunked""#),
        (&["gzip;q=1"], r#""gzip;q=1""#),
        (&["gzip, gzip", "br, zstd"], "in 4 codings"),
    ] {
        let mut headers = headers(values);
        let error = Codings::take(&mut headers).unwrap_err();
        assert_eq!(error.kind(), Kind::UnsupportedCoding);
        assert!(error.message().contains(part), "{error}");
    }
}

#[test]
fn each_coding_is_undone() {
    for coding in ALL {
        assert_eq!(decode(&[coding], [&*encode(coding, TEXT)], CAP).unwrap(), TEXT, "{coding:?}");
        assert_eq!(decode(&[coding], [&*encode(coding, b"")], CAP).unwrap(), b"", "{coding:?}");
        assert_eq!(decode(&[coding], [], CAP).unwrap(), b"", "{coding:?} of no bytes at all");
    }
}

#[test]
fn deflate_may_be_bare() {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(TEXT).unwrap();
    let bare = encoder.finish().unwrap();
    assert_eq!(decode(&[Coding::Deflate], bare.chunks(1), CAP).unwrap(), TEXT);
    // A stored block, and the shortest stream there is.
    assert_eq!(decode(&[Coding::Deflate], [&[1, 1, 0, 254, 255, b'x'][..]], CAP).unwrap(), b"x");
    assert_eq!(decode(&[Coding::Deflate], [&[3][..], &[0]], CAP).unwrap(), b"");
}

#[test]
fn members_and_frames_follow_each_other() {
    for coding in [Coding::Gzip, Coding::Zstd] {
        let coded = [encode(coding, b"one, "), encode(coding, b""), encode(coding, b"two")].concat();
        assert_eq!(decode(&[coding], [&*coded], CAP).unwrap(), b"one, two");
        assert_eq!(decode(&[coding], coded.chunks(1), CAP).unwrap(), b"one, two");
    }
}

#[test]
fn what_follows_the_end_is_refused() {
    for coding in ALL {
        let end = encode(coding, TEXT).len();
        for more in [&b"\0"[..], b"garbage that is long enough for any header"] {
            let coded = [&encode(coding, TEXT)[..], more].concat();
            match decode(&[coding], [&*coded], CAP) {
                Err(Stop::Fault { at, fault: Fault::Trailing, .. }) => assert_eq!(at, end, "{coding:?}"),
                // As far as it goes it could be the beginning of another.
                Err(Stop::Truncated { at, .. }) => assert_eq!((at, more.len()), (end + 1, 1), "{coding:?}"),
                other => panic!("{coding:?}: {other:?}"),
            }
        }
    }
}

#[test]
fn what_is_cut_short_or_is_something_else_is_refused() {
    for coding in ALL {
        let whole = encode(coding, TEXT);
        for end in 1..whole.len() {
            match decode(&[coding], [&whole[..end]], CAP) {
                Err(Stop::Truncated { coding: named, at }) => assert_eq!((named, at), (coding, end)),
                other => panic!("{coding:?} cut at {end}: {other:?}"),
            }
        }
        assert_eq!(fault(coding, TEXT), Fault::Broken, "{coding:?}");
    }
    // The sum at the end does not hold.
    for coding in [Coding::Gzip, Coding::Deflate] {
        let mut coded = encode(coding, TEXT);
        let at = coded.len() - if coding == Coding::Gzip { 8 } else { 1 };
        coded[at] ^= 1;
        assert_eq!(fault(coding, &coded), Fault::Broken);
    }
}

#[test]
fn the_cap_counts_what_is_made_by_any_of_them() {
    let zeros = vec![0; CAP + 1];
    for coding in ALL {
        let coded = encode(coding, &zeros);
        assert_eq!(decode(&[coding], [&*coded], CAP), Err(Stop::TooLarge { cap: CAP }));
        assert_eq!(decode(&[coding], [&*coded], CAP + 1).unwrap().len(), CAP + 1);
        // The outer is the bomb: what is inside of it makes nothing.
        let empty = encode(Coding::Gzip, b"");
        let coded = encode(coding, &empty.repeat(CAP / empty.len() + 1));
        assert_eq!(decode(&[Coding::Gzip, coding], [&*coded], CAP), Err(Stop::TooLarge { cap: CAP }));
    }
}

#[test]
fn large_windows_are_refused_and_others_counted() {
    let frame = |log: u8| [&[0x28, 0xb5, 0x2f, 0xfd, 0, (log - 10) << 3, 1, 0, 0][..]].concat();
    assert_eq!(decode(&[Coding::Zstd], [&*frame(23)], CAP).unwrap(), b"");
    assert_eq!(fault(Coding::Zstd, &frame(24)), Fault::Window);

    let content = vec![7; 1 << 19];
    assert_eq!(decode(&[Coding::Brotli], [&*brotli(&content, 24)], CAP).unwrap(), content);
    assert_eq!(fault(Coding::Brotli, &brotli(&content, 26)), Fault::Broken);

    for (coded, codec) in [(brotli(&content, 22), Coding::Brotli), (frame(20), Coding::Zstd)] {
        let mut codec = codec::Codec::new(codec);
        let before = codec.held();
        codec.step(&coded[..coded.len() - 1], &mut [0; 16]).unwrap();
        assert!(codec.held() >= before + (1 << 18), "{} bytes, {before} before", codec.held());
    }
}

#[test]
fn a_body_says_what_is_wrong_with_it() {
    for (stop, said) in [
        (Stop::Truncated { coding: Coding::Brotli, at: 7 }, "ends inside its br coding, after 7 bytes"),
        (Stop::Fault { coding: Coding::Zstd, at: 0, fault: Fault::Broken }, "zstd coding breaks near byte 0"),
        (Stop::Fault { coding: Coding::Gzip, at: 9, fault: Fault::Trailing }, "gzip coding has ended at byte 9"),
        (Stop::Fault { coding: Coding::Zstd, at: 0, fault: Fault::Window }, "larger than 8 MiB"),
    ] {
        let error = Error::from(stop);
        assert_eq!(error.kind(), Kind::BadRequest);
        assert!(error.message().contains(said), "{error}");
    }
    assert_eq!(Error::from(Stop::TooLarge { cap: 5 }).kind(), Kind::PayloadTooLarge);
}

#[test]
fn what_is_decoded_is_kept_in_its_order() {
    for lengths in [&[0][..], &[5], &[65_536], &[65_537], &[32_768, 32_768, 1], &[30_000; 100], &[3_000_000, 1]] {
        let (mut room, mut content) = (Room::new(40_000_000), Vec::new());
        for (i, length) in lengths.iter().enumerate() {
            let made = vec![i as u8; *length];
            let expected = room.held_with(made.len());
            room.push(&made);
            content.extend_from_slice(&made);
            assert_eq!(room.held(), expected);
            assert_eq!(room.held(), content.len());
        }
        assert_eq!(room.whole(), content);
    }
}

#[tokio::test]
async fn what_is_held_is_reserved() {
    let memory = Memory::new(1 << 20);
    let mut share = memory.reserve();
    let mut decoded = Decoded::new(&Codings(vec![Coding::Gzip]), CAP);
    let content = vec![b'x'; 200_000];
    decoded.take(&encode(Coding::Gzip, &content), &mut share).await.unwrap();
    assert!(memory.used() >= decoded.held());
    let bytes = decoded.finish(&mut share).unwrap();
    assert_eq!((bytes.len(), memory.used()), (200_000, 200_000));
    assert_eq!(bytes, content);

    let mut share = memory.reserve();
    let mut decoded = Decoded::new(&Codings(vec![Coding::Gzip]), CAP);
    let error = decoded.take(&encode(Coding::Gzip, &vec![0; CAP]), &mut share).await.unwrap_err();
    assert_eq!(error.kind(), Kind::BodyMemory);
}

proptest! {
    // Encoders take their time in a debug build.
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_split_of_any_codings_is_undone(
        content in vec(prop_oneof![Just(b'a'), any::<u8>()], 0..5_000),
        times in 1..20_usize,
        codings in vec(proptest::sample::select(&ALL[..]), 1..=3),
        splits in vec(any::<Index>(), 0..10),
    ) {
        let content = content.repeat(times);
        let coded = encode_all(&codings, &content);
        let mut at: Vec<usize> = splits.iter().map(|split| split.index(coded.len() + 1)).collect();
        at.extend([0, coded.len()]);
        at.sort_unstable();
        let pieces = at.windows(2).map(|ends| &coded[ends[0]..ends[1]]);
        prop_assert_eq!(decode(&codings, pieces, CAP).unwrap(), content);
    }

    #[test]
    fn no_bytes_do_harm(coded in vec(any::<u8>(), 0..300), codings in vec(proptest::sample::select(&ALL[..]), 1..=3)) {
        let _ = decode(&codings, [&*coded], 10_000);
    }

    #[test]
    fn no_change_of_a_byte_does_harm(
        coding in proptest::sample::select(&ALL[..]), at in any::<Index>(), to in any::<u8>(), end in any::<Index>(),
    ) {
        let mut coded = encode(coding, &TEXT.repeat(20));
        let at = at.index(coded.len());
        coded[at] = to;
        coded.truncate(end.index(coded.len()) + 1);
        if let Ok(content) = decode(&[coding], [&*coded], CAP) {
            prop_assert!(content.len() <= CAP);
        }
    }
}
