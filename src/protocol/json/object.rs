//! An object's top level as spans of its text, and the writing of one: what is carried over keeps every byte.

use std::{borrow::Cow, ops::Range};

use super::{Malformed, Reader, Text, decode, write_string};

/// The members of an object, in their order. Of duplicates only the last is kept, as in the engines.
#[derive(Clone, Debug, Default)]
pub(crate) struct Object {
    /// Behind the opening brace.
    open: usize,
    members: Vec<Member>,
}

/// One member: where its name's literal and its value lie. A text above 4 GiB is not read, so that four bytes do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Member {
    name: (u32, u32),
    value: (u32, u32),
}

/// A value as it is spelled. It was read before, so that what does not parse counts as absent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Raw<'a>(pub(crate) &'a [u8]);

/// Writes an object, member by member.
#[derive(Debug)]
pub(crate) struct Writer(Vec<u8>);

impl Object {
    /// Reads `text`, which must be one object of at most `most` members. `member` is given each name and must read or
    /// skip its value.
    pub(crate) fn read<'a>(
        text: &'a [u8],
        most: usize,
        mut member: impl FnMut(&mut Reader<'a>, &[u8]) -> Result<(), Malformed>,
    ) -> Result<Self, Malformed> {
        let mut reader = Reader::new(text);
        if reader.peek()? != b'{' {
            return Err(reader.fail("an object is expected"));
        }
        let mut object = Self { open: reader.offset() + 1, members: Vec::new() };
        reader.members(|reader, key| {
            reader.peek()?;
            let start = reader.offset();
            let name = key.name();
            member(reader, &name)?;
            let (Some(at), Some(value)) = (narrow(key.literal()), narrow(start..reader.offset())) else {
                return Err(reader.fail("it is too long"));
            };
            object.members.retain(|earlier| *earlier.name(text) != *name);
            if object.members.len() == most {
                return Err(reader.fail("it has too many members"));
            }
            object.members.push(Member { name: at, value });
            Ok(())
        })?;
        reader.finish()?;
        Ok(object)
    }

    /// The members, in their order.
    pub(crate) fn members(&self) -> &[Member] {
        &self.members
    }

    /// The member of that name in `text`, which must be what was read.
    pub(crate) fn get<'a>(&self, text: &'a [u8], name: &[u8]) -> Option<Raw<'a>> {
        self.members.iter().find(|member| *member.name(text) == *name).map(|member| member.value(text))
    }

    /// `text` with one more member at its front, every other byte as it was.
    pub(crate) fn with(&self, text: &[u8], member: &str) -> Vec<u8> {
        let mut out = Vec::with_capacity(text.len() + member.len() + 1);
        out.extend_from_slice(&text[..self.open]);
        out.extend_from_slice(member.as_bytes());
        if !self.members.is_empty() {
            out.push(b',');
        }
        out.extend_from_slice(&text[self.open..]);
        out
    }
}

fn narrow(range: Range<usize>) -> Option<(u32, u32)> {
    Some((u32::try_from(range.start).ok()?, u32::try_from(range.end).ok()?))
}

fn wide((start, end): (u32, u32)) -> Range<usize> {
    start as usize..end as usize
}

impl Member {
    /// Its name, escapes resolved.
    pub(crate) fn name<'a>(&self, text: &'a [u8]) -> Cow<'a, [u8]> {
        let literal = &text[wide(self.name)];
        let inside = &literal[1..literal.len() - 1];
        if !inside.contains(&b'\\') {
            return Cow::Borrowed(inside);
        }
        Cow::Owned(decode(inside).into_owned().into_bytes())
    }

    /// Its value.
    pub(crate) fn value<'a>(&self, text: &'a [u8]) -> Raw<'a> {
        Raw(&text[wide(self.value)])
    }

    /// Where its value lies.
    pub(crate) fn span(&self) -> Range<usize> {
        wide(self.value)
    }
}

impl<'a> Raw<'a> {
    /// Reads any value.
    pub(crate) fn read(reader: &mut Reader<'a>) -> Result<Self, Malformed> {
        reader.peek()?;
        let start = reader.offset();
        reader.skip()?;
        Ok(Self(reader.since(start)))
    }

    /// `null`.
    pub(crate) fn is_null(self) -> bool {
        self.0 == b"null"
    }

    /// `null`, `false`, and what is empty: nothing that an engine could act on.
    pub(crate) fn is_nothing(self) -> bool {
        match self.0 {
            b"null" | b"false" | br#""""# => true,
            [b'[', inside @ .., b']'] | [b'{', inside @ .., b'}'] => inside.trim_ascii().is_empty(),
            _ => false,
        }
    }

    /// `true`.
    pub(crate) fn is_true(self) -> bool {
        self.0 == b"true"
    }

    /// A number that is zero, however spelled.
    pub(crate) fn is_zero(self) -> bool {
        Reader::new(self.0).zero().unwrap_or_default()
    }

    /// An integer without sign, fraction and exponent.
    pub(crate) fn unsigned(self) -> Option<u64> {
        Reader::new(self.0).unsigned().ok()?
    }

