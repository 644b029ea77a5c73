//! Rules, compiled: which machines are meant, and for each rule how many of them are in which domain, so that a move is judged in the time
//! that its machine's rules take and not the site's.
//!
//! The one invariant: [`Counts`] are those of the state they belong to; whoever moves something tells them.

use crate::world::{HostId, SubjectId, World, index};
use std::{collections::BTreeMap, ops::Range};
use vmotion_model::{Demand, Domain, Rule};

/// Some of the hosts, or of the datacenters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Few(Vec<u64>);

impl Few {
    pub(crate) fn of(members: impl Iterator<Item = u32>, all: u32) -> Self {
        let mut words = vec![0; (all as usize).div_ceil(64)];
        for member in members {
            words[member as usize / 64] |= 1u64 << (member % 64);
        }
        Self(words)
    }

    pub(crate) fn has(&self, member: u32) -> bool {
        self.0.get(member as usize / 64).is_some_and(|word| word >> (member % 64) & 1 == 1)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = u32> {
        (0u32..)
            .zip(&self.0)
            .flat_map(|(at, word)| (0..64).filter(move |bit| word >> bit & 1 == 1).map(move |bit| at * 64 + bit))
    }
}

/// What a rule demands, in numbers.
#[derive(Debug, Clone)]
pub(crate) enum Kind {
    Affinity(Domain),
    Apart(Domain),
    Spread { over: Domain, skew: u32 },
    Pin(Few),
    Residency(Few),
}

/// A rule in numbers.
#[derive(Debug)]
pub(crate) struct Compiled<'a> {
    pub(crate) rule: &'a Rule,
    pub(crate) kind: Kind,
    /// Machines, in order.
    pub(crate) members: Vec<u32>,
    /// Of a spread: the domains that may have some.
    pub(crate) may_have: Few,
}

/// All rules.
#[derive(Debug)]
pub(crate) struct Rules<'a> {
    pub(crate) all: Vec<Compiled<'a>>,
    /// By machine: where in `of` its rules are.
    ranges: Vec<Range<u32>>,
    of: Vec<u32>,
    /// Machines whose rules contradict each other, and one of these: they stay where they are.
    pub(crate) in_question: BTreeMap<u32, u32>,
}

impl<'a> Rules<'a> {
    pub(crate) fn new(world: &World<'a>) -> Self {
        let mut rules: Vec<&Rule> = world.site.rules.iter().collect();
        rules.sort_by(|a, b| a.name.cmp(&b.name));
        let mut all: Vec<Compiled<'a>> = rules
            .into_iter()
            .map(|rule| {
                let members = members(world, rule);
                Compiled { rule, kind: kind(world, rule), members, may_have: Few(Vec::new()) }
            })
            .collect();
        let mut by_machine: Vec<(u32, u32)> =
            (0u32..).zip(&all).flat_map(|(id, rule)| rule.members.iter().map(move |machine| (*machine, id))).collect();
        by_machine.sort_unstable();
        let mut ranges = vec![0..0; world.machine_count() as usize];
        for (at, (machine, _)) in (0u32..).zip(&by_machine) {
            let range = &mut ranges[*machine as usize];
            *range = if range.start == range.end { at..at + 1 } else { range.start..at + 1 };
        }
        let of = by_machine.into_iter().map(|(_, rule)| rule).collect();
        let mut rules = Self { all: Vec::new(), ranges, of, in_question: BTreeMap::new() };
        let may_have: Vec<Few> = all.iter().map(|rule| domains_that_may_have(world, &all, &rules, rule)).collect();
        for (rule, may_have) in all.iter_mut().zip(may_have) {
            rule.may_have = may_have;
        }
        rules.all = all;
        rules
    }

    pub(crate) fn of_machine(&self, machine: u32) -> &[u32] {
        let range = &self.ranges[machine as usize];
        &self.of[range.start as usize..range.end as usize]
    }

    pub(crate) fn get(&self, rule: u32) -> &Compiled<'a> {
        &self.all[rule as usize]
    }

    /// May any of the machine be on this host, as far as rules go that speak of no other machine? The first that says no.
    pub(crate) fn forbids(&self, world: &World<'_>, machine: u32, host: HostId) -> Option<u32> {
        self.of_machine(machine).iter().copied().find(|rule| {
            let rule = self.get(*rule);
            !rule.kind.admits(world, host)
        })
    }
}

