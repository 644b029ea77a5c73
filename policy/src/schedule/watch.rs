//! Rules while things are under way: for each rule of what is moved, who may be where, and who is there for certain.
//!
//! The one invariant: whichever of the moves under way are over, a domain has at least `surely` and at most `maybe` of the rule's machines.

use super::Job;
use crate::{
    rules::{Count, Kind, Rules},
    world::{Flight, HostId, SubjectId, World, index},
};
use std::collections::{BTreeMap, HashMap};

/// Machines by domain, with machines in several pieces counted once in each.
#[derive(Debug, Clone)]
struct Presence {
    pieces: HashMap<(u32, u32), u32>,
    count: Count,
}

impl Presence {
    fn add(&mut self, domain: u32, machine: u32, may_have: bool) {
        let pieces = self.pieces.entry((domain, machine)).or_default();
        *pieces += 1;
        if *pieces == 1 {
            self.count.add(domain, may_have);
        }
    }

    fn remove(&mut self, domain: u32, machine: u32, may_have: bool) {
        let Some(pieces) = self.pieces.get_mut(&(domain, machine)) else { return };
        *pieces -= 1;
        if *pieces == 0 {
            self.pieces.remove(&(domain, machine));
            self.count.remove(domain, may_have);
        }
    }
}

/// One rule.
struct Watch {
    maybe: Presence,
    surely: Presence,
    /// Jobs under way.
    under_way: Vec<usize>,
    /// Jobs that are over, and are not before others that are over.
    over: Vec<usize>,
}

/// All rules that something moved is under.
pub(super) struct Watches<'s, 'a> {
    world: &'s World<'a>,
    rules: &'s Rules<'a>,
    by_rule: BTreeMap<u32, Watch>,
}

impl<'s, 'a> Watches<'s, 'a> {
    pub(super) fn new(world: &'s World<'a>, rules: &'s Rules<'a>, host_of: &[HostId], jobs: &[Job]) -> Self {
        let mut watches = Self { world, rules, by_rule: BTreeMap::new() };
        for job in jobs {
            for id in watches.of(job.subject) {
                if !watches.by_rule.contains_key(&id) {
                    let watch = watches.watch(id, host_of);
                    watches.by_rule.insert(id, watch);
                }
            }
        }
        watches
    }

    fn watch(&self, id: u32, host_of: &[HostId]) -> Watch {
        let (world, rule) = (self.world, self.rules.get(id));
        let open = index(rule.may_have.iter().count());
        let mut maybe = Presence { pieces: HashMap::new(), count: Count::new(open) };
        let mut surely = maybe.clone();
        if let Some(kind) = rule.kind.counted_by() {
            for part in rule.members.iter().flat_map(|machine| world.parts[*machine as usize].clone()) {
                let machine = world.of(part).machine;
                let at = world.domain(kind, host_of[part as usize]);
                maybe.add(at, machine, rule.may_have.has(at));
                let flight = world.flights.iter().find(|flight| flight.subject == part);
                match flight {
                    Some(flight) => {
                        let from = world.domain(kind, flight.from);
                        maybe.add(from, machine, rule.may_have.has(from));
                    }
                    None => surely.add(at, machine, rule.may_have.has(at)),
                }
            }
        }
        Watch { maybe, surely, under_way: Vec::new(), over: Vec::new() }
    }

    /// Rules of what is moved that speak of others.
    fn of(&self, subject: SubjectId) -> Vec<u32> {
        let rules = self.rules.of_machine(self.world.of(subject).machine).iter().copied();
        rules.filter(|id| self.rules.get(*id).kind.counted_by().is_some()).collect()
    }

    /// Jobs of the same rules that are over.
    pub(super) fn over(&self, subject: SubjectId) -> Vec<usize> {
        self.of(subject).iter().filter_map(|id| self.by_rule.get(id)).flat_map(|watch| watch.over.clone()).collect()
    }

    /// A move that was under way before the plan is over.
    pub(super) fn landed(&mut self, flight: &Flight) {
        let machine = self.world.of(flight.subject).machine;
        for id in self.of(flight.subject) {
            let (rule, Some(watch)) = (self.rules.get(id), self.by_rule.get_mut(&id)) else { continue };
            let Some(kind) = rule.kind.counted_by() else { continue };
            let [from, to] = [flight.from, flight.to].map(|host| self.world.domain(kind, host));
            watch.maybe.remove(from, machine, rule.may_have.has(from));
            watch.surely.add(to, machine, rule.may_have.has(to));
        }
    }

