//! Machines with demand of the published shapes: most are small and nearly idle, a few carry most of the load, about half of the load
//! follows the hours of the day (Cortez et al., "Resource Central", SOSP 2017); and lifetimes are either short or longer than any replay.

use super::{DAY, HOLD_S, INTERVAL_S};
use crate::{
    History,
    site::{Demand, Duty, MemoryUse, SLOTS, Site, SiteHost, SiteMachine},
};
use std::{f64::consts::TAU, sync::Arc};
use vmotion_model::{ByteSize, HostName};

/// vCPUs, and how many machines in a hundred have at most so many.
const VCPUS: [(u32, u64); 5] = [(1, 48), (2, 73), (4, 90), (8, 97), (16, 100)];
/// GiB for each vCPU, and how many machines in a hundred have at most so much.
const GIB_PER_VCPU: [(u64, u64); 3] = [(1, 20), (2, 70), (4, 100)];
/// Of a hundred machines, so many follow the hours of the day, and so many work by night.
const DIURNAL: u64 = 45;
const NIGHTLY: u64 = 10;
/// Of a hundred machines, so many live for hours only.
const SHORT_LIVED: u64 = 12;
/// Demand at the busiest time of the day as a part of all processors.
const BUSY: f64 = 0.86;
/// Memory given out as a part of all memory.
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
    pub lives: std::ops::Range<usize>,
    /// Processors it asks for in each interval, of all of the time.
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
}

/// Numbers by chance, the same for a seed (SplitMix64).
#[derive(Debug)]
struct Chance(u64);

impl Chance {
    const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// From 0 to 1.
    fn part(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.part()
    }

    fn below(&mut self, sides: usize) -> usize {
        usize::try_from(self.next() % sides.max(1) as u64).unwrap_or(0)
    }

    fn of_hundred(&mut self) -> u64 {
        self.next() % 100
    }

    fn pick<T: Copy>(&mut self, table: &[(T, u64)]) -> T {
        let rolled = self.of_hundred();
        let found = table.iter().find(|(_, most)| rolled < *most).or_else(|| table.last());
        found.map(|(value, _)| *value).expect("tables have rows")
    }
}

/// `machines` machines over `intervals` intervals, and `hosts` hosts on which they are placed by their vCPUs, in no other order.
#[must_use]
pub fn generate(hosts: usize, machines: usize, intervals: usize, seed: u64) -> Fleet {
    let mut chance = Chance(seed);
    let traces: Vec<Trace> = (0..machines).map(|_| trace(&mut chance, intervals)).collect();
    let busiest = (0..intervals.min(DAY)).map(|at| asked(&traces, at)).fold(0.0, f64::max);
    let memory: f64 = traces.iter().map(|trace| trace.memory.0 as f64).sum();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "sizes of hosts")]
    let (cpus, memory) =
        ((busiest / BUSY / hosts as f64).ceil() as f32, ByteSize((memory / FULL / hosts as f64) as u64));
    let placed = place(&mut chance, &traces, hosts, memory);
    Fleet { traces, hosts, cpus, memory, placed }
}

fn asked(traces: &[Trace], at: usize) -> f64 {
    let alive = traces.iter().filter(|trace| trace.lives.contains(&at));
    alive.map(|trace| f64::from(trace.cpus[at])).sum()
}

