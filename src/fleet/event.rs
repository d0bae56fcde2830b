//! What happened to the fleet, for the log and the admin plane.

use std::{fmt, sync::Arc};

use super::health::State;
use crate::protocol::engine::Engine;

/// One change at one backend.
#[derive(Clone, Debug)]
pub struct FleetEvent {
    pub backend: Arc<str>,
    pub change: Change,
    /// Why, as a person would say it.
    pub reason: Arc<str>,
}

/// What changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Joined,
    Left,
    State {
        from: State,
        to: State,
    },
    Engine(Engine),
    /// So many models are on its list now.
    Models(usize),
}

impl fmt::Display for FleetEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { backend, change, reason } = self;
        match change {
            Change::Joined => write!(f, "backend {backend} joined: {reason}"),
            Change::Left => write!(f, "backend {backend} left: {reason}"),
            Change::State { from, to } => write!(f, "backend {backend} is {to}, was {from}: {reason}"),
            Change::Engine(engine) => write!(f, "backend {backend} runs {engine:?}: {reason}"),
            Change::Models(count) => write!(f, "backend {backend} serves {count} models: {reason}"),
        }
    }
}
