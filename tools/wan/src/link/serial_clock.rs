//! When a line of a given rate has sent its last bit.

use crate::units::BitRate;
use std::time::Duration;

const NANOS_PER_S: u64 = 1_000_000_000;

/// The end of the packet on the line. Exact: what a packet takes beyond whole nanoseconds is carried to the next one.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct SerialClock {
    whole: Duration,
    /// In units of 1 / rate ns.
    fraction: u64,
}

impl SerialClock {
    /// The first nanosecond at which the packet is sent entirely.
    pub(super) fn end(self) -> Duration {
        self.whole + Duration::from_nanos(u64::from(self.fraction > 0))
    }

    /// A packet after an idle line.
    pub(super) fn start(&mut self, now: Duration, bytes: u32, rate: Option<BitRate>) {
        *self = Self { whole: now, fraction: 0 };
        self.follow(bytes, rate);
    }

    /// A packet right behind the one before.
    pub(super) fn follow(&mut self, bytes: u32, rate: Option<BitRate>) {
        let Some(rate) = rate.map(BitRate::bits_per_s) else { return };
        // At most 2³² bytes × 8 × 10⁹ + 10¹²: far from 2¹²⁸, but not always below 2⁶⁴.
        let bit_nanos = u128::from(bytes) * 8 * u128::from(NANOS_PER_S) + u128::from(self.fraction);
        self.whole += nanos(bit_nanos / u128::from(rate));
        self.fraction = u64::try_from(bit_nanos % u128::from(rate)).expect("a remainder is below its 64-bit divisor");
    }

    /// The rest of the packet on the line goes at another rate from now on.
    pub(super) fn change(&mut self, now: Duration, old: Option<BitRate>, new: Option<BitRate>) {
        let left = self.end().saturating_sub(now).as_nanos();
        let rest = match (old, new) {
            (Some(old), Some(new)) => (left * u128::from(old.bits_per_s())).div_ceil(u128::from(new.bits_per_s())),
            _ => 0,
        };
        *self = Self { whole: now + nanos(rest), fraction: 0 };
    }
}

fn nanos(nanos: u128) -> Duration {
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_packet_at_a_gigabit_takes_twelve_microseconds() {
        let mut clock = SerialClock::default();
        clock.start(Duration::from_secs(1), 1500, Some(BitRate::mbit(1000)));
        assert_eq!(clock.end(), Duration::from_nanos(1_000_012_000));
    }

    #[test]
    fn fractions_are_carried() {
        // 800 bits at 3 bit/s: 266 2/3 s each. Three of them take 800 s sharp.
        let rate = BitRate::new(3);
        let mut clock = SerialClock::default();
        clock.start(Duration::ZERO, 100, rate);
        assert_eq!(clock.end(), Duration::from_nanos(266_666_666_667));
        clock.follow(100, rate);
        assert_eq!(clock.end(), Duration::from_nanos(533_333_333_334));
        clock.follow(100, rate);
        assert_eq!(clock.end(), Duration::from_secs(800));
    }

    #[test]
    fn a_new_rate_takes_over_within_a_packet() {
        let (slow, fast) = (BitRate::new(8_000), BitRate::new(80_000));
        let mut clock = SerialClock::default();
        clock.start(Duration::ZERO, 1000, slow);
        assert_eq!(clock.end(), Duration::from_secs(1));
        clock.change(Duration::from_millis(500), slow, fast);
        assert_eq!(clock.end(), Duration::from_millis(550));
        clock.change(Duration::from_millis(520), fast, None);
        assert_eq!(clock.end(), Duration::from_millis(520));
    }
}
