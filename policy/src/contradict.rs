//! Rules that cannot all be kept, whatever is moved where: which they are, with none too many.
//!
//! The one invariant: what is named has been proven to be impossible. Where a proof would take too long nothing is said.

use crate::{
    rules::{Kind, Rules},
    site::Site,
    world::{HostId, World, index},
};
use std::collections::{BTreeMap, BTreeSet};
use vmotion_model::{ByteSize, Contradiction, Domain, MachineName};

/// Places that are tried before a proof is given up.
const TRIED_MAX: u32 = 20_000;
/// Machines of rules that are asked about together at most.
const MACHINES_MAX: usize = 60;
/// Sets of rules up to this size are looked through from the smallest, larger ones by leaving out one after the other.
const LOOKED_THROUGH: usize = 8;
/// Machines named at most.
const NAMED_MAX: usize = 10;

/// Rules that contradict each other, the smallest sets of them: leave out any, and the others can be kept. Hosts count with all of their
/// memory, whatever their duty is: a host that is drained is no contradiction.
#[must_use]
pub fn contradictions(site: &Site) -> Vec<Contradiction> {
    let world = World::new(site);
    let rules = Rules::new(&world);
    find(&world, &rules).into_iter().map(|set| tell(&world, &rules, &set)).collect()
}

/// Sets of rules that cannot all be kept, none of which holds another.
pub(crate) fn find(world: &World<'_>, rules: &Rules<'_>) -> Vec<Vec<u32>> {
    let mut found: Vec<Vec<u32>> = Vec::new();
    if world.hosts.is_empty() {
        return found;
    }
    for set in suspects(world, rules) {
        if found.iter().any(|known| known.iter().all(|rule| set.contains(rule))) {
            continue;
        }
        if impossible(world, rules, &set) {
            let least = smallest(world, rules, set);
            found.retain(|known| !least.iter().all(|rule| known.contains(rule)));
            found.push(least);
        }
    }
    found.sort_unstable();
    found
}

/// Machines that a set of rules is about: those that all of them mean if none speaks of others, else all that the latter mean.
pub(crate) fn in_question(rules: &Rules<'_>, set: &[u32]) -> BTreeSet<u32> {
    let speaks = |rule: &&u32| rules.get(**rule).kind.counted_by().is_some();
    if set.iter().any(|rule| speaks(&rule)) {
        return set.iter().filter(speaks).flat_map(|rule| rules.get(*rule).members.iter().copied()).collect();
    }
    let mut sets = set.iter().map(|rule| rules.get(*rule).members.iter().copied().collect::<BTreeSet<u32>>());
    let first = sets.next().unwrap_or_default();
    sets.fold(first, |all, more| all.intersection(&more).copied().collect())
}

pub(crate) fn tell(world: &World<'_>, rules: &Rules<'_>, set: &[u32]) -> Contradiction {
    let machines: Vec<MachineName> =
        in_question(rules, set).into_iter().map(|machine| world.machine(machine).name.clone()).collect();
    let names: Vec<String> = set.iter().map(|rule| rules.get(*rule).rule.name.clone()).collect();
    let some = machines.iter().take(NAMED_MAX).map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let demands = set.iter().map(|rule| demand(world, rules, *rule)).collect::<Vec<_>>().join("; ");
    let why = if set.len() == 1 {
        format!("no way to place {some} keeps it: {demands}")
    } else {
        format!("no way to place {some} keeps all of them: {demands}; change or remove one")
    };
    Contradiction { rules: names, machines, why }
}

fn demand(world: &World<'_>, rules: &Rules<'_>, rule: u32) -> String {
    let compiled = rules.get(rule);
    let name = &compiled.rule.name;
    let count = compiled.members.len();
    match &compiled.kind {
        Kind::Affinity(within) => {
            let memory = compiled.members.iter().map(|machine| world.machine(*machine).memory.0).sum();
            format!("{name} wants {count} machines with {} on one {within}", ByteSize(memory))
        }
        Kind::Apart(across) => {
            format!(
                "{name} wants {count} machines on as many {across}s, of which there are {}",
                world.domain_count(*across)
            )
        }
        Kind::Spread { over, skew } => format!("{name} wants {count} machines spread over {over}s to within {skew}"),
        Kind::Pin(hosts) => {
            let hosts: Vec<String> = hosts.iter().take(3).map(|host| world.host(host).name.to_string()).collect();
            if hosts.is_empty() {
                format!("{name} names no host that is known")
            } else {
                format!("{name} wants {}", hosts.join(" or "))
            }
        }
        Kind::Residency(centers) => {
            let names: Vec<String> =
                centers.iter().take(3).map(|at| world.datacenters[at as usize].to_string()).collect();
            if names.is_empty() {
                format!("{name} names no datacenter that is known")
            } else {
                format!("{name} wants {}", names.join(" or "))
            }
        }
    }
}