    /// Begins a job if no rule would be broken, whatever is over when; `together` says that others of its affinity begin with it.
    pub(super) fn begin(&mut self, number: usize, job: &Job, together: bool) -> bool {
        let mut begun = Vec::new();
        for id in self.of(job.subject) {
            if !self.may_begin(id, job, together) {
                for id in begun {
                    self.change(id, job, number, false);
                }
                return false;
            }
            let before = self.by_rule.get(&id).map_or(0, width);
            self.change(id, job, number, true);
            begun.push(id);
            if self.is_skewed(id, job, before) {
                for id in begun {
                    self.change(id, job, number, false);
                }
                return false;
            }
        }
        true
    }

    pub(super) fn take_back(&mut self, number: usize, job: &Job) {
        for id in self.of(job.subject) {
            self.change(id, job, number, false);
        }
    }

    fn change(&mut self, id: u32, job: &Job, number: usize, begins: bool) {
        let rule = self.rules.get(id);
        let (Some(kind), Some(watch)) = (rule.kind.counted_by(), self.by_rule.get_mut(&id)) else { return };
        let machine = self.world.of(job.subject).machine;
        let [from, to] = [job.from, job.to].map(|host| self.world.domain(kind, host));
        if begins {
            watch.maybe.add(to, machine, rule.may_have.has(to));
            watch.surely.remove(from, machine, rule.may_have.has(from));
            watch.under_way.push(number);
        } else {
            watch.maybe.remove(to, machine, rule.may_have.has(to));
            watch.surely.add(from, machine, rule.may_have.has(from));
            watch.under_way.retain(|other| *other != number);
        }
    }

    fn may_begin(&self, id: u32, job: &Job, together: bool) -> bool {
        let (rule, Some(watch)) = (self.rules.get(id), self.by_rule.get(&id)) else { return true };
        let Some(kind) = rule.kind.counted_by() else { return true };
        let machine = self.world.of(job.subject).machine;
        let [from, to] = [job.from, job.to].map(|host| self.world.domain(kind, host));
        match rule.kind {
            Kind::Apart(_) => {
                let own = u32::from(watch.maybe.pieces.contains_key(&(to, machine)));
                watch.maybe.count.of(to) <= own
            }
            Kind::Affinity(_) if from == to => true,
            Kind::Affinity(_) => {
                let alone = watch.maybe.count.total() == 1;
                let joins = watch.under_way.is_empty() && watch.surely.count.of(to) > 0;
                together || alone || joins
            }
            Kind::Spread { .. } | Kind::Pin(_) | Kind::Residency(_) => true,
        }
    }

    /// With the job under way: could its target, or any domain, be too full for the emptiest?
    fn is_skewed(&self, id: u32, job: &Job, before: u32) -> bool {
        let (rule, Some(watch)) = (self.rules.get(id), self.by_rule.get(&id)) else { return false };
        let Kind::Spread { over, skew } = rule.kind else { return false };
        let [from, to] = [job.from, job.to].map(|host| self.world.domain(over, host));
        let emptiest = watch.surely.count.emptiest();
        from != to && (watch.maybe.count.of(to) > emptiest + skew || width(watch) > before.max(skew))
    }

    /// A job is over.
    pub(super) fn end(&mut self, number: usize, job: &Job, after: &[usize]) {
        let machine = self.world.of(job.subject).machine;
        for id in self.of(job.subject) {
            let (rule, Some(watch)) = (self.rules.get(id), self.by_rule.get_mut(&id)) else { continue };
            let Some(kind) = rule.kind.counted_by() else { continue };
            let [from, to] = [job.from, job.to].map(|host| self.world.domain(kind, host));
            watch.maybe.remove(from, machine, rule.may_have.has(from));
            watch.surely.add(to, machine, rule.may_have.has(to));
            watch.under_way.retain(|other| *other != number);
            watch.over.retain(|other| !after.contains(other));
            watch.over.push(number);
        }
    }
}

/// How far the fullest domain may be from the emptiest.
fn width(watch: &Watch) -> u32 {
    watch.maybe.count.fullest().saturating_sub(watch.surely.count.emptiest())
}
