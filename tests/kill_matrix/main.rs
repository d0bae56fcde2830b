//! The kill matrix: whatever happens to a backend in the middle of an answer, and wherever in the answer it happens,
//! the client gets *exactly* the answer that the backend would have given, or is *told* that it did not.
//!
//! Every combination of engine, blow, endpoint, way of asking and place in the answer is one [`cell::Cell`], run
//! against a gateway in this process and simulated engines. Blows to one stream share a gateway and run all at once
//! ([`lane::shared`]); blows to a whole machine have lanes of their own ([`lane::own`]). What came is read by
//! [`read`], which believes nothing. The table (`docs/kill-matrix.md`) is printed, and compared with the committed one;
//! `SLUICEGATE_BLESS=1` writes it. `SLUICEGATE_CELLS=notice` runs only cells with that in their names.

#![expect(unreachable_pub, reason = "a test program has no outside; `pub` is what its files offer each other")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails where it stands")]
#![expect(clippy::print_stdout, reason = "the table is told beside the result")]

mod cell;
mod lane;
mod read;
#[expect(dead_code, reason = "shared with tests/it, which needs more of it")]
#[path = "../it/support/mod.rs"]
mod support;
mod table;

use std::sync::Mutex;

use tokio::time::Instant;

use self::{
    cell::{Blow, Cell, ENGINES, Outcome, Variant},
    table::Table,
};

#[test]
fn every_cell_is_exact_or_honestly_refused() {
    let (begun, mut cells) = (Instant::now(), cell::all());
    let chosen = std::env::var("SLUICEGATE_CELLS").unwrap_or_default();
    cells.retain(|cell| cell.to_string().contains(&chosen));
    let cells = cells;
    let outcomes = Mutex::new(Vec::with_capacity(cells.len()));
    let tell = |cell: Cell, outcome: Outcome| outcomes.lock().unwrap().push((cell, outcome));
    std::thread::scope(|scope| {
        for engine in ENGINES {
            let of = |variant: Variant, blows: &[Blow]| -> Vec<Cell> {
                let fits =
                    |cell: &&Cell| (cell.engine, cell.variant) == (engine, variant) && blows.contains(&cell.blow);
                cells.iter().filter(fits).cloned().collect()
            };
            let ordinary = Variant::Nothing;
            let streams = of(ordinary, &[Blow::Reset, Blow::ErrorEvent, Blow::Abort, Blow::CutEvent]);
            scope.spawn(move || lane::shared(engine, ordinary, streams, &tell));
            for blow in [Blow::Kill, Blow::Hang, Blow::Notice] {
                let machine = of(ordinary, &[blow]);
                let half = machine.len() / 2;
                let (first, second) = (machine[..half].to_vec(), machine[half..].to_vec());
                scope.spawn(move || lane::own(engine, ordinary, first, &tell));
                scope.spawn(move || lane::own(engine, ordinary, second, &tell));
            }
            for variant in Variant::SPECIAL {
                let special = of(variant, &Blow::ALL);
                scope.spawn(move || match variant {
                    Variant::Twice => lane::own(engine, variant, special, &tell),
                    _ => lane::shared(engine, variant, special, &tell),
                });
            }
        }
    });
    let outcomes = outcomes.into_inner().unwrap();
    assert_eq!(outcomes.len(), cells.len(), "every cell has run");
    let table = Table::of(&outcomes);
    println!("{table}\n{} cells in {:.1} s", outcomes.len(), begun.elapsed().as_secs_f64());
    let wrong: Vec<String> = outcomes
        .iter()
        .filter(|(cell, outcome)| !cell.expected().is_met_by(outcome))
        .map(|(cell, outcome)| format!("{cell}: expected {:?}, got {outcome:?}", cell.expected()))
        .collect();
    for line in &wrong {
        println!("{line}");
    }
    assert!(wrong.is_empty(), "{} of {} cells are not as they must be", wrong.len(), cells.len());
    if chosen.is_empty() {
        table.compare();
    }
}
