//! JSON as its writer wrote it: values are pieces of the text.

use crate::protocol::json::Reader;

/// The values of an object that has exactly these members in this order.
pub(super) fn object<'a, const N: usize>(json: &'a str, names: [&str; N]) -> Option<[&'a str; N]> {
    let mut values = [""; N];
    let mut count = 0;
    let mut known = true;
    let mut reader = Reader::new(json.as_bytes());
    if reader.peek().ok()? != b'{' {
        return None;
    }
    reader
        .members(|reader, key| {
            known &= names.get(count).is_some_and(|name| key.is(name.as_bytes()));
            reader.peek()?;
            let start = reader.offset();
            reader.skip()?;
            if let Some(slot) = values.get_mut(count) {
                *slot = json.get(start..reader.offset()).unwrap_or_default();
            }
            count += 1;
            Ok(())
        })
        .ok()?;
    reader.finish().ok()?;
    (known && count == N).then_some(values)
}

/// The elements of an array.
pub(super) fn array(json: &str) -> Option<Vec<&str>> {
    let mut elements = Vec::new();
    let mut reader = Reader::new(json.as_bytes());
    if reader.peek().ok()? != b'[' {
        return None;
    }
    reader
        .elements(|reader| {
            reader.peek()?;
            let start = reader.offset();
            reader.skip()?;
            elements.push(json.get(start..reader.offset()).unwrap_or_default());
            Ok(())
        })
        .ok()?;
    reader.finish().ok()?;
    Some(elements)
}

/// The only element.
pub(super) fn only(json: &str) -> Option<&str> {
    match array(json)?.as_slice() {
        [one] => Some(one),
        _ => None,
    }
}

/// The inside of a string literal, escapes as they are: what the same writer would write in the middle of a longer one.
pub(super) fn inside(json: &str) -> Option<&str> {
    json.strip_prefix('"')?.strip_suffix('"')
}

/// A small number.
pub(super) fn index(json: &str) -> Option<usize> {
    json.parse().ok().filter(|index| *index < 128)
}

/// A value that must be the same in every event.
#[derive(Debug, Default)]
pub(super) struct Same<'a>(Option<&'a str>);

impl<'a> Same<'a> {
    pub(super) fn is(&mut self, value: &'a str) -> Option<()> {
        (*self.0.get_or_insert(value) == value).then_some(())
    }

    pub(super) fn get(&self) -> Option<&'a str> {
        self.0
    }
}
