//! Faults on cue: what goes wrong, when, and how often.
//!
//! A fault is written as `kind[,after=POINT][,times=N][,p=SHARE][,ms=N][,path=PREFIX][,text=PART]` on the command line
//! (`die-after=20` is short for `die,after=20`) and as `{"fault":"kind","after_tokens":…,"after":"…","times":…,
//! "probability":…,"ms":…,"path":"…","text":"…"}` at `POST /sim/fault`. POINT is a number of tokens, or `nothing`,
//! `last`, `finish`, `usage` ([`Point`]). Without `times` a flag lasts for ever, an order at the control endpoint
//! once. The first fault in the list that fits a request is used up by it.

use std::{
    fmt,
    str::FromStr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use serde_json::Value;

use super::generate::mix;

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The whole backend dies after `after` tokens: every socket closes, nothing listens until it is revived.
    Die,
    /// RST: before the head, or after `after` tokens.
    Reset,
    /// The request is read and nothing is ever sent (until released).
    Hang,
    /// Silence after `after` tokens (until released).
    Stall,
    /// 503 in the engine's shape.
    Unavailable,
    /// 429 with `Retry-After: 1`.
    TooMany,
    /// An empty 500: what vLLM sends when its engine is dead.
    Empty500,
    /// New connections are refused for `ms`; the request in hand is reset.
    Refuse,
    /// Health answers come after `ms`.
    SlowHealth,
    /// Health answers 503, "Loading model".
    Loading,
    /// FIN in the middle of the event after `after` tokens.
    CutEvent,
    /// FIN between events, without the last chunk, after `after` tokens: what a SIGKILL looks like.
    CleanFin,
    /// The body is shorter than its content-length, then FIN.
    ShortBody,
    /// More bytes come than content-length says.
    LongBody,
    /// A head that is not HTTP.
    BadHead,
    /// A head of 4 MiB.
    HeaderBomb,
    /// 100,000 interim answers.
    InterimBomb,
    /// An error event after `after` tokens, then `[DONE]`, then a clean end.
    ErrorEvent,
    /// The answer ends after `after` tokens with finish reason `abort`.
    Abort,
    /// The answer is whole; the kept-alive connection is closed when its next request comes.
    SilentClose,
    /// The whole backend stands still after `after` tokens, as after SIGSTOP, until it is thawed.
    Freeze,
}

/// Where in an answer a fault strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// Before the head: nothing is sent.
    Nothing,
    /// After what opens a stream and so many tokens; at the latest before the finish.
    Tokens(u64),
    /// When all is said but the finish. Where the finish rides with the last token: before that token.
    Last,
    /// After the finish; what comes behind it is missing: usage, the terminator.
    Finish,
    /// After usage, where it was asked for; the terminator is missing.
    Usage,
}

impl Point {
    const NAMES: [(&str, Self); 4] =
        [("nothing", Self::Nothing), ("last", Self::Last), ("finish", Self::Finish), ("usage", Self::Usage)];
}

impl FromStr for Point {
    type Err = String;

    fn from_str(written: &str) -> Result<Self, String> {
        match Self::NAMES.iter().find(|(name, _)| *name == written) {
            Some((_, point)) => Ok(*point),
            None => number(written).map(Self::Tokens),
        }
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self, Self::NAMES.iter().find(|(_, point)| point == self)) {
            (Self::Tokens(tokens), _) => write!(f, "{tokens}"),
            (_, Some((name, _))) => f.write_str(name),
            (_, None) => Ok(()),
        }
    }
}

/// Makes a fault that several sims know strike only one of them, whichever is first.
#[derive(Clone, Debug, Default)]
pub struct Once(Arc<AtomicBool>);

impl Once {
    fn is_spent(&self) -> bool {
        self.0.load(Relaxed)
    }

    fn spend(&self) -> bool {
        !self.0.swap(true, Relaxed)
    }
}

