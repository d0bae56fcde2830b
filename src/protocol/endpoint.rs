//! Path and method → [`Endpoint`], and the dialect its errors are told in.
//!
//! The match is on the path's bytes as they came: no decoding, no merging of `//`, no resolving of `.` and `..`, no
//! case folding. So `/v1//chat/completions`, `/v1/%63hat/completions` and `/v1/chat/completions/` pass through and are
//! the backend's to judge, and nothing that passes through becomes a known endpoint further on. Ids are the one
//! variable part: [`response_id`] takes plain characters only, [`model_id`] anything but dot segments, and decodes it.

use std::borrow::Cow;

use http::Method;

use super::query;

/// What a path asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/completions`
    Completions,
    /// `/v1/embeddings`
    Embeddings,
    /// `/v1/responses`
    Responses,
    /// `/v1/responses/{id}` and what lies below
    Response,
    /// `/v1/messages`
    Messages,
    /// `/v1/messages/count_tokens`
    CountTokens,
    /// `/v1/rerank`
    Rerank,
    /// `/v1/score`
    Score,
    /// `/v1/models`
    Models,
    /// `/v1/models/{id}`, slashes in ids included
    Model,
    /// Anything else: streamed through untouched.
    Passthrough,
}

/// The shape of errors and of stream events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// `{"error":{…}}`; streams are SSE that end in `[DONE]`.
    OpenAi,
    /// `/v1/responses`: named SSE events, flat error event, no `[DONE]`.
    Responses,
    /// `/v1/messages`: `{"type":"error",…}`; named SSE events.
    Anthropic,
    /// Ollama's own paths: NDJSON.
    Ollama,
}

impl Endpoint {
    /// What `method` on `path` (without its query) asks for. A known path with another method passes through: the
    /// backend answers 405, or knows a use for it that we do not.
    pub fn of(method: &Method, path: &str) -> Self {
        let Some(rest) = path.strip_prefix("/v1/") else { return Self::Passthrough };
        let found = if *method == Method::POST {
            match rest {
                "chat/completions" => Self::Chat,
                "completions" => Self::Completions,
                "embeddings" => Self::Embeddings,
                "responses" => Self::Responses,
                "messages" => Self::Messages,
                "messages/count_tokens" => Self::CountTokens,
                "rerank" => Self::Rerank,
                "score" => Self::Score,
                _ => Self::Passthrough,
            }
        } else if (*method == Method::GET || *method == Method::HEAD) && rest == "models" {
            Self::Models
        } else if (*method == Method::GET || *method == Method::HEAD) && model_id(path).is_some() {
            Self::Model
        } else {
            Self::Passthrough
        };
        if found == Self::Passthrough && is_stored_response(method, path) { Self::Response } else { found }
    }

    /// Whether the gateway reads this request; what it does not know passes through.
    pub fn is_known(self) -> bool {
        self != Self::Passthrough
    }

    /// Whether the request may be sent again after it may have reached a backend: known endpoints, which only compute,
    /// and methods that RFC 9110 §9.2.2 calls idempotent.
    pub fn repeatable(self, method: &Method) -> bool {
        self.is_known() || method.is_idempotent()
    }
}

/// The dialect of errors and stream events under `path` (without its query), known endpoint or not.
pub fn dialect(path: &str) -> Dialect {
    let under = |root: &str| path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    if under("/v1/messages") {
        Dialect::Anthropic
    } else if under("/v1/responses") {
        Dialect::Responses
    } else if path.starts_with("/api/") {
        Dialect::Ollama
    } else {
        Dialect::OpenAi
    }
}

/// The id in `/v1/models/{id}`, percent-decoded once (clients send `org/name` both plain and as `org%2Fname`).
/// `None` for other paths, an empty id, and ids with an empty or dot segment.
pub fn model_id(path: &str) -> Option<Cow<'_, str>> {
    let id = path.strip_prefix("/v1/models/")?;
    let plain = id.split('/').all(|segment| !matches!(segment, "" | "." | ".."));
    plain.then(|| query::percent_decode(id, false))
}

/// The id in `/v1/responses/{id}`, `…/{id}/cancel` and `…/{id}/input_items`. Only letters, digits, `_`, `-` and `.`
/// make an id, so that what is looked up is what the backend reads.
pub fn response_id(path: &str) -> Option<&str> {
    split_response(path).map(|(id, _)| id)
}

