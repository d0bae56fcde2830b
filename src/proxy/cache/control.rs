//! `Cache-Control`: what a client asks for (RFC 9111 §5.2.1), and how long a backend says its answer is fresh (§5.2.2).

use std::time::Duration;

use http::{HeaderMap, HeaderValue, header::CACHE_CONTROL};

use crate::config::Downstream;

/// What a request's `Cache-Control` asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Wants {
    /// Neither looked up nor kept.
    pub(super) no_store: bool,
    /// Computed anew, whatever is kept.
    pub(super) no_cache: bool,
    /// No older than this.
    pub(super) max_age: Option<Duration>,
    /// Kept, or an error.
    pub(super) only_if_cached: bool,
}

impl Wants {
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let mut wants = Self::default();
        if !headers.contains_key(CACHE_CONTROL) {
            return wants;
        }
        directives(headers, |name, argument| {
            if name.eq_ignore_ascii_case("no-store") {
                wants.no_store = true;
            } else if name.eq_ignore_ascii_case("no-cache") {
                wants.no_cache = true;
            } else if name.eq_ignore_ascii_case("only-if-cached") {
                wants.only_if_cached = true;
            } else if name.eq_ignore_ascii_case("max-age") {
                // What is no number asks for the freshest there is.
                wants.max_age = Some(seconds(argument).unwrap_or_default());
            }
        });
        wants
    }

    /// Whether an answer of this age will do.
    pub(super) fn takes(&self, age: Duration) -> bool {
        self.max_age.is_none_or(|most| age <= most)
    }
}

/// How long a backend says its answer is fresh, where it says so.
pub(super) fn lifetime(headers: &HeaderMap) -> Option<Duration> {
    let (mut shared, mut own) = (None, None);
    directives(headers, |name, argument| {
        if name.eq_ignore_ascii_case("s-maxage") {
            shared = seconds(argument);
        } else if name.eq_ignore_ascii_case("max-age") {
            own = seconds(argument);
        }
    });
    shared.or(own)
}

/// What caches below may do with an answer that is fresh for `left`, where the backend did not say (`cache.downstream`).
pub(super) fn downstream(headers: &mut HeaderMap, rule: Downstream, left: Duration) {
    if headers.contains_key(CACHE_CONTROL) {
        return;
    }
    let value = match rule {
        Downstream::Private => Some(HeaderValue::from_static("private")),
        Downstream::Public => HeaderValue::try_from(format!("public, max-age={}", left.as_secs())).ok(),
    };
    if let Some(value) = value {
        headers.insert(CACHE_CONTROL, value);
    }
}

fn directives(headers: &HeaderMap, mut each: impl FnMut(&str, &str)) {
    for line in headers.get_all(CACHE_CONTROL).iter().filter_map(|value| value.to_str().ok()) {
        for directive in line.split(',') {
            let (name, argument) = directive.split_once('=').unwrap_or((directive, ""));
            each(name.trim(), argument.trim().trim_matches('"'));
        }
    }
}

/// Too many to count are as many as can be (RFC 9111 §1.2.2).
fn seconds(text: &str) -> Option<Duration> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| Duration::from_secs(text.parse::<u32>().unwrap_or(u32::MAX).into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[&str]) -> HeaderMap {
        lines.iter().map(|line| (CACHE_CONTROL, line.parse().unwrap())).collect()
    }

    #[test]
    fn wishes_are_read() {
        let wants = |lines: &[&str]| Wants::of(&headers(lines));
        assert_eq!(wants(&[]), Wants::default());
        assert!(wants(&["No-Store"]).no_store);
        assert!(wants(&["max-age=3, no-cache"]).no_cache);
        assert!(wants(&["no-transform", "only-if-cached"]).only_if_cached);
        assert_eq!(wants(&["max-age=\"60\""]).max_age, Some(Duration::from_secs(60)));
        assert_eq!(wants(&["max-age=99999999999999"]).max_age, Some(Duration::from_secs(u32::MAX.into())));
        assert!(!wants(&["max-age=x"]).takes(Duration::from_secs(1)));
        assert!(wants(&["max-age=5"]).takes(Duration::from_secs(5)));
    }

    #[test]
    fn lifetimes_are_read_and_told() {
        assert_eq!(lifetime(&headers(&["max-age=5"])), Some(Duration::from_secs(5)));
        assert_eq!(lifetime(&headers(&["max-age=5, s-maxage=7"])), Some(Duration::from_secs(7)));
        assert_eq!(lifetime(&headers(&["public"])), None);
        let told = |mut headers: HeaderMap, rule| {
            downstream(&mut headers, rule, Duration::from_secs(9));
            headers[CACHE_CONTROL].clone()
        };
        assert_eq!(told(HeaderMap::new(), Downstream::Private), "private");
        assert_eq!(told(HeaderMap::new(), Downstream::Public), "public, max-age=9");
        assert_eq!(told(headers(&["max-age=1"]), Downstream::Public), "max-age=1");
    }
}
