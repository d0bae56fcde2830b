//! Life and death of the process: coarse time, drain, signals, supervised tasks, readiness.

pub mod descriptors;
pub mod drain;
pub mod hash;
pub mod hush;
pub mod io;
pub mod pace;
pub mod readiness;
pub mod signal;
pub mod stamp;
pub mod supervisor;
pub mod ticker;
pub mod turn;
