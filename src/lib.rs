//! Sluicegate: the cheap, unnoticed gate in front of LLM servers.
//!
//! Modules in the order of a request's way; `docs/architecture.md` has the picture and the rules. What is public
//! here is for the binary, `tests/` and `benches/`: it is not a stable API.

pub mod client;
pub mod listener;
pub mod proxy;

pub mod admin;
pub mod control;
pub mod fleet;

pub mod body;
pub mod config;
pub mod error;
pub mod protocol;
pub mod runtime;
pub mod telemetry;

pub mod app;
pub mod cli;
pub mod sim;
