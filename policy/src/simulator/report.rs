//! What a simulation tells: what was simulated, and what came of it under each policy.

use super::{
    DAY,
    fleet::Fleet,
    replay::{Outcome, Policy},
};
use serde::Serialize;
use vmotion_model::{ByteSize, PolicySpec};

/// What was simulated, and what came of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Simulation {
    /// The recording; `None` for generated days.
    pub trace: Option<String>,
    /// Hosts.
    pub hosts: usize,
    /// Processors of each.
    pub cpus_per_host: f32,
    /// Memory of each.
    pub memory_per_host: ByteSize,
    /// Machines.
    pub machines: usize,
    /// Days, history and all.
    pub days: f64,
    /// Days before the one that is replayed: they are known to our policy, and nothing is moved in them.
    pub history_days: f64,
    /// By which chance worked.
    pub seed: u64,
    /// How our policy was to act.
    pub policy: PolicySpec,
    /// By policy.
    pub outcomes: Vec<Compared>,
}

/// What came of one policy, beside that of doing nothing.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Compared {
    /// What came of it.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// Overloaded hosts over those without a policy; `None` when that was not simulated, or had none.
    pub of_none: Option<f64>,
}

impl Simulation {
    /// Tells of `fleet`, whose last day was replayed.
    #[must_use]
    pub fn new(fleet: &Fleet, trace: Option<String>, seed: u64, policy: PolicySpec, outcomes: Vec<Outcome>) -> Self {
        let days = |intervals: usize| intervals as f64 / DAY as f64;
        let none = outcomes.iter().find(|outcome| outcome.policy == Policy::None);
        let none = none.map(|none| f64::from(none.overloaded)).filter(|none| *none > 0.0);
        let compared =
            |outcome: Outcome| Compared { of_none: none.map(|none| f64::from(outcome.overloaded) / none), outcome };
        Self {
            trace,
            hosts: fleet.hosts,
            cpus_per_host: fleet.cpus,
            memory_per_host: fleet.memory,
            machines: fleet.traces.len(),
            days: days(fleet.intervals),
            history_days: days(fleet.last_day().start),
            seed,
            policy,
            outcomes: outcomes.into_iter().map(compared).collect(),
        }
    }
}
