//! A site in numbers: names become indices, so that nothing that is done often touches a name.
//!
//! The one invariant: indices follow the order of names, so the same site in any order is the same world.

use crate::{
    objective::{DEVIATIONS, Objective},
    site::{Duty, SLOTS, Site, SiteHost, SiteMachine},
};
use std::{collections::HashMap, ops::Range};
use vmotion_model::{CpuModel, DatacenterName, Domain, PieceName, Subject};

/// Index of a host.
pub(crate) type HostId = u32;
/// Index of what is moved: a machine, or a piece of one.
pub(crate) type SubjectId = u32;

/// Bytes/s that a host's network is taken to carry when nobody knows: 1 Gbit/s. A promise is better kept than bold.
const NETWORK_UNKNOWN: f64 = 125e6;
/// Networks whose bandwidths differ by less than this ratio cost the same to search with.
const NETWORK_STEP: f64 = 1.5;

/// A host in numbers.
#[derive(Debug, Clone)]
pub(crate) struct HostFacts {
    /// Processors.
    pub(crate) cpus: f64,
    /// Demand on them of what is not listed.
    pub(crate) other: f64,
    /// Memory for what is listed, in bytes.
    pub(crate) memory: u64,
    /// Which of the kinds of processors.
    pub(crate) cpu: u16,
    pub(crate) datacenter: u16,
    pub(crate) rack: u32,
    /// Which of the kinds of network, see [`World::path`].
    pub(crate) network_class: u16,
    /// In each direction, in bytes/s.
    pub(crate) network: f64,
    pub(crate) duty: Duty,
}

/// What is moved, in numbers.
#[derive(Debug, Clone)]
pub(crate) struct SubjectFacts {
    pub(crate) machine: u32,
    pub(crate) piece: Option<PieceName>,
    /// Where it is, moves under way counted as done.
    pub(crate) origin: HostId,
    /// In bytes.
    pub(crate) memory: u64,
    /// Of its demand, squared processors.
    pub(crate) variance: f64,
    /// It is on its way already.
    pub(crate) flies: bool,
}

/// A move under way.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Flight {
    pub(crate) subject: SubjectId,
    pub(crate) from: HostId,
    pub(crate) to: HostId,
    pub(crate) ends_ms: u64,
}

/// What moves between two kinds of hosts go over.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PathFacts {
    /// What it would carry of one move, in bytes/s.
    pub(crate) bytes_per_s: f64,
    pub(crate) rtt_ms: f64,
    pub(crate) price_per_gib: f64,
}

/// Everything, in numbers.
#[derive(Debug)]
pub(crate) struct World<'a> {
    pub(crate) site: &'a Site,
    pub(crate) objective: Objective,
    pub(crate) hosts: Vec<HostFacts>,
    host_at: Vec<u32>,
    machine_at: Vec<u32>,
    pub(crate) subjects: Vec<SubjectFacts>,
    pub(crate) demand: Vec<[f32; SLOTS]>,
    /// By machine, its subjects.
    pub(crate) parts: Vec<Range<u32>>,
    pub(crate) flights: Vec<Flight>,
    pub(crate) datacenters: Vec<&'a DatacenterName>,
    pub(crate) racks: u32,
    /// By subject: another, and waits a second between them.
    shares: HashMap<SubjectId, Vec<(SubjectId, f64)>>,
    /// By kind of processor, of the one that a machine was on, and of the one that it would go to.
    compatible: Vec<bool>,
    cpu_kinds: usize,
    paths: Vec<PathFacts>,
    network_classes: usize,
    host_ids: HashMap<&'a str, HostId>,
}