/// Sets of rules that may contradict each other: those of one machine, and those that speak of others with what binds their machines.
fn suspects(world: &World<'_>, rules: &Rules<'_>) -> BTreeSet<Vec<u32>> {
    let mut suspects: BTreeSet<Vec<u32>> =
        (0..world.machine_count()).map(|machine| rules.of_machine(machine).to_vec()).collect();
    let bound = |rule: u32| -> BTreeSet<u32> {
        let members = rules.get(rule).members.iter().flat_map(|machine| rules.of_machine(*machine));
        members.copied().filter(|other| rules.get(*other).kind.counted_by().is_none()).collect()
    };
    let ids = 0..index(rules.all.len());
    let speaking: Vec<u32> = ids.clone().filter(|rule| rules.get(*rule).kind.counted_by().is_some()).collect();
    for rule in ids {
        suspects.insert(vec![rule]);
    }
    for rule in &speaking {
        let mut set = bound(*rule);
        set.insert(*rule);
        suspects.insert(set.iter().copied().collect());
        let partners: BTreeSet<u32> =
            rules.get(*rule).members.iter().flat_map(|machine| rules.of_machine(*machine)).copied().collect();
        for other in partners.into_iter().filter(|other| other > rule && speaking.contains(other)) {
            let mut both = set.clone();
            both.insert(other);
            both.extend(bound(other));
            suspects.insert(both.into_iter().collect());
        }
    }
    suspects.remove(&Vec::new());
    suspects
}

/// Of an impossible set, one that is still impossible and of which none can be left out.
fn smallest(world: &World<'_>, rules: &Rules<'_>, mut set: Vec<u32>) -> Vec<u32> {
    if set.len() <= LOOKED_THROUGH {
        let mut subsets: Vec<u32> = (1..1u32 << set.len()).collect();
        subsets.sort_by_key(|bits| (bits.count_ones(), *bits));
        for bits in subsets {
            let some: Vec<u32> =
                (0u32..).zip(&set).filter(|(at, _)| bits >> at & 1 == 1).map(|(_, rule)| *rule).collect();
            if impossible(world, rules, &some) {
                return some;
            }
        }
    }
    let mut at = 0;
    while at < set.len() {
        let rule = set.remove(at);
        if !impossible(world, rules, &set) {
            set.insert(at, rule);
            at += 1;
        }
    }
    set
}

/// Is it proven that these cannot all be kept?
fn impossible(world: &World<'_>, rules: &Rules<'_>, set: &[u32]) -> bool {
    let machines: Vec<u32> =
        in_question(rules, set).into_iter().filter(|machine| world.machine(*machine).pieces.is_empty()).collect();
    if machines.is_empty() {
        return false;
    }
    let speaks = set.iter().any(|rule| rules.get(*rule).kind.counted_by().is_some());
    if !speaks {
        // They are all bound alike.
        return !world.host_ids_iter().any(|host| set.iter().all(|rule| rules.get(*rule).kind.admits(world, host)));
    }
    if machines.len() > MACHINES_MAX {
        return false;
    }
    let mut search = Placing::new(world, rules, set, &machines);
    search.possible.iter().any(Vec::is_empty) || search.too_few_domains() || search.place(0) == Some(false)
}

/// Machines are put somewhere one after the other, until all are or none of the ways is left.
struct Placing<'s, 'a> {
    world: &'s World<'a>,
    rules: &'s Rules<'a>,
    set: &'s [u32],
    machines: Vec<u32>,
    /// By machine, hosts that it may be on as far as no other is spoken of.
    possible: Vec<Vec<HostId>>,
    /// Hosts that are alike.
    alike: Vec<u32>,
    at: Vec<Option<HostId>>,
    used: BTreeMap<HostId, u64>,
    tried: u32,
}

