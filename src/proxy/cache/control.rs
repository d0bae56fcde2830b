//! `Cache-Control`: what a client asks for (RFC 9111 §5.2.1), and how long a backend says its answer is fresh (§4.2).

use std::time::{Duration, SystemTime};

use http::{
    HeaderMap, HeaderValue,
    header::{self, CACHE_CONTROL},
};

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
        // Looked for, not hashed: most heads have none.
        if !headers.keys().any(|name| *name == CACHE_CONTROL) {
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

/// What a backend says of the freshness of its answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Freshness {
    /// How long it is fresh from now on, where it says so.
    pub(super) left: Option<Duration>,
    /// How old it was when it came.
    pub(super) age: Duration,
    /// Once it is not fresh any more it may not be given at all, not even in place of an error.
    pub(super) strict: bool,
}

impl Freshness {
    /// As an answer's head says it. What makes no sense means that it is not fresh (RFC 9111 §4.2.1).
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let (mut shared, mut own, mut expires, mut date) = (None, None, None, None);
        let mut said = Self::default();
        // One pass: most heads have none of these, and each look-up would cost a hash.
        for (name, value) in headers {
            if *name == CACHE_CONTROL {
                directives_of(value, |name, argument| {
                    if name.eq_ignore_ascii_case("s-maxage") {
                        shared = Some(seconds(argument).unwrap_or_default());
                        // It says that, too (RFC 9111 §5.2.2.10).
                        said.strict = true;
                    } else if name.eq_ignore_ascii_case("max-age") {
                        own = Some(seconds(argument).unwrap_or_default());
                    } else if name.eq_ignore_ascii_case("must-revalidate")
                        || name.eq_ignore_ascii_case("proxy-revalidate")
                    {
                        said.strict = true;
                    }
                });
            } else if *name == header::AGE {
                said.age = value.to_str().ok().and_then(seconds).unwrap_or_default();
            } else if *name == header::EXPIRES {
                // Given twice, it is not believed.
                expires = Some(if expires.is_none() { moment(value) } else { None });
            } else if *name == header::DATE {
                date = moment(value);
            }
        }
        let until = |expires: Option<SystemTime>| {
            let left = expires.and_then(|end| end.duration_since(date.unwrap_or_else(SystemTime::now)).ok());
            left.unwrap_or_default()
        };
        let lifetime = shared.or(own).or_else(|| expires.map(until));
        said.left = lifetime.map(|lifetime| lifetime.saturating_sub(said.age));
        said
    }

    /// Whether there is no moment at which it may be given again.
    pub(super) fn is_over(&self) -> bool {
        self.left.is_some_and(|left| left.is_zero())
    }
}

fn moment(value: &HeaderValue) -> Option<SystemTime> {
    httpdate::parse_http_date(value.to_str().ok()?).ok()
}

/// What caches below may do with an answer that is fresh for `left`, where the backend did not say (`cache.downstream`).
pub(super) fn downstream(headers: &mut HeaderMap, rule: Downstream, left: Duration) {
    if headers.contains_key(CACHE_CONTROL) {
        return;
    }
    let value = match rule {
        Downstream::Private => Some(const { HeaderValue::from_static("private") }),
        Downstream::Public => HeaderValue::try_from(format!("public, max-age={}", left.as_secs())).ok(),
    };
    if let Some(value) = value {
        headers.insert(CACHE_CONTROL, value);
    }
}

fn directives(headers: &HeaderMap, mut each: impl FnMut(&str, &str)) {
    headers.get_all(CACHE_CONTROL).iter().for_each(|value| directives_of(value, &mut each));
}

fn directives_of(value: &HeaderValue, mut each: impl FnMut(&str, &str)) {
    for directive in value.to_str().unwrap_or_default().split(',') {
        let (name, argument) = directive.split_once('=').unwrap_or((directive, ""));
        each(name.trim(), argument.trim().trim_matches('"'));
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
    fn lifetimes_are_read() {
        let said = |lines: &[(&'static str, &str)]| {
            let line = |(name, value): &(&'static str, &str)| (name.parse().unwrap(), value.parse().unwrap());
            Freshness::of(&lines.iter().map(line).collect::<HeaderMap>())
        };
        let left = |lines: &[(&'static str, &str)]| said(lines).left.map(|left| left.as_secs());
        let (control, date) = ("cache-control", ("date", "Sun, 06 Nov 1994 08:49:37 GMT"));
        let expires = ("expires", "Sun, 06 Nov 1994 08:50:37 GMT");
        assert_eq!(said(&[]), Freshness::default());
        assert_eq!(left(&[(control, "public")]), None);
        assert_eq!(left(&[(control, "max-age=5")]), Some(5));
        assert_eq!(left(&[(control, "max-age=5, s-maxage=7")]), Some(7));
        assert_eq!(left(&[(control, "max-age=soon")]), Some(0));
        // Its age is taken off, and is its age from then on.
        assert_eq!(left(&[(control, "max-age=5"), ("age", "3")]), Some(2));
        assert_eq!(left(&[(control, "max-age=5"), ("age", "8")]), Some(0));
        assert_eq!(left(&[(control, "max-age=5"), ("age", "old")]), Some(5));
        assert_eq!(said(&[("age", "3")]).age, Duration::from_secs(3));
        // Where nothing else is said, `Expires` counts from the backend's own clock.
        assert_eq!(left(&[date, expires]), Some(60));
        assert_eq!(left(&[date, expires, ("age", "50")]), Some(10));
        assert_eq!(left(&[date, expires, (control, "max-age=5")]), Some(5));
        assert_eq!(left(&[("date", "Sunday, 06-Nov-94 08:50:36 GMT"), expires]), Some(1));
        for over in ["0", "-1", "", "Sun, 06 Nov 1994 08:49:00 GMT", "soon"] {
            assert!(said(&[date, ("expires", over)]).is_over(), "{over}");
        }
        assert!(said(&[date, expires, expires]).is_over());
        assert!(said(&[expires]).is_over(), "by our clock");
        for (line, strict) in [
            ("max-age=5", false),
            ("Must-Revalidate", true),
            ("max-age=5, proxy-revalidate", true),
            ("s-maxage=5", true),
            ("stale-if-error=5", false),
        ] {
            assert_eq!(said(&[(control, line)]).strict, strict, "{line}");
        }
    }

    #[test]
    fn what_caches_below_may_do_is_told() {
        let told = |mut headers: HeaderMap, rule| {
            downstream(&mut headers, rule, Duration::from_secs(9));
            headers[CACHE_CONTROL].clone()
        };
        assert_eq!(told(HeaderMap::new(), Downstream::Private), "private");
        assert_eq!(told(HeaderMap::new(), Downstream::Public), "public, max-age=9");
        assert_eq!(told(headers(&["max-age=1"]), Downstream::Public), "max-age=1");
    }
}
