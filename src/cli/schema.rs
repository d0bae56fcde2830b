//! `sluicegate schema`: the JSON Schema of the configuration, as committed in config/schema.json.

use std::process::ExitCode;

use crate::config::file;

/// Arguments of `schema`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Example:\n  sluicegate schema > schema.json\n\n\
    For completion in editors, begin a configuration with\n  # yaml-language-server: $schema=./schema.json")]
pub struct Args {
    /// Accepted for uniformity: the schema is JSON in any case
    #[arg(long)]
    json: bool,
}

/// Prints it.
pub fn run(_: &Args) -> ExitCode {
    match super::print(&text()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(code) => code,
    }
}

/// The schema, indented, with a newline at its end. The order of fields is that of the documentation.
pub fn text() -> String {
    format!("{:#}\n", file::schema().as_value())
}
