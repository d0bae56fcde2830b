//! The access log: one own line a request, to stdout.
//!
//! Each worker writes into its own buffer and hands it to the one writing thread ([`Outlet`]) when it is large, and
//! at every tick. In text a line is `time key=value …`, in JSON one object; the caller chooses the fields, and never
//! gives prompts, keys or query strings.

use std::{
    cell::{Cell, RefCell},
    io::{self, Write as _},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::time::Instant;

use super::{Outlet, digits, time};

/// A buffer of this size is handed over at once.
const FLUSH_AT: usize = 32 * 1024;
/// Room for the line that reaches it, so that a buffer is never moved while it grows.
const LINE: usize = 2 * 1024;
/// Buffers that wait for the writing thread, over all workers: 5 MiB at most.
const DEPTH: usize = 144;

/// How a line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Text,
    Json,
}

/// One worker's access log. Stays on its thread; [`AccessLog::flush`] belongs on its ticker.
#[derive(Debug)]
pub struct AccessLog {
    outlet: Option<Outlet>,
    format: Format,
    buffer: RefCell<Vec<u8>>,
    lines: Cell<u64>,
    /// One moment by both clocks, taken at every flush: times of lines are told from it.
    moment: Cell<(Instant, SystemTime)>,
    /// The second that was told last, and its text.
    stamp: Cell<(u64, [u8; 24])>,
}

/// One line while it is written.
#[derive(Debug)]
pub struct Line<'a> {
    buffer: &'a mut Vec<u8>,
    format: Format,
}

/// The outlet of all workers' access logs: stdout.
///
/// # Errors
/// When no thread can be had.
pub fn stdout() -> io::Result<Outlet> {
    Outlet::new("access log", io::stdout(), DEPTH)
}

impl AccessLog {
    /// One worker's, written to `outlet`.
    pub fn new(outlet: Outlet, format: Format) -> Self {
        Self::of(Some(outlet), format)
    }

    /// Writes nothing.
    pub fn off() -> Self {
        Self::of(None, Format::Text)
    }

    fn of(outlet: Option<Outlet>, format: Format) -> Self {
        Self {
            outlet,
            format,
            buffer: RefCell::default(),
            lines: Cell::default(),
            moment: Cell::new((Instant::now(), SystemTime::now())),
            stamp: Cell::new((0, time::stamp(UNIX_EPOCH))),
        }
    }

    /// Adds the line that `fields` fills, with the time `at` first.
    pub fn line(&self, at: Instant, fields: impl FnOnce(&mut Line<'_>)) {
        if self.outlet.is_none() {
            return;
        }
        {
            let buffer = &mut *self.buffer.borrow_mut();
            if buffer.capacity() == 0 {
                buffer.reserve_exact(FLUSH_AT + LINE);
            }
            let mut line = Line { buffer, format: self.format };
            line.begin(&self.stamp(self.wall(at)));
            fields(&mut line);
            line.end();
            self.lines.set(self.lines.get() + 1);
            if buffer.len() < FLUSH_AT {
                return;
            }
        }
        self.flush();
    }

    /// The time of day at a moment that has just been.
    fn wall(&self, at: Instant) -> SystemTime {
        let (then, wall) = self.moment.get();
        if at >= then { wall + (at - then) } else { wall - (then - at) }
    }

    /// The time as text; most lines differ from the one before in the milliseconds only.
    fn stamp(&self, at: SystemTime) -> [u8; 24] {
        let since = at.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let (second, mut text) = self.stamp.get();
        if second != since.as_secs() {
            text = time::stamp(at);
            self.stamp.set((since.as_secs(), text));
        }
        text[20..23].copy_from_slice(&digits::three(since.subsec_millis()));
        text
    }

    /// Hands over what there is.
    pub fn flush(&self) {
        let Some(outlet) = &self.outlet else { return };
        self.moment.set((Instant::now(), SystemTime::now()));
        if self.lines.get() > 0 {
            outlet.send(self.buffer.take(), self.lines.take());
        }
    }
}

impl Drop for AccessLog {
    fn drop(&mut self) {
        self.flush();
    }
}

// The keys are literals: inlined, each is one store, where a call would copy it byte by byte.
impl Line<'_> {
    fn begin(&mut self, stamp: &[u8; 24]) {
        match self.format {
            Format::Text => self.buffer.extend_from_slice(stamp),
            Format::Json => {
                self.buffer.extend_from_slice(b"{\"time\":\"");
                self.buffer.extend_from_slice(stamp);
                self.buffer.push(b'"');
            }
        }
    }

    fn end(&mut self) {
        if self.format == Format::Json {
            self.buffer.push(b'}');
        }
        self.buffer.push(b'\n');
    }

    /// `key` is a plain word.
    #[inline(always)]
    fn key(&mut self, key: &'static str) {
        match self.format {
            Format::Text => {
                self.buffer.push(b' ');
                self.buffer.extend_from_slice(key.as_bytes());
                self.buffer.push(b'=');
            }
            Format::Json => {
                self.buffer.extend_from_slice(b",\"");
                self.buffer.extend_from_slice(key.as_bytes());
                self.buffer.extend_from_slice(b"\":");
            }
        }
    }

