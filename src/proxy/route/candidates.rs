//! Who may take a call: the backend it is pinned to, or those that serve its model.

use std::sync::Arc;

use crate::{
    error::{Error, Kind},
    fleet::{Backend, Pools, Snapshot},
    proxy::call::Call,
};

/// Model names told in an error, at most.
const TOLD: usize = 20;

/// Who may take a call.
#[derive(Debug)]
pub(super) enum Candidates<'a> {
    /// This one alone holds the state the call refers to.
    Pinned(&'a Arc<Backend>),
    Any(&'a Pools),
    /// The model is on nobody's list and nobody may serve it unlisted.
    UnknownModel,
    /// Nobody could be tried: none configured, or all are draining.
    Nobody,
}

/// Looks up who may take `call`; the cost does not depend on the number of backends.
pub(super) fn of<'a>(snapshot: &'a Snapshot, call: &Call) -> Candidates<'a> {
    if let Some(name) = &call.pinned {
        return match snapshot.backend(name) {
            Some(backend) => Candidates::Pinned(backend),
            None => Candidates::Nobody,
        };
    }
    let listed = snapshot.candidates(call.model.as_deref());
    let unlisted = snapshot.unlisted();
    match listed {
        Some(pools) if !pools.every.all.is_empty() => Candidates::Any(pools),
        // Whoever lists it is out: one that may serve it is better than one that cannot.
        _ if !unlisted.every.all.is_empty() => Candidates::Any(unlisted),
        Some(pools) if !pools.out.is_empty() => Candidates::Any(pools),
        _ if !unlisted.out.is_empty() => Candidates::Any(unlisted),
        None if snapshot.known() && !snapshot.backends.is_empty() => Candidates::UnknownModel,
        _ => Candidates::Nobody,
    }
}

/// Whether the model lists should be read again before `call` is answered by us or by one that is out.
pub(super) fn wants_refresh(snapshot: &Snapshot, call: &Call) -> bool {
    call.pinned.is_none()
        && snapshot.unlisted().every.all.is_empty()
        && !snapshot.backends.is_empty()
        && call.model.as_deref().is_some_and(|model| snapshot.candidates(Some(model)).is_none())
}

/// No such model, and all lists are known.
pub(super) fn model_not_found(snapshot: &Snapshot, model: &str) -> Error {
    let names = snapshot.model_names();
    let told: Vec<_> = names.iter().take(TOLD).map(|name| &**name).collect();
    let mut exist = match told.is_empty() {
        true => "no backend lists any model".to_owned(),
        false => format!("these exist: {}", told.join(", ")),
    };
    if names.len() > TOLD {
        exist.push_str(&format!(" and {} more (see /v1/models)", names.len() - TOLD));
    }
    Error::new(Kind::ModelNotFound, format!("the model `{}` does not exist; {exist}", shown(model))).param("model")
}

/// A client may call a model anything, at any length.
fn shown(model: &str) -> &str {
    &model[..model.floor_char_boundary(128)]
}

/// Nobody can be tried.
pub(super) fn nobody(snapshot: &Snapshot, call: &Call) -> Error {
    if let Some(name) = &call.pinned {
        let text = format!("backend {name}, which issued this response id, is no longer part of this gateway");
        return Error::new(Kind::ResponseNotFound, text);
    }
    let text = match (snapshot.backends.len(), &call.model) {
        (0, _) => "no backend is configured".to_owned(),
        (count, None) => format!("all {count} backends are draining; try again later"),
        (_, Some(model)) => {
            format!("every backend that may serve `{}` is draining; try again later", shown(model))
        }
    };
    Error::new(Kind::NoHealthyBackend, text).after(std::time::Duration::from_secs(5))
}