impl<'a> World<'a> {
    pub(crate) fn new(site: &'a Site) -> Self {
        let host_at = sorted_by(&site.hosts, |host| host.name.as_str());
        let machine_at = sorted_by(&site.machines, |machine| machine.name.as_str());
        let host_ids = (0u32..).zip(&host_at).map(|(id, at)| (site.hosts[*at as usize].name.as_str(), id)).collect();
        let mut world = World {
            site,
            objective: Objective::new(site.policy.cpu_percent_content),
            hosts: Vec::with_capacity(site.hosts.len()),
            host_at,
            machine_at,
            subjects: Vec::with_capacity(site.machines.len()),
            demand: Vec::with_capacity(site.machines.len()),
            parts: Vec::with_capacity(site.machines.len()),
            flights: Vec::new(),
            datacenters: Vec::new(),
            racks: 0,
            shares: HashMap::new(),
            compatible: Vec::new(),
            cpu_kinds: 0,
            paths: Vec::new(),
            network_classes: 0,
            host_ids,
        };
        world.add_hosts();
        for machine in 0..index(world.machine_at.len()) {
            world.add_machine(machine);
        }
        world.add_flights();
        world
    }

    fn add_hosts(&mut self) {
        let site = self.site;
        self.datacenters = site.hosts.iter().map(|host| &host.datacenter).collect();
        self.datacenters.sort_unstable();
        self.datacenters.dedup();
        let mut racks: HashMap<(u16, &str), u32> = HashMap::new();
        let mut kinds: Vec<&CpuModel> = Vec::new();
        let mut networks: Vec<(u16, i32)> = Vec::new();
        for at in &self.host_at {
            let host = &site.hosts[*at as usize];
            let datacenter = self.datacenters.binary_search(&&host.datacenter).map_or(0, index16);
            let fresh = self.racks;
            let rack = host.rack.as_deref().map_or(fresh, |rack| *racks.entry((datacenter, rack)).or_insert(fresh));
            self.racks += u32::from(rack == fresh);
            let cpu = kinds.iter().position(|kind| std::ptr::eq(*kind, &raw const *host.cpu) || **kind == *host.cpu);
            let cpu = cpu.unwrap_or_else(|| {
                kinds.push(&host.cpu);
                kinds.len() - 1
            });
            let network = if host.network_bytes_per_s > 0.0 { host.network_bytes_per_s } else { NETWORK_UNKNOWN };
            #[expect(clippy::cast_possible_truncation, reason = "a logarithm")]
            let step = (network.ln() / NETWORK_STEP.ln()).round() as i32;
            let class = networks.iter().position(|class| *class == (datacenter, step)).unwrap_or_else(|| {
                networks.push((datacenter, step));
                networks.len() - 1
            });
            self.hosts.push(HostFacts {
                cpus: f64::from(host.cpus.max(0.01)),
                other: f64::from(host.cpus_other.max(0.0)),
                memory: host.memory.0.saturating_sub(host.memory_other.0),
                cpu: index16(cpu),
                datacenter,
                rack,
                network_class: index16(class),
                network,
                duty: host.duty,
            });
        }
        self.cpu_kinds = kinds.len();
        self.compatible = kinds
            .iter()
            .flat_map(|from| kinds.iter().map(|to| from.vendor == to.vendor && from.features.is_subset(&to.features)))
            .collect();
        self.network_classes = networks.len();
        let lowest = |class: usize| {
            let of = self.hosts.iter().filter(|host| usize::from(host.network_class) == class);
            of.map(|host| host.network).fold(f64::INFINITY, f64::min)
        };
        let ends: Vec<(u16, f64)> = networks.iter().enumerate().map(|(at, class)| (class.0, lowest(at))).collect();
        self.paths = ends.iter().flat_map(|from| ends.iter().map(|to| self.path_between(*from, *to))).collect();
    }

    fn path_between(&self, from: (u16, f64), to: (u16, f64)) -> PathFacts {
        let share = f64::from(self.site.policy.link_percent_max) / 100.0;
        let carries = from.1.min(to.1);
        match self.link(from.0, to.0) {
            Some(link) => PathFacts {
                bytes_per_s: carries.min(link.bytes_per_s) * share,
                rtt_ms: link.rtt_ms,
                price_per_gib: link.price_per_gib,
            },
            None => PathFacts { bytes_per_s: carries * share, rtt_ms: LOCAL_RTT_MS, price_per_gib: 0.0 },
        }
    }

    /// What lies between two datacenters, where anything is known to.
    pub(crate) fn link(&self, one: u16, other: u16) -> Option<crate::site::Link> {
        let (less, more) = (one.min(other), one.max(other));
        let name = |at: u16| self.datacenters[usize::from(at)].clone();
        (less != more).then(|| self.site.links.between.get(&(name(less), name(more))).copied()).flatten()
    }

