//! `check --live`: asks every backend once, without a gateway.

use tokio::runtime::{Builder, LocalOptions};

use super::{
    AppError,
    probe::{Asker, ENGINES},
};
use crate::{
    config::Config,
    control::live::{Finding, check},
    runtime::ticker::Ticker,
};

/// What each backend says now, in the order of the configuration.
///
/// # Errors
/// When no runtime can be made.
pub fn live(config: &Config) -> Result<Vec<Finding>, AppError> {
    let runtime =
        Builder::new_current_thread().enable_all().build_local(LocalOptions::default()).map_err(AppError::Runtime)?;
    Ok(runtime.block_on(async {
        let asker = Asker::of(config, Ticker::default());
        check(config, &ENGINES, &async |question| asker.ask(question).await).await
    }))
}
