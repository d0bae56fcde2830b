//! Wire formats. Pure: no I/O, no tokio; everything here that reads outside bytes is bounded and fuzzed.
//!
//! | module | reads |
//! |---|---|
//! | [`coding`] | names of content codings |
//! | [`endpoint`] | method and path → what is asked for, and the dialect its errors are told in |
//! | [`json`] | a few members of a body in one pass over its bytes, without a tree |
//! | [`request`] | a whole body at once: whether it is one that the engines take, and what it asks for |
//! | [`multipart`], [`query`] | the model's name where it is not in JSON |
//! | [`sse`], [`ndjson`] | events of a stream, however its bytes are split |
//! | [`usage`] | tokens, finish reasons, errors and wholeness of answers |
//! | [`rename`] | the model's name in an answer, edited in place |
//! | [`slim`] | answers made smaller by what says nothing |
//! | [`error`] | errors of ours, written in the client's dialect |
//! | [`engine`] | what the engines differ in |

pub mod anthropic;
pub mod coding;
pub mod endpoint;
pub mod engine;
pub mod error;
pub mod json;
pub mod multipart;
pub mod ndjson;
pub mod openai;
pub mod query;
pub mod rename;
pub mod request;
pub mod slim;
pub mod sse;
pub mod usage;
