//! What is done to bodies before they are read, counted.

use metrics::Counter;

use crate::telemetry::metrics::{Name, Table};

/// Handles of one worker's table.
#[derive(Debug)]
pub struct Counters {
    /// Bodies that came in a content coding.
    pub(super) decoded: Counter,
    /// Images that were scaled down, and the bytes that this saved.
    pub(super) images: Counter,
    pub(super) images_saved: Counter,
}

impl Counters {
    /// Registers every series in `table`.
    pub fn new(table: &Table) -> Self {
        let counter = |name, edit| table.counter(name, &[("edit", edit)]);
        Self {
            decoded: counter(Name::PayloadEdits, "decoded"),
            images: counter(Name::PayloadEdits, "images"),
            images_saved: counter(Name::PayloadSaved, "images"),
        }
    }

    /// Counts nothing.
    #[cfg(test)]
    pub(super) fn noop() -> Self {
        Self { decoded: Counter::noop(), images: Counter::noop(), images_saved: Counter::noop() }
    }
}
