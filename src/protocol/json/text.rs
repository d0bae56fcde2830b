//! String literals: escapes resolved and written.

use std::borrow::Cow;

use memchr::memchr;

/// The text of a literal's inside (without quotes). Lone surrogates and bytes that are not UTF-8 become U+FFFD;
/// unknown escapes stand for the escaped character.
pub fn decode(raw: &[u8]) -> Cow<'_, str> {
    if memchr(b'\\', raw).is_none() {
        return String::from_utf8_lossy(raw);
    }
    let mut out = Vec::with_capacity(raw.len());
    let mut rest = raw;
    while let Some(at) = memchr(b'\\', rest) {
        out.extend_from_slice(&rest[..at]);
        let (character, used) = escape(&rest[at + 1..]);
        out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
        rest = &rest[at + 1 + used..];
    }
    out.extend_from_slice(rest);
    Cow::Owned(String::from_utf8(out).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned()))
}

/// What stands behind a backslash: the character, and how many bytes spell it.
fn escape(bytes: &[u8]) -> (char, usize) {
    match bytes.first() {
        Some(b'n') => ('\n', 1),
        Some(b't') => ('\t', 1),
        Some(b'r') => ('\r', 1),
        Some(b'b') => ('\u{8}', 1),
        Some(b'f') => ('\u{c}', 1),
        Some(b'u') => unicode(&bytes[1..]),
        Some(&byte) if byte.is_ascii() => (char::from(byte), 1),
        // A backslash before a longer character, or at the very end: it stands for itself.
        _ => ('\\', 0),
    }
}

/// `\uXXXX`, or two of them that make a surrogate pair.
fn unicode(bytes: &[u8]) -> (char, usize) {
    let Some(first) = four_digits(bytes) else { return (char::REPLACEMENT_CHARACTER, 1) };
    if let Some(character) = char::from_u32(first) {
        return (character, 5);
    }
    let low = bytes.get(4..).and_then(|b| b.strip_prefix(b"\\u")).and_then(four_digits);
    match low {
        Some(low @ 0xdc00..=0xdfff) if first < 0xdc00 => {
            let character = char::from_u32(0x1_0000 + ((first - 0xd800) << 10) + (low - 0xdc00));
            (character.unwrap_or(char::REPLACEMENT_CHARACTER), 11)
        }
        _ => (char::REPLACEMENT_CHARACTER, 5),
    }
}

pub(super) fn four_digits(bytes: &[u8]) -> Option<u32> {
    let digits = bytes.get(..4)?;
    digits.iter().try_fold(0, |sum, &b| Some(sum * 16 + char::from(b).to_digit(16)?))
}

/// Appends `text` as a string literal, quotes included: RFC 8259 §7's required escapes and no others.
pub fn write_string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    for &byte in text.as_bytes() {
        write_byte(out, byte);
    }
    out.push(b'"');
}

/// Appends one byte of a string, escaped where it must be.
#[inline]
pub(super) fn write_byte(out: &mut Vec<u8>, byte: u8) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    match byte {
        b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
        b'\n' => out.extend_from_slice(b"\\n"),
        b'\r' => out.extend_from_slice(b"\\r"),
        b'\t' => out.extend_from_slice(b"\\t"),
        0..0x20 => {
            let digits = [HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]];
            out.extend_from_slice(b"\\u00");
            out.extend_from_slice(&digits);
        }
        _ => out.push(byte),
    }
}
