//! Numbers as text, without the formatting machinery: it costs ten times as much, and every request writes a dozen.

use std::time::Duration;

/// Appends `number` in decimal.
pub(crate) fn decimal(out: &mut Vec<u8>, mut number: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        // A digit fits.
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// Appends milliseconds with microseconds behind the point: `12.045`.
pub(crate) fn millis(out: &mut Vec<u8>, time: Duration) {
    let micros = time.subsec_micros();
    let thousandths = micros % 1000;
    decimal(out, time.as_secs().saturating_mul(1000).saturating_add(u64::from(micros / 1000)));
    let digit = |place: u32| b'0' + (thousandths / place % 10) as u8;
    out.extend_from_slice(&[b'.', digit(100), digit(10), digit(1)]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_as_formatted() {
        for number in [0, 7, 10, 999, 1000, 18_446_744_073_709_551_615] {
            let mut out = Vec::new();
            decimal(&mut out, number);
            assert_eq!(out, number.to_string().into_bytes());
        }
        for micros in [0, 9, 45, 12_045, 999_999, 1_000_000, 86_400_000_001] {
            let mut out = Vec::new();
            millis(&mut out, Duration::from_micros(micros));
            assert_eq!(out, format!("{}.{:03}", micros / 1000, micros % 1000).into_bytes());
        }
    }
}
