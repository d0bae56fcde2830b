//! The cursor under everything that reads JSON here.

use std::{borrow::Cow, ops::Range};

use memchr::memchr2;

use super::{MAX_DEPTH, Malformed, text::decode};

/// Stands at one byte of a text and moves over it, value by value. Every method skips white space first and leaves
/// the cursor behind what it read.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

/// A string literal: its inside, still escaped, and where it lies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Text<'a> {
    pub(super) raw: &'a [u8],
    start: usize,
    pub(super) escaped: bool,
}

impl<'a> Text<'a> {
    /// The inside with escapes resolved, as bytes: what a key is compared by.
    pub(crate) fn name(&self) -> Cow<'a, [u8]> {
        if !self.escaped {
            return Cow::Borrowed(self.raw);
        }
        Cow::Owned(decode(self.raw).into_owned().into_bytes())
    }

    /// Whether it spells `name`, by escapes or without.
    pub(crate) fn is(&self, name: &[u8]) -> bool {
        self.name().as_ref() == name
    }

    /// The inside with escapes resolved.
    pub(crate) fn decode(&self) -> Cow<'a, str> {
        decode(self.raw)
    }

    /// The literal's range, quotes included.
    pub(crate) fn literal(&self) -> Range<usize> {
        self.start - 1..self.start + self.raw.len() + 1
    }

    /// The inside's range.
    pub(crate) fn inside(&self) -> Range<usize> {
        self.start..self.start + self.raw.len()
    }

    /// Nothing between the quotes.
    pub(crate) fn is_empty(&self) -> bool {
        self.raw.is_empty()
    }
}

impl<'a> Reader<'a> {
    /// Stands at the first byte.
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Stands at byte `at`, which must be the start of a token.
    pub(crate) fn from(bytes: &'a [u8], at: usize) -> Self {
        Self { bytes, at }
    }

    /// The offset in bytes.
    pub(crate) fn offset(&self) -> usize {
        self.at
    }

