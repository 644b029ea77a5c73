//! Which end, which way.

use serde::Serialize;
use std::fmt;

/// One end of the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum End {
    /// The first.
    A,
    /// The second.
    B,
}

impl End {
    /// First one, then the other.
    pub const BOTH: [Self; 2] = [Self::A, Self::B];

    /// The opposite one.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::A => "a",
            Self::B => "b",
        })
    }
}

/// What one end sends to the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// What a sends to b.
    AToB,
    /// What b sends to a.
    BToA,
}

impl Direction {
    /// First one, then the other.
    pub const BOTH: [Self; 2] = [Self::AToB, Self::BToA];

    /// Who sends.
    #[must_use]
    pub const fn from(self) -> End {
        match self {
            Self::AToB => End::A,
            Self::BToA => End::B,
        }
    }

    pub(crate) const fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-to-{}", self.from(), self.from().other())
    }
}