/// One after the other to the host with the fewest vCPUs of two that chance names: what schedulers that know nothing of load do.
fn place(chance: &mut Chance, traces: &[Trace], hosts: usize, memory: ByteSize) -> Vec<usize> {
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

fn trace(chance: &mut Chance, intervals: usize) -> Trace {
    let vcpus = chance.pick(&VCPUS);
    let memory = ByteSize::gib(u64::from(vcpus) * chance.pick(&GIB_PER_VCPU));
    // A heavy tail: half of all use less than a seventh of what they have, one in ten more than half.
    let mean = (0.075 / chance.between(0.02, 1.0).powf(0.85)).min(0.8);
    let shape = Shape::draw(chance);
    let (noisy, mut noise, mut burst) = (chance.between(0.1, 0.9), 0.0, 0u32);
    let mut cpus = Vec::with_capacity(intervals);
    for at in 0..intervals {
        noise = 0.5 * noise + 0.9 * noisy * (chance.part() + chance.part() - 1.0);
        burst = match burst {
            0 if chance.below(200) == 0 => 1 + u32::from(chance.below(8) == 0) * 6,
            burst => burst.saturating_sub(1),
        };
        let usual = mean * shape.at(at) * (1.0 + noise).max(0.1);
        let part = if burst > 0 { (2.0 * usual + 0.1).min(1.0) } else { usual.min(1.0) };
        #[expect(clippy::cast_possible_truncation, reason = "processors")]
        cpus.push((part * f64::from(vcpus)) as f32);
    }
    let lives = if chance.of_hundred() < SHORT_LIVED {
        let begins = chance.below(intervals);
        begins..(begins + 2 + chance.below(60)).min(intervals)
    } else {
        0..intervals
    };
    let pages = memory.0 as f64 / 4096.0;
    let memory_use = MemoryUse {
        dirty_pages_per_s: 600.0 * f64::from(vcpus) * (0.2 / chance.between(0.005, 1.0)),
        working_set_pages: pages * chance.between(0.02, 0.3),
        zero_share: chance.between(0.1, 0.5),
        bytes_per_page: chance.between(1200.0, 3200.0),
    };
    Trace { vcpus, memory, memory_use, lives, cpus }
}

/// Of a machine's days.
enum Shape {
    Steady,
    /// Hour of the peak, and how much of it is day and night.
    Diurnal(f64, f64),
    /// Hour at which it begins, and hours that it takes.
    Nightly(f64, f64),
}

impl Shape {
    fn draw(chance: &mut Chance) -> Self {
        match chance.of_hundred() {
            rolled if rolled < DIURNAL => Self::Diurnal(chance.between(11.0, 18.0), chance.between(0.4, 0.9)),
            rolled if rolled < DIURNAL + NIGHTLY => Self::Nightly(chance.between(20.0, 28.0), chance.between(1.0, 4.0)),
            _ => Self::Steady,
        }
    }

    fn at(&self, interval: usize) -> f64 {
        let hour = (interval % DAY) as f64 * INTERVAL_S as f64 / 3600.0;
        match self {
            Self::Steady => 1.0,
            Self::Diurnal(peak, depth) => 1.0 + depth * ((hour - peak) / 24.0 * TAU).cos(),
            Self::Nightly(begins, takes) => {
                if (hour - begins).rem_euclid(24.0) < *takes {
                    3.0
                } else {
                    0.5
                }
            }
        }
    }
}

/// Why a file is not one of the PlanetLab traces.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("Line {line} of the trace is {text:?}: each line is a percentage from 0 to 100")]
pub struct PlanetLabError {
    /// From 1.
    pub line: usize,
    /// As it is.
    pub text: String,
}

/// Processors that a machine with `vcpus` vCPUs asks for, from a file of the PlanetLab traces: a line for every five minutes, each a
/// percentage.
///
/// # Errors
/// On the first line that is no percentage.
pub fn planetlab(text: &str, vcpus: u32) -> Result<Vec<f32>, PlanetLabError> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(at, line)| {
            let refused = || PlanetLabError { line: at + 1, text: line.chars().take(40).collect() };
            let percent: f32 = line.trim().parse().map_err(|_| refused())?;
            if (0.0..=100.0).contains(&percent) { Ok(percent / 100.0 * vcpus as f32) } else { Err(refused()) }
        })
        .collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fleet_is_the_same_for_its_seed_and_of_the_published_shape() {
        let (one, other) = (generate(40, 1000, DAY, 1), generate(40, 1000, DAY, 1));
        assert_eq!(one.placed, other.placed);
        let share = |of: &dyn Fn(&Trace) -> bool| one.traces.iter().filter(|trace| of(trace)).count() as f64 / 1000.0;
        let small = share(&|trace| trace.vcpus <= 2);
        let idle = share(&|trace| trace.cpus.iter().sum::<f32>() / DAY as f32 / (trace.vcpus as f32) < 0.2);
        assert!((0.65..0.8).contains(&small) && (0.5..0.8).contains(&idle), "{small} {idle}");
    }

    #[test]
    fn planetlab_files_are_read_and_others_refused_by_line() {
        assert_eq!(planetlab("50\n0\n\n100\n", 4).unwrap(), [2.0, 0.0, 4.0]);
        let refused = planetlab("50\nx\n", 4).unwrap_err();
        assert_eq!((refused.line, refused.text.as_str()), (2, "x"));
        assert!(planetlab("101", 1).is_err());
    }
}
