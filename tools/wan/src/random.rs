//! Dice that roll the same for the same seed, in every version of this program: xoshiro256++, seeded by SplitMix64.
//!
//! Written here because crates for randomness promise the same numbers for the same seed only within a version, and a
//! seed in a bug report must outlive an update.

use crate::units::Probability;

/// Normal numbers further than this many standard deviations are rolled again.
pub(crate) const NORMAL_CUT_OFF: u32 = 3;

/// One stream of random numbers.
#[derive(Debug, Clone)]
pub(crate) struct Random {
    state: [u64; 4],
}

impl Random {
    /// The stream `name` of `seed`. Streams of one seed are independent of each other.
    pub(crate) fn new(seed: u64, name: &str) -> Self {
        // FNV-1a: the name only has to make streams differ.
        let hash = name
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        let mut mixer = split_mix(&mut { seed }) ^ hash;
        Self { state: std::array::from_fn(|_| split_mix(&mut mixer)) }
    }

    fn next(&mut self) -> u64 {
        let [a, b, c, d] = self.state;
        let result = a.wrapping_add(d).rotate_left(23).wrapping_add(a);
        let (c, d) = (c ^ a, d ^ b);
        self.state = [a ^ d, b ^ c, c ^ (b << 17), d.rotate_left(45)];
        result
    }

    /// From 0 to below 1, all 2⁵³ steps alike.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// True that often.
    pub(crate) fn chance(&mut self, probability: Probability) -> bool {
        // What cannot happen needs no roll; most links have most impairments off.
        probability > Probability::NEVER && self.unit() < probability.fraction()
    }

    /// From -1 to 1, uniform.
    pub(crate) fn uniform(&mut self) -> f64 {
        self.unit().mul_add(2.0, -1.0)
    }

    /// Around 0 with standard deviation 1, cut off at [`NORMAL_CUT_OFF`]. By Box and Muller.
    pub(crate) fn normal(&mut self) -> f64 {
        loop {
            // 1 - unit is above 0: its logarithm is finite.
            let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
            let number = radius * (std::f64::consts::TAU * self.unit()).cos();
            if number.abs() <= f64::from(NORMAL_CUT_OFF) {
                return number;
            }
        }
    }
}

fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The reference implementation's first numbers for state 1, 2, 3, 4.
    #[test]
    fn it_is_xoshiro256_plus_plus() {
        let mut random = Random { state: [1, 2, 3, 4] };
        let numbers: [u64; 4] = std::array::from_fn(|_| random.next());
        assert_eq!(numbers, [41_943_041, 58_720_359, 3_588_806_011_781_223, 3_591_011_842_654_386]);
    }

    #[test]
    fn streams_of_a_seed_repeat_and_differ() {
        let roll = |seed, name| Random::new(seed, name).next();
        assert_eq!(roll(1, "loss"), roll(1, "loss"));
        assert_ne!(roll(1, "loss"), roll(1, "jitter"));
        assert_ne!(roll(1, "loss"), roll(2, "loss"));
    }

    #[test]
    fn frequencies_are_what_was_asked() {
        let mut random = Random::new(7, "test");
        let rolls = 1_000_000;
        let hits = (0..rolls).filter(|_| random.chance(Probability::percent(0.1))).count();
        // Five standard deviations around 1000.
        assert!((842..=1158).contains(&hits), "{hits}");
        assert!((0..1000).all(|_| random.chance(Probability::ALWAYS) && !random.chance(Probability::NEVER)));
    }

    #[test]
    fn normal_numbers_have_their_spread() {
        let mut random = Random::new(7, "test");
        let numbers: Vec<f64> = (0..100_000).map(|_| random.normal()).collect();
        let mean = numbers.iter().sum::<f64>() / 1e5;
        let deviation = (numbers.iter().map(|number| (number - mean).powi(2)).sum::<f64>() / 1e5).sqrt();
        assert!(mean.abs() < 0.02, "{mean}");
        // Cutting off at three leaves 0.987 of the deviation.
        assert!((0.975..1.0).contains(&deviation), "{deviation}");
        assert!(numbers.iter().all(|number| number.abs() <= 3.0));
    }
}
