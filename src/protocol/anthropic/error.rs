//! `{"type":"error","error":{"type","message"},"request_id"}`.

use crate::protocol::{error::ErrorParts, json::write_string};

/// A plain answer's body, and the data of a stream's `error` event: they are the same.
pub fn body(parts: &ErrorParts<'_>) -> Vec<u8> {
    let mut out = Vec::with_capacity(parts.message.len() + 128);
    out.extend_from_slice(b"{\"type\":\"error\",\"error\":{\"type\":");
    write_string(&mut out, kind(parts.status));
    out.extend_from_slice(b",\"message\":");
    write_string(&mut out, parts.message);
    out.push(b'}');
    if let Some(id) = parts.request_id {
        out.extend_from_slice(b",\"request_id\":");
        write_string(&mut out, id);
    }
    out.push(b'}');
    out
}

/// Anthropic's names are a closed set, one for each status; clients switch on them.
pub fn kind(status: u16) -> &'static str {
    match status {
        401 => "authentication_error",
        402 => "billing_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        400..=499 => "invalid_request_error",
        503 | 529 => "overloaded_error",
        504 => "timeout_error",
        _ => "api_error",
    }
}
