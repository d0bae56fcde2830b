//! The model's name in a query string (`/v1/realtime?model=…`).

use std::borrow::Cow;

/// The value of `model` in `query` (what follows the `?`), decoded as `application/x-www-form-urlencoded`: `+` is a
/// space. The last of several wins, as it does in the engines' frameworks. An empty value is none.
pub fn model(query: &str) -> Option<Cow<'_, str>> {
    query
        .split('&')
        .rev()
        .filter_map(|pair| pair.split_once('='))
        .find(|(name, _)| percent_decode(name, true) == "model")
        .map(|(_, value)| percent_decode(value, true))
        .filter(|value| !value.is_empty())
}

/// Decodes `%XX` (and `+` when `plus`). A `%` without two hex digits stays; bytes that are not UTF-8 become U+FFFD.
pub fn percent_decode(text: &str, plus: bool) -> Cow<'_, str> {
    if !text.bytes().any(|b| b == b'%' || (plus && b == b'+')) {
        return Cow::Borrowed(text);
    }
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let coded = (byte == b'%').then(|| hex_pair(bytes.get(at + 1..at + 3)?)).flatten();
        out.push(coded.unwrap_or(if plus && byte == b'+' { b' ' } else { byte }));
        at += if coded.is_some() { 3 } else { 1 };
    }
    Cow::Owned(String::from_utf8(out).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned()))
}

fn hex_pair(pair: &[u8]) -> Option<u8> {
    let digit = |b: u8| char::from(b).to_digit(16);
    u8::try_from(digit(pair[0])? * 16 + digit(pair[1])?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_and_decodes() {
        assert_eq!(model("a=b&model=org%2Fname").as_deref(), Some("org/name"));
        assert_eq!(model("model=a+b%20c").as_deref(), Some("a b c"));
        assert_eq!(model("%6dodel=x").as_deref(), Some("x"));
        assert_eq!(model("model=a&model=b").as_deref(), Some("b"));
        assert_eq!(model("model=100%").as_deref(), Some("100%"));
        assert_eq!(model("model=%zz%4").as_deref(), Some("%zz%4"));
        assert_eq!(model("model=%ff").as_deref(), Some("\u{fffd}"));
        assert_eq!(model("model="), None);
        assert_eq!(model("model"), None);
        assert_eq!(model("models=x&xmodel=y"), None);
        assert_eq!(model(""), None);
    }
}
