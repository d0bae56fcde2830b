//! Edits as people read them, for `sluicegate normalize`.

use super::Edit;
use crate::protocol::json::{Edits, Reader, Splice, path_at};

/// One edit of one body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub edit: Edit,
    /// Where, such as `messages[0].content`; empty for the body as a whole.
    pub path: String,
    /// Bytes that the body became shorter by; below zero where something was put in.
    pub saved: i64,
}

/// What `edits`, which are sorted, do to `body`.
pub fn changes(body: &[u8], edits: &Edits<Edit>) -> Vec<Change> {
    let mut all: Vec<_> = edits.splices().iter().map(|splice| Change::of(body, splice)).collect();
    let blanks = edits.blanks(body);
    if blanks > 0 {
        all.push(Change { edit: Edit::Minify, path: String::new(), saved: signed(blanks) });
    }
    all
}

impl Change {
    fn of(body: &[u8], splice: &Splice<Edit>) -> Self {
        let added = splice.at.is_empty().then(|| Reader::new(&splice.new).text().ok().flatten()).flatten();
        Self {
            edit: splice.cause,
            path: added.map_or_else(|| path_at(body, splice.at.start), |name| name.decode().into_owned()),
            saved: signed(splice.at.len()) - signed(splice.new.len()),
        }
    }
}

fn signed(length: usize) -> i64 {
    i64::try_from(length).unwrap_or(i64::MAX)
}
