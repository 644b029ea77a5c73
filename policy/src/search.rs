//! The search: from where everything is to where it had better be. Evacuations first, then broken rules, then balance by moves, swaps and
//! chains, until nothing is better or the effort is spent.
//!
//! The one invariant: everything that is put somewhere may be there, so the state may be taken as the answer at any time.

mod balance;
mod duties;

use crate::{
    rules::Kind,
    site::Duty,
    state::{NOTHING, Refusal, State},
    world::{HostId, SubjectId, index},
};
use std::collections::{BTreeMap, BTreeSet};
use vmotion_model::{Blocked, Domain, Motive};

/// Machines that are moved together at most.
const TOGETHER_MAX: usize = 64;
/// Of two places that are as good, the one that leaves its host less busy: a host that is full counts so much.
const BUSY: f64 = 0.001;
/// Moves for balance that gain at least this part of the best one are as good; the one with fewer bytes is taken.
const AS_GOOD: f64 = 0.9;

/// What a plan may be made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Goal {
    /// Hosts that are to be empty.
    pub evacuate: bool,
    /// Rules that are broken.
    pub repair: bool,
    /// Hosts that have too much to do.
    pub balance: bool,
    /// Pieces that share with what is elsewhere.
    pub gather: bool,
}

impl Goal {
    /// All there is.
    pub const ALL: Self = Self { evacuate: true, repair: true, balance: true, gather: true };
    /// Only what has to be: no move for balance.
    pub const DUTIES: Self = Self { evacuate: true, repair: true, balance: false, gather: false };
    /// Only drains.
    pub const DRAIN: Self = Self { evacuate: true, repair: false, balance: false, gather: false };
}

/// How much may be tried: moves that are judged, about a microsecond each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Effort(pub u64);

impl Effort {
    /// What a site with so many machines is worth: a second for a thousand, half a minute for some hundred thousand.
    #[must_use]
    pub const fn for_machines(machines: usize) -> Self {
        Self(500_000 + 60 * machines as u64)
    }
}

impl Default for Effort {
    /// For a thousand machines.
    fn default() -> Self {
        Self::for_machines(1000)
    }
}

/// The search and what it has found so far.
pub(crate) struct Search<'s, 'a> {
    pub(crate) state: State<'s, 'a>,
    goal: Goal,
    effort: u64,
    /// Why something has to move; `None` for what moves only if that is better.
    pub(crate) motive: Vec<Option<Motive>>,
    /// What may be moved for balance.
    soft: Vec<bool>,
    /// Moves for balance that may be added.
    soft_left: i64,
    /// The objective's change since the beginning.
    value: f64,
    log: Vec<(SubjectId, HostId)>,
    pub(crate) blocked: Vec<Blocked>,
    pub(crate) cut_short: bool,
    random: u64,
}

/// Where the search was.
#[derive(Clone, Copy)]
struct Mark {
    log: usize,
    value: f64,
}

impl<'s, 'a> Search<'s, 'a> {
    pub(crate) fn new(state: State<'s, 'a>, goal: Goal, effort: Effort) -> Self {
        let world = state.world;
        let policy = &world.site.policy;
        let subjects = index(state.host_of.len());
        let soft_left = i64::from(policy.moves_per_hour_max) - i64::from(world.site.moves_last_hour);
        let mut search = Self {
            goal,
            effort: effort.0,
            motive: vec![None; subjects as usize],
            soft: Vec::new(),
            soft_left: soft_left.max(0),
            value: 0.0,
            log: Vec::new(),
            blocked: Vec::new(),
            cut_short: false,
            random: 0x9e37_79b9_7f4a_7c15,
            state,
        };
        search.soft = (0..subjects).map(|subject| search.is_soft(subject)).collect();
        search
    }

    /// Searches.
    pub(crate) fn run(&mut self) {
        if self.goal.evacuate {
            self.evacuate();
        }
        if self.goal.repair {
            self.repair();
        }
        if self.goal.balance || self.goal.gather {
            self.improve();
        }
    }

    fn is_spent(&mut self) -> bool {
        let spent = self.state.judged >= self.effort;
        self.cut_short |= spent;
        spent
    }

    /// May it be moved at all?
    fn is_movable(&self, subject: SubjectId) -> bool {
        movable(&self.state, subject).is_ok()
    }

    fn is_soft(&self, subject: SubjectId) -> bool {
        let world = self.state.world;
        let facts = world.of(subject);
        let machine = world.machine(facts.machine);
        let wanted = if facts.piece.is_some() { self.goal.gather || self.goal.balance } else { self.goal.balance };
        wanted
            && self.is_movable(subject)
            && machine.stays.is_none()
            && machine.demand.seen_s >= world.site.policy.hold_s
            && !matches!(world.facts(facts.origin).duty, Duty::Draining(_))
    }

