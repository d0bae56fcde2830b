//! Behaviour of the whole, one file each.

#![expect(unreachable_pub, reason = "a test program has no outside; `pub` is what the kit offers to the files")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails where it stands")]

mod admin;
mod architecture;
mod cache;
mod coding;
mod compress;
mod config;
mod docs;
mod errors;
mod headers;
mod interruption;
mod models;
mod passthrough;
mod payload;
mod retry;
mod shutdown;
mod slim;
mod smuggling;
mod support;
mod validation;
