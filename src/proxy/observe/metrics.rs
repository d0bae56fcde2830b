//! The request families of one worker: handles held, so that a request looks no name up.

use std::{cell::RefCell, collections::HashMap, sync::Arc, time::Duration};

use metrics::{Counter, Gauge, Histogram};

use super::{Story, endpoint_name};
use crate::{
    protocol::endpoint::Endpoint,
    proxy::{
        cached::{Cached, DETAILS, OUTCOMES},
        respond,
    },
    runtime::hash::Quick,
    telemetry::metrics::{Name, Table},
};

/// Statuses with a series of their own; all others are `other`.
const CODES: [u16; 23] =
    [101, 200, 201, 202, 204, 206, 304, 400, 401, 403, 404, 408, 413, 422, 426, 429, 499, 500, 501, 502, 503, 504, 508];

const ENDPOINTS: [Endpoint; 12] = [
    Endpoint::Chat,
    Endpoint::Completions,
    Endpoint::Embeddings,
    Endpoint::Responses,
    Endpoint::Response,
    Endpoint::Messages,
    Endpoint::CountTokens,
    Endpoint::Rerank,
    Endpoint::Score,
    Endpoint::Models,
    Endpoint::Model,
    Endpoint::Passthrough,
];

/// Models with series of their own; those that come later are counted as `other`.
const MODELS: usize = 200;

/// The handles.
#[derive(Debug)]
pub struct Metrics {
    table: Table,
    in_flight: Gauge,
    overhead: Histogram,
    queue: Histogram,
    received: Counter,
    sent: Counter,
    left: Counter,
    /// In the order of [`ENDPOINTS`].
    endpoints: Vec<PerEndpoint>,
    cuts: HashMap<&'static str, Counter>,
    /// In the order of [`OUTCOMES`].
    cached: Vec<Counter>,
    /// In the order of [`DETAILS`].
    bypassed: Vec<Counter>,
    saved: [Counter; 2],
    models: RefCell<HashMap<Arc<str>, Tokens, Quick>>,
    other_model: Tokens,
}

#[derive(Debug)]
struct PerEndpoint {
    duration: Histogram,
    /// In the order of [`CODES`], `other` last.
    codes: Vec<Counter>,
}

#[derive(Clone, Debug)]
struct Tokens {
    input: Counter,
    output: Counter,
    cached: Counter,
    first: Histogram,
    each: Histogram,
}

impl Metrics {
    /// Registers every series in `table`.
    pub fn new(table: Table) -> Self {
        let endpoints = ENDPOINTS
            .iter()
            .map(|endpoint| {
                let endpoint = ("endpoint", endpoint_name(*endpoint));
                let code = |code: &str| table.counter(Name::Requests, &[endpoint, ("code", code)]);
                PerEndpoint {
                    duration: table.histogram(Name::RequestDuration, &[endpoint]),
                    codes: CODES.iter().map(|c| code(&c.to_string())).chain([code("other")]).collect(),
                }
            })
            .collect();
        let cuts = respond::TABLE
            .iter()
            .map(|row| (row.code, table.counter(Name::StreamsCut, &[("reason", row.code)])))
            .collect();
        let cache = |outcome: &str, reason: &str| {
            table.counter(Name::CacheRequests, &[("outcome", outcome), ("reason", reason)])
        };
        Self {
            in_flight: table.gauge(Name::InFlight, &[]),
            overhead: table.histogram(Name::Overhead, &[]),
            queue: table.histogram(Name::QueueWait, &[]),
            received: table.counter(Name::RequestBytes, &[]),
            sent: table.counter(Name::ResponseBytes, &[]),
            left: table.counter(Name::ClientsGone, &[]),
            endpoints,
            cuts,
            cached: OUTCOMES.iter().map(|outcome| cache(outcome, "")).collect(),
            bypassed: DETAILS.iter().map(|reason| cache("bypass", reason)).collect(),
            saved: ["input", "output"].map(|kind| table.counter(Name::CacheTokensSaved, &[("kind", kind)])),
            models: RefCell::default(),
            other_model: Tokens::new(&table, "other"),
            table,
        }
    }

    pub(super) fn begun(&self) {
        self.in_flight.increment(1.0);
    }

    pub(super) fn ended(&self, story: &Story, took: Duration) {
        let record = &story.record;
        self.in_flight.decrement(1.0);
        let endpoint =
            &self.endpoints[ENDPOINTS.iter().position(|e| *e == record.endpoint).unwrap_or(ENDPOINTS.len() - 1)];
        endpoint.codes[CODES.binary_search(&story.status).unwrap_or(CODES.len())].increment(1);
        endpoint.duration.record(took);
        self.overhead.record(story.overhead);
        if !record.queued.get().is_zero() {
            self.queue.record(record.queued.get());
        }
        self.received.increment(record.received.get());
        self.sent.increment(story.sent);
        if story.left {
            self.left.increment(1);
        }
        if let Some(cut) = record.cut.get()
            && let Some(counter) = self.cuts.get(respond::row_of(cut).code)
        {
            counter.increment(1);
        }
        let cached = record.cached.get();
        self.cache(cached);
        if story.status < 300 {
            if cached.is_saved() {
                let usage = record.usage.get();
                self.saved[0].increment(u64::from(usage.input));
                self.saved[1].increment(u64::from(usage.output));
            } else {
                self.tokens(story);
            }
        }
    }

    fn cache(&self, cached: Cached) {
        let counter = match cached {
            Cached::Bypass(detail) => self.bypassed.get(usize::from(detail)),
            other => other.outcome().and_then(|index| self.cached.get(index)),
        };
        if let Some(counter) = counter {
            counter.increment(1);
        }
    }

    fn tokens(&self, story: &Story) {
        let record = &story.record;
        let usage = record.usage.get();
        if usage == Default::default() {
            return;
        }
        self.with_model(story, |tokens| {
            tokens.input.increment(u64::from(usage.input));
            tokens.output.increment(u64::from(usage.output));
            tokens.cached.increment(u64::from(usage.cached));
            if !record.stream.get() {
                return;
            }
            if let (Some(first), Some(last)) = (record.first_byte.get(), record.last_byte.get()) {
                tokens.first.record(first - record.start);
                let between = usage.output.saturating_sub(1);
                if between > 0 {
                    tokens.each.record((last - first).as_secs_f64() / f64::from(between));
                }
            }
        });
    }

    fn with_model(&self, story: &Story, count: impl Fn(&Tokens)) {
        let model = story.record.model.borrow();
        // Only names that a backend answered to: a client cannot make series up.
        let Some(model) = model.as_ref() else { return count(&self.other_model) };
        let mut models = self.models.borrow_mut();
        if let Some(tokens) = models.get(model) {
            return count(tokens);
        }
        let listed = story.record.backend.borrow().as_ref().is_some_and(|backend| backend.models().lists(model));
        if !listed || models.len() >= MODELS {
            return count(&self.other_model);
        }
        let tokens = Tokens::new(&self.table, model);
        count(&tokens);
        models.insert(Arc::clone(model), tokens);
    }
}

impl Tokens {
    fn new(table: &Table, model: &str) -> Self {
        let model = [("model", model)];
        Self {
            input: table.counter(Name::InputTokens, &model),
            output: table.counter(Name::OutputTokens, &model),
            cached: table.counter(Name::CachedTokens, &model),
            first: table.histogram(Name::FirstToken, &model),
            each: table.histogram(Name::PerToken, &model),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_can_be_searched() {
        assert!(CODES.is_sorted());
    }
}
