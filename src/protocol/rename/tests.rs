use proptest::prelude::*;

use super::*;

fn answer(body: &str) -> Option<String> {
    rename_in_answer(body.as_bytes(), "mine").map(|bytes| String::from_utf8(bytes).unwrap())
}

fn stream(dialect: Dialect, limit: usize, chunks: &[&[u8]]) -> Vec<u8> {
    let mut renamer = Renamer::with_limit(dialect, "mine", limit);
    let mut out = Vec::new();
    for chunk in chunks {
        out.extend_from_slice(&renamer.push(Bytes::copy_from_slice(chunk)));
    }
    out.extend_from_slice(&renamer.finish());
    out
}

#[test]
fn answers_change_in_that_name_alone() {
    assert_eq!(
        answer(r#"{ "id":"a", "model" : "theirs" , "x":{"model":"no","n":1.0}}"#).unwrap(),
        r#"{ "id":"a", "model" : "mine" , "x":{"model":"no","n":1.0}}"#
    );
    for body in [r#"{"id":"a"}"#, r#"{"model":null}"#, r#"{"a":"\"model\":\"x\""}"#, r#"{"model":"x""#, "[]", ""] {
        assert_eq!(answer(body), None, "{body}");
    }
    assert_eq!(answer(r#"{"message":{"model":"theirs"}}"#), None);
}

#[test]
fn events_are_renamed_where_each_dialect_has_the_name() {
    let sse = concat!(
        "event: message_start\r\ndata: {\"type\":\"message_start\",\"message\":{\"id\":1,\"model\":\"theirs\"}}\r\n\r\n",
        ": ping\n\n",
        "data:{\"response\":{\"model\":\"theirs\"},\"model\":\"theirs\"}\n\n",
        "data: {\"choices\":[{\"delta\":{\"content\":\"\\\"model\\\":\\\"theirs\\\"\"}}]}\n\n",
        "data: [DONE]\n\n",
    );
    let expected = sse.replace("\"model\":\"theirs\"", "\"model\":\"mine\"");
    assert_eq!(stream(Dialect::OpenAi, MAX_LINE, &[sse.as_bytes()]), expected.as_bytes());
    let line = "{\"model\":\"theirs\",\"message\":{\"content\":\"a\"},\"done\":false}\n";
    assert_eq!(stream(Dialect::Ollama, MAX_LINE, &[line.as_bytes()]), line.replace("theirs", "mine").as_bytes());
}

#[test]
fn a_line_above_the_bound_and_an_open_one_pass_as_they_are() {
    let line = b"data: {\"model\":\"theirs\"}\n";
    assert_eq!(stream(Dialect::OpenAi, line.len() - 2, &[line]), line);
    assert_ne!(stream(Dialect::OpenAi, line.len() - 1, &[line]), line);
    assert_eq!(stream(Dialect::OpenAi, 999, &[&line[..line.len() - 1]]), &line[..line.len() - 1]);
}

#[test]
fn a_chunk_without_the_name_is_handed_on_uncopied() {
    let chunk = Bytes::from_static(b"data: {\"a\":1}\n\n");
    assert_eq!(Renamer::new(Dialect::OpenAi, "mine").push(chunk.clone()).as_ptr(), chunk.as_ptr());
}

proptest! {
    #[test]
    fn any_split_gives_the_same_output(
        pieces in prop::collection::vec(prop::sample::select(vec![
            "data: {\"model\":\"theirs\"}", "data: {\"message\":{\"model\":\"t\"}}", "data: x", "\n", "\r\n", "\r", ": c",
        ]), 0..12),
        cuts in prop::collection::vec(any::<usize>(), 0..5),
        limit in prop_oneof![1_usize..40, Just(MAX_LINE)],
    ) {
        let bytes = pieces.concat().into_bytes();
        let mut cuts: Vec<_> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
        cuts.push(bytes.len());
        cuts.sort_unstable();
        let mut from = 0;
        let chunks: Vec<&[u8]> = cuts.iter().map(|&to| &bytes[std::mem::replace(&mut from, to)..to]).collect();
        for dialect in [Dialect::OpenAi, Dialect::Ollama] {
            prop_assert_eq!(stream(dialect, limit, &chunks), stream(dialect, limit, &[&bytes]));
        }
    }
}