impl Rules<'_> {
    /// Does a residency close the whole datacenter of `host` to the machine?
    pub(crate) fn forbids_all(&self, world: &World<'_>, machine: u32, host: HostId) -> bool {
        self.of_machine(machine).iter().any(|rule| match &self.get(*rule).kind {
            kind @ Kind::Residency(_) => !kind.admits(world, host),
            _ => false,
        })
    }
}

impl Kind {
    /// As far as no other machine is spoken of.
    pub(crate) fn admits(&self, world: &World<'_>, host: HostId) -> bool {
        match self {
            Self::Pin(hosts) => hosts.has(host),
            Self::Residency(datacenters) => datacenters.has(u32::from(world.facts(host).datacenter)),
            Self::Affinity(_) | Self::Apart(_) | Self::Spread { .. } => true,
        }
    }

    /// The domain that machines are counted by.
    pub(crate) const fn counted_by(&self) -> Option<Domain> {
        match self {
            Self::Affinity(domain) | Self::Apart(domain) | Self::Spread { over: domain, .. } => Some(*domain),
            Self::Pin(_) | Self::Residency(_) => None,
        }
    }
}

fn kind(world: &World<'_>, rule: &Rule) -> Kind {
    match &rule.demand {
        Demand::Affinity { within } => Kind::Affinity(*within),
        Demand::AntiAffinity { across } => Kind::Apart(*across),
        Demand::Spread { over, skew } => Kind::Spread { over: *over, skew: (*skew).max(1) },
        Demand::Pin { hosts } => {
            let known = hosts.iter().filter_map(|host| world.host_id(host.as_str()));
            Kind::Pin(Few::of(known, world.domain_count(Domain::Host)))
        }
        Demand::Residency { datacenters } => {
            let known = datacenters.iter().filter_map(|name| world.datacenters.binary_search(&name).ok().map(index));
            Kind::Residency(Few::of(known, world.domain_count(Domain::Datacenter)))
        }
    }
}

/// Machines that a rule means. Machines are in the order of their names, so only those that begin as a selector does are looked at.
fn members(world: &World<'_>, rule: &Rule) -> Vec<u32> {
    let count = world.machine_count();
    let mut found = Vec::new();
    for selector in &rule.machines {
        let text = selector.as_str();
        let Some(star) = text.find('*') else {
            found.extend(world.machine_id(text));
            continue;
        };
        let prefix = &text[..star];
        let first = partition(count, |machine| world.machine(machine).name.as_str() < prefix);
        let among = (first..count).take_while(|machine| world.machine(*machine).name.as_str().starts_with(prefix));
        found.extend(among.filter(|machine| selector.selects(&world.machine(*machine).name)));
    }
    found.sort_unstable();
    found.dedup();
    found
}

/// The first of `count` for which `before` does not hold.
fn partition(count: u32, before: impl Fn(u32) -> bool) -> u32 {
    let (mut low, mut high) = (0, count);
    while low < high {
        let middle = low + (high - low) / 2;
        if before(middle) { low = middle + 1 } else { high = middle }
    }
    low
}

/// Domains with a host that takes machines, and that the other rules of at least one of the machines leave open.
fn domains_that_may_have(world: &World<'_>, all: &[Compiled<'_>], rules: &Rules<'_>, rule: &Compiled<'_>) -> Few {
    let Kind::Spread { over, .. } = rule.kind else { return Few(Vec::new()) };
    let bounds = |machine: u32| -> Vec<u32> {
        let of = rules.of_machine(machine).iter().copied();
        of.filter(|other| all[*other as usize].kind.counted_by().is_none()).collect()
    };
    // Machines of one rule mostly are bound by the same others.
    let mut bounds: Vec<Vec<u32>> = rule.members.iter().map(|machine| bounds(*machine)).collect();
    bounds.sort_unstable();
    bounds.dedup();
    let open = world.host_ids_iter().filter(|host| world.facts(*host).duty == crate::site::Duty::Open);
    let admits = |bounds: &Vec<u32>, host| bounds.iter().all(|other| all[*other as usize].kind.admits(world, host));
    let may = open.filter(|host| bounds.iter().any(|bounds| admits(bounds, *host)));
    Few::of(may.map(|host| world.domain(over, host)), world.domain_count(over))
}

/// Machines of one rule by domain.
#[derive(Debug, Clone, Default)]
pub(crate) struct Count {
    /// Domain and machines, in order of domains; none with 0.
    at: Vec<(u32, u32)>,
    /// How many domains have so many machines: all, and those that may have some.
    all: Vec<u32>,
    open: Vec<u32>,
    /// Machines outside of where they may be, of rules that count no domains; by subject.
    pub(crate) outside: u32,
}

