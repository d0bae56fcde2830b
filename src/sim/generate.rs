//! Tokens that anybody can work out again: token `i` depends on (prompt, model, seed, `i`) and nothing else.
//!
//! So a test can say what an answer must be, and whether a continuation on another backend is the right one,
//! without keeping anything. The words hold letters of two, three and four bytes, joined emoji, quotes and line ends,
//! so that cuts inside a character and escapes in JSON happen by themselves.

/// What is spoken. A token's id is its place here.
pub(crate) const WORDS: [&str; 64] = [
    " river",
    " stone",
    " and",
    " the",
    " light",
    " under",
    " seven",
    " bridges",
    " of",
    " a",
    " quiet",
    " town",
    " where",
    " water",
    " turns",
    " mills",
    ",",
    ".",
    " for",
    " bread",
    " über",
    " café",
    " naïve",
    "ß",
    " 水",
    "门",
    "。",
    " 東京",
    " шлюз",
    " ποτάμι",
    " 🙂",
    "👩‍🚀",
    "\n",
    "\n\n",
    " \"gate\"",
    "'s",
    " if",
    " then",
    " 42",
    " 3.14",
    " cost",
    " falls",
    " slowly",
    " while",
    " nobody",
    " notices",
    " at",
    " night",
    " ships",
    " wait",
    " their",
    " turn",
    " {",
    "}",
    " \\",
    "/",
    " <b>",
    "&",
    "\t",
    " ever",
    " onward",
    "ing",
    "ed",
    " again",
];

/// The tokens of one (prompt, model, seed).
#[derive(Clone, Copy, Debug)]
pub struct Source {
    key: u64,
}

impl Source {
    /// The source that `prompt` to `model` opens under `seed`.
    pub fn new(prompt: &str, model: &str, seed: u64) -> Self {
        let text = fnv(fnv(0xcbf2_9ce4_8422_2325, prompt.as_bytes()), b"\0");
        Self { key: mix(fnv(text, model.as_bytes()) ^ mix(seed)) }
    }

    /// Token `i`, counted from 0.
    pub fn token(&self, i: u64) -> &'static str {
        WORDS[self.id(i) as usize]
    }

    /// The id of token `i`.
    pub fn id(&self, i: u64) -> u32 {
        (mix(self.key.wrapping_add(mix(i))) % WORDS.len() as u64) as u32
    }

    /// How many tokens it speaks before it stops by itself: 8 to 71.
    pub fn natural(&self) -> u64 {
        8 + mix(!self.key) % 64
    }

    /// A number of its own for anything else that must repeat itself.
    pub fn number(&self, i: u64) -> u64 {
        mix(self.key ^ mix(i.wrapping_add(0x5157)))
    }

    /// The first `n` tokens as one text.
    pub fn text(&self, n: u64) -> String {
        (0..n).map(|i| self.token(i)).collect()
    }

    /// Where `spoken` stops in what this source says: the token it stops at and the bytes of it already spoken.
    /// `None` when these are not its words.
    pub fn after(&self, spoken: &str) -> Option<(u64, usize)> {
        let mut rest = spoken;
        let mut i = 0;
        while !rest.is_empty() {
            let token = self.token(i);
            match rest.strip_prefix(token) {
                Some(left) => rest = left,
                None if token.starts_with(rest) => return Some((i, rest.len())),
                None => return None,
            }
            i += 1;
        }
        Some((i, 0))
    }
}

/// Whether `spoken` are the first tokens of `source`.
pub(crate) fn begins(source: &Source, spoken: &[u32]) -> bool {
    spoken.iter().enumerate().all(|(i, id)| *id == source.id(i as u64))
}

/// The first `n` tokens a sim answers `prompt` with. For a chat `prompt` is the text of all messages joined by `\n`:
/// with one message, its text. `seed` is the request's `seed`, else the sim's own (0 unless set); choice `c` of
/// several has `seed + c`.
pub fn expected(prompt: &str, model: &str, seed: u64, n: u64) -> Vec<String> {
    let source = Source::new(prompt, model, seed);
    (0..n).map(|i| source.token(i).to_owned()).collect()
}

/// FNV-1a, 64 bits: the same on every machine.
fn fnv(start: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(start, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The finaliser of SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).
pub(crate) fn mix(value: u64) -> u64 {
    let z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_three_give_the_same_tokens_and_any_other_does_not() {
        let first = expected("hello", "m", 1, 40);
        assert_eq!(first, expected("hello", "m", 1, 40));
        assert_eq!(first[..7], expected("hello", "m", 1, 7)[..]);
        assert_ne!(first, expected("hello!", "m", 1, 40));
        assert_ne!(first, expected("hello", "n", 1, 40));
        assert_ne!(first, expected("hello", "m", 2, 40));
    }

    #[test]
    fn the_tokens_never_change_between_versions() {
        assert_eq!(expected("hello", "sim", 0, 4), [" under", " night", "ing", " if"]);
    }

    #[test]
    fn every_word_comes_up_and_lengths_are_in_bounds() {
        let source = Source::new("p", "m", 0);
        let seen: std::collections::HashSet<_> = (0..4000).map(|i| source.id(i)).collect();
        assert_eq!(seen.len(), WORDS.len());
        assert!((0..500).all(|seed| (8..72).contains(&Source::new("p", "m", seed).natural())));
    }

    #[test]
    fn a_spoken_part_is_found_again_at_any_character() {
        let source = Source::new("hello", "m", 3);
        let text = source.text(30);
        for (cut, _) in text.char_indices() {
            let (i, inside) = source.after(&text[..cut]).unwrap();
            let rest: String =
                source.token(i)[inside..].to_owned() + &(i + 1..30).map(|i| source.token(i)).collect::<String>();
            assert_eq!(format!("{}{rest}", &text[..cut]), text);
        }
        assert_eq!(source.after("nothing of the kind"), None);
    }
}
