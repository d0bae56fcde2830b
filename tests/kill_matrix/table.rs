//! The matrix as a table of Markdown.

use std::{fmt, path::Path};

use super::cell::{Blow, Cell, ENGINES, Endpoint, Expected, Mode, Outcome, Variant};

/// For each engine and blow: how many of its cells were exact, by endpoint and mode.
pub struct Table(String);

impl Table {
    pub fn of(outcomes: &[(Cell, Outcome)]) -> Self {
        let mut text = String::from(INTRODUCTION);
        for mode in Mode::ALL {
            text += &format!("\n### {}\n\n| engine | blow |", mode.name());
            text.extend(Endpoint::ALL.iter().map(|endpoint| format!(" {} |", endpoint.name())));
            text += "\n|---|---|";
            text += &"--:|".repeat(Endpoint::ALL.len());
            text += "\n";
            for engine in ENGINES {
                for blow in Blow::ALL {
                    text += &format!("| {} | {} |", format!("{engine:?}").to_lowercase(), blow.name());
                    for endpoint in Endpoint::ALL {
                        let of = |(cell, _): &&(Cell, Outcome)| {
                            cell.variant == Variant::Nothing
                                && (cell.engine, cell.blow, cell.endpoint, cell.mode) == (engine, blow, endpoint, mode)
                        };
                        text += &format!(" {} |", summary(outcomes.iter().filter(of)));
                    }
                    text += "\n";
                }
            }
        }
        text += SPECIAL;
        for variant in Variant::SPECIAL {
            for engine in ENGINES {
                text += &format!("| {} | {} |", variant.name(), format!("{engine:?}").to_lowercase());
                for endpoint in Endpoint::ALL {
                    let of = |(cell, _): &&(Cell, Outcome)| {
                        (cell.variant, cell.engine, cell.endpoint) == (variant, engine, endpoint)
                    };
                    text += &format!(" {} |", summary(outcomes.iter().filter(of)));
                }
                text += "\n";
            }
        }
        Self(text)
    }

    /// It must be the committed one; `SLUICEGATE_BLESS=1` makes it so.
    pub fn compare(&self) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/kill-matrix.md");
        if std::env::var_os("SLUICEGATE_BLESS").is_some_and(|bless| bless == "1") {
            std::fs::write(&path, &self.0).unwrap();
        }
        let committed = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(committed == self.0, "docs/kill-matrix.md is not this table: run with SLUICEGATE_BLESS=1");
    }
}

const INTRODUCTION: &str = "\
# The kill matrix

Made by `cargo test --test kill_matrix`, which runs every cell: a gateway in front of two simulated engines, one answer
of 20 tokens, one blow at one place in it. The places: before the head; after the head and 0, 1, 2, 4, … 18 tokens;
before the finish; between the finish and the terminator; where usage is told, also before and after it. *14/14* means
that at every place the client saw the same text, finish, usage, id, model and order of events as without the blow.
*told* counts the places at which it saw an honest end instead: of a plain answer that had begun to come, a body that is
visibly cut; or the error of the engine, passed on.
";

const SPECIAL: &str = "
### Under something special

Streams, with and without usage, cut in an event. *ids before text*: tokens end inside characters. *stop string*: the
answer ends by one that lies over two tokens; an answer that goes on by text from inside a token may count one token
more, or one less where the string's own were not delivered; llama.cpp's chat does not tell which stop string it was, so a message that goes on there ends in `end_turn`. *no token ids*: the engine refuses to tell them. *mixed engines*: the
backends are a vLLM, an SGLang and a llama.cpp. *cut twice*: the continuation is cut after three tokens of its own.

| | engine | chat | completions | responses | messages |
|---|---|--:|--:|--:|--:|
";

fn summary<'a>(outcomes: impl Iterator<Item = &'a (Cell, Outcome)>) -> String {
    let (mut exact, mut told, mut wrong) = (0, 0, 0);
    for (cell, outcome) in outcomes {
        match outcome {
            // Which of them it is depends on what was read before the reset: counted as the lesser.
            Outcome::Exact if matches!(cell.expected(), Expected::Either(_)) => told += 1,
            Outcome::Exact => exact += 1,
            Outcome::Told(_) => told += 1,
            Outcome::Wrong(_) => wrong += 1,
        }
    }
    if exact + told + wrong == 0 {
        return String::new();
    }
    let mut text = format!("{exact}/{}", exact + told + wrong);
    if told > 0 {
        text += &format!(", {told} told");
    }
    if wrong > 0 {
        text += &format!(", {wrong} WRONG");
    }
    text
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
