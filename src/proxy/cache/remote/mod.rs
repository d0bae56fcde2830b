//! The second tier: a Redis or Valkey that gateways share.
//!
//! ```text
//!  worker ─ get ─► the connection, if there is one ─► answer within 50 ms    ─► seal ─► entry
//!  worker ─ put ─► queue ─┐                            (late, wrong, gone: a miss)
//!  admin ─ purge ─► list ─┴─► Keeper, on the control thread: connects, writes, purges
//! ```
//!
//! The connection is one for all workers: its task is the keeper's, a worker awaits its own answer. It is there
//! only while Redis answers: after five reads in a row that failed, or when it breaks, it is taken away, reads
//! are misses at once, and the keeper tries again, later and later. So nothing of a request ever waits for a Redis that
//! is known to be away.
//!
//! Nothing that Redis says is believed without its seal. Each command names one key.

#[cfg(not(feature = "redis"))]
mod absent;
#[cfg(feature = "redis")]
mod codec;
#[cfg(feature = "redis")]
mod keeper;
#[cfg(feature = "redis")]
mod seal;
#[cfg(feature = "redis")]
mod tier;

#[cfg(feature = "redis")]
#[cfg(test)]
mod tests;

#[cfg(not(feature = "redis"))]
pub use self::absent::{Remote, Waiting};
#[cfg(feature = "redis")]
pub use self::{
    keeper::{Keeper, Opened},
    tier::{Remote, Waiting},
};
use super::{Shape, Tenant};

/// Which answer is meant.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// 256 bits over all that the answer depends on.
    pub digest: [u8; 32],
    pub shape: Shape,
    pub tenant: Tenant,
    /// The resolved model.
    pub model: Option<&'a str>,
}

/// How it goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RemoteStats {
    /// It is asked.
    pub connected: bool,
    pub hits: u64,
    pub misses: u64,
    /// Not asked, because it was away.
    pub away: u64,
    /// No answer in time.
    pub late: u64,
    /// It answered with an error, or the connection broke.
    pub failed: u64,
    /// Entries that were damaged, forged, out of place or expired.
    pub refused: u64,
    pub written: u64,
    /// Not written, because it was away or too much waited.
    pub dropped: u64,
    /// Writes that failed.
    pub unwritten: u64,
    /// How often it was lost.
    pub lost: u64,
}

impl RemoteStats {
    /// Look-ups by their outcome.
    pub fn reads(&self) -> [(&'static str, u64); 6] {
        [
            ("hit", self.hits),
            ("miss", self.misses),
            ("away", self.away),
            ("late", self.late),
            ("failed", self.failed),
            ("refused", self.refused),
        ]
    }

    /// Answers that were to be stored, by what became of them.
    pub fn writes(&self) -> [(&'static str, u64); 3] {
        [("written", self.written), ("dropped", self.dropped), ("failed", self.unwritten)]
    }
}
