use proptest::prelude::*;

use super::*;

/// Names and data of all events, and whether the stream ended between events.
type Seen = (Vec<(String, String)>, bool, bool);

fn events(chunks: &[&[u8]], limit: usize) -> Seen {
    let mut scanner = Scanner::new(limit);
    let mut all = Vec::new();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    for chunk in chunks {
        scanner.push(chunk, |event| all.push((text(event.name), text(event.data))));
    }
    (all, scanner.at_boundary(), scanner.overflowed())
}

fn of(stream: &str) -> Vec<(String, String)> {
    events(&[stream.as_bytes()], MAX_EVENT).0
}

fn data(all: &[&str]) -> Vec<(String, String)> {
    all.iter().map(|data| (String::new(), (*data).to_owned())).collect()
}

#[test]
fn lines_end_in_lf_cr_or_both() {
    assert_eq!(of("data: a\n\ndata: b\n\n"), data(&["a", "b"]));
    assert_eq!(of("data: a\r\rdata: b\r\r"), data(&["a", "b"]));
    assert_eq!(of("data: a\r\n\r\ndata: b\r\n\r\n"), data(&["a", "b"]));
    assert_eq!(of("data: a\n\r\ndata: b\r\n\n"), data(&["a", "b"]));
}

#[test]
fn fields_as_the_standard_has_them() {
    assert_eq!(of("\u{feff}data:a\n\n"), data(&["a"]));
    assert_eq!(of("data:  a \n\n"), data(&[" a "]));
    assert_eq!(of("data: a\ndata\ndata:b\n\n"), data(&["a\n\nb"]));
    assert_eq!(of("data\n\n"), data(&[""]));
    assert_eq!(of(": ping\n\n:\n\nid: 1\nretry: 5\n\n\n\n"), data(&[]));
    assert_eq!(of("event: x\n\ndata: a\n\n"), data(&["a"]));
    assert_eq!(of("event: x\nevent: y\ndata: a\nid: 3\n\n"), [("y".to_owned(), "a".to_owned())]);
    assert_eq!(of("datax: a\ndat: b\n data: c\n\n"), data(&[]));
}

#[test]
fn an_event_without_its_blank_line_is_none() {
    for (stream, boundary) in [("", true), ("data: a\n\n", true), ("data: a\n", false), ("d", false), (": p\n\n", true)]
    {
        assert_eq!(events(&[stream.as_bytes()], 99).1, boundary, "{stream:?}");
    }
    assert_eq!(of("data: a\n"), data(&[]));
    // The blank line's CR ends the event; the LF that may follow belongs to it.
    assert_eq!(events(&[b"data: a\r\n\r"], 99), (data(&["a"]), true, false));
    assert_eq!(events(&[b"data: a\r\n\r", b"\ndata: b\n\n"], 99), (data(&["a", "b"]), true, false));
}

#[test]
fn an_event_above_the_limit_is_left_out_and_told() {
    let stream = b"data: 12345\n\ndata: 1\n\n";
    assert_eq!(events(&[stream], 12).0, data(&["12345", "1"]));
    assert_eq!(events(&[stream], 11), (data(&["1"]), true, true));
    assert_eq!(events(&[b"data: 12345", b"678"], 9), (data(&[]), false, true));
}

/// Streams made of what matters to the framing.
fn stream() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop::sample::select(vec![
        "data: ",
        "data:",
        "data",
        "event: e",
        ":",
        "x",
        "\n",
        "\r",
        "\r\n",
        "\n\n",
        "\r\r",
        "\u{feff}",
        "{\"a\":1}",
    ]);
    prop::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat().into_bytes())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]
    #[test]
    fn any_split_gives_the_same_events(
        stream in stream(),
        mut cuts in prop::collection::vec(0_usize..100, 0..4),
        limit in prop_oneof![1_usize..24, Just(MAX_EVENT)],
    ) {
        let whole = events(&[&stream], limit);
        let bytes: Vec<&[u8]> = stream.chunks(1).collect();
        prop_assert_eq!(&events(&bytes, limit), &whole);
        cuts.iter_mut().for_each(|cut| *cut = (*cut).min(stream.len()));
        cuts.sort_unstable();
        let mut from = 0;
        let mut chunks = Vec::new();
        for cut in cuts.into_iter().chain([stream.len()]) {
            chunks.push(&stream[from..cut]);
            from = cut;
        }
        prop_assert_eq!(&events(&chunks, limit), &whole);
    }
}
