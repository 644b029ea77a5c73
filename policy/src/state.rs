//! Where everything is while a plan is sought: sums for each host, counts for each rule, and what a move would change.
//!
//! The one invariant: every sum is that of `host_of`; only [`State::put`] changes either.

use crate::{
    cost::{Cost, Costs},
    objective::worth,
    rules::{Around, Counts, Rules, broken_by},
    site::{Duty, SLOTS},
    world::{HostId, LOCAL_RTT_MS, SubjectId, World, index},
};
use std::collections::BTreeSet;
use vmotion_model::Standing;

/// Everything is looked at where there are no more hosts than this.
const HOSTS_ALL: usize = 64;
/// Of each kind of hosts (processors, datacenter) so many are looked at: of the subject's own datacenter, and of any other.
const NEAR: usize = 24;
const FAR: usize = 3;
/// Hosts that are passed over for want of memory before a kind is given up.
const PASSED_OVER: usize = 200;
/// Less than this is nothing.
pub(crate) const NOTHING: f64 = 1e-9;

/// Why something cannot be on a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Refusal {
    /// It is there.
    Same,
    /// Nothing comes there.
    Closed,
    /// Its processors lack something.
    Processors,
    /// It has less memory than is needed.
    Memory,
    /// This rule.
    Rule(u32),
}

/// Where everything is.
pub(crate) struct State<'s, 'a> {
    pub(crate) world: &'s World<'a>,
    pub(crate) rules: &'s Rules<'a>,
    pub(crate) host_of: Vec<HostId>,
    pub(crate) on_host: Vec<Vec<SubjectId>>,
    place: Vec<u32>,
    pub(crate) load: Vec<[f64; SLOTS]>,
    pub(crate) variance: Vec<f64>,
    pub(crate) used: Vec<u64>,
    pub(crate) loss: Vec<f64>,
    pub(crate) counts: Counts,
    /// By kind of processors and datacenter, open hosts by processors that nobody would miss.
    room: Vec<BTreeSet<(i32, HostId)>>,
    pub(crate) costs: Costs,
    /// Moves that were judged.
    pub(crate) judged: u64,
}

impl<'s, 'a> State<'s, 'a> {
    pub(crate) fn new(world: &'s World<'a>, rules: &'s Rules<'a>) -> Self {
        let hosts = world.hosts.len();
        let host_of: Vec<HostId> = world.subjects.iter().map(|subject| subject.origin).collect();
        let counts = Counts::new(world, rules, &host_of);
        let mut state = Self {
            world,
            rules,
            place: vec![0; host_of.len()],
            on_host: vec![Vec::new(); hosts],
            load: vec![[0.0; SLOTS]; hosts],
            variance: vec![0.0; hosts],
            used: vec![0; hosts],
            loss: vec![0.0; hosts],
            counts,
            room: vec![BTreeSet::new(); world.hosts.len().min(1) * kinds(world)],
            costs: Costs::default(),
            judged: 0,
            host_of,
        };
        for subject in 0..index(state.host_of.len()) {
            state.enter(subject, state.host_of[subject as usize]);
        }
        for host in world.host_ids_iter() {
            state.loss[host as usize] = state.loss_of(host);
            state.set_room(host, None);
        }
        state
    }

    pub(crate) fn around(&self) -> Around<'_, 'a> {
        Around { world: self.world, rules: self.rules, host_of: &self.host_of }
    }

    fn enter(&mut self, subject: SubjectId, host: HostId) {
        let (at, facts) = (host as usize, self.world.of(subject));
        self.place[subject as usize] = index(self.on_host[at].len());
        self.on_host[at].push(subject);
        for (sum, cpus) in self.load[at].iter_mut().zip(&self.world.demand[subject as usize]) {
            *sum += f64::from(*cpus);
        }
        self.variance[at] += facts.variance;
        self.used[at] += facts.memory;
    }

    fn leave(&mut self, subject: SubjectId, host: HostId) {
        let (at, facts) = (host as usize, self.world.of(subject));
        let place = self.place[subject as usize] as usize;
        self.on_host[at].swap_remove(place);
        if let Some(moved) = self.on_host[at].get(place) {
            self.place[*moved as usize] = index(place);
        }
        for (sum, cpus) in self.load[at].iter_mut().zip(&self.world.demand[subject as usize]) {
            *sum -= f64::from(*cpus);
        }
        self.variance[at] -= facts.variance;
        self.used[at] -= facts.memory;
    }

    /// Puts `subject` on `to`.
    pub(crate) fn put(&mut self, subject: SubjectId, to: HostId) {
        let from = self.host_of[subject as usize];
        if from == to {
            return;
        }
        let around = Around { world: self.world, rules: self.rules, host_of: &self.host_of };
        self.counts.moved(&around, subject, to);
        let rooms = [from, to].map(|host| (host, self.room_of(host)));
        self.leave(subject, from);
        self.enter(subject, to);
        self.host_of[subject as usize] = to;
        for (host, room) in rooms {
            self.loss[host as usize] = self.loss_of(host);
            self.set_room(host, Some(room));
        }
    }

