//! What the edits did, counted.

use metrics::Counter;

use super::Edit;
use crate::{
    protocol::json::Edits,
    telemetry::metrics::{Name, Table},
};

/// Handles of one worker's table, in the order of [`Edit::ALL`].
#[derive(Debug)]
pub struct Counters(Vec<Both>);

#[derive(Debug)]
struct Both {
    edits: Counter,
    saved: Counter,
}

impl Counters {
    /// Registers every series in `table`.
    pub fn new(table: &Table) -> Self {
        let both = |edit: &Edit| {
            let labels = [("edit", edit.name())];
            Both {
                edits: table.counter(Name::PayloadEdits, &labels),
                saved: table.counter(Name::PayloadSaved, &labels),
            }
        };
        Self(Edit::ALL.iter().map(both).collect())
    }

    /// One body was edited.
    pub(in crate::proxy::normalize) fn edited(&self, edits: &Edits<Edit>, blanks: usize) {
        for splice in edits.splices() {
            self.count(splice.cause, splice.at.len().saturating_sub(splice.new.len()));
        }
        if blanks > 0 {
            self.count(Edit::Minify, blanks);
        }
    }

    fn count(&self, edit: Edit, saved: usize) {
        if let Some(both) = self.0.get(edit as usize) {
            both.edits.increment(1);
            both.saved.increment(saved as u64);
        }
    }
}
