//! One cell: what is asked, of which engine, what happens to it and where, and what must come of it.

use std::fmt;

use serde_json::{Value, json};
use sluicegate::sim::{Engine, Fault, Kind, Point, Source};

pub const ENGINES: [Engine; 3] = [Engine::Vllm, Engine::Sglang, Engine::LlamaCpp];
/// Tokens of every answer.
pub const TOKENS: u64 = 20;

/// What happens to the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blow {
    /// Every socket of the backend closes.
    Kill,
    /// RST on this connection.
    Reset,
    /// The backend stands still.
    Hang,
    /// An error event, and the terminator.
    ErrorEvent,
    /// `finish_reason: "abort"`, and the terminator.
    Abort,
    /// FIN within an event.
    CutEvent,
    /// An interruption notice.
    Notice,
}

impl Blow {
    pub const ALL: [Self; 7] =
        [Self::Kill, Self::Reset, Self::Hang, Self::ErrorEvent, Self::Abort, Self::CutEvent, Self::Notice];

    pub fn name(self) -> &'static str {
        match self {
            Self::Kill => "SIGKILL",
            Self::Reset => "reset",
            Self::Hang => "hang",
            Self::ErrorEvent => "error event",
            Self::Abort => "abort finish",
            Self::CutEvent => "cut in an event",
            Self::Notice => "notice",
        }
    }

    fn kind(self) -> Kind {
        match self {
            Self::Kill => Kind::Die,
            Self::Reset => Kind::Reset,
            Self::Hang => Kind::Freeze,
            Self::ErrorEvent => Kind::ErrorEvent,
            Self::Abort => Kind::Abort,
            Self::CutEvent => Kind::CutEvent,
            // It holds still there until the notice has come.
            Self::Notice => Kind::Stall,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    Chat,
    Completions,
    Responses,
    Messages,
}

impl Endpoint {
    pub const ALL: [Self; 4] = [Self::Chat, Self::Completions, Self::Responses, Self::Messages];

    pub fn name(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Completions => "completions",
            Self::Responses => "responses",
            Self::Messages => "messages",
        }
    }

    pub fn path(self) -> &'static str {
        match self {
            Self::Chat => "/v1/chat/completions",
            Self::Completions => "/v1/completions",
            Self::Responses => "/v1/responses",
            Self::Messages => "/v1/messages",
        }
    }
}

/// How the answer is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Plain,
    /// Its length is bounded: it ends with `length`.
    Stream,
    /// Usage is told; it ends by itself: with `stop`.
    StreamUsage,
}

impl Mode {
    pub const ALL: [Self; 3] = [Self::Plain, Self::Stream, Self::StreamUsage];

    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Stream => "stream",
            Self::StreamUsage => "stream with usage",
        }
    }
}

/// What else is special.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    Nothing,
    /// Ids come before their text: tokens end inside characters.
    SplitUtf8,
    /// It ends by a stop string that lies over two tokens.
    Stop,
    /// The engine does not tell token ids.
    NoIds,
    /// The backends have different engines.
    Mixed,
    /// The continuation is cut too.
    Twice,
}

impl Variant {
    /// All but the ordinary one.
    pub const SPECIAL: [Self; 5] = [Self::SplitUtf8, Self::Stop, Self::NoIds, Self::Mixed, Self::Twice];

    pub fn name(self) -> &'static str {
        match self {
            Self::Nothing => "",
            Self::SplitUtf8 => "ids before text",
            Self::Stop => "stop string",
            Self::NoIds => "no token ids",
            Self::Mixed => "mixed engines",
            Self::Twice => "cut twice",
        }
    }
}

#[derive(Clone, Debug)]
pub struct Cell {
    pub variant: Variant,
    pub engine: Engine,
    pub blow: Blow,
    pub endpoint: Endpoint,
    pub mode: Mode,
    pub point: Point,
    pub prompt: String,
}

/// What one cell came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The answer as it would have been.
    Exact,
    /// The client was told that it is not whole, how is in the words.
    Told(String),
    /// Something that must never be, in words.
    Wrong(String),
}