/// The same one, not one in the same state.
impl PartialEq for Once {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// One fault and when it strikes.
#[derive(Clone, Debug, PartialEq)]
pub struct Fault {
    pub kind: Kind,
    /// What is sent first.
    pub after: Point,
    /// How many more requests it strikes; `None` = for ever.
    pub times: Option<u64>,
    /// Share of the fitting requests it strikes, by seed.
    pub probability: f64,
    /// Its length, where it has one.
    pub lasts: Duration,
    /// Strikes only paths that begin so; by default all but health, metrics, model lists and `/sim/`.
    pub path: Option<String>,
    /// Strikes only requests whose body has this in it.
    pub text: Option<String>,
    /// Strikes once in all, over every sim that has it.
    pub once: Option<Once>,
}

impl Fault {
    /// Strikes every request, before its first token; a reset before its head.
    pub fn new(kind: Kind) -> Self {
        let after = if kind == Kind::Reset { Point::Nothing } else { Point::Tokens(0) };
        let lasts = Duration::from_secs(1);
        Self { kind, after, times: None, probability: 1.0, lasts, path: None, text: None, once: None }
    }

    /// Strikes after so many tokens.
    #[must_use]
    pub fn after(mut self, tokens: u64) -> Self {
        self.after = Point::Tokens(tokens);
        self
    }

    /// Strikes there.
    #[must_use]
    pub fn at(mut self, point: Point) -> Self {
        self.after = point;
        self
    }

    /// Strikes only requests whose body has `text` in it.
    #[must_use]
    pub fn with(mut self, text: &str) -> Self {
        self.text = Some(text.to_owned());
        self
    }

    /// Strikes once in all, over every sim that gets a clone of it.
    #[must_use]
    pub fn once(mut self) -> Self {
        self.once = Some(Once::default());
        self
    }

    /// Strikes so many requests.
    #[must_use]
    pub fn times(mut self, times: u64) -> Self {
        self.times = Some(times);
        self
    }

    /// Lasts so long.
    #[must_use]
    pub fn lasts(mut self, time: Duration) -> Self {
        self.lasts = time;
        self
    }

    /// Strikes only paths that begin so.
    #[must_use]
    pub fn on(mut self, path: &str) -> Self {
        self.path = Some(path.to_owned());
        self
    }

    /// Reads the form of `POST /sim/fault`.
    ///
    /// # Errors
    /// What is wrong with it, as a sentence.
    pub fn from_json(order: &Value) -> Result<Self, String> {
        let name = order["fault"].as_str().ok_or("\"fault\" must name one")?;
        let mut fault: Self = name.parse()?;
        fault.times = Some(order["times"].as_u64().unwrap_or(1));
        fault.after = order["after_tokens"].as_u64().map_or(fault.after, Point::Tokens);
        if let Some(point) = order["after"].as_str() {
            fault.after = point.parse()?;
        }
        fault.probability = order["probability"].as_f64().unwrap_or(1.0);
        fault.lasts = order["ms"].as_u64().map_or(fault.lasts, Duration::from_millis);
        fault.path = order["path"].as_str().map(str::to_owned);
        fault.text = order["text"].as_str().map(str::to_owned);
        Ok(fault)
    }

    fn is_spent(&self) -> bool {
        self.once.as_ref().is_some_and(Once::is_spent)
    }

    fn fits(&self, path: &str, body: &[u8]) -> bool {
        let has = |text: &String| memchr::memmem::find(body, text.as_bytes()).is_some();
        self.text.as_ref().is_none_or(has) && self.is_for(path)
    }

