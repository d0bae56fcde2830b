//! Members that are taken out of an object, and put into one, with their commas.

use std::collections::HashMap;

use super::{Added, Edit};
use crate::protocol::json::{Edits, Malformed, Reader};

/// One object, while it is read.
#[derive(Debug, Default)]
pub(super) struct Members {
    /// Behind the opening brace.
    open: usize,
    /// Where the last member ended.
    end: usize,
    /// Whether one stays so far.
    any: bool,
    /// The first members are taken out: where the last of them began, and why. It goes up to the next member.
    leading: Option<(usize, Edit)>,
}

impl Members {
    /// The object's brace was read; `at` is behind it.
    pub(super) fn open(&mut self, at: usize) {
        self.open = at;
    }

    /// A member begins at `start`.
    pub(super) fn begin(&mut self, start: usize, edits: &mut Edits<Edit>) {
        if let Some((from, cause)) = self.leading.take() {
            edits.remove(from..start, cause);
        }
    }

    /// The member stays; its value ended at `end`.
    pub(super) fn keep(&mut self, end: usize) {
        self.any = true;
        self.end = end;
    }

    /// The member goes: with the comma before it, or, as nothing stays before it, with the one behind.
    pub(super) fn cut(&mut self, start: usize, end: usize, cause: Edit, edits: &mut Edits<Edit>) {
        if self.any {
            edits.remove(self.end..end, cause);
        } else {
            self.leading = Some((start, cause));
        }
        self.end = end;
    }

    /// The object ended.
    pub(super) fn close(&mut self, edits: &mut Edits<Edit>) {
        if let Some((from, cause)) = self.leading.take() {
            edits.remove(from..self.end, cause);
        }
    }

    /// Puts members in at the front, in their order.
    pub(super) fn add(&self, added: Vec<Added>, edits: &mut Edits<Edit>) {
        let last = added.len();
        for (i, (mut text, cause)) in added.into_iter().enumerate() {
            if self.any || i + 1 < last {
                text.push(b',');
            }
            edits.replace(self.open..self.open, text, cause);
        }
    }
}

/// Fields by their path; one without further steps is meant itself.
#[derive(Debug, Default)]
pub(super) struct Paths(HashMap<Box<[u8]>, Self>);

impl Paths {
    /// Paths as they are configured: names, joined by dots.
    pub(super) fn new(paths: &[String]) -> Self {
        let mut all = Self::default();
        for path in paths {
            all.add(path);
        }
        all
    }

    fn add(&mut self, path: &str) {
        let (name, rest) = path.split_once('.').map_or((path, None), |(name, rest)| (name, Some(rest)));
        let known = self.0.get(name.as_bytes()).is_some_and(Self::is_empty);
        let below = self.0.entry(name.as_bytes().into()).or_default();
        match rest {
            // A field that goes as a whole needs no look inside.
            _ if known => {}
            None => below.0.clear(),
            Some(rest) => below.add(rest),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What goes of the field of that name: all of it, if what is returned is empty.
    pub(super) fn get(&self, name: &[u8]) -> Option<&Self> {
        // Most plans strip nothing.
        if self.0.is_empty() { None } else { self.0.get(name) }
    }

    /// Takes the fields out of the next value, if it is an object: where that lies.
    pub(super) fn cut(
        &self,
        reader: &mut Reader<'_>,
        edits: &mut Edits<Edit>,
    ) -> Result<std::ops::Range<usize>, Malformed> {
        reader.peek()?;
        let whole = reader.offset();
        let mut members = Members::default();
        reader.members(|reader, key| {
            let start = key.literal().start;
            members.begin(start, edits);
            match self.get(&key.name()) {
                Some(paths) if paths.is_empty() => {
                    let value = reader.span()?;
                    members.cut(start, value.end, Edit::Strip, edits);
                }
                Some(paths) => members.keep(paths.cut(reader, edits)?.end),
                None => members.keep(reader.span()?.end),
            }
            if edits.len() > super::MOST {
                return Err(reader.fail("too many edits"));
            }
            Ok(())
        })?;
        members.close(edits);
        Ok(whole..reader.offset())
    }
}
