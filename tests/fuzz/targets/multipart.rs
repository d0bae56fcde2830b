//! The field lies where the span says; replacing it is seen by the next reader.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sluicegate::protocol::{multipart, query};

// Up to the first line end: the content type (or a query); behind it the form.
fuzz_target!(|input: &[u8]| {
    let at = input.iter().position(|&b| b == b'\n').unwrap_or(input.len());
    let Ok(head) = std::str::from_utf8(&input[..at]) else { return };
    let body = input.get(at + 1..).unwrap_or_default();
    let _ = query::model(head);
    let Some(field) = multipart::model(head, body) else { return };
    assert_eq!(field.text.as_bytes(), &body[field.span.clone()]);
    let edited = multipart::replace_model(body, &field.span, "new");
    let again = multipart::model(head, &edited).expect("an edited form still has its field");
    assert_eq!(again.text, "new");
});
