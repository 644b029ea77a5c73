//! How bad is it? A host's loss, in processors that somebody waits for, and the parts that a move's cost is made of.
//!
//! The one invariant: the loss of a host is, in each slot, the greatest of a few straight lines through its demand, so it is convex, and
//! an exact solver can be asked the same question.

use crate::site::SLOTS;

/// Standard deviations of demand that are counted as demand.
pub(crate) const DEVIATIONS: f64 = 1.5;
/// Where the lines of the loss bend, as a part of the way from content to full, and how steep they are from there, in processors
/// waited for by each processor of demand. Demand for more processors than there are is waited for as it is, and what it delays besides.
const BENDS: [(Bend, f64); LINES] =
    [(Bend::BeforeFull(0.0), 0.1), (Bend::BeforeFull(0.5), 0.5), (Bend::Of(1.0), 2.0), (Bend::Of(1.5), 4.0)];
/// Straight lines besides zero.
pub(crate) const LINES: usize = 4;
/// Slots ahead after which a slot weighs half of the one that begins now: what is near is known better.
const HALF_WEIGHT_SLOTS: f64 = 12.0;

#[derive(Debug, Clone, Copy)]
enum Bend {
    /// This part of what lies between content and full.
    BeforeFull(f64),
    /// This part of the processors.
    Of(f64),
}

/// The loss of hosts under one policy.
#[derive(Debug, Clone)]
pub(crate) struct Objective {
    /// Of demand and of processors: the loss is the greatest of `slope · demand − offset · processors`, and 0.
    pub(crate) lines: [(f64, f64); LINES],
    /// By slot; they add up to 1.
    pub(crate) weights: [f64; SLOTS],
    /// Part of a host's processors up to which everybody is content.
    pub(crate) content: f64,
}

impl Objective {
    pub(crate) fn new(content_percent: u8) -> Self {
        let content = f64::from(content_percent) / 100.0;
        let (mut lines, mut slope, mut offset) = ([(0.0, 0.0); LINES], 0.0, 0.0);
        for (line, (bend, steeper)) in lines.iter_mut().zip(BENDS) {
            let at = match bend {
                Bend::BeforeFull(part) => content + (1.0 - content) * part,
                Bend::Of(part) => part,
            };
            offset += (steeper - slope) * at;
            slope = steeper;
            *line = (slope, offset);
        }
        let mut weights = [0.0; SLOTS];
        let mut ahead = 0.0;
        for weight in &mut weights {
            *weight = 0.5f64.powf(ahead / HALF_WEIGHT_SLOTS);
            ahead += 1.0;
        }
        let sum: f64 = weights.iter().sum();
        weights.iter_mut().for_each(|weight| *weight /= sum);
        Self { lines, weights, content }
    }

    /// Of a host with `cpus` processors, on which `demand` is expected in each slot and `extra` more in all of them.
    pub(crate) fn loss(&self, demand: &[f64; SLOTS], extra: f64, cpus: f64) -> f64 {
        let [(a, p), (b, q), (c, r), (d, s)] = self.lines;
        let (p, q, r, s) = (p * cpus, q * cpus, r * cpus, s * cpus);
        let mut sum = 0.0;
        for (demand, weight) in demand.iter().zip(&self.weights) {
            let demand = demand + extra;
            let lower = (a * demand - p).max(b * demand - q);
            let upper = (c * demand - r).max(d * demand - s);
            sum += weight * lower.max(upper).max(0.0);
        }
        sum
    }
}

/// What a unit of the loss is worth in other things: the objective's judgement of moves.
pub(crate) mod worth {
    /// Any move of a machine, however small: somebody looks at it, and it may fail.
    pub(crate) const MOVE: f64 = 0.1;
    /// Any move of a piece: thousandths of a second.
    pub(crate) const PIECE: f64 = 0.003;
    /// A GiB on the wire.
    pub(crate) const GIB: f64 = 0.0005;
    /// A second in which both hosts copy.
    pub(crate) const SECOND: f64 = 0.000_05;
    /// A second of pause.
    pub(crate) const PAUSE_SECOND: f64 = 0.02;
    /// A unit of the price of a link.
    pub(crate) const PRICE: f64 = 0.01;
    /// A second that a vCPU waits for a page of another host of its datacenter: fault, user space, mapping, wake-up. Measured, see
    /// BENCHMARKS.md.
    pub(crate) const REMOTE_WAIT_S: f64 = 0.000_15;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loss(demand: f64) -> f64 {
        Objective::new(80).loss(&[demand; SLOTS], 0.0, 10.0)
    }

    #[test]
    fn up_to_the_content_part_nothing_is_lost_and_then_ever_more() {
        assert_eq!(loss(0.0), 0.0);
        assert_eq!(loss(8.0), 0.0);
        let steps: Vec<f64> = [8.0, 9.0, 10.0, 15.0, 20.0].map(loss).to_vec();
        for (found, wanted) in steps.iter().zip([0.0, 0.1, 0.6, 10.6, 30.6]) {
            assert!((found - wanted).abs() < 1e-9, "{steps:?}");
        }
    }

    #[test]
    fn what_is_near_weighs_more_and_all_of_it_is_one() {
        let objective = Objective::new(80);
        assert!((objective.weights.iter().sum::<f64>() - 1.0).abs() < 1e-9);
        assert!(objective.weights.windows(2).all(|two| two[0] > two[1]));
    }

    #[test]
    fn a_policy_that_is_content_with_full_hosts_has_lines_too() {
        let objective = Objective::new(100);
        assert_eq!(objective.loss(&[10.0; SLOTS], 0.0, 10.0), 0.0);
        assert!((objective.loss(&[11.0; SLOTS], 0.0, 10.0) - 2.0).abs() < 1e-9);
    }
}
