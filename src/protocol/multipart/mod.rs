//! The model's name in a form (`multipart/form-data`, RFC 7578 over RFC 2046): audio and image uploads.
//!
//! The body is searched for its boundary lines; file contents are stepped over, not looked at. A part with a
//! `filename` is a file, whatever its name. Of several `model` parts the last wins, as it does in the engines'
//! frameworks.

use std::{borrow::Cow, ops::Range};

use memchr::memmem;

#[cfg(test)]
mod tests;

/// RFC 2046 §5.1.1 allows 70.
const MAX_BOUNDARY: usize = 70;
/// Parts of one form that are looked at. Forms of API clients have under twenty.
const MAX_PARTS: usize = 1024;
/// Bytes of one part's header fields.
const MAX_HEADERS: usize = 8 << 10;
/// Bytes of a model's name.
const MAX_NAME: usize = 1024;

/// The value of a form field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field<'a> {
    /// The content as it stands, which in a form is not escaped.
    pub text: Cow<'a, str>,
    /// Where it lies in the body.
    pub span: Range<usize>,
}

/// The `model` field of the form in `body`; `None` when there is none, when it is empty, longer than 1,024 bytes or
/// not UTF-8, and when `content_type` is not `multipart/form-data` with a boundary.
pub fn model<'a>(content_type: &str, body: &'a [u8]) -> Option<Field<'a>> {
    let boundary = boundary(content_type)?;
    let mut found = None;
    for part in Parts::new(&boundary, body).take(MAX_PARTS) {
        if is_model(&body[part.headers]) {
            found = Some(part.content);
        }
    }
    let span = found.filter(|span| (1..=MAX_NAME).contains(&span.len()))?;
    let text = std::str::from_utf8(&body[span.clone()]).ok()?;
    Some(Field { text: Cow::Borrowed(text), span })
}

/// `body` with the content at `span` (from [`Field::span`]) replaced by `new`.
pub fn replace_model(body: &[u8], span: &Range<usize>, new: &str) -> Vec<u8> {
    [&body[..span.start], new.as_bytes(), &body[span.end..]].concat()
}

struct Part {
    headers: Range<usize>,
    content: Range<usize>,
}

/// The parts that are closed by a further boundary line.
struct Parts<'a> {
    body: &'a [u8],
    finder: memmem::Finder<'static>,
    /// Where the next part's header fields begin.
    next: Option<usize>,
}

/// A boundary line.
struct Delimiter {
    /// Its line end before, where a part's content ends.
    start: usize,
    /// Behind it, unless it closes the form.
    next: Option<usize>,
}

impl<'a> Parts<'a> {
    fn new(boundary: &str, body: &'a [u8]) -> Self {
        let line = format!("\r\n--{boundary}");
        let mut parts = Self { body, finder: memmem::Finder::new(&line).into_owned(), next: None };
        // The first boundary may stand at the very start, without a line end before it.
        let bare = &line.as_bytes()[2..];
        parts.next = match body.strip_prefix(bare).and_then(line_end) {
            Some(rest) => Some(bare.len() + rest),
            None => parts.delimiter(0).and_then(|delimiter| delimiter.next),
        };
        parts
    }

    /// The first boundary line from `from` on. What begins like one and goes on otherwise is content.
    fn delimiter(&self, mut from: usize) -> Option<Delimiter> {
        loop {
            let start = from + self.finder.find(&self.body[from..])?;
            let end = start + self.finder.needle().len();
            let rest = &self.body[end..];
            if rest.starts_with(b"--") {
                return Some(Delimiter { start, next: None });
            }
            if let Some(length) = line_end(rest) {
                return Some(Delimiter { start, next: Some(end + length) });
            }
            from = end;
        }
    }
}

impl Iterator for Parts<'_> {
    type Item = Part;

    fn next(&mut self) -> Option<Part> {
        loop {
            let headers = self.next.take()?;
            // An empty part's boundary line shares the line end of the one before.
            let delimiter = self.delimiter(headers - 2)?;
            self.next = delimiter.next;
            if let Some(content) = content(self.body, headers..delimiter.start) {
                return Some(Part { headers: headers..content.start, content });
            }
        }
    }
}