    /// A text. In the text format it is quoted when it is not a plain word; control characters never get through.
    #[inline(always)]
    pub fn text(&mut self, key: &'static str, value: &str) {
        self.key(key);
        self.value(value);
    }

    fn value(&mut self, value: &str) {
        if !is_plain(value) {
            return quote(self.buffer, value);
        }
        match self.format {
            Format::Text if value.is_empty() => self.buffer.extend_from_slice(b"\"\""),
            _ => self.plain(value.as_bytes()),
        }
    }

    /// A text of the gateway's own, or checked before: a plain word, not empty.
    #[inline(always)]
    pub fn word(&mut self, key: &'static str, value: &str) {
        self.key(key);
        debug_assert!(is_plain(value) && !value.is_empty(), "{value} is not a plain word");
        self.plain(value.as_bytes());
    }

    fn plain(&mut self, value: &[u8]) {
        match self.format {
            Format::Text => self.buffer.extend_from_slice(value),
            Format::Json => {
                self.buffer.push(b'"');
                self.buffer.extend_from_slice(value);
                self.buffer.push(b'"');
            }
        }
    }

    /// A whole number.
    #[inline(always)]
    pub fn number(&mut self, key: &'static str, value: u64) {
        self.key(key);
        digits::decimal(self.buffer, value);
    }

    /// A span of time, in milliseconds with microseconds behind the point.
    #[inline(always)]
    pub fn millis(&mut self, key: &'static str, value: Duration) {
        self.key(key);
        digits::millis(self.buffer, value);
    }

    /// A yes or no.
    #[inline(always)]
    pub fn flag(&mut self, key: &'static str, value: bool) {
        self.key(key);
        self.buffer.extend_from_slice(if value { b"true" } else { b"false" });
    }
}

/// Whether `value` is a plain word: it needs no quotes in text and no escapes in JSON.
fn is_plain(value: &str) -> bool {
    // All of them, also behind the first that is not: this compiles to vector instructions.
    value.bytes().fold(true, |plain, byte| {
        plain & (byte > b' ') & (byte <= b'~') & (byte != b'"') & (byte != b'\\') & (byte != b'=')
    })
}

/// As a JSON string.
fn quote(buffer: &mut Vec<u8>, value: &str) {
    buffer.push(b'"');
    for c in value.chars() {
        match c {
            '"' | '\\' => buffer.extend_from_slice(&[b'\\', c as u8]),
            c if c.is_control() => {
                // Writing to a Vec never fails; every control character is below U+00A0.
                let _ = write!(buffer, "\\u{:04x}", u32::from(c));
            }
            c => buffer.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    buffer.push(b'"');
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    /// What a reader at the other end sees.
    fn written(format: Format, fill: impl FnOnce(&AccessLog)) -> String {
        let (mut reader, writer) = io::pipe().unwrap();
        let log = AccessLog::new(Outlet::new("test", writer, 8).unwrap(), format);
        fill(&log);
        drop(log);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        text
    }

    /// 1970-01-01 by the log's clock.
    fn start(log: &AccessLog) -> Instant {
        let now = Instant::now();
        log.moment.set((now, UNIX_EPOCH));
        now
    }

    fn fields(line: &mut Line<'_>) {
        line.text("path", "/v1/chat");
        line.text("model", "a \"b\"\n\u{7f}ü");
        line.text("none", "");
        line.number("status", 200);
        line.millis("took", Duration::from_micros(12_045));
        line.flag("stream", true);
    }

    #[test]
    fn text_and_json() {
        assert_eq!(
            written(Format::Text, |log| log.line(start(log), fields)),
            "1970-01-01T00:00:00.000Z path=/v1/chat model=\"a \\\"b\\\"\\u000a\\u007fü\" none=\"\" status=200 \
             took=12.045 stream=true\n"
        );
        let json = written(Format::Json, |log| log.line(start(log), fields));
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(json["model"], "a \"b\"\n\u{7f}ü");
        assert_eq!(json["took"], 12.045);
        assert_eq!(json["time"], "1970-01-01T00:00:00.000Z");
    }

    #[test]
    fn stamps_of_one_second_and_the_next() {
        let text = written(Format::Text, |log| {
            for millis in [0, 7, 999, 1000, 1042, 86_400_000, 999] {
                log.line(start(log) + Duration::from_millis(millis), |_| {});
            }
        });
        let stamps: Vec<_> = text.lines().map(|line| &line[8..24]).collect();
        assert_eq!(
            stamps,
            [
                "01T00:00:00.000Z",
                "01T00:00:00.007Z",
                "01T00:00:00.999Z",
                "01T00:00:01.000Z",
                "01T00:00:01.042Z",
                "02T00:00:00.000Z",
                "01T00:00:00.999Z"
            ]
        );
    }

    #[test]
    fn lines_stay_whole_and_in_order() {
        let text = written(Format::Text, |log| {
            for n in 0..2000 {
                log.line(start(log), |line| line.number("n", n));
            }
        });
        let lines: Vec<_> = text.lines().map(|line| line.rsplit_once("n=").unwrap().1).collect();
        assert_eq!(lines, (0..2000).map(|n: u32| n.to_string()).collect::<Vec<_>>());
    }

    #[test]
    fn off_makes_no_line() {
        let log = AccessLog::off();
        log.line(start(&log), |_| panic!("nobody reads it"));
    }
}
