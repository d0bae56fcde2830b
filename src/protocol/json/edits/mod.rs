//! Edits of a body by its bytes: what lies between them is carried over as it came.

use std::{borrow::Cow, ops::Range};

use bytes::Bytes;

use super::read::end_of_string;

#[cfg(test)]
mod tests;

/// A small list of splices over one body, and whether its white space goes. `C` says why each is made.
#[derive(Clone, Debug)]
pub struct Edits<C = ()> {
    /// In the order of the body; see [`sort`](Self::sort).
    splices: Vec<Splice<C>>,
    minify: bool,
}

/// One edit: what lies at `at` gives way to `new`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Splice<C> {
    /// Bytes of the body as it came; empty where something is put in.
    pub at: Range<usize>,
    /// What takes their place.
    pub new: Cow<'static, [u8]>,
    /// Why.
    pub cause: C,
}

impl<C> Edits<C> {
    /// Puts `new` in the place of what lies at `at`. Splices must not overlap; those that put something in at one place
    /// stand there in the order in which they were told.
    pub fn replace(&mut self, at: Range<usize>, new: impl Into<Cow<'static, [u8]>>, cause: C) {
        self.splices.push(Splice { at, new: new.into(), cause });
    }

    /// Takes out what lies at `at`.
    pub fn remove(&mut self, at: Range<usize>, cause: C) {
        self.replace(at, &b""[..], cause);
    }

    /// Whether white space outside strings goes. Splices must then begin and end outside strings.
    pub fn minify(&mut self, minify: bool) {
        self.minify = minify;
    }

    /// Whether nothing would change but, perhaps, white space.
    pub fn is_empty(&self) -> bool {
        self.splices.is_empty()
    }

    /// How many splices there are.
    pub fn len(&self) -> usize {
        self.splices.len()
    }

    /// The splices, in the order of the body once they are sorted.
    pub fn splices(&self) -> &[Splice<C>] {
        &self.splices
    }

    /// Brings the splices into the order of the body; what is put in stands before what is taken out at that place.
    pub fn sort(&mut self) {
        self.splices.sort_by_key(|splice| (splice.at.start, splice.at.end));
        debug_assert!(self.splices.windows(2).all(|pair| pair[0].at.end <= pair[1].at.start), "splices overlap");
    }

    /// Bytes of white space that [`apply`](Self::apply) takes out of `body`, if it is to. The edits must be sorted.
    pub fn blanks(&self, body: &[u8]) -> usize {
        if self.minify { self.kept(body).map(blanks).sum() } else { 0 }
    }

    /// How long the edited body will be, of which `blanks` go. The edits must be sorted.
    pub fn length(&self, body: &[u8], blanks: usize) -> usize {
        let (out, new) = self.splices.iter().fold((0, 0), |(out, new), s| (out + s.at.len(), new + s.new.len()));
        body.len() - out - blanks + new
    }

    /// `body` with all edits made, in one allocation. The edits must be sorted.
    pub fn apply(&self, body: &[u8]) -> Bytes {
        let blanks = self.blanks(body);
        let mut out = Vec::with_capacity(self.length(body, blanks));
        let mut news = self.splices.iter().map(|splice| &splice.new);
        for kept in self.kept(body) {
            if blanks > 0 {
                minified(&mut out, kept)
            } else {
                out.extend_from_slice(kept)
            }
            if let Some(new) = news.next() {
                out.extend_from_slice(new);
            }
        }
        out.into()
    }

    /// What is carried over: before, between and behind the splices.
    fn kept<'a>(&self, body: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
        let starts = std::iter::once(0).chain(self.splices.iter().map(|splice| splice.at.end));
        let ends = self.splices.iter().map(|splice| splice.at.start).chain(std::iter::once(body.len()));
        starts.zip(ends).map(|(start, end)| body.get(start..end).unwrap_or_default())
    }
}

impl<C> Default for Edits<C> {
    fn default() -> Self {
        Self { splices: Vec::new(), minify: false }
    }
}

/// White space outside strings in well-formed JSON that begins outside one.
fn blanks(json: &[u8]) -> usize {
    json.len() - runs(json).map(<[u8]>::len).sum::<usize>()
}

/// Appends `json` without its white space.
fn minified(out: &mut Vec<u8>, json: &[u8]) {
    runs(json).for_each(|run| out.extend_from_slice(run));
}

/// What lies between white space outside strings.
fn runs(json: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut at = 0;
    std::iter::from_fn(move || {
        while json.get(at).is_some_and(|byte| is_blank(*byte)) {
            at += 1;
        }
        let start = at;
        while let Some(byte) = json.get(at).filter(|byte| !is_blank(**byte)) {
            at = if *byte == b'"' { end_of_string(json, at).unwrap_or(json.len()) } else { at + 1 };
        }
        (at > start).then(|| &json[start..at])
    })
}

/// RFC 8259 §2.
fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\n' | b'\r' | b'\t')
}
