//! The gateway of the demo: the real one, in this process.

use std::thread;

use super::{GatewayHandle, GatewayOptions};
use crate::{
    app::{App, Options},
    config::{self, Env, Flags},
};

/// Starts it on a thread of its own.
pub(super) fn start(options: GatewayOptions) -> Result<GatewayHandle, String> {
    let loaded = config::from_text(&written(&options), None, &Env::default(), &Flags::default())
        .map_err(|problems| config::render(&problems, config::Format::Human))?;
    let app = App::bind(loaded.config, Options::default()).map_err(|error| error.to_string())?;
    let (addr, admin_addr, stop) = (app.listens_at().unwrap_or(options.listen), app.admin_at(), app.stop());
    let running =
        thread::Builder::new().name("gateway".into()).spawn(|| app.run()).map_err(|error| error.to_string())?;
    let stop = Box::new(move || {
        stop.at_once();
        // The demo ends either way; what went wrong was logged.
        let _ = running.join();
    });
    Ok(GatewayHandle { addr, admin_addr, stop })
}

/// The configuration, as one would write it.
fn written(options: &GatewayOptions) -> String {
    let GatewayOptions { backends, listen, debug_headers } = options;
    let mut text = format!("listen: {listen}\nadmin: 127.0.0.1:0\ndebug_headers: {debug_headers}\n");
    text += "log: {access: false, level: error}\nbackends:\n";
    for backend in backends {
        let capacity = if backend.spot { "spot" } else { "on_demand" };
        text += &format!("  - {{name: {}, url: '{}', capacity: {capacity}}}\n", backend.name, backend.url);
    }
    text
}