    fn add_machine(&mut self, id: u32) {
        let machine = self.machine(id);
        let begin = index(self.subjects.len());
        if machine.pieces.is_empty() {
            if let Some(origin) = self.host_id(machine.host.as_str()) {
                self.add_subject(id, None, origin, machine.memory.0, 1.0);
            }
        } else {
            self.add_pieces(id, machine);
        }
        self.parts.push(begin..index(self.subjects.len()));
    }

    fn add_pieces(&mut self, id: u32, machine: &'a SiteMachine) {
        let begin = index(self.subjects.len());
        let is_vcpu = |piece: &PieceName| matches!(piece, PieceName::Vcpu(_));
        let vcpus = machine.pieces.iter().filter(|piece| is_vcpu(&piece.name)).count().max(1);
        let slices = machine.pieces.iter().filter(|piece| !is_vcpu(&piece.name)).count().max(1);
        let mut pieces: Vec<_> = machine.pieces.iter().collect();
        pieces.sort_by_key(|piece| piece.name);
        let mut known = Vec::new();
        for piece in pieces {
            let Some(origin) = self.host_id(piece.host.as_str()) else { continue };
            let (memory, share) =
                if is_vcpu(&piece.name) { (0, 1.0 / vcpus as f64) } else { (machine.memory.0 / slices as u64, 0.0) };
            self.add_subject(id, Some(piece.name), origin, memory, share);
            known.push(piece);
        }
        for (subject, piece) in (begin..).zip(&known) {
            for (other, per_s) in &piece.shares {
                let Ok(at) = known.binary_search_by_key(other, |piece| piece.name) else { continue };
                self.share(subject, begin + index(at), *per_s);
            }
        }
    }

    /// Waits between two pieces are what either of them says, not both together.
    fn share(&mut self, one: SubjectId, other: SubjectId, per_s: f64) {
        if one == other || per_s.is_nan() || per_s <= 0.0 {
            return;
        }
        for (from, to) in [(one, other), (other, one)] {
            let of = self.shares.entry(from).or_default();
            match of.iter_mut().find(|(partner, _)| *partner == to) {
                Some((_, known)) => *known = known.max(per_s),
                None => of.push((to, per_s)),
            }
        }
    }

    fn add_subject(&mut self, id: u32, piece: Option<PieceName>, origin: HostId, memory: u64, share: f64) {
        let machine = self.machine(id);
        let deviation = f64::from(machine.demand.deviation.max(0.0)) * share * DEVIATIONS;
        self.subjects.push(SubjectFacts {
            machine: id,
            piece,
            origin,
            memory,
            variance: deviation * deviation,
            flies: false,
        });
        #[expect(clippy::cast_possible_truncation, reason = "a share of an f32")]
        let of = |cpus: f32| if cpus > 0.0 { (f64::from(cpus) * share) as f32 } else { 0.0 };
        self.demand.push(machine.demand.cpus.map(of));
    }

    fn add_flights(&mut self) {
        let site = self.site;
        let mut flights: Vec<Flight> = Vec::new();
        for under_way in &site.under_way {
            let (from, to) = (self.host_id(under_way.from.as_str()), self.host_id(under_way.to.as_str()));
            let subject = self.subject(&Subject { machine: under_way.machine.clone(), piece: under_way.piece });
            let (Some(from), Some(to), Some(subject)) = (from, to, subject) else { continue };
            if from != to && flights.iter().all(|flight| flight.subject != subject) {
                flights.push(Flight { subject, from, to, ends_ms: under_way.ends_ms });
            }
        }
        flights.sort_unstable_by_key(|flight| flight.subject);
        for flight in &flights {
            let facts = &mut self.subjects[flight.subject as usize];
            (facts.origin, facts.flies) = (flight.to, true);
        }
        self.flights = flights;
    }

    pub(crate) fn host_id(&self, name: &str) -> Option<HostId> {
        self.host_ids.get(name).copied()
    }

