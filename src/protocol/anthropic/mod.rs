//! What is Anthropic's own shape.

pub mod error;
