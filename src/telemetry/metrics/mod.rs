//! Metrics: held handles, one table per thread, summed when scraped.
//!
//! ```text
//!  worker 1: Table ─ cells ┐
//!  worker 2: Table ─ cells ┼─► Registry::render ─► Prometheus text
//!  collectors (computed)  ─┘
//! ```
//! A handle is made once and kept; using it is a load and a store, no lock, no lookup, no shared cache line. A series
//! exists, at zero, from the moment its handle is made. [`Name`] lists every metric; label values are bounded
//! ([`SERIES`]).

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};

mod cell;
mod name;
mod render;
#[cfg(test)]
mod tests;

use self::cell::{Cell, Writers};
pub use self::name::{Kind, Name, Spec};

/// Most series of one name, over all tables; what comes above is counted under [`OTHER`].
pub const SERIES: usize = 1000;
/// The label value that stands for all that are not told apart.
pub const OTHER: &str = "other";
/// The media type of [`Registry::render`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// All tables of the process. Cheap to clone.
#[derive(Clone)]
pub struct Registry(Arc<Shared>);

#[derive(Default)]
struct Shared {
    /// Tables stay when their thread ends: counters never fall.
    tables: Mutex<Vec<Arc<Cells>>>,
    collectors: Mutex<Vec<Collector>>,
    /// Which series there are, for the bound.
    series: Mutex<HashMap<Name, HashSet<Values>>>,
}

type Collector = Arc<dyn Fn(&mut Sink) + Send + Sync>;
/// Label values in the order of [`Spec::labels`].
pub type Values = Box<[Box<str>]>;

struct Cells {
    writers: Writers,
    cells: Mutex<HashMap<(Name, Values), Cell>>,
}

/// The handles of one thread. Those of [`Registry::table`] must be used on one thread only: a second writer would
/// lose counts. [`Registry::shared_table`] is for what several threads count.
#[derive(Clone)]
pub struct Table {
    registry: Registry,
    cells: Arc<Cells>,
}

/// Takes the values that are computed at scrape.
#[derive(Debug, Default)]
pub struct Sink(BTreeMap<(Name, Values), f64>);

impl Registry {
    /// Without tables; series without labels are there at once.
    pub fn new() -> Self {
        let registry = Self(Arc::default());
        let table = registry.table();
        for &name in Name::ALL.iter().filter(|name| name.spec().labels.is_empty()) {
            table.cell(name, Box::default());
        }
        registry
    }

    /// A table for one thread.
    pub fn table(&self) -> Table {
        self.add(Writers::One)
    }

    /// A table whose handles any thread may use; dearer by an atomic addition.
    pub fn shared_table(&self) -> Table {
        self.add(Writers::Many)
    }

    fn add(&self, writers: Writers) -> Table {
        let cells = Arc::new(Cells { writers, cells: Mutex::default() });
        lock(&self.0.tables).push(Arc::clone(&cells));
        Table { registry: self.clone(), cells }
    }

    /// Calls `collect` at every scrape.
    pub fn collector(&self, collect: impl Fn(&mut Sink) + Send + Sync + 'static) {
        lock(&self.0.collectors).push(Arc::new(collect));
    }

    /// Everything, as Prometheus' text format 0.0.4.
    pub fn render(&self) -> String {
        let mut totals = render::Totals::default();
        for table in lock(&self.0.tables).iter() {
            for ((name, values), cell) in lock(&table.cells).iter() {
                totals.add(*name, values, cell.read());
            }
        }
        // Called without the lock: a collector may add one.
        let collectors = lock(&self.0.collectors).clone();
        let mut sink = Sink::default();
        for collect in collectors {
            collect(&mut sink);
        }
        for ((name, values), value) in sink.0 {
            totals.add(name, &values, cell::Reading::Value(value));
        }
        totals.render()
    }

    /// How often `name` was counted, over all tables, by its label values in the order of [`Spec::labels`].
    pub fn counts(&self, name: Name) -> BTreeMap<Values, u64> {
        let mut sums = BTreeMap::new();
        for table in lock(&self.0.tables).iter() {
            for ((_, values), cell) in lock(&table.cells).iter().filter(|((of, _), _)| *of == name) {
                if let cell::Reading::Count(count) = cell.read() {
                    *sums.entry(values.clone()).or_default() += count;
                }
            }
        }
        sums
    }

