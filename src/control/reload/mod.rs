//! The configuration, again: on SIGHUP and when its files change.
//!
//! This task knows when; the `apply` it is given knows how. What cannot be applied leaves everything as it was, and
//! the reason is logged, counted and kept in [`ReloadStatus`].

use std::{
    fs::File,
    future::Future,
    hash::{DefaultHasher, Hasher},
    io::Read,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::Serialize;
use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval},
};

use crate::runtime::{
    drain::{Drain, Phase},
    stamp::Watch,
};

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// More of a file than this does not matter for telling contents apart.
const DIGEST_BYTES: u64 = 16 * 1024 * 1024;

/// A configuration that was swapped in.
#[derive(Clone, Debug, Default)]
pub struct Applied {
    /// What changed, one short text each; empty = nothing.
    pub changes: Vec<String>,
    /// The files to watch from now on; empty = the same as before.
    pub files: Vec<PathBuf>,
}

/// What is counted: `sluicegate_config_reloads_total`.
#[derive(Clone, Debug)]
pub struct Counts {
    pub applied: metrics::Counter,
    pub refused: metrics::Counter,
}

/// How the newest reload went, for the admin plane. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct ReloadStatus(Arc<Mutex<Status>>);

/// What [`ReloadStatus`] says.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Status {
    /// Times a configuration was swapped in.
    pub applied: u64,
    /// Times one was refused.
    pub refused: u64,
    /// Unix time of the newest try, in seconds; `None` = never tried.
    pub at: Option<u64>,
    /// Why the newest try was refused; empty = it was not.
    pub problems: Vec<String>,
}

/// When the configuration is read again, and what then happens.
#[derive(Debug)]
pub struct Reload<A> {
    watch: Watch,
    requests: mpsc::Receiver<()>,
    status: ReloadStatus,
    counts: Counts,
    apply: A,
    /// Of the contents at the newest try.
    digest: u64,
}

impl ReloadStatus {
    /// As it is now.
    pub fn get(&self) -> Status {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn tell(&self, problems: Vec<String>) {
        let mut status = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if problems.is_empty() {
            status.applied += 1;
        } else {
            status.refused += 1;
        }
        status.at = SystemTime::now().duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs());
        status.problems = problems;
    }
}

impl<A, F> Reload<A>
where
    A: FnMut() -> F,
    F: Future<Output = Result<Applied, Vec<String>>>,
{
    /// Reloads by `apply` when one of `files` changes, and at each of `requests` (SIGHUP). The files' present contents
    /// count as applied.
    pub fn new(
        files: Vec<PathBuf>,
        requests: mpsc::Receiver<()>,
        status: ReloadStatus,
        counts: Counts,
        apply: A,
    ) -> Self {
        let digest = digest(&files);
        Self { watch: Watch::new(files), requests, status, counts, apply, digest }
    }

    /// Runs until the drain begins.
    ///
    /// When the drain begins while `apply` runs: it is dropped, the old configuration drains.
    pub async fn run(mut self, mut drain: Drain) {
        tokio::select! {
            () = self.work() => {}
            () = drain.reached(Phase::Draining) => {}
        }
    }

    async fn work(&mut self) {
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut asking = true;
        loop {
            tokio::select! {
                request = self.requests.recv(), if asking => match request {
                    // Asked for: also when nothing changed, for what the file refers to may have.
                    Some(()) => self.reload("asked for").await,
                    None => asking = false,
                },
                _ = look.tick() => {
                    // A file that was only touched, or taken by a request already, is not taken again.
                    if self.watch.changed() && digest(self.watch.files()) != self.digest {
                        self.reload("file changed").await;
                    }
                }
            }
        }
    }

    async fn reload(&mut self, why: &'static str) {
        self.digest = digest(self.watch.files());
        match (self.apply)().await {
            Ok(applied) => {
                tracing::info!(why, changes = ?applied.changes, "configuration reloaded");
                self.counts.applied.increment(1);
                self.status.tell(Vec::new());
                if !applied.files.is_empty() && applied.files != self.watch.files() {
                    self.watch.replace(applied.files);
                    self.digest = digest(self.watch.files());
                }
            }
            Err(mut problems) => {
                if problems.is_empty() {
                    problems.push("refused without a reason".into());
                }
                tracing::error!(why, ?problems, "configuration not reloaded; the old one stays in use");
                self.counts.refused.increment(1);
                self.status.tell(problems);
            }
        }
    }
}

/// Of the contents of all files; what cannot be read counts as empty.
fn digest(files: &[PathBuf]) -> u64 {
    let mut hasher = DefaultHasher::new();
    for path in files {
        let content = read(path).unwrap_or_default();
        hasher.write_usize(content.len());
        hasher.write(&content);
    }
    hasher.finish()
}

fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut content = Vec::new();
    File::open(path)?.take(DIGEST_BYTES).read_to_end(&mut content)?;
    Ok(content)
}

#[cfg(test)]
mod tests;
