//! `{"error":{"message","type","param","code"}}`, and the flat error event of `/v1/responses`.

use crate::protocol::{error::ErrorParts, json::write_string};

/// A plain answer's body; in a chat or completions stream the data of an event.
pub fn body(parts: &ErrorParts<'_>) -> Vec<u8> {
    let mut out = Vec::with_capacity(parts.message.len() + 96);
    out.extend_from_slice(b"{\"error\":{\"message\":");
    write_string(&mut out, parts.message);
    out.extend_from_slice(b",\"type\":");
    write_string(&mut out, parts.kind);
    member_or_null(&mut out, "param", parts.param);
    member_or_null(&mut out, "code", parts.code);
    out.extend_from_slice(b"}}");
    out
}

/// The data of the `error` event in a responses stream.
pub fn responses_event_data(parts: &ErrorParts<'_>) -> Vec<u8> {
    let mut out = Vec::with_capacity(parts.message.len() + 96);
    out.extend_from_slice(b"{\"type\":\"error\"");
    member_or_null(&mut out, "code", parts.code);
    out.extend_from_slice(b",\"message\":");
    write_string(&mut out, parts.message);
    member_or_null(&mut out, "param", parts.param);
    if let Some(number) = parts.sequence {
        out.extend_from_slice(b",\"sequence_number\":");
        out.extend_from_slice(number.to_string().as_bytes());
    }
    out.push(b'}');
    out
}

fn member_or_null(out: &mut Vec<u8>, name: &str, value: Option<&str>) {
    out.push(b',');
    write_string(out, name);
    out.push(b':');
    match value {
        Some(value) => write_string(out, value),
        None => out.extend_from_slice(b"null"),
    }
}
