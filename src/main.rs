//! The binary: arguments in, exit code out. What it does is in `sluicegate::cli`.

use std::process::ExitCode;

// Gives the memory of connections and bodies that ended back to the system; settings in .cargo/config.toml.
#[cfg(all(feature = "jemalloc", not(target_env = "msvc")))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    sluicegate::cli::main()
}
