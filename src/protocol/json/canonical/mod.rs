//! One spelling for all bodies that say the same, written in one pass over the bytes.
//!
//! Members are sorted by name (by the bytes of its canonical spelling), white space outside strings is gone, each
//! string is spelled in one way (only `"`, `\` and control characters escaped). Numbers stay as they are spelled: an
//! engine may tell 1 from 1.0, and 2^53 from 2^53+1. Arrays keep their order, `null` stays.
//!
//! Unlike [`scan`](super::scan) the check is strict: what two parsers could read in two ways has no canonical form.
//! That is a name given twice in one object, bytes that are not UTF-8, half a surrogate pair, an unknown escape, a raw
//! control character.

mod notes;

use std::ops::Range;

use memchr::memchr;

use super::{
    Malformed,
    read::{Reader, Text},
    text::{four_digits, write_byte},
};

pub use notes::Notes;

/// Deepest nesting that is followed, arrays and objects.
pub(super) const MAX_DEPTH: usize = 128;

/// Bytes that may be moved to sort members, in lengths of the body. A member that must move takes all that is in it
/// along, so that depth multiplies the work; real bodies need less than four.
const MOST_MOVES: usize = 16;

/// Top-level members that are left out of a canonical form.
#[derive(Clone, Copy, Debug, Default)]
pub struct Omit<'a> {
    /// By name, whatever they hold.
    pub members: &'a [&'a str],
    /// Further ones.
    pub further: &'a [String],
    /// `stream`, if it is `true`, `false` or `null`: what else an engine may read in it is its own affair.
    pub stream: bool,
    /// `stream_options`, if it says nothing, or no more than `include_usage`.
    pub usage: bool,
}

/// Why a body has no canonical form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unfit {
    Malformed(Malformed),
    /// An object names a member twice.
    Duplicate,
    /// Too much would have to be moved to sort it.
    Costly,
}

impl From<Malformed> for Unfit {
    fn from(malformed: Malformed) -> Self {
        Self::Malformed(malformed)
    }
}

/// Writes canonical forms; what it allocates serves again for the next.
#[derive(Debug, Default)]
pub struct Canonicaliser {
    members: Vec<Member>,
    spare: Vec<u8>,
}

impl Canonicaliser {
    /// Appends the canonical form of `body`, a JSON object, to `out`, and says what was seen on the way.
    ///
    /// # Errors
    /// [`Unfit`] when it has none. What `out` then ends in is of no use.
    pub fn write(&mut self, body: &[u8], omit: &Omit<'_>, out: &mut Vec<u8>) -> Result<Notes, Unfit> {
        self.members.clear();
        out.reserve(body.len());
        let mut pass = Pass {
            // A byte order mark is not skipped: parsers differ in whether they take it.
            reader: Reader::from(body, 0),
            out,
            members: &mut self.members,
            spare: &mut self.spare,
            moves: body.len().saturating_mul(MOST_MOVES),
            omit,
            notes: Notes::default(),
            tool: Tool::default(),
        };
        if pass.reader.peek()? != b'{' {
            return Err(pass.reader.fail("an object is expected").into());
        }
        pass.object(1)?;
        pass.reader.finish()?;
        Ok(pass.notes)
    }

    /// Bytes it holds on to.
    pub fn held(&self) -> usize {
        self.members.capacity() * size_of::<Member>() + self.spare.capacity()
    }
}

/// Where a member lies in the output: `"name":value`.
#[derive(Clone, Copy, Debug)]
struct Member {
    start: usize,
    /// Behind the name's closing quote.
    name_end: usize,
    end: usize,
    omitted: bool,
}

impl Member {
    /// What is between the name's quotes.
    fn name(&self) -> Range<usize> {
        self.start + 1..self.name_end - 1
    }

    fn len(&self) -> usize {
        self.end - self.start
    }
}

/// The element of `tools` that is being read.
#[derive(Default)]
struct Tool {
    /// Inside the top-level member `tools`.
    within: bool,
    /// It is one that the client runs.
    known: bool,
}

struct Pass<'a, 's> {
    reader: Reader<'a>,
    out: &'s mut Vec<u8>,
    /// Of all open objects, innermost last.
    members: &'s mut Vec<Member>,
    spare: &'s mut Vec<u8>,
    /// How many bytes may still be moved.
    moves: usize,
    omit: &'s Omit<'s>,
    notes: Notes,
    tool: Tool,
}

impl Pass<'_, '_> {
    /// `depth` counts the containers around the value.
    fn value(&mut self, depth: usize) -> Result<(), Unfit> {
        match self.reader.peek()? {
            b'"' => {
                let text = self.reader.string()?;
                self.string(text)
            }
            b'{' => self.object(depth + 1),
            b'[' => self.array(depth + 1),
            first => {
                let start = self.reader.offset();
                self.reader.scalar(first)?;
                self.out.extend_from_slice(self.reader.since(start));
                Ok(())
            }
        }
    }