    fn loss_of(&self, host: HostId) -> f64 {
        let (at, facts) = (host as usize, self.world.facts(host));
        let extra = facts.other + self.variance[at].max(0.0).sqrt();
        self.world.objective.loss(&self.load[at], extra, facts.cpus)
    }

    /// The loss of `host` with `more` on it and without `less`.
    pub(crate) fn loss_with(&self, host: HostId, more: &[SubjectId], less: &[SubjectId]) -> f64 {
        let (at, facts) = (host as usize, self.world.facts(host));
        let (mut load, mut variance) = (self.load[at], self.variance[at]);
        for (subjects, sign) in [(more, 1.0), (less, -1.0)] {
            for subject in subjects {
                variance += sign * self.world.of(*subject).variance;
                for (sum, cpus) in load.iter_mut().zip(&self.world.demand[*subject as usize]) {
                    *sum += sign * f64::from(*cpus);
                }
            }
        }
        self.world.objective.loss(&load, facts.other + variance.max(0.0).sqrt(), facts.cpus)
    }

    /// Demand in the slot with the most, deviations included.
    pub(crate) fn peak(&self, host: HostId) -> f64 {
        let at = host as usize;
        let most = self.load[at].iter().copied().fold(0.0, f64::max);
        most + self.world.facts(host).other + self.variance[at].max(0.0).sqrt()
    }

    /// Processors that nobody would miss, in 64ths.
    fn room_of(&self, host: HostId) -> i32 {
        let room = self.world.facts(host).cpus * self.world.objective.content - self.peak(host);
        #[expect(clippy::cast_possible_truncation, reason = "casts of floats saturate")]
        let room = (room * 64.0) as i32;
        room
    }

    fn kind_of(&self, host: HostId) -> usize {
        let facts = self.world.facts(host);
        usize::from(facts.cpu) * self.world.datacenters.len() + usize::from(facts.datacenter)
    }

    fn set_room(&mut self, host: HostId, before: Option<i32>) {
        if self.world.facts(host).duty != Duty::Open {
            return;
        }
        let (kind, room) = (self.kind_of(host), self.room_of(host));
        if let Some(before) = before {
            self.room[kind].remove(&(before, host));
        }
        self.room[kind].insert((room, host));
    }

    pub(crate) fn free(&self, host: HostId) -> u64 {
        self.world.facts(host).memory.saturating_sub(self.used[host as usize])
    }

    /// Could `subject` be put on `to`, as far as hosts go?
    pub(crate) fn fits(&self, subject: SubjectId, to: HostId) -> Result<(), Refusal> {
        let (facts, from) = (self.world.of(subject), self.host_of[subject as usize]);
        if to == from {
            return Err(Refusal::Same);
        }
        let duty = self.world.facts(to).duty;
        if duty != Duty::Open && !(to == facts.origin && duty == Duty::Cordoned) {
            return Err(Refusal::Closed);
        }
        if facts.memory > self.free(to) {
            return Err(Refusal::Memory);
        }
        if !self.world.is_compatible(facts.origin, to) {
            return Err(Refusal::Processors);
        }
        Ok(())
    }

    /// Could it, everything else being where it is?
    pub(crate) fn may(&self, subject: SubjectId, to: HostId) -> Result<(), Refusal> {
        self.fits(subject, to)?;
        self.allowed(subject, to, false)
    }

    pub(crate) fn allowed(&self, subject: SubjectId, to: HostId, together: bool) -> Result<(), Refusal> {
        match self.around().refuses(&self.counts, subject, to, together) {
            Some(rule) => Err(Refusal::Rule(rule)),
            None => Ok(()),
        }
    }

    pub(crate) fn cost(&mut self, subject: SubjectId, to: HostId) -> Cost {
        let origin = self.world.of(subject).origin;
        self.costs.of(self.world, subject, origin, to)
    }

    /// What it costs that `subject` ends on `host`.
    pub(crate) fn units(&mut self, subject: SubjectId, host: HostId) -> f64 {
        if host == self.world.of(subject).origin { 0.0 } else { self.cost(subject, host).units }
    }

    /// Processors that wait because `subject` on `host` shares with what is elsewhere.
    pub(crate) fn waits(&self, subject: SubjectId, host: HostId) -> f64 {
        let shares = self.world.shares_of(subject);
        shares.iter().map(|(other, per_s)| per_s * self.wait_s(host, self.host_of[*other as usize])).sum()
    }

    fn wait_s(&self, one: HostId, other: HostId) -> f64 {
        if one == other {
            return 0.0;
        }
        let rtt_ms = self.world.path(one, other).1.rtt_ms;
        worth::REMOTE_WAIT_S + (rtt_ms - LOCAL_RTT_MS).max(0.0) / 1000.0
    }

