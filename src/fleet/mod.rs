//! The backends as both planes see them. No tasks, no I/O.

/// One inference server, as now known.
#[derive(Debug)]
pub struct Backend {}

/// A place at a backend, given back when dropped.
#[derive(Debug)]
pub struct Permit {}
