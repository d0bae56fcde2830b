//! What became of cut streams, counted.

use std::{collections::HashMap, time::Duration};

use metrics::{Counter, Histogram};

use super::refusal::Refusal;
use crate::telemetry::metrics::{Name, Table};

/// Ways of going on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// From the ids of the tokens.
    Tokens,
    /// From the text.
    Text,
    /// From the beginning: nothing had been said.
    Restart,
    /// Nothing was left to be said: only the end was missing.
    End,
}

/// Why a stream had to go on elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// Its backend failed.
    Cut,
    /// Its backend's machine will be taken away.
    Move,
}

/// Handles of one worker's table.
#[derive(Debug)]
pub struct Counters {
    resumed: Vec<Counter>,
    refused: HashMap<&'static str, Counter>,
    kept: Counter,
    gap: Histogram,
}

impl Mode {
    const ALL: [Self; 4] = [Self::Tokens, Self::Text, Self::Restart, Self::End];

    /// In logs and metrics.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Tokens => "tokens",
            Self::Text => "text",
            Self::Restart => "restart",
            Self::End => "end",
        }
    }
}

impl Why {
    const ALL: [Self; 2] = [Self::Cut, Self::Move];

    /// In logs and metrics.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Cut => "cut",
            Self::Move => "move",
        }
    }
}

impl Counters {
    /// Registers every series in `table`.
    pub fn new(table: &Table) -> Self {
        let resumed = Why::ALL
            .iter()
            .flat_map(|why| Mode::ALL.iter().map(move |mode| (why, mode)))
            .map(|(why, mode)| table.counter(Name::Resumes, &[("cause", why.name()), ("mode", mode.name())]))
            .collect();
        let refused = Refusal::ALL
            .iter()
            .map(|refusal| (refusal.label(), table.counter(Name::ResumesRefused, &[("reason", refusal.label())])))
            .collect();
        Self {
            resumed,
            refused,
            kept: table.counter(Name::ResumeTokensKept, &[]),
            gap: table.histogram(Name::ResumeGap, &[]),
        }
    }

    /// A stream went on, `gap` after it had stopped, and need not compute `kept` tokens again.
    pub(super) fn resumed(&self, why: Why, mode: Mode, kept: u64, gap: Duration) {
        self.resumed[why as usize * Mode::ALL.len() + mode as usize].increment(1);
        self.kept.increment(kept);
        self.gap.record(gap);
    }

    /// A stream ended where it was cut.
    pub(super) fn refused(&self, refusal: Refusal) {
        if let Some(counter) = self.refused.get(refusal.label()) {
            counter.increment(1);
        }
    }
}