    /// May it go there for balance?
    fn may_softly(&mut self, subject: SubjectId, to: HostId) -> bool {
        let facts = self.state.world.of(subject);
        let from = self.state.host_of[subject as usize];
        if to == facts.origin {
            return true;
        }
        let is_hard = self.motive[subject as usize].is_some();
        if !is_hard && from == facts.origin && self.soft_left <= 0 {
            return false;
        }
        self.never_left(subject, to) && !self.state.cost(subject, to).too_long
    }

    fn never_left(&self, subject: SubjectId, to: HostId) -> bool {
        let world = self.state.world;
        let left = &world.machine(world.of(subject).machine).left;
        left.is_empty() || !left.contains(&world.host(to).name)
    }

    const fn mark(&self) -> Mark {
        Mark { log: self.log.len(), value: self.value }
    }

    fn go(&mut self, subject: SubjectId, to: HostId) {
        let from = self.state.host_of[subject as usize];
        self.value += self.state.change(subject, to);
        self.log.push((subject, from));
        self.shift(subject, to);
    }

    fn shift(&mut self, subject: SubjectId, to: HostId) {
        let (origin, from) = (self.state.world.of(subject).origin, self.state.host_of[subject as usize]);
        if self.motive[subject as usize].is_none() {
            self.soft_left += i64::from(to == origin) - i64::from(from == origin);
        }
        self.state.put(subject, to);
    }

    fn undo(&mut self, mark: Mark) {
        while self.log.len() > mark.log {
            let Some((subject, from)) = self.log.pop() else { break };
            self.shift(subject, from);
        }
        self.value = mark.value;
    }

    /// Hosts by how good they are for `subject`, of which some rule may still forbid it.
    fn ranked(&mut self, subject: SubjectId, hosts: &[HostId], soft: bool) -> Vec<(f64, HostId)> {
        let mut ranked = Vec::with_capacity(hosts.len());
        for host in hosts {
            if self.state.fits(subject, *host).is_err() || soft && !self.may_softly(subject, *host) {
                continue;
            }
            let score = self.state.change(subject, *host) + BUSY * self.state.busy_with(subject, *host);
            ranked.push((score, *host));
        }
        ranked.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        ranked
    }

    /// The best of `hosts` that no rule forbids.
    fn best_of(&mut self, subject: SubjectId, hosts: &[HostId], soft: bool) -> Option<HostId> {
        let ranked = self.ranked(subject, hosts, soft);
        ranked.into_iter().map(|(_, host)| host).find(|host| self.state.allowed(subject, *host, false).is_ok())
    }

    /// What an affinity that is kept draws along when `subject` leaves for `to`, `subject` first.
    fn drawn_along(&self, subject: SubjectId, to: HostId) -> Vec<(SubjectId, Domain)> {
        let (world, rules) = (self.state.world, self.state.rules);
        let mut found: BTreeMap<SubjectId, Domain> = BTreeMap::new();
        let mut next = vec![subject];
        while let Some(one) = next.pop() {
            let from = self.state.host_of[one as usize];
            for id in rules.of_machine(world.of(one).machine) {
                let rule = rules.get(*id);
                let Kind::Affinity(within) = rule.kind else { continue };
                let kept = self.state.counts.get(*id).domains().len() == 1;
                if !kept || world.domain(within, from) == world.domain(within, to) {
                    continue;
                }
                for part in rule.members.iter().flat_map(|machine| world.parts[*machine as usize].clone()) {
                    let bound = found.get(&part).map_or(within, |bound| within.min(*bound));
                    let is_new = part != subject && found.insert(part, bound).is_none();
                    if is_new && found.len() <= TOGETHER_MAX {
                        next.push(part);
                    }
                }
            }
        }
        found.into_iter().collect()
    }

