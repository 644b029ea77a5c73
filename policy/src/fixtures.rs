//! Sites for tests, drawn from a seed, and a judge of plans that shares no code with what makes them.

#![allow(clippy::cast_possible_truncation, reason = "small numbers of tests")]

use crate::site::{Demand, Duty, Link, MemoryUse, SLOTS, Site, SiteHost, SiteMachine, SitePiece, Stay, UnderWay};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
use vmotion_model::{ByteSize, CpuModel, Demand as Wanted, Domain, HostName, Motive, PieceName, Plan, Rule, Subject};

/// Numbers by chance, the same for a seed.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        let mut dice = Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        for _ in 0..8 {
            dice.next();
        }
        dice
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    /// Below `sides`.
    pub(crate) fn roll(&mut self, sides: usize) -> usize {
        (self.next() % sides.max(1) as u64) as usize
    }

    pub(crate) fn chance(&mut self, percent: usize) -> bool {
        self.roll(100) < percent
    }

    /// From 0 to 1.
    pub(crate) fn part(&mut self) -> f64 {
        self.roll(10_001) as f64 / 10_000.0
    }

    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for at in (1..items.len()).rev() {
            items.swap(at, self.roll(at + 1));
        }
    }
}

/// `VMOTION_PLANS` sets how many sites are tried.
pub(crate) fn cases() -> u32 {
    std::env::var("VMOTION_PLANS").ok().and_then(|text| text.parse().ok()).unwrap_or(150)
}

pub(crate) fn host(name: &str) -> SiteHost {
    SiteHost {
        name: name.parse().unwrap(),
        datacenter: "dc1".parse().unwrap(),
        rack: None,
        cpus: 16.0,
        memory: ByteSize::gib(32),
        memory_other: ByteSize(0),
        cpus_other: 0.0,
        network_bytes_per_s: 1.25e9,
        cpu: Arc::default(),
        duty: Duty::Open,
    }
}

pub(crate) fn machine(name: &str, host: &str, cpus: f32) -> SiteMachine {
    SiteMachine {
        name: name.parse().unwrap(),
        host: host.parse().unwrap(),
        pieces: Vec::new(),
        memory: ByteSize::gib(4),
        vcpus: 4,
        demand: Demand { cpus: [cpus; SLOTS], deviation: 0.0, seen_s: 100_000 },
        memory_use: MemoryUse {
            dirty_pages_per_s: 500.0,
            working_set_pages: 20_000.0,
            zero_share: 0.2,
            bytes_per_page: 2000.0,
        },
        stays: None,
        left: Vec::new(),
    }
}

pub(crate) fn rule(name: &str, machines: &[&str], demand: Wanted) -> Rule {
    let machines = machines.iter().map(|machine| machine.parse().unwrap()).collect();
    Rule { name: name.into(), machines, demand }
}

/// A small site with a bit of everything.
pub(crate) fn random_site(seed: u64) -> Site {
    let mut dice = Dice::new(seed);
    let mut site = Site::default();
    site.policy.moves_per_host_max = 1 + dice.roll(4) as u32;
    site.policy.moves_per_hour_max = dice.roll(20) as u32;
    let (old, new) = (cpu(&["sse2"]), cpu(&["sse2", "avx2"]));
    let hosts = 2 + dice.roll(6);
    let centers = 1 + dice.roll(2);
    for at in 0..hosts {
        let mut one = host(&format!("h{at}"));
        one.datacenter = format!("dc{}", at % centers).parse().unwrap();
        one.rack = dice.chance(60).then(|| format!("r{}", dice.roll(2)));
        one.cpus = [4.0, 8.0, 16.0][dice.roll(3)];
        one.memory = ByteSize::gib(8 + dice.roll(5) as u64 * 4);
        one.network_bytes_per_s = [0.0, 1.25e8, 1.25e9, 1.25e10][dice.roll(4)];
        one.cpu = if dice.chance(25) { old.clone() } else { new.clone() };
        one.duty = match dice.roll(12) {
            0 => Duty::Draining(None),
            1 => Duty::Draining(Some(1000 * dice.roll(100) as u64)),
            2 => Duty::Cordoned,
            3 => Duty::Gone,
            _ => Duty::Open,
        };
        site.hosts.push(one);
    }
    let (one, other) = ("dc0".parse().unwrap(), "dc1".parse().unwrap());
    site.links.between.insert((one, other), Link { bytes_per_s: 1.25e8, rtt_ms: 10.0, price_per_gib: dice.part() });
    add_machines(&mut site, &mut dice);
    add_rules(&mut site, &mut dice);
    site
}

