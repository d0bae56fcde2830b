//! Wall-clock time as text and back, without a crate for it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// `2026-11-24T12:18:15.042Z` (RFC 3339, UTC, milliseconds); years beyond 9999 are of no concern here.
pub fn stamp(at: SystemTime) -> [u8; 24] {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = civil(days);
    let mut text = *b"0000-00-00T00:00:00.000Z";
    let mut put = |at: usize, width: usize, mut value: u64| {
        for place in text[at..at + width].iter_mut().rev() {
            // A digit fits.
            *place = b'0' + (value % 10) as u8;
            value /= 10;
        }
    };
    put(0, 4, year);
    put(5, 2, month);
    put(8, 2, day);
    put(11, 2, second / 3600);
    put(14, 2, second / 60 % 60);
    put(17, 2, second % 60);
    put(20, 3, u64::from(since.subsec_millis()));
    text
}

/// `2026-11-24T12:18:15Z` (RFC 3339, UTC, whole seconds, the rest cut off).
pub fn rfc3339(at: SystemTime) -> String {
    let mut text = String::from_utf8_lossy(&stamp(at)).into_owned();
    text.truncate("0000-00-00T00:00:00".len());
    text + "Z"
}

/// Reads RFC 3339, any offset, fractions of a second.
pub fn parse_rfc3339(text: &str) -> Option<SystemTime> {
    let (date, rest) = text.trim().split_at_checked(10)?;
    let rest = rest.strip_prefix(['T', 't', ' '])?;
    let (clock, rest) = rest.split_at_checked(8)?;
    let (nanos, zone) = fraction(rest)?;
    let offset = offset(zone)?;
    let [year, month, day] = numbers(date, '-', [4, 2, 2])?;
    let [hour, minute, second] = numbers(clock, ':', [2, 2, 2])?;
    at(year, month, day, [hour, minute, second], offset)?.checked_add(Duration::from_nanos(nanos))
}

/// `Tue, 24 Nov 2026 12:18:15 GMT` (RFC 1123, as in HTTP's `Date`).
pub fn http_date(at: SystemTime) -> String {
    let seconds = at.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let (week_day, month) = (WEEK[(days % 7) as usize], MONTHS[month as usize - 1]);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{week_day}, {day:02} {month} {year:04} {hour:02}:{minute:02}:{second:02} GMT")
}

/// Reads RFC 1123; the day of the week is not looked at.
pub fn parse_http_date(text: &str) -> Option<SystemTime> {
    let (_, rest) = text.trim().split_once(", ")?;
    let mut parts = rest.split_ascii_whitespace();
    let day = number(parts.next()?)?;
    let name = parts.next()?;
    let month = MONTHS.iter().position(|month| month.eq_ignore_ascii_case(name))? as u64 + 1;
    let year = number(parts.next()?)?;
    let [hour, minute, second] = numbers(parts.next()?, ':', [2, 2, 2])?;
    if !matches!(parts.next()?, "GMT" | "UTC") || parts.next().is_some() {
        return None;
    }
    at(year, month, day, [hour, minute, second], 0)
}

