//! How much of an emulated link a move used.
//!
//! The emulator's counters are read now and then while the move runs. *Bulk* is the time in which all but the first and the last
//! hundredth of the bytes arrived: without the choice of a host and the pause, but with slow start, with the short rounds before the
//! pause, and with what was sent twice. The middle, without the first and the last tenth, has none of these.

use crate::link::Link;
use serde::Serialize;
use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};
use vmotion_wan::{Counters, Direction, Wan};

const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Bytes before and after, as parts of all.
const BULK: (f64, f64) = (0.01, 0.99);
const MIDDLE: (f64, f64) = (0.1, 0.9);

/// What a link carried from the source to the target.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Carried {
    /// Of what the link could carry during bulk.
    pub(crate) used: f64,
    /// Of what it could carry in the middle.
    pub(crate) used_in_middle: f64,
    pub(crate) bulk_s: f64,
    /// Packets that found the queue full, and packets lost on the wire.
    pub(crate) dropped_by_queue: u64,
    pub(crate) lost: u64,
    /// Packets the emulator was too slow to see.
    pub(crate) overrun: u64,
    /// How late the emulator delivered a packet at worst since it was started, in ms.
    pub(crate) late_max_ms: f64,
    /// Each second: megabits that arrived in it.
    pub(crate) mbit: Vec<f64>,
}

/// Does `work`; what it did to `link`, where that is one that counts.
pub(crate) fn watch<T>(link: &Link, work: impl FnOnce() -> T) -> (T, Option<Carried>) {
    let Link::Wan(wan) = link else { return (work(), None) };
    let stop = AtomicBool::new(false);
    let before = wan.counters(Direction::AToB);
    let (result, seen) = thread::scope(|scope| {
        let watcher = scope.spawn(|| look(wan, &stop));
        let result = work();
        stop.store(true, Ordering::Relaxed);
        (result, watcher.join().unwrap_or_default())
    });
    let after = wan.counters(Direction::AToB);
    let carried = link.bits_per_s().and_then(|rate| carried(&before, &after, &seen, rate));
    (result, carried)
}

/// When, in seconds, and how many bytes had arrived by then.
type Seen = Vec<(f64, f64)>;

fn look(wan: &Wan, stop: &AtomicBool) -> Seen {
    let start = Instant::now();
    let first = wan.counters(Direction::AToB).link.delivered.bytes;
    let mut seen = vec![(0.0, 0.0)];
    while !stop.load(Ordering::Relaxed) {
        thread::sleep(LOOK_EVERY);
        let bytes = wan.counters(Direction::AToB).link.delivered.bytes - first;
        seen.push((start.elapsed().as_secs_f64(), bytes as f64));
    }
    seen
}

fn carried(before: &Counters, after: &Counters, seen: &Seen, bits_per_s: f64) -> Option<Carried> {
    let (_, all) = *seen.last()?;
    let span = |(from, to): (f64, f64)| Some((reached(seen, all * to)? - reached(seen, all * from)?).max(1e-3));
    let used = |(from, to), seconds: f64| all * (to - from) * 8.0 / (seconds * bits_per_s);
    let (bulk_s, middle_s) = (span(BULK)?, span(MIDDLE)?);
    Some(Carried {
        used: used(BULK, bulk_s),
        used_in_middle: used(MIDDLE, middle_s),
        bulk_s,
        dropped_by_queue: after.link.dropped.queue.packets - before.link.dropped.queue.packets,
        lost: after.link.dropped.loss.packets - before.link.dropped.loss.packets,
        overrun: after.overrun - before.overrun,
        late_max_ms: after.late_max.as_secs_f64() * 1000.0,
        mbit: each_second(seen),
    })
}

/// When `bytes` had arrived, between two looks in proportion.
fn reached(seen: &Seen, bytes: f64) -> Option<f64> {
    let at = seen.iter().position(|(_, arrived)| *arrived >= bytes)?;
    let (time, arrived) = seen[at];
    let Some((time_before, arrived_before)) = at.checked_sub(1).map(|before| seen[before]) else { return Some(time) };
    let part = (bytes - arrived_before) / (arrived - arrived_before).max(1.0);
    Some(time_before + (time - time_before) * part)
}

fn each_second(seen: &Seen) -> Vec<f64> {
    let (mut seconds, mut next, mut before) = (Vec::new(), 1.0, 0.0);
    for (time, bytes) in seen {
        if *time >= next {
            seconds.push(((bytes - before) * 8.0 / 1e6).round());
            (before, next) = (*bytes, next + 1.0);
        }
    }
    seconds
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bulk_leaves_out_what_comes_before_and_after() {
        // Nothing for a second, 100 bytes a second for ten, nothing for another.
        let seen: Seen = (0..=120)
            .map(|tenth| f64::from(tenth) / 10.0)
            .map(|time| (time, ((time - 1.0) * 100.0).clamp(0.0, 1000.0)))
            .collect();
        let (none, rate) = (Counters::default(), 1600.0);
        let carried = carried(&none, &none, &seen, rate).unwrap();
        assert!((carried.used - 0.5).abs() < 1e-9 && (carried.bulk_s - 9.8).abs() < 1e-9, "{carried:?}");
        assert_eq!(carried.mbit.len(), 12);
    }

    #[test]
    fn a_link_that_carried_nothing_was_not_used() {
        let none = Counters::default();
        assert!(carried(&none, &none, &vec![(0.0, 0.0), (1.0, 0.0)], 1e9).unwrap().used < 1e-9);
    }
}