fn cpu(features: &[&str]) -> Arc<CpuModel> {
    let features = features.iter().map(|feature| (*feature).to_owned()).collect();
    Arc::new(CpuModel { features, ..CpuModel::default() })
}

fn add_machines(site: &mut Site, dice: &mut Dice) {
    let mut free: Vec<u64> = site.hosts.iter().map(|host| host.memory.0).collect();
    for at in 0..2 + dice.roll(22) {
        let memory = (1 + dice.roll(6) as u64) << 30;
        let (home, other) = (dice.roll(free.len()), dice.roll(free.len()));
        if home == other || free[home] < memory || free[other] < memory {
            continue;
        }
        free[home] -= memory;
        let name = format!("{}{at}", ["a", "b", "c"][dice.roll(3)]);
        let mut one = machine(&name, site.hosts[home].name.as_str(), (dice.part() * 5.0) as f32);
        one.memory = ByteSize(memory);
        one.demand.deviation = if dice.chance(50) { dice.part() as f32 } else { 0.0 };
        one.demand.seen_s = if dice.chance(10) { 5 } else { 10_000 };
        one.memory_use.dirty_pages_per_s = dice.part() * 60_000.0;
        one.stays = dice.chance(10).then(|| Stay { why: "it was moved".into(), for_ms: 1000 });
        if dice.chance(10) {
            one.left.push(site.hosts[other].name.clone());
        }
        if dice.chance(12) {
            free[other] -= memory;
            add_pieces(&mut one, site, dice, other);
        } else if dice.chance(30) && site.under_way.is_empty() && site.hosts[home].duty != Duty::Gone {
            free[other] -= memory;
            let (from, to) = (site.hosts[home].name.clone(), site.hosts[other].name.clone());
            let ends_ms = dice.roll(20_000) as u64;
            site.under_way.push(UnderWay { machine: one.name.clone(), piece: None, from, to, ends_ms });
        }
        site.machines.push(one);
    }
}

fn add_pieces(one: &mut SiteMachine, site: &Site, dice: &mut Dice, other: usize) {
    let hosts = [one.host.clone(), site.hosts[other].name.clone()];
    for number in 0..4u8 {
        let name = if number < 2 { PieceName::Vcpu(number) } else { PieceName::Memory(number - 2) };
        let shares = vec![(PieceName::Vcpu(0), dice.part() * 500.0), (PieceName::Memory(1), dice.part() * 100.0)];
        one.pieces.push(SitePiece { name, host: hosts[usize::from(number % 2)].clone(), shares });
    }
}

fn add_rules(site: &mut Site, dice: &mut Dice) {
    let names: Vec<String> = site.machines.iter().map(|machine| machine.name.to_string()).collect();
    for at in 0..dice.roll(5) {
        if names.is_empty() {
            return;
        }
        let some: Vec<&str> = (0..2 + dice.roll(2)).map(|_| names[dice.roll(names.len())].as_str()).collect();
        let domain = [Domain::Host, Domain::Rack, Domain::Datacenter][dice.roll(3)];
        let hosts: Vec<HostName> = (0..3).map(|_| site.hosts[dice.roll(site.hosts.len())].name.clone()).collect();
        let (machines, demand) = match dice.roll(6) {
            0 | 1 => (some, Wanted::Affinity { within: domain }),
            2 => (some, Wanted::AntiAffinity { across: domain }),
            3 => {
                (vec![["a*", "b*", "c*"][dice.roll(3)]], Wanted::Spread { over: domain, skew: 1 + dice.roll(2) as u32 })
            }
            4 => (some, Wanted::Pin { hosts }),
            _ => (vec!["a*"], Wanted::Residency { datacenters: vec!["dc0".parse().unwrap()] }),
        };
        site.rules.push(rule(&format!("rule{at}"), &machines, demand));
    }
}

