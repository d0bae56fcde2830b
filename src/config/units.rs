//! Durations (`10s`) and sizes (`32MiB`) as people write them.

use std::{borrow::Cow, fmt, time::Duration};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A length of time: `500ms`, `10s`, `1m30s`, `2h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Period(pub Duration);

/// A number of bytes: `512`, `64KiB`, `1.5GiB`, `10MB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

const TIMES: [(&str, u64); 5] = [
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
    ("d", 86_400_000_000_000),
];

const SIZES: [(&str, u64); 8] = [
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
];

/// Longer periods are mistakes; arithmetic on them must not overflow.
const LONGEST: u64 = 3650 * 86_400_000_000_000;
/// Greater sizes are mistakes.
const GREATEST: u64 = 1 << 50;

impl Period {
    /// Whole seconds.
    pub const fn secs(n: u64) -> Self {
        Self(Duration::from_secs(n))
    }

    /// Reads `1m30s`. The error says what is wrong, and what to do on a second line.
    pub fn parse(text: &str) -> Result<Self, String> {
        let bad = |what: &str, help: &str| Err(format!("`{}` {what}\n{help}", super::secret::short(text)));
        if text.trim() == "0" {
            return Ok(Self(Duration::ZERO));
        }
        let mut rest = text.trim();
        let mut nanos: u64 = 0;
        while !rest.is_empty() {
            let (number, after) = split_number(rest);
            let unit_end = after.find(|c: char| !c.is_alphabetic()).unwrap_or(after.len());
            let (unit, tail) = after.split_at(unit_end);
            rest = tail.trim_start();
            let Some((_, factor)) = TIMES.iter().find(|(name, _)| *name == unit) else {
                return match (number.is_empty(), unit) {
                    (false, "") => bad("has no unit", &format!("did you mean `{number}s`?")),
                    _ => bad("is not a duration", "write a number and ms, s, m, h or d, such as `10s` or `1m30s`"),
                };
            };
            match scaled(number, *factor).and_then(|n| nanos.checked_add(n)) {
                Some(sum) if sum <= LONGEST => nanos = sum,
                Some(_) => return bad("is too long", "ten years are the most"),
                None => return bad("is not a duration", "write a number and ms, s, m, h or d, such as `10s`"),
            }
        }
        if text.trim().is_empty() {
            return bad("is not a duration", "write a number and ms, s, m, h or d, such as `10s`");
        }
        Ok(Self(Duration::from_nanos(nanos)))
    }
}

impl Size {
    /// Mebibytes.
    pub const fn mib(n: u64) -> Self {
        Self(n << 20)
    }

    /// Reads `32MiB`. The error says what is wrong, and what to do on a second line.
    pub fn parse(text: &str) -> Result<Self, String> {
        let bad = |what: &str, help: &str| Err(format!("`{}` {what}\n{help}", super::secret::short(text)));
        let (number, unit) = split_number(text.trim());
        let unit = unit.trim();
        let factor = match unit {
            "" => Some(1),
            unit => SIZES.iter().find(|(name, _)| *name == unit).map(|(_, factor)| *factor),
        };
        let Some(factor) = factor else {
            let meant = SIZES.iter().find(|(name, _)| {
                let (name, unit) = (name.to_lowercase(), unit.to_lowercase());
                name == unit || name.trim_end_matches("ib") == unit || name.trim_end_matches('b') == unit
            });
            return match meant {
                Some((name, _)) if !number.is_empty() => {
                    bad("has no unit of size", &format!("did you mean `{number}{name}`?"))
                }
                _ => bad("is not a size", "write bytes, or a number and KiB, MiB or GiB, such as `32MiB`"),
            };
        };
        match scaled(number, factor) {
            Some(n) if n <= GREATEST => Ok(Self(n)),
            Some(_) => bad("is too great", "1 PiB is the most"),
            None => bad("is not a size", "write bytes, or a number and KiB, MiB or GiB, such as `32MiB`"),
        }
    }
}

fn split_number(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len()))
}

/// `number × factor`, exact for whole numbers.
fn scaled(number: &str, factor: u64) -> Option<u64> {
    if let Ok(whole) = number.parse::<u64>() {
        // Over the bounds of both units, so that the caller can say "too great".
        return Some(whole.checked_mul(factor).unwrap_or(u64::MAX / 2));
    }
    let value = number.parse::<f64>().ok()? * factor as f64;
    (value.is_finite() && value >= 0.0).then_some(value as u64)
}

/// The shortest exact form: `90s` is `1m30s`, `1000ms` is `1s`.
impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        if millis == 0 {
            return f.write_str("0s");
        }
        let (hours, minutes, seconds, rest) =
            (millis / 3_600_000, millis / 60_000 % 60, millis / 1000 % 60, millis % 1000);
        for (n, unit) in [(hours, "h"), (minutes, "m"), (seconds, "s"), (rest, "ms")] {
            if n > 0 {
                write!(f, "{n}{unit}")?;
            }
        }
        Ok(())
    }
}

/// The greatest binary unit that divides it.
impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, factor) in [("GiB", 1u64 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)] {
            if self.0 > 0 && self.0.is_multiple_of(factor) {
                return write!(f, "{}{unit}", self.0 / factor);
            }
        }
        write!(f, "{}", self.0)
    }
}

macro_rules! as_text {
    ($type:ident, $name:literal, $expecting:literal, $schema:expr) => {
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Visitor;
                impl de::Visitor<'_> for Visitor {
                    type Value = $type;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($expecting)
                    }

                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$type, E> {
                        $type::parse(text).map_err(E::custom)
                    }
                }
                deserializer.deserialize_str(Visitor)
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                $name.into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                $schema
            }
        }
    };
}

as_text!(
    Period,
    "Duration",
    "a duration such as `10s`",
    json_schema!({
        "description": "A duration: numbers with ms, s, m, h or d.",
        "type": ["string", "integer"],
        "pattern": r"^\s*(0|([0-9]+(\.[0-9]+)?(ms|s|m|h|d)\s*)+)$|\$\{",
        "maximum": 0,
        "minimum": 0
    })
);

as_text!(
    Size,
    "Size",
    "a size such as `32MiB`",
    json_schema!({
        "description": "A number of bytes, or a number with KiB, MiB, GiB, TiB, KB, MB or GB.",
        "type": ["string", "integer"],
        "pattern": r"^\s*[0-9]+(\.[0-9]+)?\s*(B|KiB|MiB|GiB|TiB|KB|MB|GB)?\s*$|\$\{",
        "minimum": 0
    })
);
