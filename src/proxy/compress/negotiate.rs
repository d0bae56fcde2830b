//! `Accept-Encoding` (RFC 9110 §12.5.3): what a client takes, the most wanted first.

use crate::protocol::coding::Coding;

/// Codings that a client takes and the configuration has, the most wanted first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    list: [Option<Coding>; Coding::ALL.len()],
}

/// A weight in thousandths.
type Weight = u16;
/// The weight of what is named without one.
const FULL: Weight = 1000;

/// What one client said of each coding.
#[derive(Clone, Copy, Debug, Default)]
struct Said {
    codings: [Option<Weight>; Coding::ALL.len()],
    identity: Option<Weight>,
    rest: Option<Weight>,
}

impl Wanted {
    /// What a client that sent `fields` takes of `ours`, whose order decides among equals. Identity comes last, unless
    /// the client weighs it higher by name; it is also what a client gets that refuses it and takes nothing of ours.
    pub(super) fn of<'a>(fields: impl Iterator<Item = &'a [u8]>, ours: &[Coding]) -> Self {
        let mut said = Said::default();
        fields.for_each(|field| said.read(field));
        let least = said.identity.unwrap_or(0).max(1);
        let mut weighed = [(0, None); Coding::ALL.len()];
        for (place, &coding) in weighed.iter_mut().zip(ours) {
            let weight = said.codings[coding as usize].or(said.rest).unwrap_or(0);
            if weight >= least {
                *place = (weight, Some(coding));
            }
        }
        // Stable: equals stay in the configured order.
        weighed.sort_by_key(|(weight, _)| std::cmp::Reverse(*weight));
        Self { list: weighed.map(|(_, coding)| coding) }
    }

    /// The most wanted.
    pub(super) fn first(&self) -> Option<Coding> {
        self.list[0]
    }

    /// All of them, the most wanted first.
    pub(super) fn iter(&self) -> impl Iterator<Item = Coding> {
        self.list.into_iter().flatten()
    }
}

impl Said {
    fn read(&mut self, field: &[u8]) {
        for member in field.split(|b| *b == b',') {
            let mut parts = member.split(|b| *b == b';');
            let name = parts.next().unwrap_or_default().trim_ascii();
            // What has no weight that can be read is not taken for wanted.
            let Some(weight) = parts.try_fold(FULL, |_, part| weight(part)) else { continue };
            if let Some(coding) = Coding::named(name) {
                self.codings[coding as usize].get_or_insert(weight);
            } else if name.eq_ignore_ascii_case(b"identity") {
                self.identity.get_or_insert(weight);
            } else if name == b"*" {
                self.rest.get_or_insert(weight);
            }
        }
    }
}

/// `q=0.25`, in thousandths.
fn weight(part: &[u8]) -> Option<Weight> {
    let (name, value) = part.split_at_checked(part.iter().position(|b| *b == b'=')?)?;
    if !name.trim_ascii().eq_ignore_ascii_case(b"q") {
        return None;
    }
    let (whole, rest) = value[1..].trim_ascii().split_first()?;
    let digits = match rest {
        [] => rest,
        [b'.', digits @ ..] if digits.len() <= 3 && digits.iter().all(u8::is_ascii_digit) => digits,
        _ => return None,
    };
    let places = [100, 10, 1].into_iter().zip(digits).map(|(place, digit)| place * Weight::from(digit - b'0'));
    let fraction: Weight = places.sum();
    match whole {
        b'0' => Some(fraction),
        b'1' if fraction == 0 => Some(FULL),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn wanted(field: &str) -> Vec<&'static str> {
        Wanted::of([field.as_bytes()].into_iter(), &Coding::ALL).iter().map(Coding::name).collect()
    }

    #[test]
    fn weights_decide_and_among_equals_the_configured_order() {
        for (field, expected) in [
            ("", &[][..]),
            ("gzip", &["gzip"]),
            ("br, zstd, gzip", &["gzip", "zstd", "br"]),
            ("gzip, deflate, br, zstd", &["gzip", "zstd", "br"]),
            ("gzip;q=0.5, br", &["br", "gzip"]),
            ("gzip;q=0.8, zstd; q=0.9 ,br;Q=1.0", &["br", "zstd", "gzip"]),
            ("X-GZIP", &["gzip"]),
            ("deflate, compress", &[]),
            ("*", &["gzip", "zstd", "br"]),
            ("*;q=0", &[]),
            ("*, gzip;q=0", &["zstd", "br"]),
            ("gzip;q=0", &[]),
            ("gzip;q=0.000", &[]),
            ("br;q=0.001", &["br"]),
            // Identity named higher is taken at its word.
            ("identity, gzip;q=0.5", &[]),
            ("identity;q=0.5, gzip;q=0.5", &["gzip"]),
            ("identity;q=0, gzip;q=0.1", &["gzip"]),
            ("identity;q=0", &[]),
            // What cannot be read is not taken for wanted.
            ("gzip;q=2", &[]),
            ("gzip;q=", &[]),
            ("gzip;q=0.1234", &[]),
            ("gzip;level=9", &[]),
            ("gzip;q=1.5, br", &["br"]),
            (",,gzip,,", &["gzip"]),
        ] {
            assert_eq!(wanted(field), expected, "{field}");
        }
    }

    #[test]
    fn only_what_is_configured_and_from_every_line() {
        let lines: [&[u8]; 2] = [b"br;q=0.1", b"zstd"];
        let ours = [Coding::Br, Coding::Zstd];
        let wanted = Wanted::of(lines.into_iter(), &ours);
        assert_eq!(wanted.iter().collect::<Vec<_>>(), [Coding::Zstd, Coding::Br]);
        assert_eq!(Wanted::of([&b"br, zstd"[..]].into_iter(), &ours).first(), Some(Coding::Br));
        assert_eq!(Wanted::of([&b"gzip"[..]].into_iter(), &ours).first(), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(field in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = Wanted::of([&field[..]].into_iter(), &Coding::ALL);
        }
    }
}