    /// What putting `subject` on `to` changes in the objective; less is better.
    pub(crate) fn change(&mut self, subject: SubjectId, to: HostId) -> f64 {
        self.judged += 1;
        let from = self.host_of[subject as usize];
        let mut change = self.loss_with(to, &[subject], &[]) - self.loss[to as usize];
        if self.loss[from as usize] > 0.0 {
            change += self.loss_with(from, &[], &[subject]) - self.loss[from as usize];
        }
        if !self.world.shares_of(subject).is_empty() {
            change += self.waits(subject, to) - self.waits(subject, from);
        }
        change + self.units(subject, to) - self.units(subject, from)
    }

    /// How busy `host` would be in its busiest slot with `subject`, as a part of its processors.
    pub(crate) fn busy_with(&self, subject: SubjectId, host: HostId) -> f64 {
        let demand = &self.world.demand[subject as usize];
        let sums = self.load[host as usize].iter().zip(demand).map(|(sum, more)| sum + f64::from(*more));
        (sums.fold(0.0, f64::max) + self.world.facts(host).other) / self.world.facts(host).cpus
    }

    /// Hosts that are worth looking at for `subject`.
    pub(crate) fn candidates(&self, subject: SubjectId) -> Vec<HostId> {
        let world = self.world;
        if world.hosts.len() <= HOSTS_ALL {
            return world.host_ids_iter().filter(|host| world.facts(*host).duty == Duty::Open).collect();
        }
        let facts = world.of(subject);
        let mut found = self.bound_to(subject);
        if found.is_empty() {
            let from = self.host_of[subject as usize];
            let near = world.facts(from).datacenter;
            for (kind, room) in self.room.iter().enumerate() {
                let Some((_, any)) = room.first() else { continue };
                if !world.is_compatible(facts.origin, *any) || self.rules.forbids_all(world, facts.machine, *any) {
                    continue;
                }
                let wanted = if kind % world.datacenters.len() == usize::from(near) { NEAR } else { FAR };
                let fitting = room.iter().rev().take(PASSED_OVER).map(|(_, host)| *host);
                found.extend(fitting.filter(|host| facts.memory <= self.free(*host)).take(wanted));
            }
            found.extend(world.shares_of(subject).iter().map(|(other, _)| self.host_of[*other as usize]));
        }
        found.push(facts.origin);
        found.sort_unstable();
        found.dedup();
        found
    }

    /// The few hosts that a pin leaves, or the affinity that holds the machine in its domain.
    fn bound_to(&self, subject: SubjectId) -> Vec<HostId> {
        use crate::rules::Kind;
        let from = self.host_of[subject as usize];
        for rule in self.rules.of_machine(self.world.of(subject).machine) {
            match &self.rules.get(*rule).kind {
                Kind::Pin(hosts) => return hosts.iter().take(4 * NEAR).collect(),
                Kind::Affinity(kind @ vmotion_model::Domain::Rack) => {
                    let rack = self.world.domain(*kind, from);
                    let fellows = self.world.host_ids_iter().filter(|host| self.world.domain(*kind, *host) == rack);
                    let home = self.counts.get(*rule).domains().iter().any(|(domain, _)| *domain == rack);
                    if home && self.counts.get(*rule).domains().len() == 1 {
                        return fellows.collect();
                    }
                }
                _ => {}
            }
        }
        Vec::new()
    }

    pub(crate) fn standing(&self) -> Standing {
        let mut standing = Standing { loss: self.loss.iter().sum::<f64>() + self.waits_all(), ..Standing::default() };
        let mut sum = 0.0;
        for host in self.world.host_ids_iter() {
            let facts = self.world.facts(host);
            let load = self.peak(host) / facts.cpus;
            standing.load_max = standing.load_max.max(load);
            standing.hosts_overloaded += u32::from(load > self.world.objective.content + NOTHING);
            sum += load;
        }
        standing.load_mean = sum / (self.world.hosts.len().max(1) as f64);
        let broken = (0u32..).zip(&self.rules.all).filter(|(id, rule)| broken_by(&rule.kind, self.counts.get(*id)) > 0);
        standing.rules_broken = index(broken.count());
        standing
    }

    /// Each pair is told by both of its ends.
    fn waits_all(&self) -> f64 {
        self.world.sharing().into_iter().map(|subject| self.waits(subject, self.host_of[subject as usize])).sum::<f64>()
            / 2.0
    }

    /// Loss of hosts and waits, and the cost of all moves so far.
    #[cfg(test)]
    pub(crate) fn objective(&mut self) -> f64 {
        let subjects = 0..index(self.host_of.len());
        let moves: f64 = subjects.map(|subject| self.units(subject, self.host_of[subject as usize])).sum();
        self.loss.iter().sum::<f64>() + self.waits_all() + moves
    }
}

fn kinds(world: &World<'_>) -> usize {
    let processors = world.hosts.iter().map(|host| usize::from(host.cpu) + 1).max().unwrap_or(0);
    processors * world.datacenters.len()
}
