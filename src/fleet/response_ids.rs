//! Which backend issued a response id: `/v1/responses/{id}` and `previous_response_id` must return to it, because
//! engines keep that state in their own process.

use std::sync::Arc;

/// Ids remembered; the least recently used go first.
const REMEMBERED: u64 = 50_000;
/// Longer ids are not remembered: what comes from a backend is bounded too.
const LONGEST: usize = 256;

/// Shared by all workers; touched on `/v1/responses` alone.
#[derive(Clone, Debug)]
pub struct ResponseIds(moka::sync::Cache<Box<str>, Arc<str>>);

impl Default for ResponseIds {
    fn default() -> Self {
        Self(moka::sync::Cache::new(REMEMBERED))
    }
}

impl ResponseIds {
    /// `backend` answered with `id`.
    pub fn issued(&self, id: &str, backend: &Arc<str>) {
        if id.len() <= LONGEST {
            self.0.insert(id.into(), Arc::clone(backend));
        }
    }

    /// The name of the backend that issued `id`, if it is remembered.
    pub fn issuer(&self, id: &str) -> Option<Arc<str>> {
        self.0.get(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_leads_back_to_its_backend() {
        let ids = ResponseIds::default();
        ids.issued("resp_1", &"a".into());
        ids.issued(&"x".repeat(LONGEST + 1), &"a".into());
        assert_eq!(ids.issuer("resp_1").as_deref(), Some("a"));
        assert_eq!(ids.issuer("resp_2"), None);
        assert_eq!(ids.issuer(&"x".repeat(LONGEST + 1)), None);
    }
}
