//! Behaviour of the whole, one file each.

mod config;
mod errors;
mod headers;
mod models;
mod passthrough;
mod retry;
mod shutdown;
mod smuggling;
mod support;
