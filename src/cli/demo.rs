//! `sluicegate demo`: two simulated spot backends and one on demand behind a gateway, interrupted on a timer.

/// Returns at Ctrl-C or SIGTERM.
pub(super) async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut terminate) = signal(SignalKind::terminate()) else { return };
    tokio::select! {
        // Without a handler there is nothing to wait for.
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
}
