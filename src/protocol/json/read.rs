//! The cursor under everything that reads JSON here.

use std::{borrow::Cow, ops::Range};

use memchr::memchr2;

use super::{MAX_DEPTH, MAX_KEYS, Malformed, TOO_DEEP, TOO_MANY, text::decode};

/// Stands at one byte of a text and moves over it, value by value. Every method skips white space first and leaves
/// the cursor behind what it read.
///
/// A `STRICT` one also judges the insides of strings (control characters, escapes) and counts members and levels.
#[derive(Clone, Debug)]
pub(crate) struct Reader<'a, const STRICT: bool = false> {
    bytes: &'a [u8],
    at: usize,
    /// Members so far.
    keys: usize,
    /// Levels that the caller opened itself.
    depth: usize,
}

/// Before the text, RFC 8259 §8.1 lets a parser skip it, and the engines' do.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

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
        Self::start(bytes)
    }

    /// Stands at byte `at`, which must be the start of a token.
    pub(crate) fn from(bytes: &'a [u8], at: usize) -> Self {
        Self { bytes, at, keys: 0, depth: 0 }
    }
}

impl<'a> Reader<'a, true> {
    /// Stands at the first byte and judges all it moves over. The text must be UTF-8.
    pub(crate) fn strict(bytes: &'a [u8]) -> Self {
        Self::start(bytes)
    }

    /// Steps into the array or object whose opening byte was peeked at. `true` = it has no elements and is behind us.
    #[inline]
    pub(crate) fn open(&mut self, close: u8) -> Result<bool, Malformed> {
        if self.depth == MAX_DEPTH {
            return Err(self.fail(TOO_DEEP));
        }
        self.at += 1;
        if self.peek()? == close {
            self.at += 1;
            return Ok(true);
        }
        self.depth += 1;
        Ok(false)
    }

    /// After an element: `true` = that was the last, and the cursor is behind the closing byte.
    #[inline]
    pub(crate) fn last(&mut self, close: u8) -> Result<bool, Malformed> {
        let last = self.closes(close)?;
        self.depth -= usize::from(last);
        Ok(last)
    }

    /// The string whose opening quote was peeked at.
    #[inline]
    pub(crate) fn quoted(&mut self) -> Result<Text<'a>, Malformed> {
        self.string()
    }

    /// A member's name and its colon.
    #[inline]
    pub(crate) fn name(&mut self) -> Result<Text<'a>, Malformed> {
        self.key()
    }
}

impl<'a, const STRICT: bool> Reader<'a, STRICT> {
    fn start(bytes: &'a [u8]) -> Self {
        let at = if bytes.starts_with(BYTE_ORDER_MARK) { BYTE_ORDER_MARK.len() } else { 0 };
        Self { bytes, at, keys: 0, depth: 0 }
    }

    /// All of the text.
    pub(crate) fn whole(&self) -> &'a [u8] {
        self.bytes
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

    /// Steps over any value: where it lies.
    #[inline]
    pub(crate) fn span(&mut self) -> Result<Range<usize>, Malformed> {
        self.peek()?;
        let start = self.at;
        self.skip()?;
        Ok(start..self.at)
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
        if open.depth + self.depth >= MAX_DEPTH {
            return Err(self.fail(TOO_DEEP));
        }
        open.enter(object);
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
        if STRICT {
            self.keys += 1;
            if self.keys > MAX_KEYS {
                return Err(self.fail(TOO_MANY));
            }
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
            let rest = self.bytes.get(from..);
            let found = if STRICT { rest.and_then(special) } else { rest.and_then(quote_or_backslash) };
            let Some(found) = found else { return Err(self.fail("a string is not closed")) };
            let end = from + found;
            match self.bytes[end] {
                b'"' => {
                    self.at = end + 1;
                    return Ok(Text { raw: &self.bytes[start..end], start, escaped });
                }
                b'\\' if !STRICT => from = end + 2,
                b'\\' => from = end + self.escape(end)?,
                _ => {
                    self.at = end;
                    return Err(self.fail("a control character in a string must be escaped, as \\n or \\u000a"));
                }
            }
            escaped = true;
        }
    }

    /// How many bytes the escape at `at` has, the backslash included.
    fn escape(&mut self, at: usize) -> Result<usize, Malformed> {
        let rest = &self.bytes[at + 1..];
        match rest.first() {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => Ok(2),
            Some(b'u') if rest.get(1..5).is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit)) => Ok(6),
            _ => {
                self.at = at;
                Err(self.fail("JSON has no such escape in strings; a backslash itself is \\\\"))
            }
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

/// Behind the closing quote of the string that opens at `at`; `None` when it is not closed.
pub(super) fn end_of_string(json: &[u8], at: usize) -> Option<usize> {
    let mut from = at + 1;
    loop {
        let found = from + json.get(from..).and_then(quote_or_backslash)?;
        if json[found] == b'"' {
            return Some(found + 1);
        }
        from = found + 2;
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

/// Where the first byte stands that ends a string, begins an escape, or may not be in one.
#[inline]
fn special(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    while at < 2 * WORD
        && let Some(word) = bytes[at..].first_chunk::<WORD>()
    {
        if let Some(found) = special_in_word(u64::from_le_bytes(*word)) {
            return Some(at + found);
        }
        at += WORD;
    }
    let rest = &bytes[at..];
    let end = memchr2(b'"', b'\\', rest);
    let inside = &bytes[..at + end.unwrap_or(rest.len())];
    if has_control(inside, at) {
        return inside.iter().position(|byte| *byte < b' ');
    }
    end.map(|found| at + found)
}

/// Whether a byte below a space stands in `bytes` from `at` on; those before are known to be none. Sixteen lanes and no
/// early end compile to vector instructions, and so that nothing is left over, the last sixteen may overlap.
#[inline]
fn has_control(bytes: &[u8], at: usize) -> bool {
    const LANES: usize = 2 * WORD;
    let (Some(last), true) = (bytes.last_chunk::<LANES>(), at < bytes.len()) else {
        return bytes[at..].iter().any(|byte| *byte < b' ');
    };
    let mut least = *last;
    for chunk in bytes[at..].as_chunks::<LANES>().0 {
        for (least, byte) in least.iter_mut().zip(chunk) {
            *least = (*least).min(*byte);
        }
    }
    least.iter().fold(u8::MAX, |least, byte| least.min(*byte)) < b' '
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

/// As [`in_word`], with the bytes below a space.
#[inline]
fn special_in_word(word: u64) -> Option<usize> {
    const EACH: u64 = u64::MAX / 0xff;
    let below = |bytes: u64, least: u8| bytes.wrapping_sub(EACH * u64::from(least)) & !bytes & (EACH << 7);
    let marks = below(word ^ (EACH * b'"' as u64), 1) | below(word ^ (EACH * b'\\' as u64), 1) | below(word, b' ');
    (marks != 0).then(|| marks.trailing_zeros() as usize / 8)
}

/// The kinds of the open levels, a bit each.
#[derive(Default)]
struct Levels {
    objects: [u64; MAX_DEPTH / 64],
    depth: usize,
}

impl Levels {
    /// There must be room for one more.
    fn enter(&mut self, object: bool) {
        let (word, bit) = (self.depth / 64, 1 << (self.depth % 64));
        if object {
            self.objects[word] |= bit;
        } else {
            self.objects[word] &= !bit;
        }
        self.depth += 1;
    }

    fn leave(&mut self) {
        self.depth -= 1;
    }

    fn in_object(&self) -> bool {
        let level = self.depth - 1;
        self.objects[level / 64] & (1 << (level % 64)) != 0
    }
}