fn split_response(path: &str) -> Option<(&str, &str)> {
    let rest = path.strip_prefix("/v1/responses/")?;
    let (id, below) = rest.split_once('/').unwrap_or((rest, ""));
    let below_known = matches!(below, "" | "cancel" | "input_items") && !rest.ends_with('/');
    let plain = !matches!(id, "" | "." | "..")
        && id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'));
    (below_known && plain).then_some((id, below))
}

/// The operations that refer to one stored response. A POST to `/v1/responses/{word}` is none of them but an operation
/// with that name (`compact`, `input_tokens`).
fn is_stored_response(method: &Method, path: &str) -> bool {
    let Some((_, below)) = split_response(path) else { return false };
    match *method {
        Method::GET | Method::HEAD => below != "cancel",
        Method::DELETE => below.is_empty(),
        Method::POST => below == "cancel",
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_endpoints_by_method_and_path() {
        for (method, path, expected) in [
            (Method::POST, "/v1/chat/completions", Endpoint::Chat),
            (Method::POST, "/v1/completions", Endpoint::Completions),
            (Method::POST, "/v1/embeddings", Endpoint::Embeddings),
            (Method::POST, "/v1/responses", Endpoint::Responses),
            (Method::GET, "/v1/responses/resp_1-a", Endpoint::Response),
            (Method::DELETE, "/v1/responses/resp_1", Endpoint::Response),
            (Method::POST, "/v1/responses/resp_1/cancel", Endpoint::Response),
            (Method::GET, "/v1/responses/resp_1/input_items", Endpoint::Response),
            (Method::POST, "/v1/messages", Endpoint::Messages),
            (Method::POST, "/v1/messages/count_tokens", Endpoint::CountTokens),
            (Method::POST, "/v1/rerank", Endpoint::Rerank),
            (Method::POST, "/v1/score", Endpoint::Score),
            (Method::GET, "/v1/models", Endpoint::Models),
            (Method::HEAD, "/v1/models", Endpoint::Models),
            (Method::GET, "/v1/models/org/name", Endpoint::Model),
            (Method::GET, "/v1/models/org%2Fname", Endpoint::Model),
        ] {
            assert_eq!(Endpoint::of(&method, path), expected, "{method} {path}");
            assert!(expected.is_known() && expected.repeatable(&method));
        }
    }

    #[test]
    fn everything_else_passes_through() {
        for (method, path) in [
            (Method::GET, "/v1/chat/completions"),
            (Method::OPTIONS, "/v1/models"),
            (Method::POST, "/v1/models"),
            (Method::DELETE, "/v1/models/a"),
            (Method::POST, "/v1/chat/completions/"),
            (Method::POST, "/v1//chat/completions"),
            (Method::POST, "//v1/chat/completions"),
            (Method::POST, "/v1/%63hat/completions"),
            (Method::POST, "/V1/chat/completions"),
            (Method::POST, "/v1/x/../chat/completions"),
            (Method::POST, "/v1/responses/compact"),
            (Method::POST, "/v1/responses/input_tokens"),
            (Method::GET, "/v1/responses/"),
            (Method::GET, "/v1/responses/a/"),
            (Method::GET, "/v1/responses/.."),
            (Method::GET, "/v1/responses/a%2Fb"),
            (Method::GET, "/v1/responses/a/cancel"),
            (Method::GET, "/v1/responses/a/b/c"),
            (Method::GET, "/v1/models/"),
            (Method::GET, "/v1/models/../chat"),
            (Method::GET, "/v1/models//a"),
            (Method::POST, "/tokenize"),
            (Method::POST, ""),
        ] {
            assert_eq!(Endpoint::of(&method, path), Endpoint::Passthrough, "{method} {path}");
        }
        assert!(!Endpoint::Passthrough.repeatable(&Method::POST));
        assert!(Endpoint::Passthrough.repeatable(&Method::PUT));
    }

    #[test]
    fn ids_and_dialects() {
        assert_eq!(model_id("/v1/models/org%2Fname").as_deref(), Some("org/name"));
        assert_eq!(model_id("/v1/models/a+b").as_deref(), Some("a+b"));
        assert_eq!(response_id("/v1/responses/resp_7/input_items"), Some("resp_7"));
        assert_eq!(dialect("/v1/messages/batches"), Dialect::Anthropic);
        assert_eq!(dialect("/v1/messagesX"), Dialect::OpenAi);
        assert_eq!(dialect("/v1/responses"), Dialect::Responses);
        assert_eq!(dialect("/api/chat"), Dialect::Ollama);
        assert_eq!(dialect("/anything"), Dialect::OpenAi);
    }
}