impl Count {
    pub(crate) fn new(open: u32) -> Self {
        Self { open: vec![open], all: vec![0], ..Self::default() }
    }

    pub(crate) fn of(&self, domain: u32) -> u32 {
        self.at.binary_search_by_key(&domain, |(domain, _)| *domain).map_or(0, |at| self.at[at].1)
    }

    pub(crate) fn domains(&self) -> &[(u32, u32)] {
        &self.at
    }

    /// Machines in all domains; one in two counts twice.
    pub(crate) fn total(&self) -> u32 {
        self.at.iter().map(|(_, machines)| machines).sum()
    }

    pub(crate) fn fullest(&self) -> u32 {
        index(self.all.iter().rposition(|domains| *domains > 0).unwrap_or(0))
    }

    /// Of the domains that may have some.
    pub(crate) fn emptiest(&self) -> u32 {
        index(self.open.iter().position(|domains| *domains > 0).unwrap_or(0))
    }

    pub(crate) fn add(&mut self, domain: u32, may_have: bool) {
        let before = match self.at.binary_search_by_key(&domain, |(domain, _)| *domain) {
            Ok(at) => {
                self.at[at].1 += 1;
                self.at[at].1 - 1
            }
            Err(at) => {
                self.at.insert(at, (domain, 1));
                0
            }
        };
        self.shift(before, before + 1, may_have);
    }

    pub(crate) fn remove(&mut self, domain: u32, may_have: bool) {
        let Ok(at) = self.at.binary_search_by_key(&domain, |(domain, _)| *domain) else { return };
        let before = self.at[at].1;
        if before == 1 {
            self.at.remove(at);
        } else {
            self.at[at].1 -= 1;
        }
        self.shift(before, before - 1, may_have);
    }

    fn shift(&mut self, before: u32, after: u32, may_have: bool) {
        let (before, after) = (before as usize, after as usize);
        for (counts, counted) in [(&mut self.all, true), (&mut self.open, may_have)] {
            if !counted {
                continue;
            }
            counts.resize(counts.len().max(after + 1), 0);
            // Domains without machines are not counted among all.
            counts[before] = counts[before].saturating_sub(1);
            counts[after] += 1;
        }
        self.all[0] = 0;
    }
}

/// How far a rule is from being kept: 0 when it is.
pub(crate) fn broken_by(kind: &Kind, count: &Count) -> u32 {
    match kind {
        Kind::Affinity(_) => count.total() - count.fullest(),
        Kind::Apart(_) => count.domains().iter().map(|(_, machines)| machines - 1).sum(),
        Kind::Spread { skew, .. } => count.fullest().saturating_sub(count.emptiest() + skew),
        Kind::Pin(_) | Kind::Residency(_) => count.outside,
    }
}

/// Counts of all rules.
#[derive(Debug, Clone)]
pub(crate) struct Counts(Vec<Count>);

impl Counts {
    /// Of everything where `host_of` says.
    pub(crate) fn new(world: &World<'_>, rules: &Rules<'_>, host_of: &[HostId]) -> Self {
        let empty = |rule: &Compiled<'_>| Count::new(index(rule.may_have.iter().count()));
        let mut counts = Self(rules.all.iter().map(empty).collect());
        let mut domains = Vec::new();
        for (rule, count) in rules.all.iter().zip(&mut counts.0) {
            for machine in &rule.members {
                let hosts = world.parts[*machine as usize].clone().map(|part| host_of[part as usize]);
                let Some(kind) = rule.kind.counted_by() else {
                    count.outside += index(hosts.filter(|host| !rule.kind.admits(world, *host)).count());
                    continue;
                };
                domains.clear();
                domains.extend(hosts.map(|host| world.domain(kind, host)));
                domains.sort_unstable();
                domains.dedup();
                domains.iter().for_each(|domain| count.add(*domain, rule.may_have.has(*domain)));
            }
        }
        counts
    }

    pub(crate) fn get(&self, rule: u32) -> &Count {
        &self.0[rule as usize]
    }

