//! What one direction of a link does to packets.

use crate::units::{BitRate, Probability};
use std::time::Duration;

/// A queue by default holds at least this much, in bytes.
const QUEUE_MIN: u64 = 256 * 1024;
/// Neither delay nor jitter nor reordering hold a packet longer. Above it a mistyped unit is likelier than a link.
pub(crate) const HOLD_MAX: Duration = Duration::from_secs(60);

/// What one direction of a link does to packets; by default nothing.
///
/// In the order a packet meets it: `cut`, then the bottleneck (`queue`, `rate`), then the wire behind it (`burst_loss`,
/// `loss`, `delay`, `jitter`, `reorder`, `duplicate`). A packet lost on the wire has used its share of the rate.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Impairments {
    /// How fast the bottleneck sends; `None` takes no time. What counts is the IP packet, headers included, without any
    /// framing below it.
    pub rate: Option<BitRate>,
    /// Bytes of packets that wait for the one being sent; what does not fit is dropped (tail-drop). `None` is what the
    /// rate carries during twice the delay (one bandwidth×delay product of a round trip), at least 256 KiB.
    pub queue: Option<u64>,
    /// From the bottleneck to the other end.
    pub delay: Duration,
    /// How much `delay` varies: the furthest for a uniform distribution, the standard deviation for a normal one (cut off
    /// at three). A delay never becomes negative.
    pub jitter: Duration,
    /// How the jitter is distributed.
    pub jitter_distribution: Distribution,
    /// Whether jitter may change the order of packets. If not, a packet that would overtake waits for the one before.
    pub jitter_reorder: bool,
    /// Each packet by itself.
    pub loss: Probability,
    /// Packets in a row.
    pub burst_loss: Option<BurstLoss>,
    /// Packets that arrive behind those that follow them.
    pub reorder: Option<Reorder>,
    /// A packet arrives twice. The copy is made behind the bottleneck.
    pub duplicate: Probability,
    /// Everything is lost, also what is on the way at that moment.
    pub cut: bool,
}

impl Impairments {
    /// Bytes the queue holds: what was asked for, or the default.
    #[must_use]
    pub fn queue_bytes(&self) -> u64 {
        let product = |rate: BitRate| rate.bytes_in(2 * self.delay).max(QUEUE_MIN);
        self.queue.unwrap_or_else(|| self.rate.map_or(QUEUE_MIN, product))
    }

    /// The shortest time a packet can be on the wire.
    pub(crate) fn delay_min(&self) -> Duration {
        let furthest = match self.jitter_distribution {
            Distribution::Uniform => self.jitter,
            Distribution::Normal => self.jitter * crate::random::NORMAL_CUT_OFF,
        };
        self.delay.saturating_sub(furthest)
    }
}

/// How jitter is distributed around the delay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Distribution {
    /// Every delay from `delay - jitter` to `delay + jitter` alike.
    #[default]
    Uniform,
    /// Gaussian with `jitter` as standard deviation, cut off at three.
    Normal,
}

/// Loss in bursts: the Gilbert-Elliott model, without loss in its good state (that is [`Impairments::loss`]).
///
/// A burst lasts `1 / leave` packets on average; the share of packets in bursts is `enter / (enter + leave)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BurstLoss {
    /// Good to bad, for each packet.
    pub enter: Probability,
    /// Bad to good, for each packet.
    pub leave: Probability,
    /// Loss of a packet while bad.
    pub loss: Probability,
}

/// Packets held back so that others overtake them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reorder {
    /// For each packet.
    pub probability: Probability,
    /// How much later than its turn it arrives. Whatever follows within this time overtakes it.
    pub by: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_queue_is_one_round_trip_of_the_rate() {
        let mut link =
            Impairments { rate: Some(BitRate::mbit(1000)), delay: Duration::from_millis(50), ..Default::default() };
        assert_eq!(link.queue_bytes(), 12_500_000);
        link.delay = Duration::from_micros(10);
        assert_eq!(link.queue_bytes(), 256 * 1024);
        link.queue = Some(3000);
        assert_eq!(link.queue_bytes(), 3000);
    }
}