/// Length of the rest of a boundary line: white space and CRLF.
fn line_end(bytes: &[u8]) -> Option<usize> {
    let padding = bytes.iter().take_while(|b| matches!(b, b' ' | b'\t')).count();
    bytes[padding..].starts_with(b"\r\n").then_some(padding + 2)
}

/// What follows the empty line in a part.
fn content(body: &[u8], part: Range<usize>) -> Option<Range<usize>> {
    if part.is_empty() {
        return None;
    }
    let head = &body[part.start..part.end.min(part.start + MAX_HEADERS)];
    if head.starts_with(b"\r\n") {
        return Some(part.start + 2..part.end);
    }
    memmem::find(head, b"\r\n\r\n").map(|found| part.start + found + 4..part.end)
}

/// Whether a part's header fields say `form-data; name="model"` and no `filename`.
fn is_model(headers: &[u8]) -> bool {
    let Ok(headers) = std::str::from_utf8(headers) else { return false };
    headers.split("\r\n").any(|field| {
        let Some((name, value)) = field.split_once(':') else { return false };
        let Some((kind, mut rest)) = disposition(name, value) else { return false };
        let (mut named, mut file) = (false, false);
        while let Some((name, value)) = parameter(&mut rest) {
            named |= name.eq_ignore_ascii_case("name") && value == "model";
            file |= name.eq_ignore_ascii_case("filename") || name.eq_ignore_ascii_case("filename*");
        }
        kind.eq_ignore_ascii_case("form-data") && named && !file
    })
}

fn disposition<'a>(name: &str, value: &'a str) -> Option<(&'a str, &'a str)> {
    if !name.trim().eq_ignore_ascii_case("content-disposition") {
        return None;
    }
    Some(kind_and_parameters(value))
}

fn kind_and_parameters(value: &str) -> (&str, &str) {
    let end = value.find(';').unwrap_or(value.len());
    (value[..end].trim(), &value[end..])
}

/// The `boundary` of a `multipart/form-data` content type.
fn boundary(content_type: &str) -> Option<Cow<'_, str>> {
    let (kind, mut rest) = kind_and_parameters(content_type);
    if !kind.eq_ignore_ascii_case("multipart/form-data") {
        return None;
    }
    let mut found = None;
    while let Some((name, value)) = parameter(&mut rest) {
        if name.eq_ignore_ascii_case("boundary") && found.is_none() {
            found = Some(value);
        }
    }
    found.filter(|b| (1..=MAX_BOUNDARY).contains(&b.len()) && b.bytes().all(|b| (0x20..0x7f).contains(&b)))
}

/// Takes `; name=token` or `; name="quoted"` off the front; `None` when no further one is well-formed.
fn parameter<'a>(rest: &mut &'a str) -> Option<(&'a str, Cow<'a, str>)> {
    let text = rest.trim_start().strip_prefix(';')?;
    let (name, value) = text.split_once('=')?;
    let (value, after) = match value.trim_start().strip_prefix('"') {
        Some(quoted) => unquote(quoted)?,
        None => {
            let end = value.find(';').unwrap_or(value.len());
            (Cow::Borrowed(value[..end].trim()), &value[end..])
        }
    };
    *rest = after;
    Some((name.trim(), value))
}

/// What stands before the closing quote, backslashes resolved, and what follows it.
fn unquote(quoted: &str) -> Option<(Cow<'_, str>, &str)> {
    let mut out = String::new();
    let mut escaped = false;
    for (at, character) in quoted.char_indices() {
        match character {
            _ if escaped => {
                out.push(character);
                escaped = false;
            }
            '\\' => escaped = true,
            '"' => return Some((Cow::Owned(out), &quoted[at + 1..])),
            _ => out.push(character),
        }
    }
    None
}