    /// `subject` goes from `from` to `to`; `host_of` is as before.
    pub(crate) fn moved(&mut self, at: &Around<'_, '_>, subject: SubjectId, to: HostId) {
        let machine = at.world.of(subject).machine;
        let from = at.host_of[subject as usize];
        for id in at.rules.of_machine(machine) {
            let (rule, count) = (at.rules.get(*id), &mut self.0[*id as usize]);
            let Some(kind) = rule.kind.counted_by() else {
                count.outside -= u32::from(!rule.kind.admits(at.world, from));
                count.outside += u32::from(!rule.kind.admits(at.world, to));
                continue;
            };
            let (left, entered) = (at.world.domain(kind, from), at.world.domain(kind, to));
            if left == entered {
                continue;
            }
            if !at.has_other_part(kind, subject, left) {
                count.remove(left, rule.may_have.has(left));
            }
            if !at.has_other_part(kind, subject, entered) {
                count.add(entered, rule.may_have.has(entered));
            }
        }
    }
}

/// What rules are judged in.
#[derive(Clone, Copy)]
pub(crate) struct Around<'s, 'a> {
    pub(crate) world: &'s World<'a>,
    pub(crate) rules: &'s Rules<'a>,
    pub(crate) host_of: &'s [HostId],
}

impl Around<'_, '_> {
    /// Is another piece of the same machine in that domain?
    pub(crate) fn has_other_part(&self, kind: Domain, subject: SubjectId, domain: u32) -> bool {
        let mut parts = self.world.parts[self.world.of(subject).machine as usize].clone();
        parts.any(|part| part != subject && self.world.domain(kind, self.host_of[part as usize]) == domain)
    }

    /// May `subject` go to `to`, everything else being where it is? The rule that says no. Members of an affinity may go one by one where
    /// `together` says that the others follow.
    pub(crate) fn refuses(&self, counts: &Counts, subject: SubjectId, to: HostId, together: bool) -> Option<u32> {
        let of = self.rules.of_machine(self.world.of(subject).machine).iter().copied();
        let mut of = of.filter(|id| !together || !matches!(self.rules.get(*id).kind, Kind::Affinity(_)));
        of.find(|id| self.refused_by(*id, counts, subject, to))
    }

    /// Does this rule of it say no?
    pub(crate) fn refused_by(&self, id: u32, counts: &Counts, subject: SubjectId, to: HostId) -> bool {
        let from = self.host_of[subject as usize];
        let rule = self.rules.get(id);
        let Some(kind) = rule.kind.counted_by() else { return !rule.kind.admits(self.world, to) };
        let (left, entered) = (self.world.domain(kind, from), self.world.domain(kind, to));
        let count = counts.get(id);
        let leaves = left != entered && !self.has_other_part(kind, subject, left);
        let enters = left != entered && !self.has_other_part(kind, subject, entered);
        match &rule.kind {
            Kind::Affinity(_) => left != entered && Self::scatters(count, (left, leaves), (entered, enters)),
            Kind::Apart(_) => count.of(entered) + u32::from(enters) > 1,
            Kind::Spread { skew, .. } => {
                left != entered && Self::skews(rule, count, (left, leaves), (entered, enters), *skew)
            }
            Kind::Pin(_) | Kind::Residency(_) => false,
        }
    }

    /// Of an affinity: would more of it be apart than now, or as much?
    fn scatters(count: &Count, (left, leaves): (u32, bool), (entered, enters): (u32, bool)) -> bool {
        let after = |domain: u32, machines: u32| {
            machines - u32::from(domain == left && leaves) + u32::from(domain == entered && enters)
        };
        let total = count.total() - u32::from(leaves) + u32::from(enters);
        let fullest = count.domains().iter().map(|(domain, machines)| after(*domain, *machines)).max().unwrap_or(0);
        let apart = total - fullest.max(after(entered, count.of(entered)));
        apart > 0 && apart >= count.total() - count.fullest()
    }

    /// Of a spread: would the domain that it enters, or any, be too full?
    fn skews(rule: &Compiled<'_>, count: &Count, left: (u32, bool), entered: (u32, bool), skew: u32) -> bool {
        let mut after = count.clone_counts();
        let (there, here) = (count.of(entered.0), count.of(left.0));
        if left.1 {
            after.shift(here, here - 1, rule.may_have.has(left.0));
        }
        if entered.1 {
            after.shift(there, there + 1, rule.may_have.has(entered.0));
        }
        let (emptiest, fullest) = (after.emptiest(), after.fullest());
        let before = count.fullest().saturating_sub(count.emptiest());
        let now = there + u32::from(entered.1);
        now > emptiest + skew || fullest.saturating_sub(emptiest) > before.max(skew)
    }
}

impl Count {
    /// Only what says how full the fullest and the emptiest are.
    fn clone_counts(&self) -> Self {
        Self { at: Vec::new(), all: self.all.clone(), open: self.open.clone(), outside: 0 }
    }
}