    pub(crate) fn host(&self, host: HostId) -> &'a SiteHost {
        &self.site.hosts[self.host_at[host as usize] as usize]
    }

    pub(crate) fn facts(&self, host: HostId) -> &HostFacts {
        &self.hosts[host as usize]
    }

    pub(crate) fn machine(&self, machine: u32) -> &'a SiteMachine {
        &self.site.machines[self.machine_at[machine as usize] as usize]
    }

    pub(crate) fn machine_count(&self) -> u32 {
        index(self.machine_at.len())
    }

    /// By name; machines are in the order of their names.
    pub(crate) fn machine_id(&self, name: &str) -> Option<u32> {
        let found = self.machine_at.binary_search_by(|at| self.site.machines[*at as usize].name.as_str().cmp(name));
        found.ok().map(index)
    }

    pub(crate) fn subject(&self, subject: &Subject) -> Option<SubjectId> {
        let machine = self.machine_id(subject.machine.as_str())?;
        let mut parts = self.parts[machine as usize].clone();
        parts.find(|part| self.subjects[*part as usize].piece == subject.piece)
    }

    pub(crate) fn of(&self, subject: SubjectId) -> &SubjectFacts {
        &self.subjects[subject as usize]
    }

    pub(crate) fn name_of(&self, subject: SubjectId) -> Subject {
        let facts = self.of(subject);
        Subject { machine: self.machine(facts.machine).name.clone(), piece: facts.piece }
    }

    pub(crate) fn shares_of(&self, subject: SubjectId) -> &[(SubjectId, f64)] {
        self.shares.get(&subject).map_or(&[], Vec::as_slice)
    }

    pub(crate) fn sharing(&self) -> Vec<SubjectId> {
        let mut sharing: Vec<_> = self.shares.keys().copied().collect();
        sharing.sort_unstable();
        sharing
    }

    /// Could what was started on `from` run on `to`?
    pub(crate) fn is_compatible(&self, from: HostId, to: HostId) -> bool {
        let kind = |host: HostId| usize::from(self.facts(host).cpu);
        self.compatible[kind(from) * self.cpu_kinds + kind(to)]
    }

    pub(crate) fn path(&self, from: HostId, to: HostId) -> (u32, PathFacts) {
        let class = |host: HostId| usize::from(self.facts(host).network_class);
        let at = class(from) * self.network_classes + class(to);
        (index(at), self.paths[at])
    }

    pub(crate) fn domain(&self, kind: Domain, host: HostId) -> u32 {
        match kind {
            Domain::Host => host,
            Domain::Rack => self.facts(host).rack,
            Domain::Datacenter => u32::from(self.facts(host).datacenter),
        }
    }

    pub(crate) fn domain_count(&self, kind: Domain) -> u32 {
        match kind {
            Domain::Host => index(self.hosts.len()),
            Domain::Rack => self.racks,
            Domain::Datacenter => index(self.datacenters.len()),
        }
    }

    /// What a domain is called.
    pub(crate) fn domain_name(&self, kind: Domain, domain: u32) -> String {
        let first = self.host_ids_iter().find(|host| self.domain(kind, *host) == domain);
        let Some(host) = first.map(|host| self.host(host)) else { return format!("{kind} {domain}") };
        match (kind, &host.rack) {
            (Domain::Host, _) | (Domain::Rack, None) => host.name.to_string(),
            (Domain::Rack, Some(rack)) => format!("rack {rack} of {}", host.datacenter),
            (Domain::Datacenter, _) => host.datacenter.to_string(),
        }
    }

    pub(crate) fn host_ids_iter(&self) -> Range<HostId> {
        0..index(self.hosts.len())
    }
}

/// Round trip within a datacenter, in ms.
pub(crate) const LOCAL_RTT_MS: f64 = 0.2;

fn sorted_by<'a, T>(items: &'a [T], name: impl Fn(&'a T) -> &'a str) -> Vec<u32> {
    let mut order: Vec<u32> = (0..index(items.len())).collect();
    order.sort_by_key(|at| name(&items[*at as usize]));
    order
}

/// Sites have fewer than 2^32 of anything.
pub(crate) fn index(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}

fn index16(at: usize) -> u16 {
    u16::try_from(at).unwrap_or(u16::MAX)
}
