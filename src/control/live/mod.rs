//! `check --live`: asks every configured backend once.

use std::{sync::Arc, time::Duration};

use super::{Answer, Ask, Engines, Fault, MODELS, ask, join_all, listing, unwell};
use crate::{
    config::{Backend, Config, Models},
    protocol::engine::Engine,
};

/// What one backend said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub backend: Arc<str>,
    pub found: Result<Found, Problem>,
}

/// A backend that answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    pub engine: Option<Engine>,
    /// `None` when it gave no list.
    pub models: Option<Vec<Arc<str>>>,
    /// Models that are configured and not on its list.
    pub missing: Vec<Arc<str>>,
}

/// Why a backend would get no calls.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    #[error("cannot be reached: {0}")]
    Unreachable(String),
    #[error("answers, and is not ready: {0}")]
    NotReady(String),
}

/// Asks all backends at once; in the order of the configuration.
pub async fn check<P>(config: &Config, engines: &Engines, probe: &P) -> Vec<Finding>
where
    P: AsyncFn(Ask) -> Result<Answer, Fault>,
{
    let timeout = config.health.timeout;
    join_all(config.backends.iter().map(async |backend| {
        let found = look(backend, config, engines, probe, timeout).await;
        Finding { backend: Arc::clone(&backend.name), found }
    }))
    .await
}

async fn look<P>(
    backend: &Arc<Backend>,
    config: &Config,
    engines: &Engines,
    probe: &P,
    timeout: Duration,
) -> Result<Found, Problem>
where
    P: AsyncFn(Ask) -> Result<Answer, Fault>,
{
    let unreachable = |fault: Fault| Problem::Unreachable(fault.to_string());
    let answer = ask(probe, backend, MODELS, timeout).await.map_err(unreachable)?;
    if answer.status.is_server_error() {
        return Err(Problem::NotReady(unwell(MODELS, &answer)));
    }
    let list = listing(probe, engines, backend, answer, timeout).await;
    if let Some(path) = config.health.path.as_deref().or(list.engine.map(engines.health_path)) {
        let answer = ask(probe, backend, path, timeout).await.map_err(unreachable)?;
        if answer.status.is_server_error() {
            return Err(Problem::NotReady(unwell(path, &answer)));
        }
    }
    let missing = match (&backend.models, &list.models) {
        (Models::List(wanted), Some(listed)) => wanted.iter().filter(|name| !listed.contains(name)).cloned().collect(),
        _ => Vec::new(),
    };
    Ok(Found { engine: list.engine, models: list.models, missing })
}

#[cfg(test)]
mod tests;