/// What must come of a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    Exact,
    /// Told in these words, or in any where there are none.
    Told(&'static str),
    /// Told, or exact where nothing had come: a reset throws away what was not read yet.
    Either(&'static str),
}

impl Expected {
    pub fn is_met_by(self, outcome: &Outcome) -> bool {
        match (self, outcome) {
            (Self::Exact | Self::Either(_), Outcome::Exact) => true,
            (Self::Told(words) | Self::Either(words), Outcome::Told(told)) => told.contains(words),
            _ => false,
        }
    }
}

/// Every cell there is.
pub fn all() -> Vec<Cell> {
    let mut cells = Vec::new();
    for engine in ENGINES {
        for blow in Blow::ALL {
            for endpoint in Endpoint::ALL {
                for mode in Mode::ALL {
                    for point in points(endpoint, mode) {
                        let (variant, prompt) = (Variant::Nothing, prompt(cells.len(), mode, Variant::Nothing));
                        cells.push(Cell { variant, engine, blow, endpoint, mode, point, prompt });
                    }
                }
            }
        }
    }
    for variant in Variant::SPECIAL {
        special(variant, &mut cells);
    }
    cells
}

/// Streams of each engine, cut in an event, under something special.
fn special(variant: Variant, cells: &mut Vec<Cell>) {
    let blow = Blow::CutEvent;
    for engine in ENGINES {
        for endpoint in Endpoint::ALL {
            // Responses have no stop strings.
            if (variant, endpoint) == (Variant::Stop, Endpoint::Responses) {
                continue;
            }
            for mode in [Mode::Stream, Mode::StreamUsage] {
                for point in points(endpoint, mode) {
                    let prompt = prompt(cells.len(), mode, variant);
                    cells.push(Cell { variant, engine, blow, endpoint, mode, point, prompt });
                }
            }
        }
    }
}

/// Before the head, before and after the first token, each tenth, before the finish, before usage, before the
/// terminator.
fn points(endpoint: Endpoint, mode: Mode) -> Vec<Point> {
    let mut points = vec![Point::Nothing, Point::Tokens(0), Point::Tokens(1)];
    points.extend((1..10).map(|tenth| Point::Tokens(TOKENS * tenth / 10)));
    points.extend([Point::Last, Point::Finish]);
    if mode == Mode::StreamUsage && matches!(endpoint, Endpoint::Chat | Endpoint::Completions) {
        points.push(Point::Usage);
    }
    points
}

/// A prompt whose answer ends by itself where the mode wants it, and that is tokenized as it was said: two line ends
/// in a row would be one token when they are read back, and the count of tokens one less.
pub fn prompt(cell: usize, mode: Mode, variant: Variant) -> String {
    let fits = |prompt: &String| {
        let source = Source::new(prompt, "sim", 0);
        let ends = source.natural();
        let by_itself = mode == Mode::StreamUsage && variant != Variant::Stop;
        let length = if by_itself { ends == TOKENS } else { ends > TOKENS + 4 };
        let line_end = |i| source.token(i).ends_with('\n');
        let stop = stop(&source);
        let stops = stop.chars().count() > 2 && source.text(TOKENS).find(&stop).is_some_and(|at| at > before(&source));
        length && (variant != Variant::Stop || stops) && !(0..TOKENS).any(|i| line_end(i) && line_end(i + 1))
    };
    (0..).map(|try_| format!("cell {cell}, try {try_}. Answer:")).find(fits).unwrap()
}

/// The last character of the last token but one, and the last token.
fn stop(source: &Source) -> String {
    let begin = source.token(TOKENS - 2).chars().next_back();
    begin.into_iter().collect::<String>() + source.token(TOKENS - 1)
}

/// Bytes before the last two tokens.
fn before(source: &Source) -> usize {
    source.text(TOKENS - 2).len()
}

impl Cell {
    /// The body of its request.
    pub fn body(&self) -> String {
        let most = if self.stops() { 100 } else { TOKENS };
        let turn = json!([{"role": "user", "content": self.prompt}]);
        let mut body = match self.endpoint {
            Endpoint::Chat => json!({"messages": turn, "max_tokens": most}),
            Endpoint::Completions => json!({"prompt": self.prompt, "max_tokens": most}),
            Endpoint::Responses => json!({"input": self.prompt, "max_output_tokens": most, "store": false}),
            Endpoint::Messages => json!({"messages": turn, "max_tokens": most}),
        };
        body["model"] = json!("sim");
        body["temperature"] = json!(0);
        body["stream"] = json!(self.mode != Mode::Plain);
        if self.tells_usage() && matches!(self.endpoint, Endpoint::Chat | Endpoint::Completions) {
            body["stream_options"] = json!({"include_usage": true});
        }
        if self.variant == Variant::Stop {
            let name = if self.endpoint == Endpoint::Messages { "stop_sequences" } else { "stop" };
            body[name] = json!(["never said", self.stop_string()]);
        }
        body.to_string()
    }

    /// The stop string that ends it.
    pub fn stop_string(&self) -> String {
        stop(&self.source())
    }

    fn source(&self) -> Source {
        Source::new(&self.prompt, "sim", 0)
    }

    fn tells_usage(&self) -> bool {
        self.mode == Mode::StreamUsage
    }

    /// The text that must come.
    pub fn text(&self) -> String {
        let text = self.source().text(TOKENS);
        match self.variant {
            Variant::Stop => text[..text.len() - self.stop_string().len()].to_owned(),
            _ => text,
        }
    }

    /// Whether it ends by itself.
    pub fn stops(&self) -> bool {
        self.mode == Mode::StreamUsage || self.variant == Variant::Stop
    }

    /// Usage that must be told: tokens of the prompt and of the answer. `None`: none must be.
    pub fn usage(&self) -> Option<(u64, u64)> {
        let told = self.mode != Mode::Stream || matches!(self.endpoint, Endpoint::Responses | Endpoint::Messages);
        told.then(|| self.counts())
    }

    /// Tokens of the prompt and of the answer.
    pub fn counts(&self) -> (u64, u64) {
        (1 + self.prompt.len().div_ceil(3) as u64, TOKENS)
    }

    /// Whether its engine tells usage to who did not ask for it.
    pub fn tells_unasked(&self) -> bool {
        let llamacpp = self.engine == Engine::LlamaCpp || self.variant == Variant::Mixed;
        llamacpp && self.endpoint == Endpoint::Completions
    }

    /// Tokens by which the answer's count may be wrong when it goes on by text: an engine counts both parts of a token
    /// that was cut in two, and those of a stop string are not among what was delivered.
    pub fn slack(&self) -> u64 {
        u64::from(self.variant == Variant::Stop)
    }

    /// Whether the engine says which stop string it was.
    pub fn names_stop(&self) -> bool {
        self.engine != Engine::LlamaCpp
    }

    /// What is done to the sims: it strikes whichever of them is asked first.
    pub fn faults(&self) -> Vec<Fault> {
        let first = Fault::new(self.blow.kind()).at(self.point).with(&self.prompt).once();
        match self.variant {
            // What goes on by ids does not show its prompt.
            Variant::Twice => vec![first, Fault::new(Kind::CleanFin).after(3).on("/v1/").once()],
            _ => vec![first],
        }
    }

    /// What must come of it.
    pub fn expected(&self) -> Expected {
        if self.mode != Mode::Plain || self.point == Point::Nothing && self.blow != Blow::Abort {
            return match (self.mode, self.blow) {
                // What it answered is an answer.
                (_, Blow::ErrorEvent) if self.point == Point::Nothing => Expected::Told("status 500"),
                _ => Expected::Exact,
            };
        }
        match self.blow {
            // Nothing of a plain answer is there before all of it is.
            Blow::Kill | Blow::Hang | Blow::Notice => Expected::Exact,
            Blow::Reset => Expected::Either("cut"),
            Blow::CutEvent => Expected::Told("cut"),
            Blow::ErrorEvent => Expected::Told("status 500"),
            Blow::Abort => Expected::Told("abort"),
        }
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (endpoint, mode) = (self.endpoint.name(), self.mode.name());
        let (blow, variant) = (self.blow.name(), self.variant.name());
        write!(f, "{:?}, {endpoint}, {mode}, {blow} after {} {variant}", self.engine, self.point)
    }
}

/// `body` as JSON, or what it is instead.
pub fn parsed(data: &str) -> Result<Value, String> {
    serde_json::from_str(data).map_err(|error| format!("{error}: {data}"))
}

/// A time in seconds since 1970 as RFC 3339 writes it (H. Hinnant, chrono-Compatible Low-Level Date Algorithms).
pub fn rfc3339(unix: u64) -> String {
    let (days, rest) = (unix / 86_400, unix % 86_400);
    let z = days + 719_468;
    let (era, of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let day_of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let (year, month) = match month {
        0..10 => (year_of_era + era * 400, month + 3),
        _ => (year_of_era + era * 400 + 1, month - 9),
    };
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3_600, rest / 60 % 60, rest % 60)
}
