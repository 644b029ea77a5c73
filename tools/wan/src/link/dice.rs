//! Everything about a packet that is left to chance.

use crate::{
    impairments::{BurstLoss, Distribution, Impairments},
    random::Random,
};
use std::time::Duration;

/// What takes a packet away on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lost {
    Alone,
    InBurst,
}

/// One stream for each impairment: switching jitter on does not change which packets are lost.
#[derive(Debug)]
pub(super) struct Dice {
    loss: Random,
    burst: Random,
    /// Gilbert-Elliott's bad state.
    in_burst: bool,
    jitter: Random,
    reorder: Random,
    duplicate: Random,
}

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        let stream = |name| Random::new(seed, name);
        Self {
            loss: stream("loss"),
            burst: stream("burst loss"),
            in_burst: false,
            jitter: stream("jitter"),
            reorder: stream("reorder"),
            duplicate: stream("duplicate"),
        }
    }

    pub(super) fn lost(&mut self, impairments: &Impairments) -> Option<Lost> {
        // Both are rolled for every packet, so that one does not shift the other.
        let alone = self.loss.chance(impairments.loss);
        let in_burst = self.lost_in_burst(impairments.burst_loss);
        if in_burst { Some(Lost::InBurst) } else { alone.then_some(Lost::Alone) }
    }

    fn lost_in_burst(&mut self, burst_loss: Option<BurstLoss>) -> bool {
        let Some(BurstLoss { enter, leave, loss }) = burst_loss else {
            self.in_burst = false;
            return false;
        };
        let change = if self.in_burst { leave } else { enter };
        self.in_burst ^= self.burst.chance(change);
        self.in_burst && self.burst.chance(loss)
    }

    /// Delay with jitter.
    pub(super) fn delay(&mut self, impairments: &Impairments) -> Duration {
        let Impairments { delay, jitter, .. } = *impairments;
        if jitter.is_zero() {
            return delay;
        }
        let deviation = match impairments.jitter_distribution {
            Distribution::Uniform => self.jitter.uniform(),
            Distribution::Normal => self.jitter.normal(),
        };
        let shift = jitter.mul_f64(deviation.abs());
        if deviation < 0.0 { delay.saturating_sub(shift) } else { delay + shift }
    }

    /// How long a packet is held back for others to overtake it.
    pub(super) fn held_back(&mut self, impairments: &Impairments) -> Option<Duration> {
        impairments.reorder.filter(|reorder| self.reorder.chance(reorder.probability)).map(|reorder| reorder.by)
    }

    pub(super) fn duplicated(&mut self, impairments: &Impairments) -> bool {
        self.duplicate.chance(impairments.duplicate)
    }
}
