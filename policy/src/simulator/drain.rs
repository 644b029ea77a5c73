//! How long until a host is empty: as many moves at a time as hosts and links carry, against a fixed number of them.

use crate::{
    Effort, Goal,
    plan::jobs,
    rules::Rules,
    schedule::{Pace, schedule},
    search::Search,
    site::Site,
    state::State,
    world::World,
};
use serde::Serialize;

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct DrainOutcome {
    /// Moves.
    pub moves: usize,
    /// Until the last of them is over, in ms.
    pub ends_ms: f64,
    /// On the wire.
    pub bytes: f64,
    /// Most moves at a time.
    pub at_a_time: usize,
}

/// Carries out the drains of `site` over its networks, to the places that a plan has for them; `fixed` is the number of moves at a time
/// for each host, in the order of names, `None` for what the plan would do.
#[must_use]
pub fn drain(site: &Site, fixed: Option<u32>) -> DrainOutcome {
    let world = World::new(site);
    let rules = Rules::new(&world);
    let state = State::new(&world, &rules);
    let begun_with = state.host_of.clone();
    let mut search = Search::new(state, Goal::DRAIN, Effort::default());
    search.run();
    let jobs = jobs(&mut search, &begun_with);
    let pace = fixed.map_or(Pace::Adaptive, Pace::Fixed);
    let timed = schedule(&world, &rules, &begun_with, jobs, pace).timed;
    let at_a_time = |at: f64| timed.iter().filter(|one| one.begins_ms <= at && at < one.ends_ms).count();
    DrainOutcome {
        moves: timed.len(),
        ends_ms: timed.iter().map(|one| one.ends_ms).fold(0.0, f64::max),
        bytes: timed.iter().map(|one| one.bytes).sum(),
        at_a_time: timed.iter().map(|one| at_a_time(one.begins_ms)).max().unwrap_or(0),
    }
}
