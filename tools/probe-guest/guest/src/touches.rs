//! How long touching a page took, as a histogram: a page that is not there yet, as after a move whose memory follows, makes the
//! touch wait. Four buckets an octave; each vCPU writes its own, vCPU 0 prints the sum.

use core::fmt::Write;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::boot::MAX_CPUS;
use crate::serial::Line;
use crate::shared;

/// Touches below this many µs are one bucket: pages that were there.
const FIRST_US: u64 = 4;
/// The last bucket begins at 4.2 s.
const BUCKETS: usize = 82;

/// One vCPU's histogram.
#[repr(align(64))]
struct Histogram {
    counts: [AtomicU64; BUCKETS],
}

static HISTOGRAMS: [Histogram; MAX_CPUS] =
    [const { Histogram { counts: [const { AtomicU64::new(0) }; BUCKETS] } }; MAX_CPUS];

/// The bucket of a touch of `us` µs.
fn bucket(us: u64) -> usize {
    if us < FIRST_US {
        return 0;
    }
    let octave = us.ilog2();
    // The two bits below the leading one.
    let quarter = (us >> (octave - 2)) & 3;
    (1 + (octave as usize - 2) * 4 + quarter as usize).min(BUCKETS - 1)
}

/// The shortest touch of a bucket, in µs.
fn lower_us(bucket: usize) -> u64 {
    match bucket {
        0 => 0,
        _ => (4 + (bucket as u64 - 1) % 4) << ((bucket - 1) / 4),
    }
}

/// Counts a touch of `us` µs. For vCPU `cpu` only.
pub fn count(cpu: usize, us: u64) {
    shared::count(&HISTOGRAMS[cpu].counts[bucket(us)]);
}

/// The `T` line: all touches since the start, by the shortest time of their bucket in µs; empty buckets are left out.
pub fn line(cpus: usize, now_us: u64) -> Line {
    let mut line = Line::new();
    let _ = write!(line, "T {now_us}");
    for bucket in 0..BUCKETS {
        let counts = HISTOGRAMS[..cpus].iter().map(|histogram| histogram.counts[bucket].load(Ordering::Relaxed));
        let sum: u64 = counts.sum();
        if sum > 0 {
            let _ = write!(line, " {}:{sum}", lower_us(bucket));
        }
    }
    let _ = writeln!(line);
    line
}
