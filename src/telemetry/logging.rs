//! Diagnostics: `tracing` events to stderr, as text or JSON, with a level that can be changed while running.
//!
//! Lines go through an [`Outlet`]: a closed or full pipe costs lines, which are counted, never a panic or a wait.

use std::{
    io::{self, Write},
    time::Duration,
};

use tracing_subscriber::{
    Layer, Registry,
    filter::{LevelFilter, Targets},
    fmt::{MakeWriter, format::Writer, time::FormatTime},
    layer::SubscriberExt,
    reload,
    util::SubscriberInitExt,
};

use super::{Outlet, time};

/// Lines that wait for the writing thread.
const DEPTH: usize = 1024;
/// How long the last lines may take at the end of the process.
const FLUSH: Duration = Duration::from_millis(200);

/// The running log. Dropped last, it writes out what waits.
#[derive(Debug)]
pub struct Logging {
    outlet: Outlet,
    level: reload::Handle<Targets, Registry>,
}

/// Changes the level of the log. Cheap to clone, for the task that reloads.
#[derive(Clone, Debug)]
pub struct LevelHandle(reload::Handle<Targets, Registry>);

/// The log could not be started.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    #[error("cannot start the thread that writes the log: {0}")]
    Thread(#[from] io::Error),
    #[error("a log was started already")]
    Twice,
}

impl Logging {
    /// Starts the log of this process, to stderr. Colours only in text, on a terminal, and without `NO_COLOR`.
    ///
    /// # Errors
    /// When no thread can be had, or there is a log already.
    pub fn start(json: bool, level: LevelFilter) -> Result<Self, Problem> {
        let outlet = Outlet::new("log", io::stderr(), DEPTH)?;
        let (subscriber, level) = subscriber(json, level, wants_colour(), Lines(outlet.clone()));
        subscriber.try_init().map_err(|_| Problem::Twice)?;
        Ok(Self { outlet, level })
    }

    /// Where the lines go, for counting those that were dropped.
    pub fn outlet(&self) -> &Outlet {
        &self.outlet
    }

    /// For the task that reloads.
    pub fn level(&self) -> LevelHandle {
        LevelHandle(self.level.clone())
    }
}

impl Drop for Logging {
    fn drop(&mut self) {
        self.outlet.flush(FLUSH);
    }
}

impl LevelHandle {
    /// Sets the level of our own events; those of libraries never go below warnings, but for `TRACE`.
    pub fn set(&self, level: LevelFilter) {
        // Fails only when the subscriber is gone, and then nobody logs.
        let _ = self.0.reload(targets(level));
    }
}

type Subscriber = Box<dyn tracing::Subscriber + Send + Sync>;

fn subscriber(
    json: bool,
    level: LevelFilter,
    colour: bool,
    lines: Lines,
) -> (Subscriber, reload::Handle<Targets, Registry>) {
    let (filter, handle) = reload::Layer::new(targets(level));
    let layer = tracing_subscriber::fmt::layer().with_writer(lines).with_timer(Clock).with_target(false);
    let layer = if json {
        layer.json().flatten_event(true).with_current_span(false).with_span_list(false).boxed()
    } else {
        layer.with_ansi(colour).boxed()
    };
    (Box::new(Registry::default().with(layer.with_filter(filter))), handle)
}

fn targets(level: LevelFilter) -> Targets {
    let libraries = if level == LevelFilter::TRACE { level } else { level.min(LevelFilter::WARN) };
    Targets::new().with_default(libraries).with_target(env!("CARGO_CRATE_NAME"), level)
}

/// <https://no-color.org>: set and not empty means no colours, whatever the value.
fn wants_colour() -> bool {
    io::IsTerminal::is_terminal(&io::stderr()) && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

struct Clock;

impl FormatTime for Clock {
    fn format_time(&self, w: &mut Writer<'_>) -> std::fmt::Result {
        // The stamp is ASCII.
        let stamp = time::stamp(std::time::SystemTime::now());
        w.write_str(std::str::from_utf8(&stamp).unwrap_or_default())
    }
}

/// Makes a writer for each event.
#[derive(Clone, Debug)]
struct Lines(Outlet);

/// One event: collected, and handed over as one buffer.
#[derive(Debug)]
struct Event(Outlet, Vec<u8>);

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Event;

    fn make_writer(&'a self) -> Event {
        Event(self.0.clone(), Vec::new())
    }
}

impl Write for Event {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.1.extend_from_slice(buffer);
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if !self.1.is_empty() {
            self.0.send(std::mem::take(&mut self.1), 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn logged(json: bool, act: impl FnOnce(&LevelHandle)) -> String {
        let (mut reader, writer) = io::pipe().unwrap();
        let outlet = Outlet::new("test", writer, 64).unwrap();
        let (subscriber, handle) = subscriber(json, LevelFilter::INFO, false, Lines(outlet));
        tracing::subscriber::with_default(subscriber, || act(&LevelHandle(handle)));
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn the_level_changes_and_libraries_stay_quiet() {
        let text = logged(false, |level| {
            tracing::debug!("one");
            tracing::info!(target: "hyper", "two");
            tracing::warn!(target: "hyper", "three");
            level.set(LevelFilter::DEBUG);
            tracing::debug!("four");
            tracing::debug!(target: "hyper", "five");
            level.set(LevelFilter::ERROR);
            tracing::warn!("six");
        });
        let said: Vec<_> = text.lines().map(|line| line.rsplit_once(' ').unwrap().1).collect();
        assert_eq!(said, ["three", "four"]);
    }

    #[test]
    fn json_is_one_object_a_line() {
        let text = logged(true, |_| tracing::warn!(backend = "a", "it is \"out\"\nnow"));
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&line["message"], &line["backend"]), (&"it is \"out\"\nnow".into(), &"a".into()));
        assert_eq!(line["level"], "WARN");
    }

    #[test]
    fn text_keeps_one_event_on_one_line() {
        let text = logged(false, |_| tracing::warn!(path = "/a\r\nFAKE", "said"));
        assert_eq!(text.lines().count(), 1, "{text}");
    }
}