impl<'s, 'a> Placing<'s, 'a> {
    fn new(world: &'s World<'a>, rules: &'s Rules<'a>, set: &'s [u32], machines: &[u32]) -> Self {
        let bounds: Vec<u32> =
            set.iter().copied().filter(|rule| rules.get(*rule).kind.counted_by().is_none()).collect();
        let may = |machine: u32| -> Vec<HostId> {
            let of: Vec<u32> = rules.of_machine(machine).iter().copied().filter(|rule| bounds.contains(rule)).collect();
            let memory = world.machine(machine).memory.0;
            let fits = |host: &HostId| memory <= world.facts(*host).memory;
            let admits = |host: &HostId| of.iter().all(|rule| rules.get(*rule).kind.admits(world, *host));
            world.host_ids_iter().filter(fits).filter(admits).collect()
        };
        let possible = machines.iter().map(|machine| may(*machine)).collect();
        let counted = |kind| set.iter().any(|rule| rules.get(*rule).kind.counted_by() == Some(kind));
        let (racks, centers) = (counted(Domain::Rack), counted(Domain::Datacenter));
        let mut kinds: BTreeMap<(u64, u32, u16, Vec<bool>), u32> = BTreeMap::new();
        let alike = world.host_ids_iter().map(|host| {
            let facts = world.facts(host);
            let admits = bounds.iter().map(|rule| rules.get(*rule).kind.admits(world, host)).collect();
            let rack = if racks { facts.rack } else { 0 };
            let center = if centers || racks { facts.datacenter } else { 0 };
            let next = index(kinds.len());
            *kinds.entry((facts.memory, rack, center, admits)).or_insert(next)
        });
        let alike = alike.collect();
        let at = vec![None; machines.len()];
        Self { world, rules, set, machines: machines.to_vec(), possible, alike, at, used: BTreeMap::new(), tried: 0 }
    }

    /// Of machines that are to be apart: is there no way to give each a domain of its own?
    fn too_few_domains(&self) -> bool {
        self.set.iter().any(|rule| {
            let Kind::Apart(kind) = self.rules.get(*rule).kind else { return false };
            let members: Vec<usize> = (0..self.machines.len())
                .filter(|at| self.rules.get(*rule).members.binary_search(&self.machines[*at]).is_ok())
                .collect();
            let domains: Vec<BTreeSet<u32>> = members
                .iter()
                .map(|at| self.possible[*at].iter().map(|host| self.world.domain(kind, *host)).collect())
                .collect();
            let mut given: BTreeMap<u32, usize> = BTreeMap::new();
            !(0..members.len()).all(|member| give(member, &domains, &mut given, &mut BTreeSet::new()))
        })
    }

    /// Some way for the machines from `next` on; `None` when it takes too long to tell.
    fn place(&mut self, next: usize) -> Option<bool> {
        if next == self.machines.len() {
            return Some(self.spreads_hold());
        }
        let mut tried_alike = BTreeSet::new();
        for host in self.possible[next].clone() {
            let untouched = !self.used.contains_key(&host);
            if untouched && !tried_alike.insert(self.alike[host as usize]) {
                continue;
            }
            self.tried += 1;
            if self.tried > TRIED_MAX {
                return None;
            }
            if !self.may(next, host) {
                continue;
            }
            let memory = self.world.machine(self.machines[next]).memory.0;
            let before = self.used.get(&host).copied();
            self.used.insert(host, before.unwrap_or(0) + memory);
            self.at[next] = Some(host);
            let rest = self.place(next + 1);
            self.at[next] = None;
            match before {
                Some(before) => self.used.insert(host, before),
                None => self.used.remove(&host),
            };
            if rest != Some(false) {
                return rest;
            }
        }
        Some(false)
    }

    fn may(&self, next: usize, host: HostId) -> bool {
        let machine = self.machines[next];
        let used = self.used.get(&host).copied().unwrap_or(0);
        if used + self.world.machine(machine).memory.0 > self.world.facts(host).memory {
            return false;
        }
        self.set.iter().all(|rule| {
            let rule = self.rules.get(*rule);
            let Some(kind) = rule.kind.counted_by() else { return true };
            if rule.members.binary_search(&machine).is_err() {
                return true;
            }
            let domain = self.world.domain(kind, host);
            let mut others = (0..next).filter(|at| rule.members.binary_search(&self.machines[*at]).is_ok());
            let at = |other: usize| self.at[other].map(|host| self.world.domain(kind, host));
            match rule.kind {
                Kind::Affinity(_) => others.next().is_none_or(|other| at(other) == Some(domain)),
                Kind::Apart(_) => others.all(|other| at(other) != Some(domain)),
                Kind::Spread { .. } | Kind::Pin(_) | Kind::Residency(_) => true,
            }
        })
    }

    fn spreads_hold(&self) -> bool {
        self.set.iter().all(|rule| {
            let rule = self.rules.get(*rule);
            let Kind::Spread { over, skew } = rule.kind else { return true };
            let mut counts: BTreeMap<u32, u32> = rule.may_have.iter().map(|domain| (domain, 0)).collect();
            for (machine, host) in self.machines.iter().zip(&self.at) {
                if let Some(host) = host.filter(|_| rule.members.binary_search(machine).is_ok()) {
                    *counts.entry(self.world.domain(over, host)).or_default() += 1;
                }
            }
            let most = counts.values().max().copied().unwrap_or(0);
            let least = rule.may_have.iter().filter_map(|domain| counts.get(&domain)).min().copied().unwrap_or(0);
            most <= least + skew
        })
    }
}

