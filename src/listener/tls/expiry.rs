//! The end of a certificate's validity, read straight from its DER (RFC 5280 §4.1): our own certificate, for a
//! metric, so no more of X.509 than the way there.

const SEQUENCE: u8 = 0x30;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
/// `[0] EXPLICIT Version`, which may be left out.
const VERSION: u8 = 0xa0;

/// Seconds since 1970 of `notAfter`.
pub(super) fn not_after(certificate: &[u8]) -> Option<u64> {
    let (_, certificate, _) = element(certificate)?;
    let (_, mut fields, _) = element(certificate)?;
    if fields.first() == Some(&VERSION) {
        fields = element(fields)?.2;
    }
    // Serial number, signature algorithm, issuer.
    for _ in 0..3 {
        fields = element(fields)?.2;
    }
    let (SEQUENCE, validity, _) = element(fields)? else { return None };
    let (_, _, rest) = element(validity)?;
    let (tag, time, _) = element(rest)?;
    seconds(tag, time)
}

/// The first element: its tag, its content, and what follows it.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = der.split_first()?;
    let (&first, mut rest) = rest.split_first()?;
    let length = if first < 0x80 {
        usize::from(first)
    } else {
        let (bytes, after) = rest.split_at_checked(usize::from(first & 0x7f))?;
        rest = after;
        if bytes.len() > 4 {
            return None;
        }
        bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte))
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

/// `YYMMDDHHMMSSZ` or `YYYYMMDDHHMMSSZ`.
fn seconds(tag: u8, time: &[u8]) -> Option<u64> {
    let digits = time.strip_suffix(b"Z")?;
    let number = |from: usize, to: usize| std::str::from_utf8(digits.get(from..to)?).ok()?.parse::<u64>().ok();
    let (year, at) = match tag {
        UTC_TIME => (number(0, 2).map(|year| if year < 50 { 2000 + year } else { 1900 + year })?, 2),
        GENERALIZED_TIME => (number(0, 4)?, 4),
        _ => return None,
    };
    let part = |n: usize| number(at + 2 * n, at + 2 * n + 2);
    let (month, day) = (part(0)?, part(1)?);
    Some(days(year, month, day)? * 86_400 + part(2)? * 3_600 + part(3)? * 60 + part(4)?)
}

/// Days from 1970-01-01 in the Gregorian calendar; the year begins in March, so that the leap day is its last.
fn days(year: u64, month: u64, day: u64) -> Option<u64> {
    if !(1..=12).contains(&month) || day == 0 {
        return None;
    }
    let (year, month) = if month > 2 { (year, month - 3) } else { (year.checked_sub(1)?, month + 9) };
    let before = year * 365 + year / 4 - year / 100 + year / 400;
    (before + (month * 153 + 2) / 5 + day - 1).checked_sub(719_468)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_read_in_both_forms() {
        assert_eq!(seconds(UTC_TIME, b"700101000000Z"), Some(0));
        assert_eq!(seconds(GENERALIZED_TIME, b"20000229123456Z"), Some(951_827_696));
        assert_eq!(seconds(UTC_TIME, b"261124000000Z"), Some(1_795_478_400));
        assert_eq!(seconds(UTC_TIME, b"2611240000"), None);
        assert_eq!(seconds(UTC_TIME, b"261324000000Z"), None);
        assert_eq!(seconds(2, b"261124000000Z"), None);
    }

    #[test]
    fn a_real_certificate_says_when_it_ends() {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(2031, 5, 6);
        let certificate = params.self_signed(&key).unwrap();
        assert_eq!(not_after(certificate.der()), Some(1_935_792_000));
    }

    #[test]
    fn rubbish_says_nothing() {
        assert_eq!(not_after(b""), None);
        assert_eq!(not_after(&[0x30, 0x84, 0xff, 0xff, 0xff, 0xff]), None);
        assert_eq!(not_after(&[0x30, 0x03, 0x30, 0x01, 0x02]), None);
    }
}
