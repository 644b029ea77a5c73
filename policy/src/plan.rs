//! From a site to a plan: what should be where, in which order, and why each step.
//!
//! The one invariant: the same site, in any order, with the same goal and effort gives the same plan.

use crate::{
    contradict,
    rules::{Rules, broken_by},
    schedule::{Job, Pace, Schedule, Timed, held_together, schedule},
    search::{Effort, Goal, Search, phrase},
    site::{Duty, SLOTS, Site},
    state::State,
    world::{HostId, SubjectId, World, index},
};
use std::collections::BTreeMap;
use vmotion_model::{Blocked, ByteSize, Motive, Plan, PlannedStep, Rejected, Standing};

/// Places that were not taken and are told of, for each step.
const REJECTED_MAX: usize = 3;
/// Places that are looked at for that.
const LOOKED_AT: usize = 24;

/// Where everything should be, why, and how it gets there. Pure: the same site in any order gives the same plan.
#[must_use]
pub fn plan(site: &Site, goal: Goal, effort: Effort) -> Plan {
    let world = World::new(site);
    let (rules, sets) = rules_of(&world);
    let state = State::new(&world, &rules);
    let begun_with = state.host_of.clone();
    let mut search = Search::new(state, goal, effort);
    search.run();
    let jobs = jobs(&mut search, &begun_with);
    let scheduled = schedule(&world, &rules, &begun_with, jobs, Pace::Adaptive);
    let plan = told(&world, &rules, &scheduled, search.blocked);
    let contradictions = sets.iter().map(|set| contradict::tell(&world, &rules, set)).collect();
    Plan { contradictions, cut_short: search.cut_short, ..plan }
}

/// The rules, with what those that contradict each other put in question; and these, in sets.
pub(crate) fn rules_of<'a>(world: &World<'a>) -> (Rules<'a>, Vec<Vec<u32>>) {
    let mut rules = Rules::new(world);
    let sets = contradict::find(world, &rules);
    for set in &sets {
        let machines = contradict::in_question(&rules, set);
        rules.in_question.extend(machines.into_iter().map(|machine| (machine, set[0])));
    }
    (rules, sets)
}

/// What was scheduled, each step with its reason and numbers; how well everything is before and after it.
pub(crate) fn told(world: &World<'_>, rules: &Rules<'_>, scheduled: &Schedule, mut blocked: Vec<Blocked>) -> Plan {
    let mut told = Teller { state: State::new(world, rules), numbers: numbers(scheduled), scheduled };
    let before = told.state.standing();
    let steps: Vec<PlannedStep> = scheduled.timed.iter().map(|timed| told.step(timed)).collect();
    blocked.extend(scheduled.stuck.iter().map(|job| told.stuck(&scheduled.jobs[*job])));
    blocked.extend(told.late());
    let ends_ms = steps.iter().map(|step| step.begins_ms + step.takes_ms).max().unwrap_or(0);
    let after = told.state.standing();
    Plan { steps, blocked, contradictions: Vec::new(), before, after, ends_ms, cut_short: false }
}

/// How well everything is, moves under way counted as done.
#[must_use]
pub fn standing(site: &Site) -> Standing {
    let world = World::new(site);
    let rules = Rules::new(&world);
    State::new(&world, &rules).standing()
}

/// What is elsewhere than it was.
pub(crate) fn jobs(search: &mut Search<'_, '_>, begun_with: &[HostId]) -> Vec<Job> {
    let world = search.state.world;
    let mut jobs = Vec::new();
    for (subject, from) in (0..index(begun_with.len())).zip(begun_with) {
        let to = search.state.host_of[subject as usize];
        if to == *from {
            continue;
        }
        let deadline_ms = match world.facts(*from).duty {
            Duty::Draining(deadline) => deadline,
            _ => None,
        };
        let motive = search.motive[subject as usize].unwrap_or(Motive::Balance);
        let takes_ms = search.state.cost(subject, to).takes_ms;
        jobs.push(Job { subject, from: *from, to, motive, deadline_ms, takes_ms, together: None, follows: None });
    }
    held_together(world, search.state.rules, begun_with, &mut jobs);
    jobs
}

/// By job, the number of its step.
fn numbers(scheduled: &Schedule) -> BTreeMap<usize, u32> {
    (1..).zip(&scheduled.timed).map(|(number, timed)| (timed.job, number)).collect()
}

/// Follows the steps, to say of each what it does.
struct Teller<'s, 'a> {
    state: State<'s, 'a>,
    numbers: BTreeMap<usize, u32>,
    scheduled: &'s Schedule,
}

