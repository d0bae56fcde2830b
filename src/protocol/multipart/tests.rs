use proptest::prelude::*;

use super::*;

const TYPE: &str = "multipart/form-data; boundary=\"x y\"";

fn form(parts: &[(&str, &str)]) -> Vec<u8> {
    let mut out = String::new();
    for (disposition, content) in parts {
        out += &format!("--x y\r\nContent-Type: a/b\r\ncontent-disposition: {disposition}\r\n\r\n{content}\r\n");
    }
    (out + "--x y--\r\n").into_bytes()
}

fn name(content_type: &str, body: &[u8]) -> Option<String> {
    model(content_type, body).map(|field| field.text.into_owned())
}

#[test]
fn found_in_any_order_and_spelling() {
    let file = ("form-data; name=\"file\"; filename=\"model\"", "RIFF\r\n--x\r\n--x yz\r\n\0binary");
    for disposition in ["form-data; name=\"model\"", "Form-Data; NAME=model", "form-data ;name=\"mo\\del\""] {
        let part = (disposition, "whisper-1");
        assert_eq!(name(TYPE, &form(&[file, part])).as_deref(), Some("whisper-1"), "{disposition}");
        assert_eq!(name(TYPE, &form(&[part, file])).as_deref(), Some("whisper-1"), "{disposition}");
    }
    assert_eq!(name(TYPE, &form(&[("form-data; name=model", "a"), ("form-data; name=model", "b")])).unwrap(), "b");
}

#[test]
fn none_where_there_is_none() {
    let good = form(&[("form-data; name=\"model\"", "m")]);
    assert!(name(TYPE, &good).is_some());
    for content_type in
        ["multipart/form-data", "multipart/mixed; boundary=\"x y\"", "text/plain", "", "multipart/form-data; boundary="]
    {
        assert_eq!(name(content_type, &good), None, "{content_type}");
    }
    for disposition in [
        "form-data; name=\"model\"; filename=\"a\"",
        "form-data; name=\"models\"",
        "attachment; name=\"model\"",
        "form-data",
    ] {
        assert_eq!(name(TYPE, &form(&[(disposition, "m")])), None, "{disposition}");
    }
    assert_eq!(name(TYPE, &form(&[("form-data; name=model", "")])), None);
    assert_eq!(name(TYPE, &form(&[("form-data; name=model", &"m".repeat(MAX_NAME + 1))])), None);
    // Not closed by a boundary line: the upload was cut.
    assert_eq!(name(TYPE, &good[..good.len() - 10]), None);
    assert_eq!(name(TYPE, b"--x y\r\n--x y\r\n--x y--"), None);
    assert_eq!(name(TYPE, b""), None);
}

#[test]
fn a_preamble_and_padding_are_stepped_over() {
    let body = b"hello\r\n--x y \t\r\nContent-Disposition: form-data; name=model\r\n\r\nm\r\n--x y--";
    assert_eq!(name(TYPE, body).as_deref(), Some("m"));
}

#[test]
fn replacing_edits_the_field_alone() {
    let body = form(&[("form-data; name=a", "1"), ("form-data; name=model", "old"), ("form-data; name=b", "2")]);
    let field = model(TYPE, &body).unwrap();
    let new = replace_model(&body, &field.span, "longer-name");
    assert_eq!(
        new,
        form(&[("form-data; name=a", "1"), ("form-data; name=model", "longer-name"), ("form-data; name=b", "2")])
    );
}

proptest! {
    #[test]
    fn contents_never_hide_or_fake_the_field(content in "[-xy \r\na]{0,40}", first in any::<bool>()) {
        prop_assume!(!content.contains("\r\n--x y") && !content.starts_with("--x y"));
        let (file, part) = (("form-data; name=file; filename=f", content.as_str()), ("form-data; name=model", "m"));
        let body = if first { form(&[part, file]) } else { form(&[file, part]) };
        prop_assert_eq!(name(TYPE, &body), Some("m".to_owned()));
    }

    #[test]
    fn any_bytes_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..80), kind in "[\\PC;=\"\\\\]{0,30}") {
        let _ = model(TYPE, &bytes);
        let _ = model(&kind, &bytes);
        let _ = model(&format!("multipart/form-data{kind}"), &bytes);
    }
}
