//! Sections whose stage comes later: checked, so that a file stays valid when it comes.

use super::Validator;
use crate::config::{
    Secret,
    file::{self, FileConfig},
};

impl Validator<'_> {
    pub(super) fn later(&mut self, written: &FileConfig) {
        if written.limits.rate_store == file::RateStore::Redis && written.cache.redis.is_none() {
            self.error("limits.rate_store", "`redis` needs `cache.redis`", "add it, or use `local`");
        }
        if let Some(auth) = &written.auth {
            self.auth(auth);
        }
    }

    fn auth(&mut self, auth: &file::Auth) {
        if auth.keys.is_empty() {
            self.error("auth", "`auth` without keys would let nobody in", "add `keys`, or take `auth` out");
        }
        let mut seen: Vec<(Option<&str>, Option<Secret>)> = Vec::new();
        for (i, key) in auth.keys.iter().enumerate() {
            let path = format!("auth.keys[{i}]");
            let name = key.name.as_deref();
            match name {
                None if self.source.was_given(&path, "name") => {}
                None => self.error(&path, "a key without `name`", "name the tenant"),
                Some(_) => drop(self.name(&format!("{path}.name"), name)),
            }
            let wrong = |field| self.source.was_given(&path, field);
            let given = key.key.is_some() || key.key_file.is_some() || wrong("key") || wrong("key_file");
            let secret = self.secret(&path, "key", key.key.as_ref(), key.key_file.as_deref());
            if !given {
                self.error(&path, "a key's entry without `key`", "give `key: ${VARIABLE}` or `key_file`");
            }
            if name.is_some() && seen.iter().any(|(n, _)| *n == name) {
                self.error(&format!("{path}.name"), "two keys have this name", "a name is one tenant");
            }
            if secret.is_some() && seen.iter().any(|(_, s)| *s == secret) {
                self.error(&path, "two names have the same key", "give each its own");
            }
            let bounds = [
                ("requests_per_minute", key.requests_per_minute == Some(0)),
                ("tokens_per_minute", key.tokens_per_minute == Some(0)),
                ("max_concurrency", key.max_concurrency == Some(0)),
            ];
            for (field, _) in bounds.iter().filter(|(_, zero)| *zero) {
                self.error(&format!("{path}.{field}"), "0 would let no call through", "take it out for no limit");
            }
            seen.push((name, secret));
        }
    }
}
