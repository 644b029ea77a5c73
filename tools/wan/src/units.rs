//! Rates, probabilities, times and sizes as network people write them: `800Mbit`, `0.1%`, `50ms`, `256K`.
//!
//! Every number needs its unit: `loss=1` could be one percent or all packets, `delay=50` could be anything.

use std::{fmt, num::NonZeroU64, str::FromStr, time::Duration};
use vmotion_model::ByteSize;

/// No link is faster; keeps sums of bits × ns within 64 bits.
const RATE_MAX: u64 = 1_000_000_000_000;
/// No timeline is longer.
const DURATION_MAX: Duration = Duration::from_secs(366 * 24 * 3600);
const RATE_UNITS: [(&str, u64); 5] =
    [("bit", 1), ("kbit", 1_000), ("mbit", 1_000_000), ("gbit", 1_000_000_000), ("tbit", 1_000_000_000_000)];
const TIME_UNITS: [(&str, u64); 7] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("min", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// Why a value was refused, and what is allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is not allowed: {allowed}")]
pub struct UnitError {
    value: String,
    allowed: &'static str,
}

impl UnitError {
    pub(crate) fn new(value: &str, allowed: &'static str) -> Self {
        Self { value: value.to_owned(), allowed }
    }
}

/// How fast a link sends, in bits per second; at most 1 Tbit/s.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BitRate(NonZeroU64);

impl BitRate {
    pub(crate) const ALLOWED: &'static str =
        "write a number above 0 and up to 1 Tbit, and its unit bit, kbit, Mbit, Gbit or Tbit, such as 800Mbit";

    /// `None` for 0, and above 1 Tbit/s.
    #[must_use]
    pub fn new(bits_per_s: u64) -> Option<Self> {
        NonZeroU64::new(bits_per_s).filter(|rate| rate.get() <= RATE_MAX).map(Self)
    }

    /// `n` Mbit/s (10⁶ bits per second).
    ///
    /// # Panics
    /// When `n` is 0.
    #[must_use]
    pub fn mbit(n: u32) -> Self {
        Self::new(u64::from(n) * 1_000_000).expect("a rate is above 0 and up to 1 Tbit/s")
    }

    /// Bits per second.
    #[must_use]
    pub const fn bits_per_s(self) -> u64 {
        self.0.get()
    }

    /// Bytes the link carries in `time`, rounded down.
    #[must_use]
    pub fn bytes_in(self, time: Duration) -> u64 {
        let bytes = u128::from(self.bits_per_s()) * time.as_nanos() / 8_000_000_000;
        u64::try_from(bytes).unwrap_or(u64::MAX)
    }
}

impl FromStr for BitRate {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let refused = || UnitError::new(text, Self::ALLOWED);
        let words = text.trim().to_ascii_lowercase();
        let (number, unit) = split(words.strip_suffix("/s").unwrap_or(&words));
        let factor = lookup(&RATE_UNITS, unit).ok_or_else(refused)?;
        scale(number, factor).and_then(Self::new).ok_or_else(refused)
    }
}

impl fmt::Display for BitRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = self.bits_per_s();
        let units = [(1_000_000_000_000, "Tbit"), (1_000_000_000, "Gbit"), (1_000_000, "Mbit"), (1_000, "kbit")];
        let (factor, unit) = units.into_iter().find(|(factor, _)| bits >= *factor).unwrap_or((1, "bit"));
        // Shortest text that reads back as the same number.
        f.pad(&format!("{}{unit}", bits as f64 / factor as f64))
    }
}

/// How likely: from 0 (never) to 1 (always).
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Default)]
pub struct Probability(f64);

impl Probability {
    /// It never happens.
    pub const NEVER: Self = Self(0.0);
    /// It happens every time.
    pub const ALWAYS: Self = Self(1.0);
    pub(crate) const ALLOWED: &'static str = "write percent from 0% to 100%, such as 0.1%";

    /// `None` outside 0..=1.
    #[must_use]
    pub fn new(fraction: f64) -> Option<Self> {
        (0.0..=1.0).contains(&fraction).then_some(Self(fraction))
    }

    /// `percent` of 100.
    ///
    /// # Panics
    /// Outside 0..=100.
    #[must_use]
    pub fn percent(percent: f64) -> Self {
        Self::new(percent / 100.0).expect("a probability is from 0% to 100%")
    }

    /// From 0 to 1.
    #[must_use]
    pub const fn fraction(self) -> f64 {
        self.0
    }
}

impl FromStr for Probability {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let refused = || UnitError::new(text, Self::ALLOWED);
        let number = text.trim().strip_suffix('%').ok_or_else(refused)?;
        let percent = decimal(number.trim()).ok_or_else(refused)?;
        Self::new(percent / 100.0).ok_or_else(refused)
    }
}

