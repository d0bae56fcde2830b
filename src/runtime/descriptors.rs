//! How many files this process may have open, and how many of them may be connections of clients.
//!
//! Backends, probes and the admin plane need descriptors too. Clients that could take the last one would make every
//! backend look unreachable; so a part of the table is never theirs.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What the process has open for itself: log, files, the admin plane; and each worker: runtime and socket.
const OWN: usize = 32;
const PER_WORKER: usize = 8;

/// Raises the limit as far as the system lets this process.
pub fn raise() {
    let limit = getrlimit(Resource::Nofile);
    // Refused: what there is must do, and `for_clients` reckons with it.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

/// Connections that clients may have in a process of so many workers.
pub fn for_clients(workers: usize) -> usize {
    let limit = getrlimit(Resource::Nofile).current.map_or(usize::MAX, |n| usize::try_from(n).unwrap_or(usize::MAX));
    share(limit, workers)
}

/// Three quarters of what is left: most connections of clients are idle, and those that are not share those to backends
/// in turn.
fn share(limit: usize, workers: usize) -> usize {
    (limit.saturating_sub(OWN + PER_WORKER * workers) / 4).saturating_mul(3).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_never_get_the_last_descriptors() {
        assert_eq!(share(64, 2), 12);
        assert_eq!(share(1024, 4), 720);
        assert!(share(20_000, 8) > 10_000, "the default of limits.connections");
        assert_eq!(share(16, 8), 1);
        assert!(share(usize::MAX, 1) > 1 << 40);
    }
}
