//! The shipped binary as processes: gateways and simulated backends that are killed, stopped, flooded and reloaded.
//!
//! Waits are for conditions, polled and bounded; nothing is asserted about speed. What needs many clients takes
//! [`kit::alone`], so that no two sieges share the machine.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails where it stands")]
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "what was counted is told beside the result")]
#![expect(unreachable_pub, reason = "nothing of a test binary can be reached")]

#[expect(dead_code, reason = "shared with the kill matrix, which needs more of it")]
#[path = "../kill_matrix/cell.rs"]
mod cell;
mod coding;
mod demo;
mod ending;
mod faults;
mod interruption;
mod kit;
mod load;
mod memory;
#[path = "../kill_matrix/read.rs"]
mod read;
mod reload;
mod scarcity;
mod spot;
#[expect(dead_code, reason = "shared with tests/it, whose gateway in this process is not needed here")]
#[path = "../it/support/mod.rs"]
mod support;
mod tls;
