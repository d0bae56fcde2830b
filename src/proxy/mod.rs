//! The data plane: the life of a request.

pub mod attempt;
pub mod call;
pub mod record;