    fn is_for(&self, path: &str) -> bool {
        match &self.path {
            Some(prefix) => path.starts_with(prefix.as_str()),
            None if self.kind.is_of_health() => is_health(path),
            None => !is_health(path) && !is_watched(path),
        }
    }
}

fn is_health(path: &str) -> bool {
    matches!(path, "/health" | "/v1/health" | "/health_generate" | "/ready" | "/ping")
}

fn is_watched(path: &str) -> bool {
    path.starts_with("/sim/")
        || path.starts_with("/v1/models")
        || matches!(path, "/metrics" | "/models" | "/version" | "/props" | "/get_model_info" | "/model_info" | "/slots")
}

/// Names as written, in the order of the documentation.
const NAMES: [(&str, Kind); 21] = [
    ("die", Kind::Die),
    ("reset", Kind::Reset),
    ("hang", Kind::Hang),
    ("stall", Kind::Stall),
    ("503", Kind::Unavailable),
    ("429", Kind::TooMany),
    ("empty-500", Kind::Empty500),
    ("refuse", Kind::Refuse),
    ("slow-health", Kind::SlowHealth),
    ("loading", Kind::Loading),
    ("cut-event", Kind::CutEvent),
    ("clean-fin", Kind::CleanFin),
    ("short-body", Kind::ShortBody),
    ("long-body", Kind::LongBody),
    ("bad-head", Kind::BadHead),
    ("header-bomb", Kind::HeaderBomb),
    ("interim-bomb", Kind::InterimBomb),
    ("error-event", Kind::ErrorEvent),
    ("abort", Kind::Abort),
    ("silent-close", Kind::SilentClose),
    ("freeze", Kind::Freeze),
];

impl Kind {
    fn is_of_health(self) -> bool {
        matches!(self, Self::SlowHealth | Self::Loading)
    }

    /// Its name as written.
    pub fn name(self) -> &'static str {
        NAMES.iter().find(|(_, kind)| *kind == self).map_or("?", |(name, _)| name)
    }

    fn parse(name: &str) -> Result<Self, String> {
        NAMES.iter().find(|(known, _)| *known == name).map(|(_, kind)| *kind).ok_or_else(|| {
            let known: Vec<_> = NAMES.iter().map(|(name, _)| *name).collect();
            format!("unknown fault `{name}`; there are {}", known.join(", "))
        })
    }
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(written: &str) -> Result<Self, String> {
        let mut parts = written.split(',');
        let first = parts.next().unwrap_or_default();
        let mut fault = match first.split_once("-after=") {
            Some((name, point)) => Self::new(Kind::parse(name)?).at(point.parse()?),
            None => Self::new(Kind::parse(first)?),
        };
        for part in parts {
            let (key, value) = part.split_once('=').ok_or_else(|| format!("`{part}` is not key=value"))?;
            match key {
                "after" => fault.after = value.parse()?,
                "times" => fault.times = Some(number(value)?),
                "p" => {
                    fault.probability = value.parse().map_err(|_| format!("`{value}` is not a share from 0 to 1"))?
                }
                "ms" => fault.lasts = Duration::from_millis(number(value)?),
                "path" => fault.path = Some(value.to_owned()),
                "text" => fault.text = Some(value.to_owned()),
                _ => return Err(format!("unknown key `{key}`; there are after, times, p, ms, path, text")),
            }
        }
        Ok(fault)
    }
}

fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("`{text}` is not a whole number"))
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{},after={},p={},ms={}", self.kind.name(), self.after, self.probability, self.lasts.as_millis())?;
        if let Some(times) = self.times {
            write!(f, ",times={times}")?;
        }
        if let Some(path) = &self.path {
            write!(f, ",path={path}")?;
        }
        if let Some(text) = &self.text {
            write!(f, ",text={text}")?;
        }
        Ok(())
    }
}

/// The faults that are due.
#[derive(Debug)]
pub(crate) struct Script {
    seed: u64,
    list: Mutex<List>,
}

#[derive(Debug, Default)]
struct List {
    faults: Vec<Fault>,
    drawn: u64,
}

/// Bounds what the control endpoint can pile up.
const MOST: usize = 1024;

impl Script {
    pub(crate) fn new(faults: Vec<Fault>, seed: u64) -> Self {
        Self { seed, list: Mutex::new(List { faults, drawn: 0 }) }
    }

    /// Puts one at the end of the list; `false` when the list is full.
    pub(crate) fn add(&self, fault: Fault) -> bool {
        let mut list = self.lock();
        list.faults.retain(|known| !known.is_spent());
        let room = list.faults.len() < MOST;
        if room {
            list.faults.push(fault);
        }
        room
    }

    pub(crate) fn clear(&self) {
        self.lock().faults.clear();
    }

    /// As they are written, for `GET /sim/fault`.
    pub(crate) fn written(&self) -> Vec<String> {
        self.lock().faults.iter().map(ToString::to_string).collect()
    }

