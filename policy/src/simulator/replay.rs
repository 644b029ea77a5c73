//! A day again, under one policy.

use super::{
    HOLD_S, INTERVAL_S,
    fleet::{Fleet, host_name, seen, site, site_machine},
};
use crate::{
    Cooldown, Effort, Goal, History,
    site::{Site, UnderWay},
};
use serde::Serialize;
use std::{
    collections::{BTreeMap, HashMap},
    ops::Range,
};
use vmotion_model::{MachineName, Motive, PolicySpec};

/// Part of a host's processors by which the busiest and the least busy may differ, for the rule of thumb.
const NAIVE_SPREAD: f64 = 0.1;
/// Moves that it begins in one interval at most.
const NAIVE_MOVES_MAX: usize = 100;
/// Processors that a move takes at each end while it goes on.
const MOVE_CPUS: f64 = 1.0;

/// How much our policy may try in each interval: a day is planned 288 times, and small sites are searched until this is spent.
const fn effort(machines: usize) -> Effort {
    Effort(20_000 + 180 * machines as u64)
}

/// Who decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// Nobody.
    None,
    /// From the busiest host to the least busy one, as they are at this moment, while they differ by more than 10 %.
    #[serde(rename = "naive")]
    NaiveSpread,
    /// [`crate::plan`].
    Ours,
}

/// What is replayed.
#[derive(Debug, Clone)]
pub struct Replay {
    /// Who decides.
    pub policy: Policy,
    /// Intervals in which it decides. Those before are history: they were measured, and nothing was moved.
    pub replayed: Range<usize>,
    /// How to act.
    pub spec: PolicySpec,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Outcome {
    /// Who decided.
    pub policy: Policy,
    /// Hosts with more demand than processors, each interval of five minutes counted.
    pub overloaded: u32,
    /// The same, by interval.
    pub by_interval: Vec<u32>,
    /// Processors asked for and not there, times the hours for which they were not.
    pub lacking_cpu_h: f64,
    /// Moves begun.
    pub moves: u32,
    /// The same, by interval.
    pub moves_by_interval: Vec<u32>,
    /// Bytes on the wire.
    pub bytes: u64,
    /// Moves back to a host that was left within the hour before.
    pub returns: u32,
}

struct Moving {
    machine: usize,
    to: usize,
    ends_s: f64,
    from: usize,
}

struct Run<'a> {
    fleet: &'a Fleet,
    replay: &'a Replay,
    at: Vec<usize>,
    histories: Vec<Option<History>>,
    moving: Vec<Moving>,
    cooldown: Cooldown,
    names: HashMap<MachineName, usize>,
    hosts: BTreeMap<vmotion_model::HostName, usize>,
    left: Vec<(u64, usize, usize)>,
    outcome: Outcome,
}

/// Some of the fleet's time, under one policy.
#[must_use]
pub fn replay(fleet: &Fleet, replay: &Replay) -> Outcome {
    replay_watched(fleet, replay, |_| ())
}

/// [`replay`], which takes seconds and more of a processor; `watch` is told after each interval how many are done.
#[must_use]
pub fn replay_watched(fleet: &Fleet, replay: &Replay, mut watch: impl FnMut(usize)) -> Outcome {
    let begins = replay.replayed.start;
    let name = |at: usize| site_machine(at, &fleet.traces[at], 0).name;
    let mut run = Run {
        fleet,
        replay,
        at: fleet.placed.clone(),
        histories: fleet.traces.iter().map(|trace| seen(trace, begins)).collect(),
        moving: Vec::new(),
        cooldown: Cooldown::default(),
        names: (0..fleet.traces.len()).map(|at| (name(at), at)).collect(),
        hosts: (0..fleet.hosts).map(|host| (host_name(host), host)).collect(),
        left: Vec::new(),
        outcome: Outcome {
            policy: replay.policy,
            overloaded: 0,
            by_interval: Vec::new(),
            lacking_cpu_h: 0.0,
            moves: 0,
            moves_by_interval: Vec::new(),
            bytes: 0,
            returns: 0,
        },
    };
    for interval in replay.replayed.clone() {
        run.interval(interval);
        watch(interval + 1 - begins);
    }
    run.outcome
}

