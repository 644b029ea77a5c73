//! Machines with their demand over time, and the hosts that they are on: what is replayed, whether it was generated or recorded.
//!
//! The one invariant: a trace has a figure for every interval in which its machine lives.

use super::{HOLD_S, INTERVAL_S, generate::Chance};
use crate::{
    History,
    site::{Demand, Duty, MemoryUse, SLOTS, Site, SiteHost, SiteMachine},
};
use std::{ops::Range, sync::Arc};
use vmotion_model::{ByteSize, HostName};

/// Demand at the busiest time as a part of all processors, for hosts whose size nobody says.
const BUSY: f64 = 0.86;
/// Memory given out as a part of all memory, for the same.
const FULL: f64 = 0.7;

/// Demand of one machine over time.
#[derive(Debug, Clone)]
pub struct Trace {
    /// Its vCPUs.
    pub vcpus: u32,
    /// Its memory.
    pub memory: ByteSize,
    /// What it does to its memory.
    pub memory_use: MemoryUse,
    /// Intervals in which it runs.
    pub lives: Range<usize>,
    /// Processors it asks for in each interval, from the first of all to its last.
    pub cpus: Vec<f32>,
}

/// Machines, and hosts for them.
#[derive(Debug, Clone)]
pub struct Fleet {
    /// Machines.
    pub traces: Vec<Trace>,
    /// Hosts; all are the same.
    pub hosts: usize,
    /// Processors of each.
    pub cpus: f32,
    /// Memory of each.
    pub memory: ByteSize,
    /// Where each machine begins, by number of host.
    pub placed: Vec<usize>,
    /// How long all of it is.
    pub intervals: usize,
}

impl Fleet {
    /// The last day, or all of it where that is shorter. What is before it is history.
    #[must_use]
    pub const fn last_day(&self) -> Range<usize> {
        self.intervals.saturating_sub(super::DAY)..self.intervals
    }

    pub(super) const fn without_traces(&self) -> Self {
        let Self { hosts, cpus, memory, intervals, .. } = *self;
        Self { traces: Vec::new(), placed: Vec::new(), hosts, cpus, memory, intervals }
    }
}

/// How large a host is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct HostSize {
    pub(super) cpus: f32,
    pub(super) memory: ByteSize,
}

impl HostSize {
    /// Such that `hosts` hosts are nearly full at the busiest of the first `intervals` intervals.
    pub(super) fn for_all(traces: &[Trace], intervals: usize, hosts: usize) -> Self {
        let busiest = (0..intervals).map(|at| asked(traces, at)).fold(0.0, f64::max);
        let memory: f64 = traces.iter().map(|trace| trace.memory.0 as f64).sum();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "sizes of hosts")]
        let (cpus, memory) =
            ((busiest / BUSY / hosts as f64).ceil() as f32, ByteSize((memory / FULL / hosts as f64) as u64));
        Self { cpus, memory }
    }
}

fn asked(traces: &[Trace], at: usize) -> f64 {
    let alive = traces.iter().filter(|trace| trace.lives.contains(&at));
    alive.map(|trace| f64::from(trace.cpus[at])).sum()
}

/// One after the other to the host with the fewest vCPUs of two that chance names: what schedulers that know nothing of load do.
pub(super) fn place(chance: &mut Chance, traces: &[Trace], hosts: usize, memory: ByteSize) -> Vec<usize> {
    let (mut vcpus, mut used) = (vec![0u32; hosts], vec![0u64; hosts]);
    let mut placed = Vec::with_capacity(traces.len());
    for trace in traces {
        let (one, other) = (chance.below(hosts), chance.below(hosts));
        let chosen = if vcpus[one] <= vcpus[other] { one } else { other };
        let fits = |host: &usize| used[*host] + trace.memory.0 <= memory.0;
        let host = Some(chosen).filter(fits).or_else(|| (0..hosts).filter(fits).min_by_key(|host| vcpus[*host]));
        let host = host.unwrap_or_else(|| (0..hosts).min_by_key(|host| used[*host]).unwrap_or(0));
        vcpus[host] += trace.vcpus;
        used[host] += trace.memory.0;
        placed.push(host);
    }
    placed
}

/// The fleet as a site at one moment, all of it known from what it asked for before `interval`.
#[must_use]
pub fn site(fleet: &Fleet, interval: usize) -> Site {
    let hosts = (0..fleet.hosts).map(|host| site_host(fleet, host)).collect();
    let machines = fleet.traces.iter().zip(&fleet.placed).enumerate();
    let machines = machines.map(|(at, (trace, host))| SiteMachine {
        demand: seen(trace, interval)
            .map_or_else(Demand::default, |history| history.demand(interval as u64 * INTERVAL_S)),
        ..site_machine(at, trace, *host)
    });
    Site { hosts, machines: machines.collect(), ..Site::default() }
}

/// What was measured until `interval`.
pub(super) fn seen(trace: &Trace, interval: usize) -> Option<History> {
    let mut history: Option<History> = None;
    for at in trace.lives.clone().take_while(|at| *at < interval) {
        let (at_s, cpus) = (at as u64 * INTERVAL_S, trace.cpus[at]);
        match &mut history {
            Some(history) => history.record(at_s, cpus, HOLD_S),
            None => history = Some(History::begin(at_s, cpus)),
        }
    }
    history
}

pub(super) fn host_name(host: usize) -> HostName {
    format!("h{host:05}").parse().expect("letters and digits are a name")
}

fn site_host(fleet: &Fleet, host: usize) -> SiteHost {
    SiteHost {
        name: host_name(host),
        datacenter: "dc1".parse().expect("letters and digits are a name"),
        rack: Some(format!("r{}", host / 20)),
        cpus: fleet.cpus,
        memory: fleet.memory,
        memory_other: ByteSize(0),
        cpus_other: 0.0,
        network_bytes_per_s: 1.25e9,
        cpu: Arc::default(),
        duty: Duty::Open,
    }
}

pub(super) fn site_machine(at: usize, trace: &Trace, host: usize) -> SiteMachine {
    SiteMachine {
        name: format!("vm{at:06}").parse().expect("letters and digits are a name"),
        host: host_name(host),
        pieces: Vec::new(),
        memory: trace.memory,
        vcpus: trace.vcpus,
        demand: Demand { cpus: [0.0; SLOTS], deviation: 0.0, seen_s: 0 },
        memory_use: trace.memory_use,
        stays: None,
        left: Vec::new(),
    }
}