    /// The fault that strikes this request, used up by one.
    pub(crate) fn strike(&self, path: &str, body: &[u8]) -> Option<Fault> {
        let mut list = self.lock();
        if list.faults.is_empty() {
            return None;
        }
        let (seed, mut drawn) = (self.seed, list.drawn);
        let at = list.faults.iter().position(|fault| {
            let struck = fault.fits(path, body) && {
                drawn += 1;
                (mix(seed ^ mix(drawn)) as f64 / u64::MAX as f64) < fault.probability || fault.probability >= 1.0
            };
            struck && fault.once.as_ref().is_none_or(Once::spend)
        });
        list.drawn = drawn;
        let at = at?;
        let fault = list.faults[at].clone();
        match &mut list.faults[at].times {
            Some(times) if *times <= 1 => drop(list.faults.remove(at)),
            Some(times) => *times -= 1,
            None => {}
        }
        Some(fault)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, List> {
        self.list.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        for (name, kind) in NAMES {
            let fault: Fault = name.parse().unwrap();
            assert_eq!(fault.kind, kind);
            assert_eq!(fault.to_string().parse::<Fault>().unwrap(), fault);
        }
        assert_eq!("die-after=20".parse::<Fault>().unwrap(), Fault::new(Kind::Die).after(20));
        let full: Fault = "stall,after=3,times=2,p=0.5,ms=40,path=/v1/chat".parse().unwrap();
        assert_eq!((full.times, full.probability, full.lasts.as_millis()), (Some(2), 0.5, 40));
        assert_eq!((full.after, full.path.as_deref()), (Point::Tokens(3), Some("/v1/chat")));
        for (name, point) in Point::NAMES {
            let fault: Fault = format!("die-after={name},text=x").parse().unwrap();
            assert_eq!((fault.after, fault.text.as_deref()), (point, Some("x")));
            assert_eq!(fault.to_string().parse::<Fault>().unwrap(), fault);
        }
    }

    #[test]
    fn mistakes_are_named() {
        assert!("dye".parse::<Fault>().unwrap_err().contains("there are die, reset"));
        assert!("die-after=x".parse::<Fault>().unwrap_err().contains("`x` is not a whole number"));
        assert!("die,often=1".parse::<Fault>().unwrap_err().contains("unknown key `often`"));
    }

    #[test]
    fn a_fault_strikes_its_paths_so_many_times() {
        let script = Script::new(vec![Fault::new(Kind::Reset).times(2), Fault::new(Kind::Loading)], 0);
        assert_eq!(script.strike("/health", b"").unwrap().kind, Kind::Loading);
        assert_eq!(script.strike("/v1/models", b""), None);
        assert!(script.strike("/v1/chat/completions", b"").is_some());
        assert!(script.strike("/anything", b"").is_some());
        assert!(script.strike("/anything", b"").is_none());
    }

    #[test]
    fn one_that_several_know_strikes_once_and_only_what_it_names() {
        let fault = Fault::new(Kind::Die).with("cell 7").once();
        let (one, two) = (Script::new(vec![fault.clone()], 0), Script::new(vec![fault.clone()], 0));
        assert!(one.strike("/x", b"cell 8").is_none());
        assert!(two.strike("/x", b"a cell 7 b").is_some());
        assert!(one.strike("/x", b"cell 7").is_none() && two.strike("/x", b"cell 7").is_none());
        one.add(Fault::new(Kind::Die));
        assert_eq!(one.written().len(), 1);
    }

    #[test]
    fn chance_repeats_itself_by_seed() {
        let mut half = Fault::new(Kind::Reset);
        half.probability = 0.5;
        let (one, two) = (Script::new(vec![half.clone()], 9), Script::new(vec![half], 9));
        let hits: Vec<bool> = (0..200).map(|_| one.strike("/x", b"").is_some()).collect();
        assert_eq!(hits, (0..200).map(|_| two.strike("/x", b"").is_some()).collect::<Vec<_>>());
        assert!((60..140).contains(&hits.iter().filter(|hit| **hit).count()));
    }
}
