//! What the process tells about itself: metrics, diagnostics, the access log. Knows nothing of the rest.

pub mod access;
pub(crate) mod digits;
pub mod logging;
pub mod metrics;
mod outlet;
pub mod time;

pub use self::outlet::Outlet;
