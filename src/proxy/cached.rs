//! What the cache did for a request, as it is told: in `Cache-Status` (RFC 9211), the access log and the metrics.

use http::HeaderValue;

use crate::telemetry::digits;

/// One request's fate at the cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cached {
    /// It never came there, or is of no known endpoint.
    #[default]
    Untold,
    /// It takes no part, for the reason of this place in [`DETAILS`].
    Bypass(u8),
    /// Its `Cache-Control` said `no-store`, or `no-cache`: computed, whatever was kept.
    Request,
    /// Kept, and fresh for so many seconds.
    Hit(u64),
    /// Shared with one that was under way.
    Collapsed,
    /// Computed, and not to be kept.
    Miss,
    /// Computed, and to be kept if it ends well.
    Stored,
    /// Kept, and not fresh: it stood in for an error.
    Stale,
    /// Its `Cache-Control` said `only-if-cached`, and it was not.
    Absent,
}

/// How often each happened is counted under these names.
pub const OUTCOMES: [&str; 6] = ["hit", "collapsed", "miss", "request", "stale", "absent"];

macro_rules! details {
    ($($detail:literal)*) => {
        /// The reasons of a bypass.
        pub const DETAILS: &[&str] = &[$($detail),*];

        /// For each of them `Cache-Status`, and the word in the log. Made at compile time: each byte is looked at.
        static BYPASSES: [(HeaderValue, &str); DETAILS.len()] = [$((
            HeaderValue::from_static(concat!("sluicegate;fwd=bypass;detail=", $detail)),
            concat!("bypass:", $detail),
        )),*];
    };
}

details! {
    "off" "kind" "sampled" "stateful" "stored" "tools" "remote-content" "not-json" "duplicate-keys" "too-complex"
}

fn bypass(detail: u8) -> Option<&'static (HeaderValue, &'static str)> {
    BYPASSES.get(usize::from(detail))
}

impl Cached {
    #[cfg(test)]
    pub fn bypassed(detail: &str) -> Self {
        let place = DETAILS.iter().position(|known| *known == detail).unwrap();
        Self::Bypass(place.try_into().unwrap())
    }

    /// `Cache-Status`, our member; `text` is room to write it in.
    pub fn status(self, text: &mut Vec<u8>) -> Option<HeaderValue> {
        Some(match self {
            Self::Untold => return None,
            Self::Hit(ttl) => {
                text.clear();
                text.extend_from_slice(b"sluicegate;hit;ttl=");
                digits::decimal(text, ttl);
                return HeaderValue::from_bytes(text).ok();
            }
            Self::Bypass(detail) => bypass(detail)?.0.clone(),
            Self::Request => const { HeaderValue::from_static("sluicegate;fwd=request") },
            Self::Collapsed => const { HeaderValue::from_static("sluicegate;fwd=miss;collapsed") },
            Self::Miss => const { HeaderValue::from_static("sluicegate;fwd=miss") },
            Self::Stored => const { HeaderValue::from_static("sluicegate;fwd=miss;stored") },
            Self::Stale => const { HeaderValue::from_static("sluicegate;fwd=stale;detail=stale-if-error") },
            Self::Absent => const { HeaderValue::from_static("sluicegate;detail=only-if-cached") },
        })
    }

    /// In one word, for the log.
    pub fn word(self) -> Option<&'static str> {
        match self {
            Self::Untold => None,
            Self::Bypass(detail) => Some(bypass(detail)?.1),
            _ => OUTCOMES.get(self.outcome()?).copied(),
        }
    }

    /// Which of [`OUTCOMES`] it is; a bypass is counted by its reason.
    pub fn outcome(self) -> Option<usize> {
        match self {
            Self::Untold | Self::Bypass(_) => None,
            Self::Hit(_) => Some(0),
            Self::Collapsed => Some(1),
            Self::Miss | Self::Stored => Some(2),
            Self::Request => Some(3),
            Self::Stale => Some(4),
            Self::Absent => Some(5),
        }
    }

    /// Whether no backend worked for it.
    pub fn is_saved(self) -> bool {
        matches!(self, Self::Hit(_) | Self::Collapsed | Self::Stale)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::cache::Bypass;

    #[test]
    fn every_bypass_is_told() {
        for (place, bypass) in Bypass::ALL.into_iter().enumerate() {
            let detail = bypass.detail();
            assert_eq!((DETAILS[place], bypass as usize), (detail, place));
            let told = Cached::Bypass(bypass as u8);
            assert_eq!(told, Cached::bypassed(detail));
            assert_eq!(told.status(&mut Vec::new()).unwrap(), format!("sluicegate;fwd=bypass;detail={detail}"));
            assert_eq!(told.word().unwrap(), format!("bypass:{detail}"));
        }
        assert_eq!(DETAILS.len(), Bypass::ALL.len());
        assert_eq!(Cached::Hit(3599).status(&mut Vec::new()).unwrap(), "sluicegate;hit;ttl=3599");
        assert_eq!((Cached::Hit(1).word(), Cached::Stored.word()), (Some("hit"), Some("miss")));
        assert_eq!(Cached::Untold.status(&mut Vec::new()), None);
    }
}
