//! Errors of ours in the client's dialect: the body of a plain answer, and what ends a stream that failed.

use bytes::Bytes;

use super::{anthropic, endpoint::Dialect, json::write_string, openai};

/// What an error says. Dialects that have no place for a part leave it out.
#[derive(Clone, Copy, Debug)]
pub struct ErrorParts<'a> {
    /// The HTTP status, also where it came too late to be sent.
    pub status: u16,
    /// OpenAI's `type`. Anthropic's follows from the status.
    pub kind: &'a str,
    /// What happened, where, what was tried, what to do.
    pub message: &'a str,
    /// The request field at fault.
    pub param: Option<&'a str>,
    /// The stable word that programs switch on.
    pub code: Option<&'a str>,
    /// `x-request-id`
    pub request_id: Option<&'a str>,
    /// In a responses stream the number that comes next, when it is known.
    pub sequence: Option<u64>,
}

/// The JSON body of an answer that is an error.
pub fn error_body(dialect: Dialect, parts: &ErrorParts<'_>) -> Vec<u8> {
    match dialect {
        Dialect::OpenAi | Dialect::Responses => openai::error::body(parts),
        Dialect::Anthropic => anthropic::error::body(parts),
        Dialect::Ollama => ollama(parts),
    }
}

/// The last event (or line) of a stream that failed. It starts at an event boundary: a stream that was cut inside an
/// event must be given the blank line it lacks first.
pub fn error_event(dialect: Dialect, parts: &ErrorParts<'_>) -> Bytes {
    let (head, data, tail): (&[u8], _, &[u8]) = match dialect {
        Dialect::OpenAi => (b"data: ", openai::error::body(parts), b"\n\n"),
        Dialect::Responses => (b"event: error\ndata: ", openai::error::responses_event_data(parts), b"\n\n"),
        Dialect::Anthropic => (b"event: error\ndata: ", anthropic::error::body(parts), b"\n\n"),
        Dialect::Ollama => (b"", ollama(parts), b"\n"),
    };
    Bytes::from([head, &data, tail].concat())
}

/// `{"error":"…"}`
fn ollama(parts: &ErrorParts<'_>) -> Vec<u8> {
    let mut out = b"{\"error\":".to_vec();
    write_string(&mut out, parts.message);
    out.push(b'}');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARTS: ErrorParts<'_> = ErrorParts {
        status: 503,
        kind: "server_error",
        message: "backend \"a\"\n\u{1}ü",
        param: None,
        code: Some("stream_cut"),
        request_id: Some("r-1"),
        sequence: Some(7),
    };

    #[test]
    fn shapes_are_the_dialects() {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        assert_eq!(
            text(error_body(Dialect::OpenAi, &PARTS)),
            r#"{"error":{"message":"backend \"a\"\n\u0001ü","type":"server_error","param":null,"code":"stream_cut"}}"#
        );
        assert_eq!(
            text(error_event(Dialect::Anthropic, &PARTS).to_vec()),
            "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\",\
             \"message\":\"backend \\\"a\\\"\\n\\u0001ü\"},\"request_id\":\"r-1\"}\n\n"
        );
        assert_eq!(
            text(error_event(Dialect::Responses, &PARTS).to_vec()),
            "event: error\ndata: {\"type\":\"error\",\"code\":\"stream_cut\",\
             \"message\":\"backend \\\"a\\\"\\n\\u0001ü\",\"param\":null,\"sequence_number\":7}\n\n"
        );
        assert_eq!(
            text(error_event(Dialect::Ollama, &PARTS).to_vec()),
            "{\"error\":\"backend \\\"a\\\"\\n\\u0001ü\"}\n"
        );
    }

    #[test]
    fn every_body_is_json_that_says_the_message() {
        for dialect in [Dialect::OpenAi, Dialect::Responses, Dialect::Anthropic, Dialect::Ollama] {
            let value: serde_json::Value = serde_json::from_slice(&error_body(dialect, &PARTS)).unwrap();
            let error = &value["error"];
            assert_eq!(error.get("message").unwrap_or(error), PARTS.message, "{dialect:?}");
        }
    }
}
