//! The lock of the in-flight map; its model (`tests/loom.rs`) has another under this name.

pub(super) use std::sync::Mutex;
use std::sync::{MutexGuard, PoisonError};

/// A panic under it leaves nothing half done.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
