//! Text as token ids and back, as `/tokenize` and `return_token_ids` tell them.
//!
//! Ids below 64 are the words of [`super::generate`]: an answer is made of them alone. A prompt is one id to begin with
//! and then one id for three of its bytes, so that a list of ids says by itself where the prompt ends and the answer
//! begins, and the prompt's text can be had back from it.

use super::generate::WORDS;

/// Begins every prompt.
const BEGIN: u32 = WORDS.len() as u32;
/// Of one to three bytes: their values in the order of lengths.
const FIRST: u32 = BEGIN + 1;
const PIECE: usize = 3;
/// The beginnings of words, by word and length: an answer that was cut inside a word ends in one.
const PARTS: u32 = 1 << 25;
/// Longer than every word.
const LONGEST: u32 = 64;

/// The ids of a prompt.
pub(crate) fn prompt(text: &str) -> Vec<u32> {
    let mut ids = vec![BEGIN];
    ids.extend(text.as_bytes().chunks(PIECE).map(piece));
    ids
}

/// How many they are.
pub(crate) fn count(text: &str) -> u64 {
    1 + text.len().div_ceil(PIECE) as u64
}

/// The ids of a part of an answer: its words, longest first; what is no word byte by byte, but for the beginning of one
/// at the end.
pub(crate) fn words(text: &str) -> Vec<u32> {
    let mut ids = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, behind)) = rest.split_first() {
        let word = |id: &u32| WORDS[*id as usize].as_bytes();
        // A word that is said already is not the beginning of a longer one.
        let begun = (0..BEGIN).find(|id| word(id).starts_with(rest)).filter(|_| (0..BEGIN).all(|id| word(&id) != rest));
        if let Some(id) = begun {
            ids.push(PARTS + id * LONGEST + rest.len() as u32);
            break;
        }
        match (0..BEGIN).filter(|id| rest.starts_with(word(id))).max_by_key(|id| word(id).len()) {
            Some(id) => {
                ids.push(id);
                rest = &rest[word(&id).len()..];
            }
            None => {
                ids.push(piece(std::slice::from_ref(first)));
                rest = behind;
            }
        }
    }
    ids
}

/// The text of any ids; what is no character is replaced.
pub(crate) fn text(ids: &[u32]) -> String {
    let mut bytes = Vec::new();
    for id in ids {
        match WORDS.get(*id as usize) {
            Some(word) => bytes.extend_from_slice(word.as_bytes()),
            None if *id == BEGIN => {}
            None if *id >= PARTS => {
                let (word, length) = ((id - PARTS) / LONGEST, (id - PARTS) % LONGEST);
                let word = WORDS.get(word as usize).map_or(&b"?"[..], |word| word.as_bytes());
                bytes.extend_from_slice(word.get(..length as usize).unwrap_or(word));
            }
            None => put(id - FIRST, &mut bytes),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A prompt with the answer's beginning behind it: the prompt's text, the answer's ids. `None`: not of this vocabulary.
pub(crate) fn parted(ids: &[u32]) -> Option<(String, &[u32])> {
    let (_, behind) = ids.split_first().filter(|(first, _)| **first == BEGIN)?;
    let at = behind.iter().position(|id| *id < BEGIN).unwrap_or(behind.len());
    let (prompt, answer) = behind.split_at(at);
    answer.iter().all(|id| *id < BEGIN).then(|| (text(prompt), answer))
}

fn piece(bytes: &[u8]) -> u32 {
    let value = bytes.iter().fold(0, |value, byte| value << 8 | u32::from(*byte));
    let shorter: u32 = (1..bytes.len()).map(|length| 1 << (8 * length)).sum();
    FIRST + shorter + value
}

fn put(mut value: u32, bytes: &mut Vec<u8>) {
    for length in 1..=PIECE {
        let of_length = 1 << (8 * length);
        if value < of_length {
            bytes.extend_from_slice(&value.to_be_bytes()[4 - length..]);
            return;
        }
        value -= of_length;
    }
    // Above every id there is.
    bytes.push(b'?');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_comes_back_from_its_ids_with_the_answer_behind_it() {
        for said in ["", "h", "hello", "grüße, 東京 🙂", "\0\u{ff}\n"] {
            let mut ids = prompt(said);
            assert_eq!(ids.len() as u64, count(said));
            assert!(ids.iter().all(|id| *id >= BEGIN));
            ids.extend([3, 0, 63]);
            assert_eq!(parted(&ids), Some((said.to_owned(), &[3, 0, 63][..])));
            assert_eq!(text(&ids), format!("{said} the river again"));
        }
        assert_eq!(parted(&[1, 2]), None);
        assert_eq!(parted(&[BEGIN, 1, FIRST]), None);
        assert_eq!(text(&[u32::MAX]), "?");
    }

    #[test]
    fn an_answer_is_words() {
        assert_eq!(words(" the river again"), [3, 0, 63]);
        assert_eq!(words("\n\n"), [33]);
        let cut = words(" the riv");
        assert_eq!((cut.len(), text(&cut).as_str()), (2, " the riv"));
        assert_eq!(words(" thei").len(), 1);
        assert_eq!(text(&words(" a strange ☃ and")), " a strange ☃ and");
    }
}
