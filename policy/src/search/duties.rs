//! What has to be: hosts that are drained become empty, rules that are broken are kept again.

use super::{Fixed, Refusal, Search, movable, why_nowhere};
use crate::{
    rules::{Kind, broken_by},
    site::Duty,
    world::{HostId, SubjectId, index},
};
use std::cmp::Reverse;
use vmotion_model::{Blocked, Motive};

/// How far others are moved to make room: each makes room by at most one less.
const DEPTH: u32 = 2;
/// Places in which room is made for one subject, at most.
const PLACES: usize = 12;
/// What is moved out of one place at most.
const OUT_OF_ONE: usize = 4;
/// Attempts to make room for one subject at most.
const ATTEMPTS: u32 = 200;

impl Search<'_, '_> {
    pub(super) fn evacuate(&mut self) {
        let world = self.state.world;
        let mut leaving: Vec<(u64, Reverse<u64>, SubjectId)> = Vec::new();
        for host in world.host_ids_iter() {
            let Duty::Draining(deadline) = world.facts(host).duty else { continue };
            let on = self.state.on_host[host as usize].iter();
            leaving
                .extend(on.map(|subject| (deadline.unwrap_or(u64::MAX), Reverse(world.of(*subject).memory), *subject)));
        }
        leaving.sort_unstable();
        for (_, _, subject) in leaving {
            let here = self.state.host_of[subject as usize];
            if !matches!(world.facts(here).duty, Duty::Draining(_)) {
                continue;
            }
            if let Err(fixed) = movable(&self.state, subject) {
                let why = self.why_fixed(subject, fixed);
                self.blocked.push(Blocked { subject: world.name_of(subject), motive: Motive::Evacuate, why });
            } else if !self.settle(subject, Motive::Evacuate) {
                let why = format!("it has no place: {}", why_nowhere(&self.state, subject));
                self.blocked.push(Blocked { subject: world.name_of(subject), motive: Motive::Evacuate, why });
            }
        }
    }

    pub(super) fn why_fixed(&self, subject: SubjectId, fixed: Fixed) -> String {
        let world = self.state.world;
        let host = &world.host(self.state.host_of[subject as usize]).name;
        match fixed {
            Fixed::Flies => format!("it is on its way to {host}: it can be moved again when it is there"),
            Fixed::Gone => format!("{host} is not heard, so nothing on it can be moved"),
            Fixed::Contradiction(rule) => {
                format!(
                    "its rule {} contradicts others: change or remove one of them",
                    self.state.rules.get(rule).rule.name
                )
            }
        }
    }

    /// Finds a place for what has to go, and makes one where there is none.
    fn settle(&mut self, subject: SubjectId, motive: Motive) -> bool {
        self.motive[subject as usize] = Some(motive);
        let mut attempts = ATTEMPTS;
        if self.find_place(subject) || self.make_room(subject, DEPTH, &mut attempts) {
            return true;
        }
        self.motive[subject as usize] = None;
        false
    }

    fn find_place(&mut self, subject: SubjectId) -> bool {
        let all: Vec<HostId> = self.state.world.host_ids_iter().collect();
        for hosts in [self.state.candidates(subject), all] {
            let never_left: Vec<HostId> =
                hosts.iter().copied().filter(|host| self.never_left(subject, *host)).collect();
            for hosts in [never_left, hosts] {
                if let Some(host) = self.best_of(subject, &hosts, false) {
                    self.go(subject, host);
                    return true;
                }
                if self.place_together(subject, &hosts) {
                    return true;
                }
            }
        }
        false
    }

    /// With all that has to come along.
    fn place_together(&mut self, subject: SubjectId, hosts: &[HostId]) -> bool {
        let rules = self.state.rules.of_machine(self.state.world.of(subject).machine);
        if !rules.iter().any(|rule| matches!(self.state.rules.get(*rule).kind, Kind::Affinity(_))) {
            return false;
        }
        for (_, host) in self.ranked(subject, hosts, false) {
            let mark = self.mark();
            if self.go_together(subject, host, false) {
                for at in mark.log..self.log.len() {
                    let part = self.log[at].0 as usize;
                    self.motive[part] = self.motive[part].or(Some(Motive::MakeRoom));
                }
                return true;
            }
        }
        false
    }

    /// Moves others out of the way.
    fn make_room(&mut self, subject: SubjectId, depth: u32, attempts: &mut u32) -> bool {
        if depth == 0 {
            return false;
        }
        let world = self.state.world;
        let mut places: Vec<(Reverse<u64>, HostId)> = self
            .state
            .candidates(subject)
            .into_iter()
            .filter(|host| matches!(self.state.may(subject, *host), Err(Refusal::Memory | Refusal::Rule(_))))
            .filter(|host| world.is_compatible(world.of(subject).origin, *host))
            .filter(|host| self.state.rules.forbids(world, world.of(subject).machine, *host).is_none())
            .map(|host| (Reverse(self.state.free(host)), host))
            .collect();
        places.sort_unstable();
        for (_, host) in places.into_iter().take(PLACES) {
            if *attempts == 0 || self.is_spent() {
                return false;
            }
            *attempts -= 1;
            let mark = self.mark();
            let motives = self.motive.clone();
            if self.clear(subject, host, depth, attempts) {
                self.go(subject, host);
                return true;
            }
            self.undo(mark);
            self.motive = motives;
        }
        false
    }

