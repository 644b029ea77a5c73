//! How does everything get back to where it was? Targets that are given, in an order that keeps every rule on the way.
//!
//! The one invariant: nothing is moved that is not where it is said to be now, and nothing to where a plan could not bring it.

use crate::{
    plan::{rules_of, told},
    rules::{Counts, Kind, broken_by},
    schedule::{Job, Pace, held_together, schedule},
    search::phrase,
    site::{Duty, Site},
    state::{Refusal, State},
    world::{HostId, SubjectId, World},
};
use vmotion_model::{Blocked, HostName, Motive, Plan, Subject};

/// Something that is to be where it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Return {
    /// What.
    pub subject: Subject,
    /// Where it was brought; if it is not there, somebody has moved it since, and it stays.
    pub from: HostName,
    /// Where it was.
    pub to: HostName,
}

/// Brings things back to where they were, as one plan: rules, memory and limits hold in every state in between. What is back already is no
/// step, and what cannot go back is among the blocked, with the reason. Pure, as [`crate::plan`] is.
#[must_use]
pub fn undo(site: &Site, wanted: &[Return]) -> Plan {
    let world = World::new(site);
    let (rules, _) = rules_of(&world);
    let mut state = State::new(&world, &rules);
    let (mut jobs, mut blocked) = (Vec::new(), Vec::new());
    for wanted in wanted {
        match possible(&state, wanted) {
            Ok(None) => {}
            Ok(Some((subject, to))) => {
                let (from, takes_ms) = (state.host_of[subject as usize], state.cost(subject, to).takes_ms);
                let (motive, deadline_ms) = (Motive::Undo, None);
                jobs.push(Job { subject, from, to, motive, deadline_ms, takes_ms, together: None, follows: None });
            }
            Err(why) => blocked.push(Blocked { subject: wanted.subject.clone(), motive: Motive::Undo, why }),
        }
    }
    jobs.sort_by_key(|job| job.subject);
    while let Some((at, why)) = scattering(&state, &jobs) {
        let subject = world.name_of(jobs.remove(at).subject);
        blocked.push(Blocked { subject, motive: Motive::Undo, why });
    }
    held_together(&world, &rules, &state.host_of, &mut jobs);
    let scheduled = schedule(&world, &rules, &state.host_of, jobs, Pace::Adaptive);
    told(&world, &rules, &scheduled, blocked)
}

/// Can it, as far as it alone goes? `None` when it is there already. Memory and what others may forbid are the schedule's.
fn possible(state: &State<'_, '_>, wanted: &Return) -> Result<Option<(SubjectId, HostId)>, String> {
    let Return { subject: name, from, to } = wanted;
    let world = state.world;
    let subject = world.subject(name).ok_or_else(|| format!("there is no {name} any more"))?;
    let target = world.host_id(to.as_str()).ok_or_else(|| format!("there is no host {to} any more"))?;
    let (facts, here) = (world.of(subject), state.host_of[subject as usize]);
    if world.flights.iter().any(|flight| flight.subject == subject) {
        return Err("it is being moved: try again when that is over".to_owned());
    }
    if here == target {
        return Ok(None);
    }
    let at = &world.host(here).name;
    if at != from {
        return Err(format!("it is on {at} now, and was moved to {from}: somebody has moved it since, and it stays"));
    }
    if world.facts(here).duty == Duty::Gone {
        return Err(format!("nobody hears {at}, where it is"));
    }
    let refusal = match world.facts(target).duty {
        Duty::Open if !world.is_compatible(here, target) => Some(Refusal::Processors),
        Duty::Open => state.rules.forbids(world, facts.machine, target).map(Refusal::Rule),
        Duty::Cordoned => return Err(format!("{to} is cordoned: vmotion host uncordon {to}")),
        Duty::Draining(_) => return Err(format!("{to} is to be empty: vmotion host uncordon {to}")),
        Duty::Gone => return Err(format!("nobody hears {to}")),
    };
    refusal.map_or(Ok(Some((subject, target))), |refusal| Err(format!("{to} is a host {}", phrase(state, refusal))))
}

/// A job that leaves more of an affinity apart than is now. The search never wants that, so the schedule does not look for it: members
/// that cross begin together, and it trusts that they end together.
fn scattering(state: &State<'_, '_>, jobs: &[Job]) -> Option<(usize, String)> {
    let (world, rules) = (state.world, state.rules);
    let mut ends = state.host_of.clone();
    jobs.iter().for_each(|job| ends[job.subject as usize] = job.to);
    let ends = Counts::new(world, rules, &ends);
    (0..jobs.len()).find_map(|at| {
        let Job { subject, from, to, .. } = jobs[at];
        rules.of_machine(world.of(subject).machine).iter().find_map(|id| {
            let rule = rules.get(*id);
            let Kind::Affinity(within) = rule.kind else { return None };
            if world.domain(within, from) == world.domain(within, to) {
                return None;
            }
            let name = &rule.rule.name;
            if broken_by(&rule.kind, state.counts.get(*id)) > 0 {
                return Some((
                    at,
                    format!("rule {name}, which it is under, is broken already: vmotion rebalance mends it"),
                ));
            }
            let scatters = broken_by(&rule.kind, ends.get(*id)) > 0;
            scatters.then(|| (at, format!("rule {name} holds it together with others, which do not all go there")))
        })
    })
}

#[cfg(test)]
mod tests;
