//! Leaves out the white space of JSON.

use memchr::memchr2;

/// Takes the white space out that stands within an object or array and beside one of `{}[]:,`. It needs no look ahead,
/// and what is not JSON does not become it.
#[derive(Debug, Default)]
pub struct Minifier {
    /// Objects and arrays that are open.
    depth: u64,
    place: Place,
    /// White space behind a value, which goes unless another value follows.
    space: Vec<u8>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Place {
    /// Behind one of `{[:,`, or at the very start.
    #[default]
    Open,
    /// In or behind a literal, or behind a string, or one of `]}`.
    Value,
    String,
    /// In a string, behind a backslash.
    Escape,
}

/// More white space in one place than this stays.
const LONGEST: usize = 4 << 10;

impl Minifier {
    /// Takes the next bytes, and appends to `out` what is left of them.
    pub fn push(&mut self, mut data: &[u8], out: &mut Vec<u8>) {
        while let Some(&byte) = data.first() {
            data = match self.place {
                Place::String => self.string(data, out),
                Place::Escape => {
                    self.place = Place::String;
                    self.keep(&data[..1], out);
                    &data[1..]
                }
                Place::Open | Place::Value => {
                    self.outside(byte, out);
                    &data[1..]
                }
            };
        }
    }

    /// The end: white space that nothing followed.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        out.append(&mut self.space);
    }

    fn string<'a>(&mut self, data: &'a [u8], out: &mut Vec<u8>) -> &'a [u8] {
        let end = memchr2(b'"', b'\\', data).map_or(data.len(), |at| at + 1);
        match data[end - 1] {
            b'"' => self.place = Place::Value,
            b'\\' => self.place = Place::Escape,
            _ => {}
        }
        self.keep(&data[..end], out);
        &data[end..]
    }

    fn outside(&mut self, byte: u8, out: &mut Vec<u8>) {
        match byte {
            b' ' | b'\t' | b'\n' | b'\r' if self.depth > 0 => {
                if self.place == Place::Value {
                    if self.space.len() == LONGEST {
                        out.append(&mut self.space);
                    }
                    self.space.push(byte);
                }
                return;
            }
            b'{' | b'[' | b':' | b',' => {
                self.space.clear();
                self.place = Place::Open;
            }
            b'}' | b']' => {
                self.space.clear();
                self.place = Place::Value;
            }
            b'"' => self.place = Place::String,
            _ => self.place = Place::Value,
        }
        match byte {
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' => self.depth = self.depth.saturating_sub(1),
            _ => {}
        }
        self.keep(&[byte], out);
    }

    fn keep(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        out.append(&mut self.space);
        out.extend_from_slice(bytes);
    }
}
