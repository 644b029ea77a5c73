//! Byte sizes as an operator writes them: `512M`, `1G`, `1.5GiB`, `4096`.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// A number of bytes. In text and JSON, suffixes `K M G T` (optionally `iB`) are powers of 1024.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ByteSize(pub u64);

/// Why a size was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("size {0:?} is not valid: use a number with an optional suffix K, M, G or T, such as 512M")]
pub struct SizeError(pub String);

impl ByteSize {
    /// `n` MiB.
    #[must_use]
    pub const fn mib(n: u64) -> Self {
        Self(n << 20)
    }

    /// `n` GiB.
    #[must_use]
    pub const fn gib(n: u64) -> Self {
        Self(n << 30)
    }

    /// The number of bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for ByteSize {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        let refused = || SizeError(text.to_owned());
        let trimmed = text.trim();
        let digits_end = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
        let (number, suffix) = trimmed.split_at(digits_end);
        let shift = match suffix.trim().to_ascii_lowercase().as_str() {
            "" | "b" => 0,
            "k" | "kib" => 10,
            "m" | "mib" => 20,
            "g" | "gib" => 30,
            "t" | "tib" => 40,
            _ => return Err(refused()),
        };
        if let Ok(whole) = number.parse::<u64>() {
            return whole.checked_mul(1 << shift).map(Self).ok_or_else(refused);
        }
        let fraction: f64 = number.parse().map_err(|_| refused())?;
        let bytes = fraction * (1u64 << shift) as f64;
        if !(0.0..9.0e18).contains(&bytes) {
            return Err(refused());
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "range checked above")]
        Ok(Self(bytes as u64))
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
        for (shift, unit) in units {
            if self.0 >= 1 << shift {
                let text = if self.0.trailing_zeros() >= shift {
                    format!("{} {unit}", self.0 >> shift)
                } else {
                    format!("{:.1} {unit}", self.0 as f64 / (1u64 << shift) as f64)
                };
                return f.pad(&text);
            }
        }
        f.pad(&format!("{} B", self.0))
    }
}

impl Serialize for ByteSize {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        number_or_text(deserializer, Self, "a number of bytes, or a size such as 512M")
    }
}

impl Serialize for Bandwidth {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0)
    }
}

impl<'de> Deserialize<'de> for Bandwidth {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        number_or_text(deserializer, Self, "a number of bytes each second, or a bandwidth such as 2Gbit")
    }
}

/// People write text, programs numbers; between programs that know the type there are only numbers.
fn number_or_text<'de, D, T>(deserializer: D, of: fn(u64) -> T, expected: &'static str) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: FromStr<Err: fmt::Display>,
{
    struct Either<T>(fn(u64) -> T, &'static str);

    impl<T: FromStr<Err: fmt::Display>> serde::de::Visitor<'_> for Either<T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.1)
        }

        fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<T, E> {
            Ok(self.0(number))
        }

        fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<T, E> {
            let positive = u64::try_from(number);
            positive.map(self.0).map_err(|_| E::invalid_value(serde::de::Unexpected::Signed(number), &self))
        }

        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<T, E> {
            text.parse().map_err(E::custom)
        }
    }

    if deserializer.is_human_readable() {
        return deserializer.deserialize_any(Either(of, expected));
    }
    u64::deserialize(deserializer).map(of)
}

/// Bytes per second. As operators write it: `800Mbit`, `2Gbit` (powers of 1000, in bits), or a size such as `100M` (powers of 1024,
/// in bytes).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Bandwidth(pub u64);

/// Why a bandwidth was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("bandwidth {0:?} is not valid: use bits such as 800Mbit or 2Gbit, or bytes such as 100M, for each second")]
pub struct BandwidthError(pub String);

impl FromStr for Bandwidth {
    type Err = BandwidthError;

    fn from_str(text: &str) -> Result<Self, BandwidthError> {
        let refused = || BandwidthError(text.to_owned());
        let lower = text.trim().to_ascii_lowercase();
        let Some(bits) = lower.strip_suffix("bit").or_else(|| lower.strip_suffix("bps")) else {
            let bytes = lower.strip_suffix("/s").unwrap_or(&lower);
            return bytes.parse::<ByteSize>().map(|size| Self(size.0)).map_err(|_| refused());
        };
        let (number, scale) = match bits.trim().char_indices().last() {
            Some((end, 'k')) => (&bits[..end], 1e3),
            Some((end, 'm')) => (&bits[..end], 1e6),
            Some((end, 'g')) => (&bits[..end], 1e9),
            _ => (bits, 1.0),
        };
        let bytes = number.trim().parse::<f64>().map_err(|_| refused())? * scale / 8.0;
        if !(0.0..1e18).contains(&bytes) {
            return Err(refused());
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "range checked above")]
        Ok(Self(bytes as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bandwidths_are_bits_or_bytes_by_their_suffix() {
        for (text, bytes) in [
            ("800Mbit", 100_000_000),
            ("2 Gbit", 250_000_000),
            ("1.5gbps", 187_500_000),
            ("100M", 100 << 20),
            ("8bit", 1),
        ] {
            assert_eq!(text.parse(), Ok(Bandwidth(bytes)), "{text}");
        }
        for bad in ["", "fast", "bit", "-1Mbit", "1Qbit", "nanbit"] {
            assert!(bad.parse::<Bandwidth>().is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_and_bandwidths_are_read_as_numbers_and_as_text() {
        let read = |json: &str| serde_json::from_str::<(ByteSize, Bandwidth)>(json);
        assert_eq!(read("[512, 8]").unwrap(), (ByteSize(512), Bandwidth(8)));
        assert_eq!(read(r#"["512M", "8bit"]"#).unwrap(), (ByteSize::mib(512), Bandwidth(1)));
        assert!(read("[-1, 8]").is_err() && read(r#"["512Q", 8]"#).is_err());
    }

    #[test]
    fn suffixes_are_powers_of_1024() {
        assert_eq!("512M".parse(), Ok(ByteSize::mib(512)));
        assert_eq!("1.5GiB".parse(), Ok(ByteSize::mib(1536)));
        assert_eq!("4096".parse(), Ok(ByteSize(4096)));
    }

    #[test]
    fn nonsense_and_overflow_are_refused() {
        for bad in ["", "x", "1Q", "-1", "99999999999T", "1.2.3M"] {
            assert_eq!(bad.parse::<ByteSize>(), Err(SizeError(bad.to_owned())));
        }
    }

    #[test]
    fn shows_the_unit_a_person_would_use() {
        assert_eq!(ByteSize::gib(1).to_string(), "1 GiB");
        assert_eq!(ByteSize(1 << 20 | 1 << 19).to_string(), "1.5 MiB");
        assert_eq!(ByteSize(12).to_string(), "12 B");
    }
}
