//! Machines with demand of the published shapes: most are small and nearly idle, a few carry most of the load, about half of the load
//! follows the hours of the day (Cortez et al., "Resource Central", SOSP 2017); and lifetimes are either short or longer than any replay.

use super::{
    DAY, INTERVAL_S,
    fleet::{Fleet, HostSize, Trace, place},
};
use crate::site::MemoryUse;
use std::f64::consts::TAU;
use vmotion_model::ByteSize;

/// vCPUs, and how many machines in a hundred have at most so many.
const VCPUS: [(u32, u64); 5] = [(1, 48), (2, 73), (4, 90), (8, 97), (16, 100)];
/// GiB for each vCPU, and how many machines in a hundred have at most so much.
const GIB_PER_VCPU: [(u64, u64); 3] = [(1, 20), (2, 70), (4, 100)];
/// Of a hundred machines, so many follow the hours of the day, and so many work by night.
const DIURNAL: u64 = 45;
const NIGHTLY: u64 = 10;
/// Of a hundred machines, so many live for hours only.
const SHORT_LIVED: u64 = 12;
/// Numbers by chance, the same for a seed (SplitMix64).
#[derive(Debug)]
pub(super) struct Chance(pub(super) u64);

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

    pub(super) fn below(&mut self, sides: usize) -> usize {
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

/// `machines` machines over `intervals` intervals, and `hosts` hosts, 1 or more, on which they are placed by their vCPUs, in no other order.
#[must_use]
pub fn generate(hosts: usize, machines: usize, intervals: usize, seed: u64) -> Fleet {
    let mut chance = Chance(seed);
    let traces: Vec<Trace> = (0..machines).map(|_| trace(&mut chance, intervals)).collect();
    let size = HostSize::for_all(&traces, intervals.min(DAY), hosts);
    let placed = place(&mut chance, &traces, hosts, size.memory);
    Fleet { traces, hosts, cpus: size.cpus, memory: size.memory, placed, intervals }
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
}
