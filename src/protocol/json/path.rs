//! Where in a body a byte lies, as people write it: `messages[3].content[0].text`.

use std::{fmt::Write as _, ops::Range};

use super::{Malformed, Reader};

/// The path of the innermost member or element that the byte at `offset` belongs to; of a comma and white space, the
/// one that follows. Empty for the whole body.
pub fn path_at(json: &[u8], offset: usize) -> String {
    let mut path = String::new();
    // What cannot be read ends the path early.
    let _ = descend(&mut Reader::new(json), offset, &mut path);
    path
}

/// Steps from the value under the cursor into the part of it that `offset` lies in, and on from there.
fn descend(reader: &mut Reader<'_>, offset: usize, path: &mut String) -> Result<(), Malformed> {
    loop {
        let found = match reader.peek()? {
            b'{' => member(reader, offset)?,
            b'[' => element(reader, offset)?,
            _ => None,
        };
        let Some((step, value, inside)) = found else { return Ok(()) };
        match step {
            Step::Name(name) if path.is_empty() => path.push_str(&name),
            Step::Name(name) => {
                let _ = write!(path, ".{name}");
            }
            Step::Index(index) => {
                let _ = write!(path, "[{index}]");
            }
        }
        if !inside {
            return Ok(());
        }
        *reader = Reader::from(reader.whole(), value.start);
    }
}

enum Step {
    Name(String),
    Index(usize),
}

/// The part, where its value lies, and whether the byte is inside that.
type Found = Option<(Step, Range<usize>, bool)>;

fn member(reader: &mut Reader<'_>, offset: usize) -> Result<Found, Malformed> {
    let mut found = None;
    reader.members(|reader, key| {
        let value = reader.span()?;
        if found.is_none() && offset < value.end {
            let name = String::from_utf8_lossy(&key.name()).into_owned();
            let inside = value.contains(&offset);
            found = Some((Step::Name(name), value, inside));
        }
        Ok(())
    })?;
    Ok(found)
}

fn element(reader: &mut Reader<'_>, offset: usize) -> Result<Found, Malformed> {
    let (mut found, mut index) = (None, 0);
    reader.elements(|reader| {
        let value = reader.span()?;
        if found.is_none() && offset < value.end {
            let inside = value.contains(&offset);
            found = Some((Step::Index(index), value, inside));
        }
        index += 1;
        Ok(())
    })?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_has_a_path() {
        let body = r#"{"a":1, "messages" : [ {"role":"user"}, {"content":[{"text":"here"}]}], "z":{}}"#;
        for (mark, path) in [
            ("\"a\"", "a"),
            (", \"mess", "messages"),
            ("\"messages", "messages"),
            ("user", "messages[0].role"),
            ("here", "messages[1].content[0].text"),
            ("text", "messages[1].content[0].text"),
            (", \"z", "z"),
            ("{}", "z"),
            ("}}", "z"),
        ] {
            assert_eq!(path_at(body.as_bytes(), body.find(mark).expect(mark)), path, "{mark}");
        }
        assert_eq!(path_at(b"{\"a\":[", 5), "");
        assert_eq!(path_at(b"{}", 1), "");
    }
}