    /// The bytes from `start` up to the cursor.
    pub(crate) fn since(&self, start: usize) -> &'a [u8] {
        &self.bytes[start..self.at]
    }

    /// A literal as it is spelled, quotes included.
    pub(super) fn spelled(&self, text: &Text<'_>) -> &'a [u8] {
        &self.bytes[text.literal()]
    }

    /// Steps over the byte that was peeked at.
    pub(super) fn advance(&mut self) {
        self.at += 1;
    }

    /// What is wrong here.
    pub(crate) fn fail(&self, what: &'static str) -> Malformed {
        Malformed { offset: self.at.min(self.bytes.len()), what }
    }

    /// The next byte that is not white space; the cursor stands at it.
    #[inline]
    pub(crate) fn peek(&mut self) -> Result<u8, Malformed> {
        loop {
            match self.bytes.get(self.at) {
                Some(b' ' | b'\n' | b'\r' | b'\t') => self.at += 1,
                Some(&byte) => return Ok(byte),
                None => return Err(self.fail("it ends too early")),
            }
        }
    }

    /// Nothing but white space may follow.
    pub(crate) fn finish(&mut self) -> Result<(), Malformed> {
        match self.peek() {
            Ok(_) => Err(self.fail("something follows the end of the value")),
            Err(_) => Ok(()),
        }
    }

    /// Reads an object member by member; `member` must read or [`skip`](Self::skip) the value. Another value than an
    /// object is skipped, without a call.
    #[inline]
    pub(crate) fn members(
        &mut self,
        mut member: impl FnMut(&mut Self, Text<'a>) -> Result<(), Malformed>,
    ) -> Result<(), Malformed> {
        if self.peek()? != b'{' {
            return self.skip();
        }
        self.at += 1;
        if self.peek()? == b'}' {
            self.at += 1;
            return Ok(());
        }
        loop {
            let key = self.key()?;
            member(self, key)?;
            if self.closes(b'}')? {
                return Ok(());
            }
        }
    }

    /// Reads the members that follow one whose value was just read, up to the end of that object.
    pub(crate) fn further_members(&mut self) -> Result<(), Malformed> {
        while !self.closes(b'}')? {
            self.key()?;
            self.skip()?;
        }
        Ok(())
    }

    /// Reads an array element by element; `element` must read or skip each. Another value is skipped, without a call.
    #[inline]
    pub(crate) fn elements(
        &mut self,
        mut element: impl FnMut(&mut Self) -> Result<(), Malformed>,
    ) -> Result<(), Malformed> {
        if self.peek()? != b'[' {
            return self.skip();
        }
        self.at += 1;
        if self.peek()? == b']' {
            self.at += 1;
            return Ok(());
        }
        loop {
            element(self)?;
            if self.closes(b']')? {
                return Ok(());
            }
        }
    }

    /// A string, or `None` for any other value.
    pub(crate) fn text(&mut self) -> Result<Option<Text<'a>>, Malformed> {
        if self.peek()? == b'"' { self.string().map(Some) } else { self.skip().map(|()| None) }
    }

    /// `true` or `false`, or `None` for any other value.
    pub(crate) fn boolean(&mut self) -> Result<Option<bool>, Malformed> {
        let value = match self.peek()? {
            b't' => Some(true),
            b'f' => Some(false),
            _ => None,
        };
        self.skip().map(|()| value)
    }

    /// An integer without sign, fraction and exponent that fits, or `None` for any other value.
    pub(crate) fn unsigned(&mut self) -> Result<Option<u64>, Malformed> {
        if !self.peek()?.is_ascii_digit() {
            return self.skip().map(|()| None);
        }
        let start = self.at;
        self.number()?;
        let digits = &self.bytes[start..self.at];
        Ok(digits.iter().try_fold(0_u64, |value, byte| {
            let digit = byte.wrapping_sub(b'0');
            if digit > 9 { None } else { value.checked_mul(10)?.checked_add(u64::from(digit)) }
        }))
    }

    /// `false`; `null` is nothing said, and whatever else an engine may take for `true` counts as that.
    pub(crate) fn truthy(&mut self) -> Result<Option<bool>, Malformed> {
        let value = match self.peek()? {
            b'f' => Some(false),
            b'n' => None,
            _ => Some(true),
        };
        self.skip().map(|()| value)
    }

    /// Whether the value is a number that is zero, however spelled.
    pub(crate) fn zero(&mut self) -> Result<bool, Malformed> {
        if !matches!(self.peek()?, b'-' | b'0') {
            return self.skip().map(|()| false);
        }
        let start = self.at;
        self.number()?;
        for byte in self.since(start) {
            match byte {
                b'1'..=b'9' => return Ok(false),
                b'e' | b'E' => break,
                _ => {}
            }
        }
        Ok(true)
    }

    /// Whether the value is another one than `null`.
    pub(crate) fn present(&mut self) -> Result<bool, Malformed> {
        let present = self.peek()? != b'n';
        self.skip().map(|()| present)
    }

    /// Steps over any value.
    #[inline]
    pub(crate) fn skip(&mut self) -> Result<(), Malformed> {
        match self.peek()? {
            b'{' | b'[' => self.skip_nested(),
            first => self.scalar(first),
        }
    }

    /// Steps over an array or object without recursion: one bit for each open level says which it is.
    fn skip_nested(&mut self) -> Result<(), Malformed> {
        let mut open = Levels::default();
        loop {
            // A value starts here.
            match self.peek()? {
                b'{' => {
                    self.enter(&mut open, true)?;
                    if self.peek()? != b'}' {
                        self.key()?;
                        continue;
                    }
                    self.at += 1;
                    open.leave();
                }
                b'[' => {
                    self.enter(&mut open, false)?;
                    if self.peek()? != b']' {
                        continue;
                    }
                    self.at += 1;
                    open.leave();
                }
                first => self.scalar(first)?,
            }
            // A value ended here.
            loop {
                if open.depth == 0 {
                    return Ok(());
                }
                let object = open.in_object();
                if !self.closes(if object { b'}' } else { b']' })? {
                    if object {
                        self.key()?;
                    }
                    break;
                }
                open.leave();
            }
        }
    }

    fn enter(&mut self, open: &mut Levels, object: bool) -> Result<(), Malformed> {
        if !open.enter(object) {
            return Err(self.fail("nested too deeply"));
        }
        self.at += 1;
        Ok(())
    }

    /// After a value: `close` ends the container, a comma goes on.
    #[inline]
    pub(super) fn closes(&mut self, close: u8) -> Result<bool, Malformed> {
        let byte = self.peek()?;
        if byte != close && byte != b',' {
            return Err(self.fail("a comma or the end of the object or array is expected"));
        }
        self.at += 1;
        Ok(byte == close)
    }

    /// A member's name and its colon.
    #[inline]
    pub(super) fn key(&mut self) -> Result<Text<'a>, Malformed> {
        if self.peek()? != b'"' {
            return Err(self.fail("a member's name is expected"));
        }
        let key = self.string()?;
        if self.peek()? != b':' {
            return Err(self.fail("a colon is expected"));
        }
        self.at += 1;
        Ok(key)
    }

    /// The cursor stands at the opening quote.
    #[inline]
    pub(super) fn string(&mut self) -> Result<Text<'a>, Malformed> {
        let start = self.at + 1;
        let mut from = start;
        let mut escaped = false;
        loop {
            let found = self.bytes.get(from..).and_then(quote_or_backslash);
            let Some(found) = found else { return Err(self.fail("a string is not closed")) };
            let end = from + found;
            if self.bytes[end] == b'"' {
                self.at = end + 1;
                return Ok(Text { raw: &self.bytes[start..end], start, escaped });
            }
            escaped = true;
            from = end + 2;
        }
    }

    #[inline]
    pub(super) fn scalar(&mut self, first: u8) -> Result<(), Malformed> {
        match first {
            b'"' => self.string().map(|_| ()),
            b'-' | b'0'..=b'9' => self.number(),
            b't' => self.literal(b"true"),
            b'f' => self.literal(b"false"),
            b'n' => self.literal(b"null"),
            _ => Err(self.fail("a value is expected")),
        }
    }

    fn literal(&mut self, word: &[u8]) -> Result<(), Malformed> {
        if !self.bytes[self.at..].starts_with(word) {
            return Err(self.fail("a value is expected"));
        }
        self.at += word.len();
        Ok(())
    }

    /// RFC 8259 §6: `-? (0 | [1-9][0-9]*) (. [0-9]+)? ([eE] [+-]? [0-9]+)?`
    fn number(&mut self) -> Result<(), Malformed> {
        if self.here() == b'-' {
            self.at += 1;
        }
        if self.here() == b'0' {
            self.at += 1;
        } else {
            self.digits()?;
        }
        if self.here() == b'.' {
            self.at += 1;
            self.digits()?;
        }
        if matches!(self.here(), b'e' | b'E') {
            self.at += 1;
            if matches!(self.here(), b'+' | b'-') {
                self.at += 1;
            }
            self.digits()?;
        }
        Ok(())
    }

    fn digits(&mut self) -> Result<(), Malformed> {
        let start = self.at;
        while self.here().is_ascii_digit() {
            self.at += 1;
        }
        if self.at == start { Err(self.fail("a digit is expected")) } else { Ok(()) }
    }

    /// The byte under the cursor; at the end a NUL, which starts no token.
    fn here(&self) -> u8 {
        self.bytes.get(self.at).copied().unwrap_or(0)
    }
}

