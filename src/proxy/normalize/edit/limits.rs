//! The most tokens an answer may have: lowered to the cap, and given where no limit is named.
//!
//! A cap has to hold whatever engine gets the body. Engines differ in what they take for a number (pydantic takes
//! `"9000"` and `9000.0`, llama.cpp takes -1 for "no limit" and ignores what is no number), so whatever is not a number
//! from 0 to the cap is written as one. A cap that a client could avoid by naming no limit would be none either.

use std::ops::Range;

use super::{Added, Edit};
use crate::protocol::{
    endpoint::Endpoint,
    json::{Edits, Raw},
};

/// The names of limits. `n_predict` is llama.cpp's own, which it takes on OpenAI's endpoints too, before all others.
pub(super) const NAMES: [&[u8]; 4] = [b"max_tokens", b"max_completion_tokens", b"max_output_tokens", b"n_predict"];

/// What is known of a body's limits.
#[derive(Debug)]
pub(super) struct Limits {
    cap: Option<u64>,
    default: Option<u64>,
    /// The endpoint's own name, which every engine there knows.
    own: &'static str,
    /// Another that names the limit as well.
    also: Option<&'static [u8]>,
    /// Whether the last of that name is a limit; the same for the other.
    named: [bool; 2],
    /// The last value of the own name, if it is `null`.
    null: Option<Range<usize>>,
}

impl Limits {
    /// `None` where no limit is set, or where `endpoint` generates nothing.
    pub(super) fn new(cap: Option<u64>, default: Option<u64>, endpoint: Endpoint) -> Option<Self> {
        let (own, also) = match endpoint {
            Endpoint::Chat => ("max_tokens", Some(&b"max_completion_tokens"[..])),
            Endpoint::Completions | Endpoint::Messages => ("max_tokens", None),
            Endpoint::Responses => ("max_output_tokens", None),
            _ => return None,
        };
        let set = cap.is_some() || default.is_some();
        set.then_some(Self { cap, default, own, also, named: [false; 2], null: None })
    }

    /// A member that stays.
    pub(super) fn member(&mut self, name: &[u8], raw: &[u8], value: &Range<usize>, edits: &mut Edits<Edit>) {
        if !NAMES.contains(&name) {
            return;
        }
        let null = Raw(raw).is_null();
        if name == self.own.as_bytes() {
            self.named[0] = !null;
            self.null = null.then(|| value.clone());
        } else if self.also == Some(name) {
            self.named[1] = !null;
        }
        if let Some(cap) = self.cap.filter(|_| !null)
            && let Some(instead) = beyond(Raw(raw), cap)
        {
            edits.replace(value.clone(), instead.to_string().into_bytes(), Edit::Cap);
        }
    }

    /// Gives a limit where none is named.
    pub(super) fn finish(self, edits: &mut Edits<Edit>, added: &mut Vec<Added>) {
        let (limit, cause) = match (self.default, self.cap) {
            (Some(default), _) => (default, Edit::Default),
            (None, Some(cap)) => (cap, Edit::Cap),
            (None, None) => return,
        };
        if self.named.contains(&true) {
            return;
        }
        match self.null {
            Some(null) => edits.replace(null, limit.to_string().into_bytes(), cause),
            None => added.push((format!("\"{}\":{limit}", self.own).into_bytes(), cause)),
        }
    }
}

/// What is written in place of a limit that could be taken for more than `cap`.
fn beyond(raw: Raw<'_>, cap: u64) -> Option<u64> {
    if let Some(text) = raw.text() {
        return Some(text.trim().parse().map_or(cap, |limit: u64| limit.min(cap)));
    }
    let number: Option<f64> = std::str::from_utf8(raw.0).ok().and_then(|text| text.parse().ok());
    // A cap is far below where a float loses integers.
    let within = number.is_some_and(|limit| (0.0..=cap as f64).contains(&limit));
    (!within).then_some(cap)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_be_more_than_the_cap_is_not_left() {
        for (raw, instead) in [
            ("0", None),
            ("7", None),
            ("10", None),
            ("10.0", None),
            ("1e1", None),
            ("11", Some(10)),
            ("10.5", Some(10)),
            ("1e400", Some(10)),
            ("-1", Some(10)),
            ("340282366920938463463374607431768211456", Some(10)),
            ("\"7\"", Some(7)),
            ("\" 11 \"", Some(10)),
            ("\"many\"", Some(10)),
            ("true", Some(10)),
            ("[]", Some(10)),
        ] {
            assert_eq!(beyond(Raw(raw.as_bytes()), 10), instead, "{raw}");
        }
    }
}