/// Gives `member` a domain, moving others to other ones where that helps (Kuhn's matching).
fn give(member: usize, domains: &[BTreeSet<u32>], given: &mut BTreeMap<u32, usize>, seen: &mut BTreeSet<u32>) -> bool {
    for domain in &domains[member] {
        if !seen.insert(*domain) {
            continue;
        }
        let holder = given.get(domain).copied();
        if holder.is_none_or(|holder| give(holder, domains, given, seen)) {
            given.insert(*domain, member);
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        fixtures::{host, machine, rule},
        plan::plan,
        search::{Effort, Goal},
    };
    use vmotion_model::Demand;

    fn site(hosts: usize, machines: &[&str]) -> Site {
        Site {
            hosts: (0..hosts).map(|at| host(&format!("h{at}"))).collect(),
            machines: machines.iter().map(|name| machine(name, "h0", 1.0)).collect(),
            ..Site::default()
        }
    }

    fn pin(hosts: &[&str]) -> Demand {
        Demand::Pin { hosts: hosts.iter().map(|host| host.parse().unwrap()).collect() }
    }

    fn found(site: &Site) -> Vec<Vec<String>> {
        contradictions(site).into_iter().map(|one| one.rules).collect()
    }

    #[test]
    fn rules_that_can_be_kept_are_no_contradiction() {
        let mut site = site(3, &["a", "b", "c"]);
        site.rules.push(rule("apart", &["*"], Demand::AntiAffinity { across: Domain::Host }));
        site.rules.push(rule("here", &["a"], pin(&["h1"])));
        site.rules.push(rule("even", &["*"], Demand::Spread { over: Domain::Host, skew: 1 }));
        assert!(found(&site).is_empty(), "{:?}", contradictions(&site));
    }

    #[test]
    fn the_smallest_set_is_named_and_nothing_else() {
        let mut site = site(3, &["a", "b", "c"]);
        site.rules.push(rule("together", &["a", "b"], Demand::Affinity { within: Domain::Host }));
        site.rules.push(rule("apart", &["a", "b", "c"], Demand::AntiAffinity { across: Domain::Host }));
        site.rules.push(rule("here", &["c"], pin(&["h1"])));
        assert_eq!(found(&site), [["apart", "together"]]);
        let why = &contradictions(&site)[0].why;
        assert!(why.contains("a, b, c") && why.contains("change or remove one"), "{why}");
    }

    #[test]
    fn three_that_contradict_only_all_together() {
        let mut site = site(3, &["a", "b"]);
        site.rules.push(rule("a-here", &["a"], pin(&["h1"])));
        site.rules.push(rule("b-here", &["b"], pin(&["h2"])));
        site.rules.push(rule("together", &["a", "b"], Demand::Affinity { within: Domain::Host }));
        assert_eq!(found(&site), [["a-here", "b-here", "together"]]);
        for left_out in 0..3 {
            let mut fewer = site.clone();
            fewer.rules.remove(left_out);
            assert!(found(&fewer).is_empty());
        }
    }

    #[test]
    fn too_many_for_their_domains_and_too_large_for_any_host() {
        let mut many = site(3, &["a", "b", "c", "d"]);
        many.rules.push(rule("apart", &["*"], Demand::AntiAffinity { across: Domain::Host }));
        assert_eq!(found(&many), [["apart"]]);
        let mut large = site(2, &["a", "b"]);
        large.machines.iter_mut().for_each(|machine| machine.memory = ByteSize::gib(20));
        large.rules.push(rule("together", &["*"], Demand::Affinity { within: Domain::Host }));
        assert_eq!(found(&large), [["together"]]);
    }

    #[test]
    fn a_plan_leaves_those_in_question_alone_and_repairs_the_others() {
        let mut site = site(3, &["a", "b", "c"]);
        site.rules.push(rule("a-here", &["a"], pin(&["h1"])));
        site.rules.push(rule("a-there", &["a"], pin(&["h2"])));
        site.rules.push(rule("c-here", &["c"], pin(&["h1"])));
        let plan = plan(&site, Goal::ALL, Effort::default());
        assert_eq!(plan.contradictions.len(), 1);
        assert_eq!(plan.steps.len(), 1, "{plan:#?}");
        assert_eq!(plan.steps[0].subject.machine.as_str(), "c");
    }
}
