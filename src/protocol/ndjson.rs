//! Newline-delimited JSON (Ollama's streams), read line by line at any split of the bytes.

use memchr::memchr;

/// Finds the lines of one stream. A line above the limit is left out as a whole.
#[derive(Debug)]
pub struct Lines {
    held: Vec<u8>,
    limit: usize,
    skipping: bool,
    overflowed: bool,
}

impl Default for Lines {
    fn default() -> Self {
        Self::new(super::sse::MAX_EVENT)
    }
}

impl Lines {
    /// Looks at lines of at most `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self { held: Vec::new(), limit, skipping: false, overflowed: false }
    }

    /// Whether the stream stands between two lines.
    pub fn at_boundary(&self) -> bool {
        self.held.is_empty() && !self.skipping
    }

    /// Bytes of the line that has begun and not ended. 0 in a line above the limit.
    pub fn pending(&self) -> usize {
        self.held.len()
    }

    /// Whether a line was left out because it was above the limit.
    pub fn overflowed(&self) -> bool {
        self.overflowed
    }

    /// Takes the next bytes and calls `on_line` for each line that they complete, without its end.
    pub fn push(&mut self, chunk: &[u8], mut on_line: impl FnMut(&[u8])) {
        let mut rest = chunk;
        while let Some(end) = memchr(b'\n', rest) {
            let (line, after) = (&rest[..end], &rest[end + 1..]);
            rest = after;
            if std::mem::take(&mut self.skipping) {
                continue;
            }
            if self.held.len() + line.len() > self.limit {
                self.overflowed = true;
            } else if self.held.is_empty() {
                on_line(line);
            } else {
                self.held.extend_from_slice(line);
                on_line(&self.held);
            }
            self.held.clear();
        }
        self.hold(rest);
    }

    /// Gives what stands behind the last line end: at the end of a stream the last line may lack it.
    pub fn finish(&mut self, on_line: impl FnOnce(&[u8])) {
        if !self.held.is_empty() {
            on_line(&std::mem::take(&mut self.held));
        }
    }

    fn hold(&mut self, part: &[u8]) {
        if self.skipping {
            return;
        }
        if self.held.len() + part.len() > self.limit {
            self.overflowed = true;
            self.skipping = true;
            self.held = Vec::new();
        } else {
            self.held.extend_from_slice(part);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lines(chunks: &[&[u8]], limit: usize) -> (Vec<Vec<u8>>, bool) {
        let mut scanner = Lines::new(limit);
        let mut all = Vec::new();
        for chunk in chunks {
            scanner.push(chunk, |line| all.push(line.to_vec()));
        }
        (all, scanner.overflowed())
    }

    #[test]
    fn lines_and_bound() {
        assert_eq!(lines(&[b"{}\n{\"a\"", b":1}\n"], 99), (vec![b"{}".to_vec(), b"{\"a\":1}".to_vec()], false));
        assert_eq!(lines(&[b"1234\n12", b"345\n1\n"], 4), (vec![b"1234".to_vec(), b"1".to_vec()], true));
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same_lines(text in "[a\n]{0,40}", at in 0_usize..40, limit in 1_usize..8) {
            let bytes = text.as_bytes();
            let (left, right) = bytes.split_at(at.min(bytes.len()));
            prop_assert_eq!(lines(&[bytes], limit), lines(&[left, right], limit));
        }
    }
}
