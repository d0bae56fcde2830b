//! The fleet at one moment, sorted for routing: looking up the backends of a model costs the same for two and for
//! two hundred. Built anew when a state, a model list or the configuration changes, never per request.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI32},
    },
};

use super::{Backend, models::Models};
use crate::{config::Capacity, runtime::hash::Quick};

/// What routing reads.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// In the order of the configuration.
    pub backends: Vec<Arc<Backend>>,
    /// Where this gateway runs.
    pub zone: Option<Arc<str>>,
    by_name: HashMap<Arc<str>, Arc<Backend>>,
    by_model: HashMap<Arc<str>, Pools, Quick>,
    /// For calls that name no model.
    any: Pools,
    /// For a model on nobody's list: who may serve it all the same.
    unlisted: Pools,
    names: Vec<Arc<str>>,
    known: bool,
}

/// The backends that may serve one model.
#[derive(Debug, Default)]
pub struct Pools {
    pub reserved: Pool,
    pub spot: Pool,
    pub on_demand: Pool,
    /// The three above together.
    pub every: Pool,
    /// Usable, but their machines may go: the second choice. When there is no first, they stand in the pools above
    /// and not here.
    pub hinted: Vec<Arc<Backend>>,
    /// Those that are out: unhealthy, or taken out by their breaker. Draining ones are nowhere.
    pub out: Vec<Arc<Backend>>,
    /// Outlives this snapshot.
    pub lean: Arc<Lean>,
}

/// What routing remembers of a model between calls, over all workers.
#[derive(Debug, Default)]
pub struct Lean {
    /// The preferred class was over its share; it is left alone until well below.
    pub spilled: AtomicBool,
    /// What `on_demand_share` is owed, in thousandths of a call.
    pub owed: AtomicI32,
}

/// Usable backends of one kind.
#[derive(Debug, Default)]
pub struct Pool {
    /// Those in the gateway's own zone; empty when it has none.
    pub near: Vec<Arc<Backend>>,
    /// All, the near ones included.
    pub all: Vec<Arc<Backend>>,
}

// === impl Snapshot ===

impl Snapshot {
    pub(super) fn build(backends: Vec<Arc<Backend>>, own: Option<&Arc<str>>, before: &Self) -> Self {
        let zone = own.map(|zone| &**zone);
        let mut snapshot = Self { known: true, ..Self::default() };
        snapshot.any.lean = Arc::clone(&before.any.lean);
        snapshot.unlisted.lean = Arc::clone(&before.unlisted.lean);
        let lists: Vec<_> = backends.iter().map(|backend| backend.models().clone()).collect();
        let mut names: Vec<_> = lists.iter().flat_map(|models| models.names()).cloned().collect();
        names.sort_unstable();
        names.dedup();
        snapshot.by_model = names
            .iter()
            .map(|name| {
                let lean = before.by_model.get(name).map(|pools| Arc::clone(&pools.lean)).unwrap_or_default();
                (Arc::clone(name), Pools { lean, ..Pools::default() })
            })
            .collect();
        for (backend, models) in backends.iter().zip(&lists) {
            snapshot.by_name.insert(Arc::clone(backend.name()), Arc::clone(backend));
            snapshot.known &= **models != Models::Unknown;
            snapshot.any.add(backend, zone);
            match &**models {
                // A list that could not be read says nothing against a model, but a backend that lists it is better.
                Models::Unknown => snapshot.unlisted.add(backend, zone),
                Models::Any => {
                    snapshot.unlisted.add(backend, zone);
                    snapshot.by_model.values_mut().for_each(|pools| pools.add(backend, zone));
                }
                Models::Known(names) => {
                    for name in names {
                        snapshot.by_model.entry(Arc::clone(name)).or_default().add(backend, zone);
                    }
                }
            }
        }
        let Self { any, unlisted, by_model, .. } = &mut snapshot;
        by_model.values_mut().chain([any, unlisted]).for_each(|pools| pools.fall_back(zone));
        snapshot.names = names;
        snapshot.backends = backends;
        snapshot.zone = own.cloned();
        snapshot
    }

    /// Who may serve `model` (or any call, without one); `None` when its name is on no list.
    pub fn candidates(&self, model: Option<&str>) -> Option<&Pools> {
        match model {
            None => Some(&self.any),
            Some(model) => self.by_model.get(model),
        }
    }

    /// Who may serve a model that is on no list: lists unknown, or configured as `any`.
    pub fn unlisted(&self) -> &Pools {
        &self.unlisted
    }

    /// A backend by its name.
    pub fn backend(&self, name: &str) -> Option<&Arc<Backend>> {
        self.by_name.get(name)
    }

    /// Every model on a list, sorted.
    pub fn model_names(&self) -> &[Arc<str>] {
        &self.names
    }

    /// Whether all model lists are known.
    pub fn known(&self) -> bool {
        self.known
    }

    /// Whether at least one backend is not known dead (for `/readyz`).
    pub fn may_serve(&self) -> bool {
        !self.any.every.all.is_empty()
    }
}

// === impl Pools ===

impl Pools {
    fn add(&mut self, backend: &Arc<Backend>, zone: Option<&str>) {
        if backend.is_draining() {
            return;
        }
        if !backend.is_usable() {
            self.out.push(Arc::clone(backend));
            return;
        }
        if backend.is_hinted() {
            self.hinted.push(Arc::clone(backend));
            return;
        }
        self.enter(backend, zone);
    }

    /// Where all are the second choice, none is.
    fn fall_back(&mut self, zone: Option<&str>) {
        if self.every.all.is_empty() {
            for backend in std::mem::take(&mut self.hinted) {
                self.enter(&backend, zone);
            }
        }
    }

    fn enter(&mut self, backend: &Arc<Backend>, zone: Option<&str>) {
        let near = zone.is_some() && backend.spec.zone.as_deref() == zone;
        self.class_mut(backend.spec.capacity).add(backend, near);
        self.every.add(backend, near);
    }

    /// The backends of one capacity class.
    pub fn class(&self, capacity: Capacity) -> &Pool {
        match capacity {
            Capacity::Spot => &self.spot,
            Capacity::OnDemand => &self.on_demand,
            Capacity::Reserved => &self.reserved,
        }
    }

    fn class_mut(&mut self, capacity: Capacity) -> &mut Pool {
        match capacity {
            Capacity::Spot => &mut self.spot,
            Capacity::OnDemand => &mut self.on_demand,
            Capacity::Reserved => &mut self.reserved,
        }
    }

    /// Whether nobody can be tried, not even one that is out.
    pub fn is_empty(&self) -> bool {
        self.every.all.is_empty() && self.out.is_empty()
    }
}

impl Pool {
    fn add(&mut self, backend: &Arc<Backend>, near: bool) {
        self.all.push(Arc::clone(backend));
        if near {
            self.near.push(Arc::clone(backend));
        }
    }
}
