//! Path and method → [`Endpoint`], and the dialect its errors are told in.

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
