//! What of the text is shown with each token: not always that token's own.
//!
//! Engines hold text back: what may be the beginning of a stop string, and tokens that end inside a character. The id of
//! a token is told at once all the same.

use super::Engine;

/// The text of an answer as it is shown, token by token.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pieces {
    /// One for each token, some of them empty.
    pub(crate) shown: Vec<String>,
    /// The stop string that ended it.
    pub(crate) stop: Option<String>,
}

/// Why text is held back.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hold<'a> {
    pub(crate) engine: Engine,
    pub(crate) stops: &'a [String],
    /// Tokens end inside characters.
    pub(crate) split_utf8: bool,
}

impl Hold<'_> {
    /// Whether anything is ever held back.
    pub(crate) fn holds(&self) -> bool {
        self.split_utf8 || !self.stops.is_empty()
    }

    /// Goes through the tokens to the last, or to the one that completes a stop string.
    pub(crate) fn pieces<'t>(&self, tokens: impl ExactSizeIterator<Item = &'t str>) -> Pieces {
        let last = tokens.len().saturating_sub(1);
        let mut pieces = Pieces::default();
        let (mut said, mut shown, mut complete) = (String::new(), 0, 0);
        for (i, token) in tokens.enumerate() {
            let searched = said.len();
            said.push_str(token);
            if let Some((at, stop)) = self.found(&said, searched) {
                pieces.shown.push(said.get(shown..at).unwrap_or_default().to_owned());
                pieces.stop = Some(stop.clone());
                return pieces;
            }
            let split = self.split_utf8 && token.chars().next_back().is_some_and(|end| !end.is_ascii());
            if i == last || !split {
                complete = said.len();
            }
            let end = if i == last { complete } else { complete - self.held(&said[..complete]) };
            let end = end.max(shown);
            pieces.shown.push(said[shown..end].to_owned());
            shown = end;
        }
        pieces
    }

    /// The first stop string in `said`, of which the first `searched` bytes alone had none.
    fn found(&self, said: &str, searched: usize) -> Option<(usize, &String)> {
        let found = self.stops.iter().filter_map(|stop| {
            let from = searched.saturating_sub(stop.len());
            let at = memchr::memmem::find(&said.as_bytes()[from..], stop.as_bytes())?;
            Some((from + at, stop))
        });
        found.min_by_key(|(at, _)| *at)
    }

    /// Bytes at the end of `text` that are held for what may follow. vLLM holds always as many characters as a stop
    /// string could have begun with; the others only what is the beginning of one.
    fn held(&self, text: &str) -> usize {
        if self.engine == Engine::Vllm {
            let most = self.stops.iter().map(|stop| stop.chars().count()).max().unwrap_or(1) - 1;
            let start = text.char_indices().rev().take(most).last().map_or(text.len(), |(at, _)| at);
            return text.len() - start;
        }
        let begun = |stop: &String| {
            let ends = stop.char_indices().map(|(at, _)| at).skip(1);
            ends.filter(|at| text.ends_with(&stop[..*at])).max().unwrap_or(0)
        };
        self.stops.iter().map(begun).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(engine: Engine, stops: &[&str], split_utf8: bool, tokens: &[&str]) -> (Vec<String>, Option<String>) {
        let stops: Vec<String> = stops.iter().map(|stop| (*stop).to_owned()).collect();
        let hold = Hold { engine, stops: &stops, split_utf8 };
        let pieces = hold.pieces(tokens.iter().copied());
        (pieces.shown, pieces.stop)
    }

    #[test]
    fn vllm_holds_as_many_characters_as_a_stop_string_could_have_begun_with() {
        let (pieces, stop) = shown(Engine::Vllm, &["STOP"], false, &["ab", "cdé", "f"]);
        assert_eq!((pieces, stop), (vec![String::new(), "ab".to_owned(), "cdéf".to_owned()], None));
    }

    #[test]
    fn the_others_hold_what_may_be_one() {
        for engine in [Engine::Sglang, Engine::LlamaCpp] {
            let (pieces, _) = shown(engine, &["STOP"], false, &["abS", "Tx", "ST"]);
            assert_eq!(pieces, ["ab", "STx", "ST"]);
        }
    }

    #[test]
    fn a_stop_string_ends_it_and_is_not_shown() {
        for engine in [Engine::Vllm, Engine::LlamaCpp] {
            let (pieces, stop) = shown(engine, &["zz", "ST"], false, &["a", "bS", "Tc", "d"]);
            assert_eq!((pieces.concat().as_str(), pieces.len(), stop.as_deref()), ("ab", 3, Some("ST")));
        }
    }

    #[test]
    fn a_token_that_ends_in_a_character_comes_with_the_next() {
        let (pieces, _) = shown(Engine::Vllm, &[], true, &["a", " caf\u{e9}", "门", "b", "ß"]);
        assert_eq!(pieces, ["a", "", "", " café门b", "ß"]);
    }
}
