//! Where a body has images in itself.

use std::{borrow::Cow, ops::Range};

use memchr::{memchr, memmem};

use crate::protocol::{
    endpoint::Endpoint,
    json::{Malformed, Reader, decode},
};

/// An image in a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Inline {
    /// Where its base64 lies.
    pub(super) digits: Range<usize>,
    /// It has escapes: some clients write `\/`.
    escaped: bool,
}

/// More of one body are sent as they are.
const MOST: usize = 64;
/// Of a data URL, up to its comma.
const LONGEST_HEAD: usize = 128;

impl Inline {
    /// Its base64.
    pub(super) fn digits<'a>(&self, body: &'a [u8]) -> Cow<'a, [u8]> {
        let digits = &body[self.digits.clone()];
        if !self.escaped {
            return Cow::Borrowed(digits);
        }
        Cow::Owned(decode(digits).into_owned().into_bytes())
    }
}

/// The images that `body` has in itself, in its order. A body that is not well-formed has none.
pub(super) fn images(endpoint: Endpoint, body: &[u8]) -> Vec<Inline> {
    let list = match endpoint {
        Endpoint::Chat | Endpoint::Messages | Endpoint::CountTokens => &b"messages"[..],
        Endpoint::Responses => b"input",
        _ => return Vec::new(),
    };
    // Most bodies have none, and a search is cheaper than a pass.
    if memmem::find(body, b"base64").is_none() {
        return Vec::new();
    }
    let mut search = Search { body, found: Vec::new() };
    let mut reader = Reader::new(body);
    let read = reader
        .members(
            |reader, name| {
                if name.is(list) { reader.elements(|reader| search.message(reader)) } else { reader.skip() }
            },
        )
        .and_then(|()| reader.finish());
    search.found.truncate(MOST);
    if read.is_ok() { search.found } else { Vec::new() }
}

struct Search<'a> {
    body: &'a [u8],
    found: Vec<Inline>,
}

impl<'a> Search<'a> {
    fn message(&mut self, reader: &mut Reader<'a>) -> Result<(), Malformed> {
        reader.members(
            |reader, name| {
                if name.is(b"content") { reader.elements(|reader| self.part(reader)) } else { reader.skip() }
            },
        )
    }

    /// `{"image_url": {"url": "data:…"}}`, `{"image_url": "data:…"}`, or Anthropic's
    /// `{"source": {"type": "base64", "data": "…"}}`.
    fn part(&mut self, reader: &mut Reader<'a>) -> Result<(), Malformed> {
        reader.members(|reader, name| {
            if name.is(b"image_url") {
                return match reader.peek()? {
                    b'"' => self.text(reader, data_url),
                    _ => self.inner(reader, b"url", data_url),
                };
            }
            if name.is(b"source") { self.inner(reader, b"data", |_| Some(0)) } else { reader.skip() }
        })
    }

    fn inner(&mut self, reader: &mut Reader<'a>, member: &[u8], start: Start) -> Result<(), Malformed> {
        reader.members(|reader, name| if name.is(member) { self.text(reader, start) } else { reader.skip() })
    }

    fn text(&mut self, reader: &mut Reader<'a>, start: Start) -> Result<(), Malformed> {
        let Some(text) = reader.text()? else { return Ok(()) };
        let inside = text.inside();
        if let Some(start) = start(&self.body[inside.clone()]) {
            let digits = inside.start + start..inside.end;
            let escaped = memchr(b'\\', &self.body[digits.clone()]).is_some();
            self.found.push(Inline { digits, escaped });
        }
        Ok(())
    }
}

/// Where in a string its base64 begins.
type Start = fn(&[u8]) -> Option<usize>;

/// RFC 2397: `data:image/…;base64,…`.
fn data_url(text: &[u8]) -> Option<usize> {
    if !text.get(..5)?.eq_ignore_ascii_case(b"data:") {
        return None;
    }
    let comma = memchr(b',', &text[..text.len().min(LONGEST_HEAD)])?;
    let coded = text[..comma].last_chunk::<7>()?.eq_ignore_ascii_case(b";base64");
    coded.then_some(comma + 1)
}
