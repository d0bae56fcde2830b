//! A quick hash for small maps whose keys nobody outside chooses: models that backends list, addresses of targets.
//!
//! A client may look up whatever it likes, but what collides is what was inserted. Maps that clients fill keep the
//! standard library's hasher.

use std::hash::{BuildHasherDefault, Hasher};

/// For `HashMap<K, V, Quick>`.
pub type Quick = BuildHasherDefault<Folded>;

/// Multiplies what comes into 128 bits and folds them: a few cycles for eight bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Folded(u64);

impl Folded {
    fn take(&mut self, word: u64) {
        let wide = u128::from(self.0 ^ word ^ 0x9e37_79b9_7f4a_7c15) * 0xa076_1d64_78bd_642f;
        self.0 = (wide >> 64) as u64 ^ wide as u64;
    }
}

impl Hasher for Folded {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.take(u64::from_le_bytes(*word));
        }
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        // With the length, so that zeros at the end count.
        self.take(u64::from_le_bytes(last) ^ (bytes.len() as u64) << 56);
    }

    fn write_u8(&mut self, byte: u8) {
        self.take(u64::from(byte));
    }

    fn write_usize(&mut self, number: usize) {
        self.take(number as u64);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::HashSet,
        hash::{BuildHasher, Hash},
    };

    use super::*;

    fn distinct<T: Hash>(keys: impl IntoIterator<Item = T>) -> usize {
        keys.into_iter().map(|key| Quick::default().hash_one(key)).collect::<HashSet<_>>().len()
    }

    #[test]
    fn like_keys_differ() {
        assert_eq!(distinct((0..10_000).map(|n| format!("model-{n}"))), 10_000);
        assert_eq!(distinct((0..10_000_usize).map(|n| n * 64)), 10_000);
        assert_eq!(distinct(["", "\0", "\0\0", "a", "a\0", "12345678", "12345678\0"]), 7);
    }
}
