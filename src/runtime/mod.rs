//! Life and death of the process: coarse time, drain, signals, supervised tasks, readiness.

pub mod io;
pub mod ticker;