    /// A string's inside, still escaped.
    pub(crate) fn inside(self) -> Option<&'a [u8]> {
        match self.0 {
            [b'"', inside @ .., b'"'] => Some(inside),
            _ => None,
        }
    }

    /// A string, escapes resolved.
    pub(crate) fn text(self) -> Option<Cow<'a, str>> {
        self.inside().map(decode)
    }

    /// Whether it is that string.
    pub(crate) fn is(self, text: &str) -> bool {
        self.text().is_some_and(|own| own == text)
    }

    /// Whether it is an array.
    pub(crate) fn is_array(self) -> bool {
        self.0.first() == Some(&b'[')
    }

    /// Whether it is an object.
    pub(crate) fn is_object(self) -> bool {
        self.0.first() == Some(&b'{')
    }

    /// The member of that name, if it is an object.
    pub(crate) fn get(self, name: &[u8]) -> Option<Self> {
        let mut found = None;
        self.each_member(|key, value| {
            if key.is(name) {
                found = Some(value);
            }
        });
        found
    }

    /// Each member, if it is an object.
    pub(crate) fn each_member(self, mut member: impl FnMut(Text<'a>, Self)) {
        let read = Reader::new(self.0).members(|reader, key| {
            member(key, Self::read(reader)?);
            Ok(())
        });
        debug_assert!(read.is_ok(), "it was read before");
    }

    /// The elements, if it is an array.
    pub(crate) fn elements(self) -> Vec<Self> {
        let mut all = Vec::new();
        let read = Reader::new(self.0).elements(|reader| {
            all.push(Self::read(reader)?);
            Ok(())
        });
        debug_assert!(read.is_ok(), "it was read before");
        all
    }
}

impl Writer {
    /// Begins an object that will have about `size` bytes.
    pub(crate) fn new(size: usize) -> Self {
        let mut out = Vec::with_capacity(size);
        out.push(b'{');
        Self(out)
    }

    /// Begins a member, whose value has to be written next.
    pub(crate) fn name(&mut self, name: &str) -> &mut Vec<u8> {
        self.comma();
        write_string(&mut self.0, name);
        self.0.push(b':');
        &mut self.0
    }

    /// A member whose value is already JSON.
    pub(crate) fn member(&mut self, name: &str, value: impl AsRef<[u8]>) {
        self.name(name).extend_from_slice(value.as_ref());
    }

    /// A member of another object, byte for byte.
    pub(crate) fn copy(&mut self, text: &[u8], member: &Member) {
        self.keep_name(text, member).extend_from_slice(member.value(text).0);
    }

    /// Begins a member under the name of another's, as that is spelled.
    pub(crate) fn keep_name(&mut self, text: &[u8], member: &Member) -> &mut Vec<u8> {
        self.comma();
        self.0.extend_from_slice(&text[wide(member.name)]);
        self.0.push(b':');
        &mut self.0
    }

    fn comma(&mut self) {
        if self.0.len() > 1 {
            self.0.push(b',');
        }
    }

    /// Ends the object.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.0.push(b'}');
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Object, Malformed> {
        Object::read(text.as_bytes(), 4, |reader, _| reader.skip())
    }

    #[test]
    fn of_duplicates_the_last_stays() {
        let text = r#"{"a": 1.0, "b":[2] ,"\u0061" :null }"#;
        let object = read(text).expect("an object");
        let names: Vec<_> = object.members().iter().map(|member| member.name(text.as_bytes())).collect();
        assert_eq!(names, [&b"b"[..], b"a"]);
        assert!(object.get(text.as_bytes(), b"a").is_some_and(Raw::is_null));
        let mut writer = Writer::new(64);
        for member in object.members() {
            writer.copy(text.as_bytes(), member);
        }
        writer.member("c", "0");
        assert_eq!(writer.finish(), br#"{"b":[2],"\u0061":null,"c":0}"#);
    }

    #[test]
    fn one_member_more() {
        for (text, expected) in [("{}", r#"{"x":1}"#), (" { } ", r#" {"x":1 } "#), (r#"{ "a":0}"#, r#"{"x":1, "a":0}"#)]
        {
            assert_eq!(read(text).expect(text).with(text.as_bytes(), r#""x":1"#), expected.as_bytes());
        }
    }

    #[test]
    fn what_is_no_small_object() {
        for text in ["[]", "1", "{", r#"{"a"}"#, "{} {}", r#"{"a":0,"b":0,"c":0,"d":0,"e":0}"#] {
            assert!(read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn values_as_they_are_spelled() {
        for nothing in ["null", "false", r#""""#, "[]", "{ \n}"] {
            assert!(Raw(nothing.as_bytes()).is_nothing(), "{nothing}");
        }
        for something in ["0", "true", "[0]", r#"{"a":null}"#, r#"" ""#] {
            assert!(!Raw(something.as_bytes()).is_nothing(), "{something}");
        }
        let object = Raw(br#"{"a":{"b":"\u0063"},"a":[1, "2"]}"#);
        let found = object.get(b"a").map(Raw::elements).unwrap_or_default();
        assert_eq!(found.iter().map(|raw| raw.0).collect::<Vec<_>>(), [&b"1"[..], br#""2""#]);
        assert_eq!(found.iter().map(|raw| raw.unsigned()).collect::<Vec<_>>(), [Some(1), None]);
        assert!(object.get(b"b").is_none() && Raw(b"1").elements().is_empty() && Raw(b"-0.0").is_zero());
    }
}
