//! What the engines differ in.

/// The software of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Engine {
    Vllm,
    Sglang,
    LlamaCpp,
    Tgi,
    Ollama,
    Triton,
    /// Something else that speaks OpenAI's API.
    OpenAi,
}
