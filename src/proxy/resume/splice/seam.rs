//! What happens to the first characters of a continuation: [`Swallow`] and [`Straddle`].

/// Text that the client has and that comes again.
#[derive(Debug)]
pub(super) struct Swallow {
    /// What has not come again yet.
    left: String,
    /// It was white space alone: an engine may say something else instead.
    lenient: bool,
}

impl Swallow {
    pub(super) fn new(text: &str) -> Self {
        Self { left: text.to_owned(), lenient: text.chars().all(char::is_whitespace) }
    }

    pub(super) fn is_done(&self) -> bool {
        self.left.is_empty()
    }

    /// Whether the continuation may end here: what did not come again was delivered and is white space.
    pub(super) fn may_end(&self) -> bool {
        self.left.is_empty() || self.lenient
    }

    /// What of `text` is new; `None` when it is another text than that which was to come again.
    pub(super) fn pass<'a>(&mut self, text: &'a str) -> Option<&'a str> {
        let alike: usize =
            self.left.chars().zip(text.chars()).take_while(|(a, b)| a == b).map(|(a, _)| a.len_utf8()).sum();
        let new = &text[alike..];
        if new.is_empty() {
            self.left.drain(..alike);
            return Some(new);
        }
        if alike < self.left.len() && !self.lenient {
            return None;
        }
        self.left.clear();
        Some(new)
    }
}

/// Client stop strings that have begun in the text delivered and may end in the continuation's.
#[derive(Debug, Default)]
pub(super) struct Straddle {
    stops: Vec<String>,
    /// Of which stop, and how many of its bytes were delivered.
    begun: Vec<(usize, usize)>,
    /// New text that may be the rest of one.
    held: String,
}

/// What is to be done with a new text.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// It is held: more is needed.
    Nothing,
    /// It goes on.
    Text(String),
    /// A stop string is complete.
    Stop(String),
}

impl Straddle {
    /// `tail`: the last characters delivered, one fewer than the longest stop string.
    pub(super) fn new(tail: &str, stops: Vec<String>) -> Self {
        /// A client that gives more than this many beginnings of stop strings gets those that began first.
        const MOST: usize = 4096;
        let mut begun = Vec::new();
        // The longest first: it began first.
        for (at, _) in tail.char_indices() {
            if begun.len() > MOST {
                break;
            }
            let part = &tail[at..];
            let begins = |stop: &String| stop.len() > part.len() && stop.starts_with(part);
            begun.extend(stops.iter().enumerate().filter(|(_, stop)| begins(stop)).map(|(i, _)| (i, part.len())));
        }
        Self { stops, begun, held: String::new() }
    }

    pub(super) fn is_done(&self) -> bool {
        self.begun.is_empty() && self.held.is_empty()
    }

    pub(super) fn pass(&mut self, new: &str) -> Found {
        self.held.push_str(new);
        let (stops, held) = (&self.stops, &self.held);
        let rest =
            |&(stop, from): &(usize, usize)| stops.get(stop).and_then(|stop| stop.get(from..)).unwrap_or_default();
        if let Some(&(stop, _)) = self.begun.iter().find(|begun| held.starts_with(rest(begun))) {
            return Found::Stop(stops[stop].clone());
        }
        self.begun = self.begun.iter().filter(|begun| rest(begun).starts_with(&held[..])).copied().collect();
        match self.begun.is_empty() {
            true => Found::Text(self.rest()),
            false => Found::Nothing,
        }
    }

    /// What is held, when nothing more comes.
    pub(super) fn rest(&mut self) -> String {
        self.begun.clear();
        std::mem::take(&mut self.held)
    }
}