/// Carries a plan out in some order that its `after`s allow, and looks at every state in between.
pub(crate) struct Judge<'a> {
    site: &'a Site,
    plan: &'a Plan,
    at: BTreeMap<Subject, HostName>,
    flying: Vec<usize>,
    running: BTreeSet<u32>,
    done: BTreeSet<u32>,
    memory_before: BTreeMap<HostName, u64>,
    broken_before: Vec<u32>,
}

impl<'a> Judge<'a> {
    pub(crate) fn new(site: &'a Site, plan: &'a Plan) -> Self {
        let mut at = BTreeMap::new();
        for machine in &site.machines {
            if machine.pieces.is_empty() {
                at.insert(Subject { machine: machine.name.clone(), piece: None }, machine.host.clone());
            }
            for piece in &machine.pieces {
                let subject = Subject { machine: machine.name.clone(), piece: Some(piece.name) };
                at.insert(subject, piece.host.clone());
            }
        }
        let flying = (0..site.under_way.len()).collect();
        let mut judge = Judge {
            site,
            plan,
            at,
            flying,
            running: BTreeSet::new(),
            done: BTreeSet::new(),
            memory_before: BTreeMap::new(),
            broken_before: Vec::new(),
        };
        judge.memory_before = judge.memory();
        let now = site.rules.iter().map(|rule| judge.broken(rule)).collect::<Vec<_>>();
        for flight in &site.under_way {
            judge.at.insert(Subject { machine: flight.machine.clone(), piece: flight.piece }, flight.to.clone());
        }
        let then = site.rules.iter().map(|rule| judge.broken(rule));
        judge.broken_before = now.iter().zip(then).map(|(now, then)| (*now).max(then)).collect();
        for flight in &site.under_way {
            judge.at.insert(Subject { machine: flight.machine.clone(), piece: flight.piece }, flight.from.clone());
        }
        judge
    }

    /// Carries out the plan in an order drawn from `seed`; an error says what was broken.
    pub(crate) fn run(&mut self, seed: u64) -> Result<(), String> {
        let mut dice = Dice::new(seed);
        self.look("at first")?;
        loop {
            let mut possible: Vec<(bool, u32)> = self.running.iter().map(|number| (false, *number)).collect();
            let waiting = self.plan.steps.iter().filter(|step| self.may_begin(step.number));
            possible.extend(waiting.map(|step| (true, step.number)));
            possible.extend(self.flying.iter().map(|at| (false, 1_000_000 + *at as u32)));
            if possible.is_empty() {
                break;
            }
            let (begins, number) = possible[dice.roll(possible.len())];
            if begins {
                self.begin(number)?;
            } else {
                self.end(number);
            }
            self.look(&format!("after {} of {number}", if begins { "begin" } else { "end" }))?;
        }
        let left = self.plan.steps.len() - self.done.len();
        if left == 0 { Ok(()) } else { Err(format!("{left} steps never begin")) }
    }

    fn fellows(&self, number: u32) -> Vec<u32> {
        let step = &self.plan.steps[number as usize - 1];
        let Some(together) = step.together else { return vec![number] };
        self.plan.steps.iter().filter(|other| other.together == Some(together)).map(|other| other.number).collect()
    }