impl Teller<'_, '_> {
    fn step(&mut self, timed: &Timed) -> PlannedStep {
        let world = self.state.world;
        let job = &self.scheduled.jobs[timed.job];
        let cost = self.state.costs.of(world, job.subject, job.from, job.to).units;
        let gain = self.gain(job.subject, job.to);
        let motive = match job.motive {
            Motive::Balance if gain <= 0.0 => Motive::MakeRoom,
            Motive::Balance if self.is_drawn(job) => Motive::Gather,
            motive => motive,
        };
        let reason = self.reason(job, motive);
        let rejected = self.rejected(job, gain - cost);
        self.state.put(job.subject, job.to);
        let [begins_ms, ends_ms] = [timed.begins_ms, timed.ends_ms].map(whole_ms);
        let together = job.together.and_then(|number| {
            let fellows =
                self.scheduled.timed.iter().filter(|other| self.scheduled.jobs[other.job].together == Some(number));
            fellows.filter_map(|other| self.numbers.get(&other.job).copied()).min()
        });
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bytes, positive")]
        let bytes = timed.bytes as u64;
        PlannedStep {
            number: self.numbers.get(&timed.job).copied().unwrap_or(0),
            subject: world.name_of(job.subject),
            from: world.host(job.from).name.clone(),
            to: world.host(job.to).name.clone(),
            motive,
            reason,
            gain,
            cost,
            after: timed.after.iter().filter_map(|job| self.numbers.get(job).copied()).collect(),
            together,
            begins_ms,
            takes_ms: ends_ms.saturating_sub(begins_ms),
            bytes,
            downtime_ms: timed.downtime_ms,
            rejected,
        }
    }

    /// How much better everything is, without what the move costs.
    fn gain(&mut self, subject: SubjectId, to: HostId) -> f64 {
        let state = &mut self.state;
        let units = state.units(subject, to) - state.units(subject, state.host_of[subject as usize]);
        units - state.change(subject, to)
    }

    /// Is it what it shares that draws it?
    fn is_drawn(&self, job: &Job) -> bool {
        let waits = self.state.waits(job.subject, job.from) - self.state.waits(job.subject, job.to);
        waits > 0.0 && waits >= self.state.loss[job.from as usize]
    }

    fn reason(&self, job: &Job, motive: Motive) -> String {
        let world = self.state.world;
        let [from, to] = [job.from, job.to].map(|host| &world.host(host).name);
        match motive {
            Motive::Evacuate => {
                let by = job.deadline_ms.map_or(String::new(), |ms| format!(" within {}", duration(ms)));
                let busy = 100.0 * self.state.busy_with(job.subject, job.to);
                let free = ByteSize(self.state.free(job.to));
                format!("{from} is to be empty{by}; {to} has {free} free and would be {busy:.0} % busy at most")
            }
            Motive::Repair => {
                let machine = world.of(job.subject).machine;
                let broken = self
                    .state
                    .rules
                    .of_machine(machine)
                    .iter()
                    .find(|id| broken_by(&self.state.rules.get(**id).kind, self.state.counts.get(**id)) > 0);
                let rule = broken.map_or("a rule", |id| self.state.rules.get(*id).rule.name.as_str());
                format!("rule {rule} is broken while it is on {from}, and less so with it on {to}")
            }
            Motive::Balance => {
                let (slot, busy) = self.busiest(job.from);
                let there = 100.0 * self.busy_in(job.to, slot);
                let when = if slot == 0 { "now".to_owned() } else { format!("in {slot} h") };
                format!("{from} will be {:.0} % busy {when} and {to} {there:.0} %", 100.0 * busy)
            }
            Motive::Gather => {
                let waits: f64 = world
                    .shares_of(job.subject)
                    .iter()
                    .filter(|(other, _)| self.state.host_of[*other as usize] == job.to)
                    .map(|(_, per_s)| per_s)
                    .sum();
                format!("it shares {waits:.0} waits a second with what is on {to}")
            }
            Motive::MakeRoom => format!("its place on {from} is needed by another step"),
            Motive::Undo => {
                let busy = 100.0 * self.state.busy_with(job.subject, job.to);
                format!("it was on {to} before it came to {from}; {to} would be {busy:.0} % busy at most")
            }
            Motive::Bounce => {
                format!("its place on {from} and the one it is to have wait for each other: it waits on {to}")
            }
        }
    }

    fn busy_in(&self, host: HostId, slot: usize) -> f64 {
        let facts = self.state.world.facts(host);
        (self.state.load[host as usize][slot] + facts.other) / facts.cpus
    }

    fn busiest(&self, host: HostId) -> (usize, f64) {
        let each = (0..SLOTS).map(|slot| (slot, self.busy_in(host, slot)));
        each.max_by(|a, b| a.1.total_cmp(&b.1).then(b.0.cmp(&a.0))).unwrap_or((0, 0.0))
    }