impl Run<'_> {
    fn interval(&mut self, interval: usize) {
        let now_s = interval as u64 * INTERVAL_S;
        self.land(now_s);
        let loads = self.loads(interval);
        self.count(&loads);
        for (trace, history) in self.fleet.traces.iter().zip(&mut self.histories) {
            if trace.lives.contains(&interval) {
                match history {
                    Some(history) => history.record(now_s, trace.cpus[interval], HOLD_S),
                    None => *history = Some(History::begin(now_s, trace.cpus[interval])),
                }
            }
        }
        let moves = self.outcome.moves;
        match self.replay.policy {
            Policy::None => {}
            Policy::NaiveSpread => self.spread(interval, now_s),
            Policy::Ours => self.plan(interval, now_s),
        }
        self.outcome.moves_by_interval.push(self.outcome.moves - moves);
    }

    fn land(&mut self, now_s: u64) {
        let now = now_s as f64;
        for moving in &self.moving {
            if moving.ends_s <= now {
                self.at[moving.machine] = moving.to;
            }
        }
        self.moving.retain(|moving| moving.ends_s > now);
    }

    /// Demand by host; moves that go on cost both ends.
    fn loads(&self, interval: usize) -> Vec<f64> {
        let mut loads = vec![0.0; self.fleet.hosts];
        for (trace, host) in self.fleet.traces.iter().zip(&self.at) {
            if trace.lives.contains(&interval) {
                loads[*host] += f64::from(trace.cpus[interval]);
            }
        }
        for moving in &self.moving {
            loads[moving.from] += MOVE_CPUS;
            loads[moving.to] += MOVE_CPUS;
        }
        loads
    }

    fn count(&mut self, loads: &[f64]) {
        let cpus = f64::from(self.fleet.cpus);
        let over = loads.iter().filter(|load| **load > cpus);
        let overloaded = crate::world::index(over.clone().count());
        self.outcome.lacking_cpu_h += over.map(|load| load - cpus).sum::<f64>() * INTERVAL_S as f64 / 3600.0;
        self.outcome.overloaded += overloaded;
        self.outcome.by_interval.push(overloaded);
    }

    fn begin(&mut self, machine: usize, to: usize, now_s: u64, ends_s: f64) {
        let from = self.at[machine];
        self.outcome.moves += 1;
        let back = |(at_s, of, host): &(u64, usize, usize)| *of == machine && *host == to && at_s + 3600 > now_s;
        self.outcome.returns += u32::from(self.left.iter().any(back));
        self.left.push((now_s, machine, from));
        self.moving.push(Moving { machine, to, from, ends_s });
    }

    /// As the site is now: what lives, where it is or is going to be.
    fn site(&self, interval: usize, now_s: u64) -> Site {
        let mut site = site(&self.fleet.without_traces(), interval);
        site.policy = self.replay.spec.clone();
        site.moves_last_hour = self.cooldown.last_hour(now_s);
        for (at, (trace, history)) in self.fleet.traces.iter().zip(&self.histories).enumerate() {
            let Some(history) = history.filter(|_| trace.lives.contains(&interval)) else { continue };
            let mut machine = site_machine(at, trace, self.at[at]);
            machine.demand = history.demand(now_s);
            machine.stays = self.cooldown.stays(&machine.name, &site.policy, now_s);
            machine.left = self.cooldown.left(&machine.name);
            site.machines.push(machine);
        }
        for moving in self.moving.iter().filter(|moving| self.fleet.traces[moving.machine].lives.contains(&interval)) {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "ms ahead")]
            let ends_ms = ((moving.ends_s - now_s as f64) * 1000.0) as u64;
            let machine = site_machine(moving.machine, &self.fleet.traces[moving.machine], 0).name;
            let (from, to) = (host_name(moving.from), host_name(moving.to));
            site.under_way.push(UnderWay { machine, piece: None, from, to, ends_ms });
        }
        site
    }

    fn plan(&mut self, interval: usize, now_s: u64) {
        self.cooldown.forget(now_s);
        let site = self.site(interval, now_s);
        let plan = crate::plan(&site, Goal { gather: false, ..Goal::ALL }, effort(self.fleet.traces.len()));
        for step in &plan.steps {
            // What begins later is planned again then.
            if step.begins_ms >= INTERVAL_S * 1000 || step.motive == Motive::Bounce {
                continue;
            }
            let (Some(machine), Some(to)) = (self.names.get(&step.subject.machine), self.hosts.get(&step.to)) else {
                continue;
            };
            let (machine, to) = (*machine, *to);
            #[expect(clippy::cast_precision_loss, reason = "ms")]
            let ends_s = now_s as f64 + (step.begins_ms + step.takes_ms) as f64 / 1000.0;
            self.cooldown.moved(step.subject.machine.clone(), step.from.clone(), now_s);
            self.outcome.bytes += step.bytes;
            self.begin(machine, to, now_s, ends_s);
        }
    }

    /// The rule of thumb. What is moving counts as moved.
    fn spread(&mut self, interval: usize, now_s: u64) {
        let mut at = self.at.clone();
        self.moving.iter().for_each(|moving| at[moving.machine] = moving.to);
        let (mut loads, mut used) = (vec![0.0; self.fleet.hosts], vec![0u64; self.fleet.hosts]);
        for (number, trace) in self.fleet.traces.iter().enumerate().filter(|(_, trace)| trace.lives.contains(&interval))
        {
            loads[at[number]] += f64::from(trace.cpus[interval]);
            used[at[number]] += trace.memory.0;
        }
        self.moving.iter().for_each(|moving| used[moving.from] += self.fleet.traces[moving.machine].memory.0);
        for _ in 0..NAIVE_MOVES_MAX {
            let by_load = |a: &usize, b: &usize| loads[*a].total_cmp(&loads[*b]).then(a.cmp(b));
            let (Some(most), Some(least)) = ((0..loads.len()).max_by(by_load), (0..loads.len()).min_by(by_load)) else {
                return;
            };
            let gap = loads[most] - loads[least];
            if gap <= NAIVE_SPREAD * f64::from(self.fleet.cpus) {
                return;
            }
            let Some((machine, cpus)) =
                self.closest_to(gap / 2.0, interval, (most, &at), self.fleet.memory.0.saturating_sub(used[least]))
            else {
                return;
            };
            let trace = &self.fleet.traces[machine];
            (loads[most], loads[least]) = (loads[most] - cpus, loads[least] + cpus);
            used[least] += trace.memory.0;
            at[machine] = least;
            let bytes =
                trace.memory.0 as f64 / 4096.0 * (1.0 - trace.memory_use.zero_share) * trace.memory_use.bytes_per_page;
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bytes")]
            let whole = bytes as u64;
            self.outcome.bytes += whole;
            self.begin(machine, least, now_s, now_s as f64 + 1.0 + bytes / 1e9);
        }
    }

    /// The machine on a host whose demand comes closest to `wanted`, is less than twice that and has room in `memory`.
    fn closest_to(
        &self,
        wanted: f64,
        interval: usize,
        (host, at): (usize, &[usize]),
        memory: u64,
    ) -> Option<(usize, f64)> {
        let is_moving = |number: usize| self.moving.iter().any(|moving| moving.machine == number);
        let on = self.fleet.traces.iter().enumerate().filter(|(number, trace)| {
            at[*number] == host && trace.lives.contains(&interval) && trace.memory.0 <= memory && !is_moving(*number)
        });
        let on = on.map(|(number, trace)| (number, f64::from(trace.cpus[interval])));
        on.filter(|(_, cpus)| *cpus > 0.01 && *cpus < 2.0 * wanted)
            .min_by(|a, b| (a.1 - wanted).abs().total_cmp(&(b.1 - wanted).abs()).then(a.0.cmp(&b.0)))
    }
}
