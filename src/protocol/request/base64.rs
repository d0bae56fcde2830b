//! Whether base64 decodes, without decoding it.

/// What is wrong with `text`, if anything: RFC 4648 §4's alphabet, with or without the padding. All engines decode by
/// that alphabet alone, so white space and the URL-safe letters are refused as they do.
pub(super) fn flaw(text: &[u8]) -> Option<&'static str> {
    let inside = text.strip_suffix(b"==").or_else(|| text.strip_suffix(b"=")).unwrap_or(text);
    if inside.is_empty() {
        return Some("the base64 data is empty");
    }
    if !inside.chunks(CHUNK).all(is_alphabet) {
        return Some("the data is not base64: only A-Z, a-z, 0-9, + and / may be in it, and = at its end");
    }
    (inside.len() % 4 == 1).then_some("the base64 data is cut: no number of bytes has this length")
}

const CHUNK: usize = 1024;

/// No early end inside a chunk: so it compiles to vector instructions.
fn is_alphabet(bytes: &[u8]) -> bool {
    let strange = bytes.iter().fold(0, |strange, &byte| {
        let letter = (byte | 0x20).wrapping_sub(b'a') < 26;
        // The slash stands right before the digits.
        let digit_or_slash = byte.wrapping_sub(b'/') < 11;
        strange | u8::from(!(letter | digit_or_slash | (byte == b'+')))
    });
    strange == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_alphabet_is_the_standard_one() {
        for byte in 0..=u8::MAX {
            let expected = byte.is_ascii_alphanumeric() || byte == b'+' || byte == b'/';
            assert_eq!(is_alphabet(&[byte]), expected, "{byte}");
        }
    }

    #[test]
    fn what_decodes_passes() {
        for fine in ["QQ==", "QQ", "QUI=", "QUI", "QUJD", "+/+/"] {
            assert_eq!(flaw(fine.as_bytes()), None, "{fine}");
        }
        let long = [b'A'; 5000];
        assert_eq!(flaw(&long), None);
        for wrong in ["", "=", "==", "Q", "QUJDQ", "Q===", "QU=JD", "QUJ\nD", "QU-_", "QUJD QUJD", "üü"] {
            assert!(flaw(wrong.as_bytes()).is_some(), "{wrong}");
        }
        let mut late = long;
        late[4999] = b'!';
        assert!(flaw(&late).is_some());
    }
}
