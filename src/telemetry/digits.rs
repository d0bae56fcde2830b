//! Numbers as text, without the formatting machinery: it costs ten times as much, and every request writes a dozen.

use std::time::Duration;

/// `00` to `99`.
const PAIRS: [[u8; 2]; 100] = {
    let mut pairs = [[0; 2]; 100];
    let mut number = 0;
    while number < 100 {
        // A digit fits.
        pairs[number] = [b'0' + (number / 10) as u8, b'0' + (number % 10) as u8];
        number += 1;
    }
    pairs
};

/// Appends `number` in decimal.
pub(crate) fn decimal(out: &mut Vec<u8>, mut number: u64) {
    // Most numbers are small: these need no room of their own.
    match number {
        0..10 => return out.push(b'0' + number as u8),
        10..100 => return out.extend_from_slice(&PAIRS[number as usize]),
        100..1000 => {
            let [tens, ones] = PAIRS[(number % 100) as usize];
            return out.extend_from_slice(&[b'0' + (number / 100) as u8, tens, ones]);
        }
        _ => {}
    }
    let mut digits = [0; 20];
    let mut at = digits.len();
    while number >= 100 {
        at -= 2;
        digits[at..at + 2].copy_from_slice(&PAIRS[(number % 100) as usize]);
        number /= 100;
    }
    let [tens, ones] = PAIRS[number as usize];
    at -= 1;
    digits[at] = ones;
    if tens != b'0' {
        at -= 1;
        digits[at] = tens;
    }
    out.extend_from_slice(&digits[at..]);
}

/// Appends milliseconds with microseconds behind the point: `12.045`.
pub(crate) fn millis(out: &mut Vec<u8>, time: Duration) {
    let micros = time.subsec_micros();
    let thousandths = micros % 1000;
    decimal(out, time.as_secs().saturating_mul(1000).saturating_add(u64::from(micros / 1000)));
    let [tens, ones] = PAIRS[(thousandths % 100) as usize];
    out.extend_from_slice(&[b'.', b'0' + (thousandths / 100) as u8, tens, ones]);
}

/// Writes the last three digits of `number`.
pub(crate) fn three(number: u32) -> [u8; 3] {
    let [tens, ones] = PAIRS[(number % 100) as usize];
    [b'0' + (number / 100 % 10) as u8, tens, ones]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_as_formatted() {
        for number in [0, 7, 10, 99, 100, 305, 999, 1000, 1001, 10_000, 100_099, 18_446_744_073_709_551_615] {
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