    /// Moves out of `host` what keeps `subject` away.
    fn clear(&mut self, subject: SubjectId, host: HostId, depth: u32, attempts: &mut u32) -> bool {
        for _ in 0..OUT_OF_ONE {
            let in_the_way = match self.state.may(subject, host) {
                Ok(()) => return true,
                Err(Refusal::Memory) => self.smallest_that_frees(subject, host),
                Err(Refusal::Rule(rule)) => self.held_by(rule, subject, host),
                Err(_) => None,
            };
            let Some(other) = in_the_way else { return false };
            self.motive[other as usize] = self.motive[other as usize].or(Some(Motive::MakeRoom));
            let hosts: Vec<HostId> = self.state.candidates(other).into_iter().filter(|place| *place != host).collect();
            match self.best_of(other, &hosts, false) {
                Some(place) => self.go(other, place),
                None if self.make_room(other, depth - 1, attempts) => {}
                None => return false,
            }
            if self.state.host_of[other as usize] == host {
                return false;
            }
        }
        self.state.may(subject, host).is_ok()
    }

    fn may_make_room(&self, subject: SubjectId) -> bool {
        let machine = self.state.world.machine(self.state.world.of(subject).machine);
        self.is_movable(subject) && machine.stays.is_none()
    }

    /// The smallest whose memory is enough, else the largest.
    fn smallest_that_frees(&self, subject: SubjectId, host: HostId) -> Option<SubjectId> {
        let world = self.state.world;
        let short = world.of(subject).memory.saturating_sub(self.state.free(host));
        let on = self.state.on_host[host as usize]
            .iter()
            .copied()
            .filter(|other| *other != subject && world.of(*other).memory > 0 && self.may_make_room(*other));
        on.min_by_key(|other| {
            let memory = world.of(*other).memory;
            let is_short = memory < short;
            (is_short, if is_short { u64::MAX - memory } else { memory }, *other)
        })
    }

    /// A machine on `host`, or in its domain, that a rule keeps apart from `subject`.
    fn held_by(&self, rule: u32, subject: SubjectId, host: HostId) -> Option<SubjectId> {
        let world = self.state.world;
        let rule = self.state.rules.get(rule);
        let Kind::Apart(domain) = rule.kind else { return None };
        let own = world.of(subject).machine;
        let home = world.domain(domain, host);
        let others = rule.members.iter().filter(|machine| **machine != own);
        let mut parts = others.flat_map(|machine| world.parts[*machine as usize].clone());
        parts.find(|part| world.domain(domain, self.state.host_of[*part as usize]) == home && self.may_make_room(*part))
    }

    pub(super) fn repair(&mut self) {
        for rule in 0..index(self.state.rules.all.len()) {
            self.repair_rule(rule);
        }
    }

    fn broken(&self, rule: u32) -> u32 {
        broken_by(&self.state.rules.get(rule).kind, self.state.counts.get(rule))
    }

    fn repair_rule(&mut self, rule: u32) {
        while self.broken(rule) > 0 {
            let offending = self.offending(rule);
            let before = self.broken(rule);
            let repaired = offending.iter().any(|subject| self.repair_one(rule, *subject));
            if repaired && self.broken(rule) < before {
                continue;
            }
            let Some(subject) = offending.first().copied() else { break };
            let world = self.state.world;
            let why = match movable(&self.state, subject) {
                Err(fixed) => self.why_fixed(subject, fixed),
                Ok(()) => format!("it has no place: {}", why_nowhere(&self.state, subject)),
            };
            let why = format!("rule {} is broken; {why}", self.state.rules.get(rule).rule.name);
            self.blocked.push(Blocked { subject: world.name_of(subject), motive: Motive::Repair, why });
            break;
        }
    }

    /// Moves one machine so that the rule is broken by less.
    fn repair_one(&mut self, rule: u32, subject: SubjectId) -> bool {
        if !self.is_movable(subject) || self.is_spent() {
            return false;
        }
        let before = self.broken(rule);
        let motives = self.motive.clone();
        self.motive[subject as usize] = Some(Motive::Repair);
        let mark = self.mark();
        let all: Vec<HostId> = self.state.world.host_ids_iter().collect();
        for (_, host) in self.ranked(subject, &all, false) {
            if self.state.allowed(subject, host, false).is_ok() {
                self.go(subject, host);
                if self.broken(rule) < before {
                    return true;
                }
                self.undo(mark);
            }
        }
        let mut attempts = ATTEMPTS;
        if (self.place_together(subject, &all) || self.make_room(subject, DEPTH, &mut attempts))
            && self.broken(rule) < before
        {
            return true;
        }
        self.undo(mark);
        self.motive = motives;
        false
    }

    /// Who would have to move, the cheapest first.
    fn offending(&mut self, rule: u32) -> Vec<SubjectId> {
        let (world, state) = (self.state.world, &self.state);
        let (compiled, count) = (state.rules.get(rule), state.counts.get(rule));
        let fullest = count.fullest();
        let home = count.domains().iter().find(|(_, machines)| *machines == fullest).map(|(domain, _)| *domain);
        let offends = |part: &SubjectId| {
            let host = state.host_of[*part as usize];
            let domain = compiled.kind.counted_by().map(|kind| world.domain(kind, host));
            let machines = domain.map_or(0, |domain| count.of(domain));
            match compiled.kind {
                Kind::Affinity(_) => domain != home,
                Kind::Apart(_) => machines > 1,
                Kind::Spread { .. } => machines == fullest,
                Kind::Pin(_) | Kind::Residency(_) => !compiled.kind.admits(world, host),
            }
        };
        let parts = compiled.members.iter().flat_map(|machine| world.parts[*machine as usize].clone());
        let mut found: Vec<SubjectId> = parts.filter(offends).collect();
        found.sort_by_key(|part| (movable(state, *part).is_err(), world.of(*part).memory, *part));
        found
    }
}