impl fmt::Display for Probability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the noise of binary fractions: 0.07 × 100 is 7.000000000000001.
        let percent = (self.0 * 1e14).round() / 1e12;
        f.pad(&format!("{percent}%"))
    }
}

pub(crate) const DURATION_ALLOWED: &str =
    "write a number and its unit ns, us, ms, s, min or h, such as 50ms; at most a year";
pub(crate) const BYTES_ALLOWED: &str = "write bytes, optionally with K, M or G for powers of 1024, such as 256K";

/// A time such as `50ms`, `1.5s`, `0`.
///
/// # Errors
/// [`UnitError`] for what is no time, has no unit, or is longer than a year.
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    let refused = || UnitError::new(text, DURATION_ALLOWED);
    if text.trim() == "0" {
        return Ok(Duration::ZERO);
    }
    let (number, unit) = split(text.trim());
    let factor = lookup(&TIME_UNITS, unit).ok_or_else(refused)?;
    let time = scale(number, factor).map(Duration::from_nanos).ok_or_else(refused)?;
    (time <= DURATION_MAX).then_some(time).ok_or_else(refused)
}

/// A number of bytes such as `1500` or `256K`.
pub(crate) fn parse_bytes(text: &str) -> Result<u64, UnitError> {
    text.parse::<ByteSize>().map(ByteSize::bytes).map_err(|_| UnitError::new(text, BYTES_ALLOWED))
}

fn split(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    (&text[..end], text[end..].trim())
}

fn lookup(units: &[(&str, u64)], unit: &str) -> Option<u64> {
    units.iter().find(|(name, _)| *name == unit).map(|(_, factor)| *factor)
}

/// Digits and at most one point; neither signs nor exponents, infinities or "not a number".
fn decimal(text: &str) -> Option<f64> {
    let plain = text.starts_with(|c: char| c.is_ascii_digit()) && text.chars().all(|c| c.is_ascii_digit() || c == '.');
    if plain { text.parse().ok() } else { None }
}

fn scale(number: &str, factor: u64) -> Option<u64> {
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(factor);
    }
    let scaled = (decimal(number)? * factor as f64).round();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "range checked")]
    (0.0..9.0e18).contains(&scaled).then_some(scaled as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rates_are_read_as_they_are_written() {
        for (text, bits) in [
            ("1Gbit", 1_000_000_000),
            ("800Mbit", 800_000_000),
            ("1.5gbit/s", 1_500_000_000),
            ("64 kbit", 64_000),
            ("9600bit", 9_600),
            ("1Tbit", 1_000_000_000_000),
        ] {
            assert_eq!(text.parse::<BitRate>().unwrap().bits_per_s(), bits, "{text}");
        }
        for bad in ["", "0Mbit", "100", "1GB", "-1Mbit", "2Tbit", "Mbit", "1.2.3Mbit", "infGbit"] {
            assert!(bad.parse::<BitRate>().is_err(), "{bad}");
        }
    }

    #[test]
    fn an_error_names_the_value_and_what_is_allowed() {
        let error = "100".parse::<BitRate>().unwrap_err().to_string();
        assert!(error.starts_with("\"100\" is not allowed: write a number") && error.contains("800Mbit"), "{error}");
    }

    #[test]
    fn probabilities_need_their_percent_sign() {
        assert_eq!("0.1%".parse::<Probability>().unwrap(), Probability::percent(0.1));
        assert_eq!("100%".parse::<Probability>().unwrap(), Probability::ALWAYS);
        assert_eq!(Probability::percent(7.0).to_string(), "7%");
        for bad in ["1", "101%", "-1%", "nan%", "%", "1e1%"] {
            assert!(bad.parse::<Probability>().is_err(), "{bad}");
        }
    }

    #[test]
    fn times_are_exact() {
        for (text, nanos) in
            [("50ms", 50_000_000), ("0", 0), ("1.5s", 1_500_000_000), ("250us", 250_000), ("0.1ms", 100_000)]
        {
            assert_eq!(parse_duration(text).unwrap(), Duration::from_nanos(nanos), "{text}");
        }
        for bad in ["50", "ms", "1m", "-1s", "9000h"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_reads_back(bits in 1..=RATE_MAX, fraction in 0.0..=1.0f64) {
            let rate = BitRate::new(bits).unwrap();
            prop_assert_eq!(rate.to_string().parse::<BitRate>().unwrap(), rate);
            let probability = Probability::new(fraction).unwrap();
            let again = probability.to_string().parse::<Probability>().unwrap();
            prop_assert!((again.fraction() - fraction).abs() < 1e-12);
        }
    }
}
