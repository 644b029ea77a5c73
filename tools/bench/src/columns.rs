//! What a table shows of each contestant.

use crate::{arguments::Table, report::Section, sample::Sample, touches::Waits};

pub(crate) const MIB: f64 = 1_048_576.0;
const GIB: f64 = 1024.0 * MIB;

/// A number of a sample.
pub(crate) struct Measure {
    pub(crate) name: &'static str,
    pub(crate) value: fn(&Sample, &Section) -> f64,
    pub(crate) decimals: usize,
    /// What it is called where ours is compared with the best of QEMU.
    pub(crate) ratio: Option<&'static str>,
}

impl Measure {
    const fn new(name: &'static str, decimals: usize, value: fn(&Sample, &Section) -> f64) -> Self {
        Self { name, value, decimals, ratio: None }
    }

    const fn compared(self, ratio: &'static str) -> Self {
        Self { ratio: Some(ratio), ..self }
    }
}

const TOTAL: Measure = Measure::new("total, ms", 0, |sample, _| sample.total_ms).compared("total");
const GAP: Measure =
    Measure::new("downtime from outside, ms", 1, |sample, _| sample.gap_ms).compared("downtime from outside");
const OWN_GAP: Measure = Measure::new("own downtime, ms", 1, |sample, _| sample.own_downtime_ms);
const WIRE: Measure = Measure::new("on the wire, MiB", 0, |sample, _| sample.wire_bytes / MIB).compared("on the wire");
const CPU: Measure =
    Measure::new("CPU, s/GiB", 2, |sample, section| sample.cpu_s / (section.memory_bytes / GIB)).compared("CPU");
const CPU_OWN: Measure =
    Measure::new("CPU without vCPUs, s/GiB", 2, |sample, section| sample.cpu_own_s / (section.memory_bytes / GIB))
        .compared("CPU without vCPUs");
const BEFORE: Measure = Measure::new("heartbeat gap p99 before, ms", 1, |sample, _| sample.before_p99_ms);
const MISSING: Measure = Measure::new("heartbeats missing", 0, |sample, _| sample.beats_missing as f64);
const DROPPED: Measure =
    Measure::new("packets dropped", 0, |sample, _| sample.link_drops.map_or(f64::NAN, |drops| drops as f64));
const AFTER: Measure = Measure::new("heartbeat gap p99 while memory follows, ms", 1, |sample, _| sample.after_p99_ms);
const AFTER_MAX: Measure = Measure::new("longest after, ms", 1, |sample, _| sample.after_max_ms);

const MOVES: [Measure; 9] = [TOTAL, GAP, WIRE, CPU, CPU_OWN, OWN_GAP, BEFORE, MISSING, DROPPED];

const NON_CONVERGENT: [Measure; 10] = [
    TOTAL,
    Measure::new("total / working set at the link's rate", 2, |sample, section| {
        let least_ms = section.link_bits_per_s.map_or(f64::NAN, |link| section.working_set_bytes * 8000.0 / link);
        if sample.unfinished.is_some() { f64::NAN } else { sample.total_ms / least_ms }
    }),
    Measure::new("guest runs at the target after, ms", 0, |sample, _| sample.handover_ms),
    GAP,
    OWN_GAP,
    AFTER,
    AFTER_MAX,
    WIRE,
    CPU_OWN,
    DROPPED,
];

const WAN: [Measure; 9] = [
    TOTAL,
    Measure::new("link used during bulk, %", 0, |sample, _| {
        sample.carried.as_ref().map_or(f64::NAN, |carried| carried.used * 100.0)
    }),
    Measure::new("in the middle 80 % of the bytes, %", 0, |sample, _| {
        sample.carried.as_ref().map_or(f64::NAN, |carried| carried.used_in_middle * 100.0)
    }),
    Measure::new("bulk, s", 1, |sample, _| sample.carried.as_ref().map_or(f64::NAN, |carried| carried.bulk_s)),
    GAP,
    OWN_GAP,
    WIRE,
    CPU_OWN,
    Measure::new("dropped by the queue, packets", 0, |sample, _| {
        sample.carried.as_ref().map_or(f64::NAN, |carried| carried.dropped_by_queue as f64)
    }),
];

/// A number of the guest's waits.
fn wait(sample: &Sample, value: fn(&Waits) -> f64) -> f64 {
    sample.waits.as_ref().map_or(f64::NAN, value)
}

const STALL: [Measure; 13] = [
    TOTAL,
    GAP,
    Measure::new("touches that waited", 0, |sample, _| wait(sample, |waits| waits.count as f64)),
    Measure::new("wait p50, µs", 0, |sample, _| wait(sample, |waits| waits.p50_us)).compared("wait p50"),
    Measure::new("p99, µs", 0, |sample, _| wait(sample, |waits| waits.p99_us)).compared("wait p99"),
    Measure::new("p999, µs", 0, |sample, _| wait(sample, |waits| waits.p999_us)).compared("wait p999"),
    Measure::new("longest, µs", 0, |sample, _| wait(sample, |waits| waits.max_us)),
    Measure::new("all waits, ms", 0, |sample, _| wait(sample, |waits| waits.sum_ms)).compared("all waits"),
    Measure::new("own p50, µs", 0, |sample, _| own(sample, "stall_p50_us")),
    Measure::new("own p99, µs", 0, |sample, _| own(sample, "stall_p99_us")),
    Measure::new("own p999, µs", 0, |sample, _| own(sample, "stall_p999_us")),
    AFTER,
    CPU_OWN,
];

/// A number of our report of what followed.
fn own(sample: &Sample, field: &str) -> f64 {
    sample.detail["follow"][field].as_f64().unwrap_or(f64::NAN)
}

/// The columns of a table; the first one says, too, that a move did not finish.
pub(crate) const fn of(table: Table) -> &'static [Measure] {
    match table {
        Table::Moves | Table::Lines => &MOVES,
        Table::NonConvergent => &NON_CONVERGENT,
        Table::Wan => &WAN,
        Table::Stall => &STALL,
    }
}
