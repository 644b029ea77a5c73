//! Simulated days for people.

use super::{table, word};
use vmotion_policy::simulator::{Compared, Outcome, Simulation};

/// What was simulated, and what came of it.
pub(crate) fn simulation(simulation: &Simulation) {
    println!("{}", subject(simulation));
    let mut rows = table(&[
        "POLICY",
        "OVERLOADED HOST-INTERVALS",
        "OF NONE",
        "CPU-HOURS LACKING",
        "MOVES",
        "GIB MOVED",
        "BACK WITHIN 1 H",
    ]);
    for Compared { outcome, of_none } in &simulation.outcomes {
        let Outcome { policy, overloaded, lacking_cpu_h, moves, bytes, returns, .. } = outcome;
        rows.add_row([
            word(policy),
            overloaded.to_string(),
            of_none.map_or_else(|| "-".to_owned(), |of_none| format!("{of_none:.2}")),
            format!("{lacking_cpu_h:.1}"),
            moves.to_string(),
            format!("{:.1}", *bytes as f64 / f64::from(1 << 30)),
            returns.to_string(),
        ]);
    }
    println!("{rows}");
}

/// What is simulated, in one line.
pub(crate) fn subject(simulation: &Simulation) -> String {
    let Simulation { trace, hosts, cpus_per_host, memory_per_host, machines, days, history_days, seed, .. } =
        simulation;
    let days = if *history_days > 0.0 {
        format!(
            "{} days, of which the first {} are history and the last is replayed",
            short(*days),
            short(*history_days)
        )
    } else {
        format!("{} days, all replayed: nothing is known before", short(*days))
    };
    let from = trace.as_ref().map_or_else(|| "generated".to_owned(), |trace| format!("recorded in {trace}"));
    format!(
        "{hosts} hosts with {cpus_per_host} processors and {memory_per_host} each, {machines} machines, {from}, seed {seed}; {days}"
    )
}

fn short(days: f64) -> String {
    let text = format!("{days:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}