/// Most strings are keys and short values: two looks at eight bytes each are cheaper than setting up a vector search.
#[inline]
fn quote_or_backslash(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    while at < 2 * WORD
        && let Some(word) = bytes[at..].first_chunk::<WORD>()
    {
        if let Some(found) = in_word(u64::from_le_bytes(*word)) {
            return Some(at + found);
        }
        at += WORD;
    }
    memchr2(b'"', b'\\', &bytes[at..]).map(|found| at + found)
}

const WORD: usize = size_of::<u64>();

/// Where the first quote or backslash stands in eight bytes, the lowest first. Subtracting one from every byte borrows
/// beyond a byte only where that was zero, so that whatever is marked wrongly lies behind a true mark.
#[inline]
fn in_word(word: u64) -> Option<usize> {
    const EACH: u64 = u64::MAX / 0xff;
    let zeros = |bytes: u64| bytes.wrapping_sub(EACH) & !bytes & (EACH << 7);
    let marks = zeros(word ^ (EACH * b'"' as u64)) | zeros(word ^ (EACH * b'\\' as u64));
    (marks != 0).then(|| marks.trailing_zeros() as usize / 8)
}

/// The kinds of the open levels, a bit each.
#[derive(Default)]
struct Levels {
    objects: [u64; MAX_DEPTH / 64],
    depth: usize,
}

impl Levels {
    fn enter(&mut self, object: bool) -> bool {
        if self.depth == MAX_DEPTH {
            return false;
        }
        let (word, bit) = (self.depth / 64, 1 << (self.depth % 64));
        if object {
            self.objects[word] |= bit;
        } else {
            self.objects[word] &= !bit;
        }
        self.depth += 1;
        true
    }

    fn leave(&mut self) {
        self.depth -= 1;
    }

    fn in_object(&self) -> bool {
        let level = self.depth - 1;
        self.objects[level / 64] & (1 << (level % 64)) != 0
    }
}
