//! What happened to the fleet, for the log and the admin plane.

use std::{fmt, sync::Arc, time::Duration};

use super::{health::State, interruption::Action};
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
    /// Its machine goes (or may go), in so long.
    Interruption {
        action: Action,
        left: Option<Duration>,
    },
    /// It does not go after all.
    Withdrawn,
    /// Others of its zone go, so that it may be next; or not any more.
    Wary(bool),
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
            Change::Interruption { action, left: Some(left) } => {
                write!(f, "backend {backend} has notice to {action} in {} s: {reason}", left.as_secs())
            }
            Change::Interruption { action, left: None } => {
                write!(f, "backend {backend} has a hint to {action}: {reason}")
            }
            Change::Wary(true) => write!(f, "backend {backend} is the second choice: {reason}"),
            Change::Wary(false) => write!(f, "backend {backend} is not the second choice any more: {reason}"),
            Change::Withdrawn => write!(f, "backend {backend} has no notice any more: {reason}"),
        }
    }
}