    /// The best other places.
    fn rejected(&mut self, job: &Job, net: f64) -> Vec<Rejected> {
        let world = self.state.world;
        if job.motive == Motive::Undo {
            // There is one place where it was.
            return Vec::new();
        }
        let mut looked_at: Vec<(bool, f64, HostId, String)> = Vec::new();
        let hosts = self.state.candidates(job.subject);
        for host in hosts.into_iter().filter(|host| ![job.from, job.to].contains(host)).take(LOOKED_AT) {
            match self.state.may(job.subject, host) {
                Ok(()) => {
                    let units = self.state.costs.of(world, job.subject, job.from, host).units;
                    let other = self.gain(job.subject, host) - units;
                    let busy = 100.0 * self.state.busy_with(job.subject, host);
                    let why = if other < net - 5e-4 {
                        format!("{:.3} less would be gained; it would be {busy:.0} % busy at most", net - other)
                    } else {
                        format!("it would gain no more, and be {busy:.0} % busy at most")
                    };
                    looked_at.push((false, -other, host, why));
                }
                Err(refusal) => looked_at.push((true, 0.0, host, phrase(&self.state, refusal))),
            }
        }
        looked_at.sort_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)).then(a.2.cmp(&b.2)));
        looked_at.truncate(REJECTED_MAX);
        looked_at.into_iter().map(|(_, _, host, why)| Rejected { host: world.host(host).name.clone(), why }).collect()
    }

    fn stuck(&self, job: &Job) -> Blocked {
        let world = self.state.world;
        let (to, free) = (&world.host(job.to).name, ByteSize(self.state.free(job.to)));
        let needs = ByteSize(world.of(job.subject).memory);
        let why = match self.state.may(job.subject, job.to) {
            Err(crate::state::Refusal::Rule(rule)) if job.motive == Motive::Undo => {
                format!(
                    "rule {} forbids it to be on {to} beside what is there now",
                    self.state.rules.get(rule).rule.name
                )
            }
            Err(crate::state::Refusal::Rule(rule)) => format!(
                "its place on {to} is free only when others have left, rule {} forbids it before, and there is no host where it could wait",
                self.state.rules.get(rule).rule.name
            ),
            _ => format!(
                "it needs {needs} on {to}, where {free} are free before others leave, which wait for it; no host has room for either to wait: \
                 add a host, or free {needs} anywhere"
            ),
        };
        Blocked { subject: world.name_of(job.subject), motive: job.motive, why }
    }

    /// Drains that are not over in time.
    fn late(&self) -> Vec<Blocked> {
        let world = self.state.world;
        let mut late = Vec::new();
        for host in world.host_ids_iter() {
            let Duty::Draining(Some(deadline)) = world.facts(host).duty else { continue };
            let jobs = &self.scheduled.jobs;
            let leaving: Vec<&Timed> =
                self.scheduled.timed.iter().filter(|timed| jobs[timed.job].from == host).collect();
            let Some(last) = leaving.iter().max_by(|a, b| a.ends_ms.total_cmp(&b.ends_ms)) else { continue };
            let ends_ms = whole_ms(last.ends_ms);
            if ends_ms <= deadline {
                continue;
            }
            let bytes: f64 = leaving.iter().map(|timed| timed.bytes).sum();
            let carries = world.facts(host).network * f64::from(world.site.policy.link_percent_max) / 100.0;
            let why = format!(
                "{} is empty after {}, {} after its deadline: {} moves of {:.1} GiB in all, {} at a time at most, over a network of which \
                 they may use {:.0} MB/s, which takes {} at least; allow more time, or raise link_percent_max or moves_per_host_max",
                world.host(host).name,
                duration(ends_ms),
                duration(ends_ms - deadline),
                leaving.len(),
                bytes / f64::from(1 << 30),
                world.site.policy.moves_per_host_max,
                carries / 1e6,
                duration(whole_ms(bytes / carries * 1000.0)),
            );
            let subject = world.name_of(jobs[last.job].subject);
            late.push(Blocked { subject, motive: Motive::Evacuate, why });
        }
        late
    }
}

/// ms for people.
pub(crate) fn duration(ms: u64) -> String {
    match ms {
        0..10_000 => format!("{}.{} s", ms / 1000, ms % 1000 / 100),
        10_000..120_000 => format!("{} s", ms / 1000),
        120_000..7_200_000 => format!("{} min", ms / 60_000),
        _ => format!("{} h {} min", ms / 3_600_000, ms / 60_000 % 60),
    }
}

fn whole_ms(ms: f64) -> u64 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "casts of floats saturate")]
    let whole = ms.max(0.0).ceil() as u64;
    whole
}

#[cfg(test)]
mod oracle;
#[cfg(test)]
mod tests;