    fn array(&mut self, depth: usize) -> Result<(), Unfit> {
        self.enter(depth)?;
        self.out.push(b'[');
        if self.reader.peek()? == b']' {
            self.reader.advance();
        } else {
            let tools = depth == 2 && self.tool.within;
            loop {
                // Named by a word alone, it is none that the client described.
                self.notes.server_tools |= tools && self.reader.peek()? != b'{';
                self.value(depth)?;
                if self.reader.closes(b']')? {
                    break;
                }
                self.out.push(b',');
            }
        }
        self.out.push(b']');
        Ok(())
    }

    fn object(&mut self, depth: usize) -> Result<(), Unfit> {
        self.enter(depth)?;
        self.out.push(b'{');
        let first = self.members.len();
        let mut settled = true;
        if self.reader.peek()? == b'}' {
            self.reader.advance();
        } else {
            loop {
                settled &= self.member(depth, first)?;
                if self.reader.closes(b'}')? {
                    break;
                }
                self.out.push(b',');
            }
        }
        if !settled {
            self.arrange(first)?;
        }
        self.members.truncate(first);
        self.out.push(b'}');
        self.note_end(depth);
        Ok(())
    }

    fn enter(&mut self, depth: usize) -> Result<(), Unfit> {
        if depth > MAX_DEPTH {
            return Err(self.reader.fail("nested too deeply").into());
        }
        self.reader.advance();
        Ok(())
    }

    /// Writes one member of the object whose members begin at `first`. Says whether it may stay where it is.
    fn member(&mut self, depth: usize, first: usize) -> Result<bool, Unfit> {
        let start = self.out.len();
        let name = self.reader.key()?;
        self.string(name)?;
        let name_end = self.out.len();
        self.out.push(b':');
        let mut member = Member { start, name_end, end: 0, omitted: false };
        let in_order = match self.members[first..].last() {
            Some(previous) => match self.out[previous.name()].cmp(&self.out[member.name()]) {
                std::cmp::Ordering::Equal => return Err(Unfit::Duplicate),
                order => order.is_lt(),
            },
            None => true,
        };
        self.note_begin(depth, member.name());
        self.value(depth)?;
        member.end = self.out.len();
        self.note(depth, &member);
        member.omitted = depth == 1 && self.is_omitted(&member);
        self.members.push(member);
        Ok(in_order && !member.omitted)
    }

    fn is_omitted(&self, member: &Member) -> bool {
        let (name, value) = (&self.out[member.name()], &self.out[member.name_end + 1..member.end]);
        match name {
            b"stream" if self.omit.stream => matches!(value, b"true" | b"false" | b"null"),
            b"stream_options" if self.omit.usage => matches!(
                value,
                b"null"
                    | b"{}"
                    | br#"{"include_usage":true}"#
                    | br#"{"include_usage":false}"#
                    | br#"{"include_usage":null}"#
            ),
            name => {
                self.omit.members.iter().any(|omitted| omitted.as_bytes() == name)
                    || self.omit.further.iter().any(|omitted| omitted.as_bytes() == name)
            }
        }
    }

    /// Sorts the members from `first` on and closes the gaps of omitted ones. The longest is moved within the output,
    /// at most once; the others go by way of `spare`.
    fn arrange(&mut self, first: usize) -> Result<(), Unfit> {
        let members = &mut self.members[first..];
        let start = members[0].start;
        let span = self.out.len() - start;
        self.moves = self.moves.checked_sub(span).ok_or(Unfit::Costly)?;
        members.sort_unstable_by(|a, b| self.out[a.name()].cmp(&self.out[b.name()]));
        if members.windows(2).any(|pair| self.out[pair[0].name()] == self.out[pair[1].name()]) {
            return Err(Unfit::Duplicate);
        }
        let kept = || members.iter().filter(|member| !member.omitted);
        let longest = kept().max_by_key(|member| member.len()).map(|member| member.start);
        self.spare.clear();
        let mut at = start;
        let mut target = start;
        for member in kept() {
            if Some(member.start) == longest {
                target = at;
            } else {
                self.spare.extend_from_slice(&self.out[member.start..member.end]);
            }
            at += member.len() + 1;
        }
        // The others are safe now: what lies where they go may be overwritten.
        let (mut at, mut from) = (start, 0);
        if let Some(member) = kept().find(|member| Some(member.start) == longest) {
            self.out.copy_within(member.start..member.end, target);
        }
        for (index, member) in kept().enumerate() {
            if index > 0 {
                self.out[at] = b',';
                at += 1;
            }
            let len = member.len();
            if Some(member.start) != longest {
                self.out[at..at + len].copy_from_slice(&self.spare[from..from + len]);
                from += len;
            }
            at += len;
        }
        self.out.truncate(at);
        Ok(())
    }

