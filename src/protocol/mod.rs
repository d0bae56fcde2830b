//! Wire formats. Pure: no I/O, no tokio; everything here that reads outside bytes is fuzzed.

pub mod endpoint;
pub mod engine;
pub mod usage;