/// Day 0 was a Thursday.
const WEEK: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// A point in time from its parts; `None` where they are none. A leap second counts as the one before.
fn at(year: u64, month: u64, day: u64, clock: [u64; 3], offset: i64) -> Option<SystemTime> {
    let [hour, minute, second] = clock;
    let days = days(year, month, day)?;
    if hour > 23 || minute > 59 || second > 60 || civil(days) != (year, month, day) {
        return None;
    }
    let seconds = (days * 86_400 + hour * 3600 + minute * 60 + second.min(59)).checked_add_signed(-offset)?;
    UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

/// The inverse of [`civil`], for 1970 to 9999.
fn days(year: u64, month: u64, day: u64) -> Option<u64> {
    if !(1970..=9999).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let (era, year_of_era) = (year / 400, year % 400);
    let day_of_year = (153 * month + 2) / 5 + day - 1;
    Some(era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468)
}

/// `.125Z` → its nanoseconds and what follows.
fn fraction(text: &str) -> Option<(u64, &str)> {
    let Some(rest) = text.strip_prefix('.') else { return Some((0, text)) };
    let width = rest.bytes().take_while(u8::is_ascii_digit).count();
    let kept = &rest[..width.min(9)];
    (width > 0).then_some(())?;
    Some((number(kept)? * 10_u64.pow(9 - kept.len() as u32), &rest[width..]))
}

/// `Z`, `+02:00` → seconds east of Greenwich.
fn offset(zone: &str) -> Option<i64> {
    if matches!(zone, "Z" | "z") {
        return Some(0);
    }
    let (sign, rest) = match zone.split_at_checked(1)? {
        ("+", rest) => (1, rest),
        ("-", rest) => (-1, rest),
        _ => return None,
    };
    let [hours, minutes] = numbers(rest, ':', [2, 2])?;
    (hours < 24 && minutes < 60).then(|| sign * (hours * 3600 + minutes * 60) as i64)
}

/// `N` numbers of these widths with `between` between them.
fn numbers<const N: usize>(text: &str, between: char, widths: [usize; N]) -> Option<[u64; N]> {
    let mut parts = text.split(between);
    let mut found = [0; N];
    for (slot, width) in found.iter_mut().zip(widths) {
        let part = parts.next().filter(|part| part.len() == width)?;
        *slot = number(part)?;
    }
    parts.next().is_none().then_some(found)
}

fn number(text: &str) -> Option<u64> {
    if text.is_empty() || text.len() > 9 || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

/// Days since 1970-01-01 → year, month, day of the Gregorian calendar. Years begin in March here, so that the leap
/// day is the last of one.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps() {
        for (millis, want) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (951_868_799_999, "2000-02-29T23:59:59.999Z"),
            (1_735_689_599_001, "2024-12-31T23:59:59.001Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
        ] {
            let text = stamp(UNIX_EPOCH + Duration::from_millis(millis));
            assert_eq!(std::str::from_utf8(&text).unwrap(), want);
        }
    }
    fn seconds(at: Option<SystemTime>) -> Option<u64> {
        at.map(|at| at.duration_since(UNIX_EPOCH).unwrap().as_secs())
    }

    #[test]
    fn both_forms_are_read_and_written() {
        let at = UNIX_EPOCH + Duration::from_secs(1_474_309_787);
        assert_eq!(
            (rfc3339(at), http_date(at)),
            ("2016-09-19T18:29:47Z".into(), "Mon, 19 Sep 2016 18:29:47 GMT".into())
        );
        for text in ["2016-09-19T18:29:47Z", "2016-09-19t20:29:47+02:00", "2016-09-19 13:59:47-04:30"] {
            assert_eq!(parse_rfc3339(text), Some(at), "{text}");
        }
        assert_eq!(parse_rfc3339("2016-09-19T18:29:47.250Z"), Some(at + Duration::from_millis(250)));
        assert_eq!(parse_http_date("Mon, 19 Sep 2016 18:29:47 GMT"), Some(at));
        assert_eq!(seconds(parse_rfc3339("2024-02-29T23:59:60Z")), Some(1_709_251_199));
        for text in [
            "",
            "2016-09-19",
            "2016-09-19T18:29:47",
            "2023-02-29T00:00:00Z",
            "2016-13-01T00:00:00Z",
            "2016-09-19T24:00:00Z",
            "2016-09-19T18:29:47.Z",
            "1969-12-31T23:59:59Z",
            "2016-09-19T18:29:47+2:00",
            "+016-09-19T18:29:47Z",
            "äöü-09-19T18:29:47Z",
        ] {
            assert_eq!(parse_rfc3339(text), None, "{text}");
        }
        for text in ["", "Mon, 19 Sep 2016 18:29:47", "Mon, 31 Feb 2016 18:29:47 GMT", "Mon, 19 Sep 2016 18:29 GMT"] {
            assert_eq!(parse_http_date(text), None, "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn what_is_written_is_read_again(second in 0_u64..253_402_300_800) {
            let at = UNIX_EPOCH + Duration::from_secs(second);
            proptest::prop_assert_eq!(parse_rfc3339(&rfc3339(at)), Some(at));
            proptest::prop_assert_eq!(parse_http_date(&http_date(at)), Some(at));
        }

        #[test]
        fn any_text_may_come(text in ".{0,40}") {
            let _ = (parse_rfc3339(&text), parse_http_date(&text));
        }
    }
}
