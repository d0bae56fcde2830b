//! What is OpenAI's own shape.

pub mod error;