    fn may_begin(&self, number: u32) -> bool {
        let fellows = self.fellows(number);
        fellows[0] == number
            && fellows.iter().all(|number| {
                let step = &self.plan.steps[*number as usize - 1];
                let landed = self.flying.iter().all(|at| self.site.under_way[*at].ends_ms > step.begins_ms);
                let new = !self.running.contains(number) && !self.done.contains(number);
                new && landed && step.after.iter().all(|before| self.done.contains(before))
            })
    }

    fn begin(&mut self, number: u32) -> Result<(), String> {
        for number in self.fellows(number) {
            let step = &self.plan.steps[number as usize - 1];
            if self.at[&step.subject] != step.from {
                return Err(format!("step {number} is from {}, it is on {}", step.from, self.at[&step.subject]));
            }
            self.judge_step(number)?;
            self.running.insert(number);
        }
        Ok(())
    }

    fn judge_step(&self, number: u32) -> Result<(), String> {
        let step = &self.plan.steps[number as usize - 1];
        let host = |name: &HostName| self.site.hosts.iter().find(|host| host.name == *name).unwrap();
        let machine = self.site.machines.iter().find(|machine| machine.name == step.subject.machine).unwrap();
        let soft = matches!(step.motive, Motive::Balance | Motive::Gather);
        if host(&step.to).duty != Duty::Open || host(&step.from).duty == Duty::Gone {
            return Err(format!("step {number}: nothing may come, or go"));
        }
        if !host(&step.from).cpu.missing_on(&host(&step.to).cpu).is_empty() {
            return Err(format!("step {number}: processors"));
        }
        if soft && (machine.stays.is_some() || machine.left.contains(&step.to) || machine.demand.seen_s < 300) {
            return Err(format!("step {number}: it should be left alone"));
        }
        Ok(())
    }

    fn end(&mut self, number: u32) {
        if let Some(at) = number.checked_sub(1_000_000) {
            self.flying.retain(|other| *other != at as usize);
            let flight = &self.site.under_way[at as usize];
            self.at.insert(Subject { machine: flight.machine.clone(), piece: flight.piece }, flight.to.clone());
            return;
        }
        self.running.remove(&number);
        self.done.insert(number);
        let step = &self.plan.steps[number as usize - 1];
        self.at.insert(step.subject.clone(), step.to.clone());
    }

    /// Bytes by host, of what is on its way at both of its ends.
    fn memory(&self) -> BTreeMap<HostName, u64> {
        let mut memory: BTreeMap<HostName, u64> = BTreeMap::new();
        for (subject, host) in &self.at {
            *memory.entry(host.clone()).or_default() += self.size(subject);
        }
        for step in self.running.iter().map(|number| &self.plan.steps[*number as usize - 1]) {
            *memory.entry(step.to.clone()).or_default() += self.size(&step.subject);
        }
        for flight in self.flying.iter().map(|at| &self.site.under_way[*at]) {
            let subject = Subject { machine: flight.machine.clone(), piece: flight.piece };
            *memory.entry(flight.to.clone()).or_default() += self.size(&subject);
        }
        memory
    }

    fn size(&self, subject: &Subject) -> u64 {
        let machine = self.site.machines.iter().find(|machine| machine.name == subject.machine).unwrap();
        let slices = machine.pieces.iter().filter(|piece| matches!(piece.name, PieceName::Memory(_))).count() as u64;
        match subject.piece {
            None => machine.memory.0,
            Some(PieceName::Memory(_)) => machine.memory.0 / slices,
            Some(PieceName::Vcpu(_)) => 0,
        }
    }

