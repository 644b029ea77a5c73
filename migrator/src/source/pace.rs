//! What sets the pace of this move: the path, or this host's processors? The page flows choose their codec by it.
//!
//! Waiting for the transport alone would mislead: where processors are all busy it is them one waits for, and compression that
//! works ends the waiting it was a remedy for. Congestion tells the difference. While a path is congested, what it delivers
//! is what it carries.

use crate::host_load::HostLoad;
use std::time::{Duration, Instant};
use vmotion_transport::{pages::WireCost, session::PathStats};

/// A path to another host counts as 1 Gbit/s until it has had this time to show congestion: a move should not fill its first window
/// with uncompressed pages that a slow path then takes a second to carry.
const UNKNOWN_FOR: Duration = Duration::from_millis(500);
const UNKNOWN_BYTES_PER_S: f64 = 125e6;
/// Shorter windows say more about bursts than about the path.
const WINDOW_MIN: Duration = Duration::from_millis(90);

/// Looks at load and path now and then, and remembers.
#[derive(Debug, Default)]
pub(super) struct Pace {
    load: HostLoad,
    last: Option<Reading>,
    link: LinkRate,
}

#[derive(Debug, Clone, Copy)]
struct Reading {
    at: Instant,
    delivered: u64,
    congestion: u64,
}

impl Pace {
    /// Looks, and tells `wire`, whose cost counts for one of `flows` flows.
    pub(super) fn look(&mut self, stats: &PathStats, wire: &WireCost, flows: u8, limit: Option<u64>) {
        let busy = self.load.are_processors_busy();
        // A path that stays on this machine costs processor time and nothing else.
        if let Some(busy) = stats.is_local().then_some(true).or(busy) {
            wire.set_processors_busy(busy);
        }
        let now = Reading {
            at: Instant::now(),
            delivered: stats.udp_bytes_delivered(),
            congestion: stats.congestion_events(),
        };
        let Some(last) = self.last else {
            self.last = Some(now);
            self.tell(stats, wire, flows, limit);
            return;
        };
        let passed = now.at - last.at;
        if passed < WINDOW_MIN {
            return;
        }
        self.last = Some(now);
        self.link.note(passed, now.delivered.saturating_sub(last.delivered), now.congestion > last.congestion);
        self.tell(stats, wire, flows, limit);
    }

    fn tell(&self, stats: &PathStats, wire: &WireCost, flows: u8, limit: Option<u64>) {
        let unknown = self.link.watched < UNKNOWN_FOR;
        let rate = self.link.bytes_per_s.or_else(|| unknown.then_some(UNKNOWN_BYTES_PER_S));
        // Loss on a path that stays on this machine is a full socket: processors again.
        let rate = rate.filter(|_| !stats.is_local());
        // What the operator allows is all there is.
        #[expect(clippy::cast_precision_loss, reason = "bytes per second")]
        let allowed = limit.map(|limit| limit as f64);
        let rate = rate.into_iter().chain(allowed).reduce(f64::min);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate, positive")]
        wire.set_link_rate(rate.map(|rate| (rate / f64::from(flows.max(1))) as u64));
    }
}

/// What a congested path carries.
#[derive(Debug, Default)]
struct LinkRate {
    watched: Duration,
    bytes_per_s: Option<f64>,
}

impl LinkRate {
    /// `delivered` bytes crossed the path in `passed`; was it congested meanwhile?
    fn note(&mut self, passed: Duration, delivered: u64, congested: bool) {
        self.watched += passed;
        if !congested {
            return;
        }
        #[expect(clippy::cast_precision_loss, reason = "bytes of a fraction of a second")]
        let sample = delivered as f64 / passed.as_secs_f64();
        // The first congested window includes what filled the path's queue; later ones correct it.
        self.bytes_per_s = Some(self.bytes_per_s.map_or(sample, |rate| rate + (sample - rate) / 4.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_millis(100);

    #[test]
    fn a_path_without_congestion_has_no_rate() {
        let mut link = LinkRate::default();
        link.note(WINDOW, 100_000_000, false);
        assert_eq!(link.bytes_per_s, None);
    }

    #[test]
    fn a_burst_at_first_is_corrected_and_idle_times_do_not_count() {
        let mut link = LinkRate::default();
        link.note(WINDOW, 18_000_000, true);
        for _ in 0..20 {
            link.note(WINDOW, 11_700_000, true);
            link.note(WINDOW, 1_000_000, false);
        }
        let rate = link.bytes_per_s.unwrap();
        assert!((117e6..118e6).contains(&rate), "{rate}");
    }
}