    /// Writes a string literal in its one spelling.
    #[inline]
    fn string(&mut self, text: Text<'_>) -> Result<(), Unfit> {
        if text.escaped {
            return self.escaped(text.raw);
        }
        self.check(text.raw)?;
        self.out.extend_from_slice(self.reader.spelled(&text));
        Ok(())
    }

    fn escaped(&mut self, raw: &[u8]) -> Result<(), Unfit> {
        self.out.push(b'"');
        let mut rest = raw;
        while let Some(at) = memchr(b'\\', rest) {
            self.run(&rest[..at])?;
            let (character, used) =
                escape(&rest[at + 1..]).ok_or_else(|| self.reader.fail("an escape that means nothing"))?;
            let mut utf8 = [0; 4];
            for &byte in character.encode_utf8(&mut utf8).as_bytes() {
                write_byte(self.out, byte);
            }
            rest = &rest[at + 1 + used..];
        }
        self.run(rest)?;
        self.out.push(b'"');
        Ok(())
    }

    /// Writes a part of a string in which nothing is escaped.
    fn run(&mut self, bytes: &[u8]) -> Result<(), Unfit> {
        if !bytes.is_empty() {
            self.check(bytes)?;
            self.out.extend_from_slice(bytes);
        }
        Ok(())
    }

    /// What may stand in a string as it is.
    #[inline]
    fn check(&self, bytes: &[u8]) -> Result<(), Unfit> {
        let seen = look(bytes);
        if seen.control != 0 {
            return Err(self.reader.fail("a control character in a string").into());
        }
        if seen.all & HIGH != 0 && std::str::from_utf8(bytes).is_err() {
            return Err(self.reader.fail("a string is not UTF-8").into());
        }
        Ok(())
    }
}

/// What kinds of bytes a text has.
#[derive(Default)]
struct Seen {
    /// A high bit is set where a byte is a control character.
    control: u64,
    /// All of the text's bytes, one over the other.
    all: u64,
}

const EACH: u64 = u64::MAX / 0xff;
const HIGH: u64 = EACH << 7;

impl Seen {
    /// Looks at eight bytes. A borrow beyond a byte makes false marks only behind a true one.
    #[inline]
    fn word(&mut self, bytes: [u8; 8]) {
        let word = u64::from_le_bytes(bytes);
        self.control |= word.wrapping_sub(EACH * 0x20) & !word & HIGH;
        self.all |= word;
    }
}

/// Looks at a text: two reductions that compile to vector instructions, then by words; the last may overlap.
#[inline]
fn look(bytes: &[u8]) -> Seen {
    const LANES: usize = 32;
    let mut seen = Seen::default();
    let (chunks, rest) = bytes.as_chunks::<LANES>();
    if !chunks.is_empty() {
        let (mut least, mut all) = ([u8::MAX; LANES], [0; LANES]);
        for chunk in chunks {
            for lane in 0..LANES {
                least[lane] = least[lane].min(chunk[lane]);
                all[lane] |= chunk[lane];
            }
        }
        // The least of each lane, and then whether one is not ASCII: its own high bit may be gone by the minimum.
        least.as_chunks().0.iter().for_each(|word| seen.word(*word));
        all.as_chunks().0.iter().for_each(|word| seen.all |= u64::from_le_bytes(*word));
    }
    rest.as_chunks().0.iter().for_each(|word| seen.word(*word));
    match bytes.last_chunk() {
        Some(word) => seen.word(*word),
        None => {
            for &byte in rest {
                seen.control |= u64::from(byte < 0x20) << 7;
                seen.all |= u64::from(byte);
            }
        }
    }
    seen
}

/// What stands behind a backslash, and how many bytes spell it; `None` for what RFC 8259 §7 does not know, and for
/// half a surrogate pair, which no text can hold.
fn escape(bytes: &[u8]) -> Option<(char, usize)> {
    Some(match bytes.first()? {
        b'"' => ('"', 1),
        b'\\' => ('\\', 1),
        b'/' => ('/', 1),
        b'b' => ('\u{8}', 1),
        b'f' => ('\u{c}', 1),
        b'n' => ('\n', 1),
        b'r' => ('\r', 1),
        b't' => ('\t', 1),
        b'u' => return unicode(&bytes[1..]),
        _ => return None,
    })
}

fn unicode(bytes: &[u8]) -> Option<(char, usize)> {
    let first = four_digits(bytes)?;
    if let Some(character) = char::from_u32(first) {
        return Some((character, 5));
    }
    let low = four_digits(bytes.get(4..)?.strip_prefix(b"\\u")?)?;
    if first >= 0xdc00 || !(0xdc00..0xe000).contains(&low) {
        return None;
    }
    Some((char::from_u32(0x1_0000 + ((first - 0xd800) << 10) + (low - 0xdc00))?, 11))
}

#[cfg(test)]
mod tests;