    /// The label values themselves while `name` has room, else all [`OTHER`].
    fn bound(&self, name: Name, values: Values) -> Values {
        let mut series = lock(&self.0.series);
        let of_name = series.entry(name).or_default();
        if of_name.contains(&values) {
            return values;
        }
        let values = if of_name.len() < SERIES { values } else { values.iter().map(|_| OTHER.into()).collect() };
        of_name.insert(values.clone());
        values
    }
}

impl Default for Registry {
    fn default() -> Self {
        Self::new()
    }
}

impl Table {
    /// The counter of this series; the same one when asked again.
    pub fn counter(&self, name: Name, labels: &[(&'static str, &str)]) -> Counter {
        match self.cell(name, values(name, labels)) {
            Cell::Counter(cell) => cell.handle(),
            Cell::Gauge(_) | Cell::Histogram(_) => Counter::noop(),
        }
    }

    /// The gauge of this series; the same one when asked again. Tables are summed: each sets its own share.
    pub fn gauge(&self, name: Name, labels: &[(&'static str, &str)]) -> Gauge {
        match self.cell(name, values(name, labels)) {
            Cell::Gauge(cell) => cell.handle(),
            Cell::Counter(_) | Cell::Histogram(_) => Gauge::noop(),
        }
    }

    /// The histogram of this series; the same one when asked again.
    pub fn histogram(&self, name: Name, labels: &[(&'static str, &str)]) -> Histogram {
        match self.cell(name, values(name, labels)) {
            Cell::Histogram(cell) => Histogram::from_arc(cell),
            Cell::Counter(_) | Cell::Gauge(_) => Histogram::noop(),
        }
    }

    fn cell(&self, name: Name, values: Values) -> Cell {
        let values = self.registry.bound(name, values);
        let writers = self.cells.writers;
        let mut cells = lock(&self.cells.cells);
        cells.entry((name, values)).or_insert_with(|| Cell::new(name.spec().kind, writers)).clone()
    }
}

/// For code that speaks to the `metrics` facade. Names that [`Name`] does not list are not recorded.
impl Recorder for Table {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Name::find(key.name()).map_or_else(Counter::noop, |name| self.counter(name, &labels(name, key)))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Name::find(key.name()).map_or_else(Gauge::noop, |name| self.gauge(name, &labels(name, key)))
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        Name::find(key.name()).map_or_else(Histogram::noop, |name| self.histogram(name, &labels(name, key)))
    }
}

impl Sink {
    /// Adds `value` to this series.
    pub fn set(&mut self, name: Name, labels: &[(&'static str, &str)], value: f64) {
        let mut key = (name, values(name, labels));
        let full = || self.0.keys().filter(|(other, _)| *other == name).count() >= SERIES;
        if !self.0.contains_key(&key) && full() {
            key.1.iter_mut().for_each(|value| *value = OTHER.into());
        }
        *self.0.entry(key).or_default() += value;
    }
}

/// In the order of the spec. What the spec does not name is a fault of the caller's; it is left out.
fn values(name: Name, labels: &[(&'static str, &str)]) -> Values {
    let spec = name.spec();
    debug_assert!(labels.iter().all(|(label, _)| spec.labels.contains(label)), "{} has no such label", spec.name);
    let value = |label| labels.iter().find(|(given, _)| *given == label).map_or("", |(_, value)| *value);
    spec.labels.iter().map(|label| Box::from(value(*label))).collect()
}

fn labels(name: Name, key: &Key) -> Vec<(&'static str, &str)> {
    let spec = name.spec();
    let given = |label: &&'static str| {
        let found = key.labels().find(|given| given.key() == *label)?;
        Some((*label, found.value()))
    };
    spec.labels.iter().filter_map(given).collect()
}

/// A panic elsewhere leaves counts that are still true.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("tables", &lock(&self.0.tables).len()).finish_non_exhaustive()
    }
}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table").field("writers", &self.cells.writers).finish_non_exhaustive()
    }
}
