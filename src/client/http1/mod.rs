//! HTTP/1.1 towards a backend: an own codec without a task per connection.
//!
//! [`head`] reads and writes heads, [`framing`] finds the end of a body, `upload` writes a request while
//! `exchange` already reads the answer, `answer` is the body that streams. [`decoder`] is the reading half without
//! any I/O, for tests and the fuzzer.
//!
//! Strict, since an answer that two readers understand differently is how responses get mixed up: what RFC 9112 §6
//! lets a recipient reject, is rejected, and a connection is used again only when the answer ended exactly where its
//! framing said and nothing came after it.

pub mod decoder;
pub mod framing;
pub mod head;

pub(super) mod answer;
pub(super) mod exchange;
pub(super) mod upload;

/// Headers in one head, and trailers in one trailer section.
pub const MAX_HEADERS: usize = 128;

/// 1xx answers before the final one.
pub const MAX_INTERIM: u32 = 16;

/// Bytes of chunk extensions in one body; nobody reads them, so more is an attack.
pub const MAX_EXTENSION: u32 = 16 * 1024;

/// How an answer breaks RFC 9112. Nothing of it is trusted from there on, and its connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("it does not begin with HTTP/1.0 or HTTP/1.1")]
    NotHttp,
    #[error("a line of the head does not end with CR LF")]
    BareLineFeed,
    #[error("the status line is broken")]
    Status,
    #[error("a header line is broken")]
    Header,
    #[error("the head is longer than the limit on header bytes")]
    HeadTooLarge,
    #[error("there are more than {MAX_HEADERS} headers")]
    TooManyHeaders,
    #[error("there are more than {MAX_INTERIM} interim (1xx) answers")]
    TooManyInterim,
    #[error("it switches protocols without being asked to")]
    UnaskedUpgrade,
    #[error("Content-Length is not a number, or says different things")]
    Length,
    #[error("both Transfer-Encoding and Content-Length are given")]
    TwoFramings,
    #[error("its Transfer-Encoding is not chunked alone, or its version has none")]
    Coding,
    #[error("a chunk size is broken or too large")]
    ChunkSize,
    #[error("chunk extensions are broken, or longer than {MAX_EXTENSION} bytes in all")]
    ChunkExtension,
    #[error("a chunk does not end where its size says")]
    ChunkEnd,
    #[error("a trailer line is broken, or the trailers are longer than the limit on header bytes")]
    Trailer,
}