    /// Moves `subject` to `to` and what its affinities draw along after it; nothing happens if some of it cannot come.
    fn go_together(&mut self, subject: SubjectId, to: HostId, soft: bool) -> bool {
        let along = self.drawn_along(subject, to);
        let world = self.state.world;
        let can =
            |search: &Self, part: SubjectId| if soft { search.soft[part as usize] } else { search.is_movable(part) };
        if along.is_empty() || along.len() >= TOGETHER_MAX || !along.iter().all(|(part, _)| can(self, *part)) {
            return false;
        }
        let mark = self.mark();
        let broken = self.broken_affinities(subject, &along);
        let all_go = self.state.fits(subject, to).is_ok() && self.state.allowed(subject, to, true).is_ok() && {
            self.go(subject, to);
            along.iter().all(|(part, within)| {
                let home = world.domain(*within, to);
                if world.domain(*within, self.state.host_of[*part as usize]) == home {
                    return true;
                }
                let hosts: Vec<HostId> = match within {
                    Domain::Host => vec![to],
                    _ => world.host_ids_iter().filter(|host| world.domain(*within, *host) == home).collect(),
                };
                let ranked = self.ranked(*part, &hosts, soft);
                let place = ranked.into_iter().find(|(_, host)| self.state.allowed(*part, *host, true).is_ok());
                place.map(|(_, host)| self.go(*part, host)).is_some()
            })
        };
        // Each for itself: one that is mended makes up for none that is broken by more.
        let now = self.broken_affinities(subject, &along);
        if !all_go || now.iter().any(|(id, now)| broken.get(id).is_none_or(|before| now > before)) {
            self.undo(mark);
            return false;
        }
        true
    }

    /// By how much each of the affinities of these is broken.
    fn broken_affinities(&self, subject: SubjectId, along: &[(SubjectId, Domain)]) -> BTreeMap<u32, u32> {
        let (world, rules) = (self.state.world, self.state.rules);
        let all = along.iter().map(|(part, _)| *part).chain([subject]);
        let of: BTreeSet<u32> = all.flat_map(|part| rules.of_machine(world.of(part).machine).iter().copied()).collect();
        let affinities = of.into_iter().filter(|id| matches!(rules.get(*id).kind, Kind::Affinity(_)));
        affinities.map(|id| (id, crate::rules::broken_by(&rules.get(id).kind, self.state.counts.get(id)))).collect()
    }
}

/// Why something cannot be moved at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fixed {
    /// It is on its way.
    Flies,
    /// Its host is not heard.
    Gone,
    /// This rule of it contradicts others.
    Contradiction(u32),
}

pub(crate) fn movable(state: &State<'_, '_>, subject: SubjectId) -> Result<(), Fixed> {
    let facts = state.world.of(subject);
    if facts.flies {
        return Err(Fixed::Flies);
    }
    if state.world.facts(facts.origin).duty == Duty::Gone {
        return Err(Fixed::Gone);
    }
    state.rules.in_question.get(&facts.machine).map_or(Ok(()), |rule| Err(Fixed::Contradiction(*rule)))
}

/// Why `subject` has no place, over all hosts: how many say what, and the numbers of those that come nearest.
pub(crate) fn why_nowhere(state: &State<'_, '_>, subject: SubjectId) -> String {
    let world = state.world;
    let mut by: BTreeMap<Refusal, u32> = BTreeMap::new();
    let mut freest: Option<HostId> = None;
    for host in world.host_ids_iter() {
        let Err(refusal) = state.may(subject, host) else { continue };
        if refusal == Refusal::Memory && freest.is_none_or(|best| state.free(host) > state.free(best)) {
            freest = Some(host);
        }
        if refusal != Refusal::Same {
            *by.entry(refusal).or_default() += 1;
        }
    }
    if by.is_empty() {
        return "there is no other host".to_owned();
    }
    let parts: Vec<String> = by
        .into_iter()
        .map(|(refusal, hosts)| {
            let hosts = if hosts == 1 { "1 host".to_owned() } else { format!("{hosts} hosts") };
            match (refusal, freest) {
                (Refusal::Memory, Some(host)) => {
                    let name = &world.host(host).name;
                    let [needs, free] = [world.of(subject).memory, state.free(host)].map(vmotion_model::ByteSize);
                    format!("{hosts} without the {needs} it needs, of which {name} has most free, {free}")
                }
                _ => format!("{hosts} {}", phrase(state, refusal)),
            }
        })
        .collect();
    parts.join("; ")
}

/// Why not, to be read after "h1" or "3 hosts".
pub(crate) fn phrase(state: &State<'_, '_>, refusal: Refusal) -> String {
    match refusal {
        Refusal::Same => "where it is".to_owned(),
        Refusal::Closed => "to which nothing may come".to_owned(),
        Refusal::Processors => "with processors that lack something it may use".to_owned(),
        Refusal::Memory => "without the memory it needs".to_owned(),
        Refusal::Rule(rule) => format!("forbidden by rule {}", state.rules.get(rule).rule.name),
    }
}

/// Is it nothing, or better?
fn is_better(change: f64) -> bool {
    change < -NOTHING
}
