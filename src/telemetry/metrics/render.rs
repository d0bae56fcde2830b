//! Sums of all tables → Prometheus' text format.

use std::{collections::BTreeMap, fmt::Write};

use super::{Kind, Name, Values, cell::Reading};

/// The series of all tables, summed.
#[derive(Debug, Default)]
pub(super) struct Totals(BTreeMap<(Name, Values), Reading>);

impl Totals {
    pub(super) fn add(&mut self, name: Name, values: &Values, reading: Reading) {
        // Two lookups at most, and a copy of the key only for the first table that has it.
        match self.0.get_mut(&(name, values.clone())) {
            Some(total) => total.add(reading),
            None => {
                self.0.insert((name, values.clone()), reading);
            }
        }
    }

    pub(super) fn render(&self) -> String {
        let mut text = String::with_capacity(self.0.len() * 96);
        let mut last = None;
        for ((name, values), total) in &self.0 {
            if last.replace(*name) != Some(*name) {
                head(&mut text, *name);
            }
            series(&mut text, *name, values, total);
        }
        text
    }
}

impl Reading {
    fn add(&mut self, other: Self) {
        match (&mut *self, other) {
            (Self::Count(total), Self::Count(more)) => *total = total.wrapping_add(more),
            (Self::Value(total), Self::Value(more)) => *total += more,
            (Self::Count(total), Self::Value(more)) => *self = Self::Value(*total as f64 + more),
            (Self::Value(total), Self::Count(more)) => *total += more as f64,
            (Self::Buckets(counts, sum), Self::Buckets(more, more_sum)) => {
                counts.iter_mut().zip(more).for_each(|(total, more)| *total = total.wrapping_add(more));
                *sum += more_sum;
            }
            // The kind belongs to the name; a computed value never stands beside buckets.
            (Self::Buckets(..), _) | (_, Self::Buckets(..)) => {}
        }
    }
}

/// `write!` into a `String` cannot fail; the macro hides the result that says so.
macro_rules! put {
    ($text:expr, $($arg:tt)*) => {
        // Writing to a String never fails.
        let _ = write!($text, $($arg)*);
    };
}

fn head(text: &mut String, name: Name) {
    let spec = name.spec();
    let kind = match spec.kind {
        Kind::Counter => "counter",
        Kind::Gauge => "gauge",
        Kind::Histogram(_) => "histogram",
    };
    put!(text, "# HELP {} ", spec.name);
    escape(text, spec.help, false);
    put!(text, "\n# TYPE {} {kind}\n", spec.name);
}

fn series(text: &mut String, name: Name, values: &Values, total: &Reading) {
    match total {
        Reading::Count(count) => {
            line(text, name, "", values, None);
            put!(text, "{count}\n");
        }
        Reading::Value(value) => {
            line(text, name, "", values, None);
            number(text, *value);
            text.push('\n');
        }
        Reading::Buckets(counts, sum) => {
            let Kind::Histogram(bounds) = name.spec().kind else { return };
            let mut so_far = 0_u64;
            for (index, count) in counts.iter().enumerate() {
                so_far = so_far.wrapping_add(*count);
                line(text, name, "_bucket", values, Some(bounds.get(index).copied().unwrap_or(f64::INFINITY)));
                put!(text, "{so_far}\n");
            }
            line(text, name, "_sum", values, None);
            number(text, *sum);
            text.push('\n');
            line(text, name, "_count", values, None);
            put!(text, "{so_far}\n");
        }
    }
}

/// Name, labels and the space before the value.
fn line(text: &mut String, name: Name, suffix: &str, values: &Values, bound: Option<f64>) {
    let spec = name.spec();
    text.push_str(spec.name);
    text.push_str(suffix);
    let mut separator = '{';
    for (label, value) in spec.labels.iter().zip(values) {
        put!(text, "{separator}{label}=\"");
        escape(text, value, true);
        text.push('"');
        separator = ',';
    }
    if let Some(bound) = bound {
        put!(text, "{separator}le=\"");
        number(text, bound);
        text.push('"');
        separator = ',';
    }
    text.push_str(if separator == ',' { "} " } else { " " });
}

fn number(text: &mut String, value: f64) {
    if value.is_infinite() {
        text.push_str(if value > 0.0 { "+Inf" } else { "-Inf" });
    } else {
        put!(text, "{value}");
    }
}

/// Backslash and line feed; in label values the quote too.
fn escape(text: &mut String, value: &str, quotes: bool) {
    for c in value.chars() {
        match c {
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '"' if quotes => text.push_str("\\\""),
            c => text.push(c),
        }
    }
}