    fn look(&self, when: &str) -> Result<(), String> {
        for (name, bytes) in self.memory() {
            let host = self.site.hosts.iter().find(|host| host.name == name).unwrap();
            let before = self.memory_before.get(&name).copied().unwrap_or(0);
            if bytes > (host.memory.0 - host.memory_other.0).max(before) {
                return Err(format!("{when}: {bytes} bytes on {name}"));
            }
            let steps = self.running.iter().map(|number| &self.plan.steps[*number as usize - 1]);
            let moves = steps.filter(|step| step.from == name || step.to == name).count();
            let flights = self.flying.iter().map(|at| &self.site.under_way[*at]);
            let flights = flights.filter(|flight| flight.from == name || flight.to == name).count();
            if moves > 0 && moves + flights > self.site.policy.moves_per_host_max as usize {
                return Err(format!("{when}: {moves} moves and {flights} before on {name}"));
            }
        }
        for (rule, before) in self.site.rules.iter().zip(&self.broken_before) {
            let broken = self.broken(rule);
            if broken > *before && !self.is_crossing(rule) {
                return Err(format!(
                    "{when}: rule {} is broken by {broken}, by {before} at first: {:?}",
                    rule.name, self.at
                ));
            }
        }
        Ok(())
    }

    /// Is a part of what this affinity holds together over, and a part not?
    fn is_crossing(&self, rule: &Rule) -> bool {
        matches!(rule.demand, Wanted::Affinity { .. })
            && self.running.iter().any(|number| {
                let step = &self.plan.steps[*number as usize - 1];
                step.together.is_some() && rule.selects(&step.subject.machine)
            })
    }

    fn domain(&self, kind: Domain, name: &HostName) -> String {
        let host = self.site.hosts.iter().find(|host| host.name == *name).unwrap();
        match (kind, &host.rack) {
            (Domain::Host, _) | (Domain::Rack, None) => host.name.to_string(),
            (Domain::Rack, Some(rack)) => format!("{rack} {}", host.datacenter),
            (Domain::Datacenter, _) => host.datacenter.to_string(),
        }
    }

    /// By how much a rule is broken.
    pub(crate) fn broken(&self, rule: &Rule) -> u32 {
        let count = |kind: Domain| -> BTreeMap<String, u32> {
            let members = self.at.iter().filter(|(subject, _)| rule.selects(&subject.machine));
            let places: BTreeSet<_> =
                members.map(|(subject, host)| (self.domain(kind, host), subject.machine.clone())).collect();
            let mut counts = BTreeMap::new();
            places.into_iter().for_each(|(domain, _)| *counts.entry(domain).or_default() += 1);
            counts
        };
        match &rule.demand {
            Wanted::Affinity { within } => {
                let counts = count(*within);
                counts.values().sum::<u32>() - counts.values().max().unwrap_or(&0)
            }
            Wanted::AntiAffinity { across } => count(*across).values().map(|machines| machines - 1).sum(),
            Wanted::Spread { over, skew } => {
                let counts = count(*over);
                let open = self.site.hosts.iter().filter(|host| host.duty == Duty::Open && self.any_may(rule, host));
                let least = open.map(|host| counts.get(&self.domain(*over, &host.name)).copied().unwrap_or(0)).min();
                counts.values().max().unwrap_or(&0).saturating_sub(least.unwrap_or(0) + skew)
            }
            Wanted::Pin { hosts } => self.outside(rule, |host| hosts.contains(&host.name)),
            Wanted::Residency { datacenters } => self.outside(rule, |host| datacenters.contains(&host.datacenter)),
        }
    }

    fn outside(&self, rule: &Rule, may: impl Fn(&SiteHost) -> bool) -> u32 {
        let members = self.at.iter().filter(|(subject, _)| rule.selects(&subject.machine));
        let hosts = members.map(|(_, name)| self.site.hosts.iter().find(|host| host.name == *name).unwrap());
        hosts.filter(|host| !may(host)).count() as u32
    }

    /// May any of the machines of a rule be on this host, by pins and residencies?
    fn any_may(&self, rule: &Rule, host: &SiteHost) -> bool {
        let mut members = self.site.machines.iter().filter(|machine| rule.selects(&machine.name));
        members.any(|machine| {
            self.site.rules.iter().filter(|rule| rule.selects(&machine.name)).all(|rule| match &rule.demand {
                Wanted::Pin { hosts } => hosts.contains(&host.name),
                Wanted::Residency { datacenters } => datacenters.contains(&host.datacenter),
                _ => true,
            })
        })
    }
}
