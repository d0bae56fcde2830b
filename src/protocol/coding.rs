//! Content codings that answers are sent in (RFC 9110 §8.4.1).

/// A content coding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Coding {
    Gzip,
    Zstd,
    Br,
}

impl Coding {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Gzip, Self::Zstd, Self::Br];

    /// As header fields and metrics name it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::Br => "br",
        }
    }

    /// The coding that a header field names so.
    pub fn named(name: &[u8]) -> Option<Self> {
        // RFC 9110 §8.4.1.3: `x-gzip` is gzip.
        if name.eq_ignore_ascii_case(b"x-gzip") {
            return Some(Self::Gzip);
        }
        Self::ALL.into_iter().find(|coding| name.eq_ignore_ascii_case(coding.name().as_bytes()))
    }
}
