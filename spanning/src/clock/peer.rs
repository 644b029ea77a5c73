//! What is known of another host's time.

use super::message::Times;
use std::collections::VecDeque;

/// Exchanges that are remembered.
const REMEMBERED: usize = 16;
/// How fast two TSCs may drift apart, in millionths: 50 each, and what their frequencies may differ by.
const DRIFT_PPM: u64 = 200;

/// `later - earlier`, where either may have wrapped around.
pub(super) const fn difference(later: u64, earlier: u64) -> i64 {
    later.wrapping_sub(earlier).cast_signed()
}

/// One question and its answer. All in ticks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Exchange {
    /// This host's TSC when it asked.
    asked: u64,
    /// How far the peer's time was ahead of this host's TSC.
    pub(super) ahead: u64,
    /// How wrong that could be at once.
    pub(super) uncertain: u64,
    /// How far the peer had been set forward.
    advanced: u64,
}

impl Exchange {
    /// Asked and answered by this host's TSC; `None` when it cannot have been so.
    pub(super) fn new(asked: u64, times: Times, now: u64) -> Option<Self> {
        let Times { received, answered, advanced } = times;
        let there = u64::try_from(difference(answered, received)).ok()?;
        let on_the_way = now.wrapping_sub(asked).checked_sub(there)?;
        // From the least that it can be: when the answer took no time.
        let ahead = answered.wrapping_sub(now).wrapping_add(on_the_way / 2);
        Some(Self { asked, ahead, uncertain: on_the_way.div_ceil(2), advanced })
    }

    /// How wrong it can be by now.
    fn uncertain_at(&self, now: u64) -> u64 {
        let drift = u128::from(now.wrapping_sub(self.asked)) * u128::from(DRIFT_PPM) / 1_000_000;
        self.uncertain.saturating_add(u64::try_from(drift).unwrap_or(u64::MAX)).saturating_add(1)
    }
}

/// Another host.
#[derive(Debug, Clone, Default)]
pub(super) struct Peer {
    /// Its TSC's frequency, once it was heard.
    pub(super) khz: Option<u32>,
    /// When it was asked what it has not answered yet.
    pub(super) asked: Option<u64>,
    pub(super) exchanges: u64,
    last: VecDeque<Exchange>,
}

impl Peer {
    pub(super) fn remember(&mut self, exchange: Exchange) {
        self.exchanges += 1;
        if self.last.len() == REMEMBERED {
            self.last.pop_front();
        }
        self.last.push_back(exchange);
    }

    /// How far its time is ahead of this host's TSC, and how wrong that can be, in ticks.
    pub(super) fn ahead(&self, now: u64) -> Option<(u64, u64)> {
        let advanced = self.last.back()?.advanced;
        let best = self.last.iter().min_by_key(|exchange| exchange.uncertain_at(now))?;
        // It was set forward since by as much as it says.
        let since = advanced.wrapping_sub(best.advanced);
        Some((best.ahead.wrapping_add(since), best.uncertain_at(now)))
    }
}
