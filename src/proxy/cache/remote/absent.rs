//! This build has no client of Redis: there is never a second tier.

use std::sync::Arc;

use super::{RemoteStats, Wanted};
use crate::proxy::cache::{Entry, Purge};

/// Never made.
#[derive(Clone, Debug)]
pub enum Remote {}

/// Never made.
#[derive(Debug)]
pub enum Waiting {}

impl Remote {
    #[expect(clippy::unused_async, reason = "as where there is one")]
    pub async fn get(&self, _: &Wanted<'_>) -> Option<Entry> {
        match *self {}
    }

    pub fn put(&self, _: [u8; 32], _: &Arc<Entry>) {
        match *self {}
    }

    pub fn purge(&self, _: &Purge) {
        match *self {}
    }

    pub fn stats(&self) -> RemoteStats {
        match *self {}
    }
}
