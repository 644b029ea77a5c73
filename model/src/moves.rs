//! A move as the operator sees it: its name, its strategy, its progress and its end.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// Names one move for ever.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(try_from = "String", into = "String")]
pub struct MoveId(String);

impl MoveId {
    /// `m-` and the number of the move in this controller, in a form that sorts.
    #[must_use]
    pub fn numbered(number: u64) -> Self {
        Self(format!("m-{number:06}"))
    }

    /// The identifier as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for MoveId {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let valid = text.len() <= 40
            && text.starts_with("m-")
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if valid { Ok(Self(text)) } else { Err(format!("move {text:?} is not valid: identifiers look like m-000001")) }
    }
}

impl FromStr for MoveId {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Self::try_from(text.to_owned())
    }
}

impl From<MoveId> for String {
    fn from(id: MoveId) -> Self {
        id.0
    }
}

impl fmt::Display for MoveId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// How memory gets there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum Strategy {
    /// Copy while the guest runs; where that will not converge, hand the guest over and let the rest follow.
    #[default]
    Auto,
    /// Copy while the guest runs, pause for the last pages. Until switch-over nothing can be lost.
    Precopy,
    /// Hand the guest over at once; memory follows, what the guest touches first. Until all of it has arrived, losing either host or
    /// the path for good loses the guest.
    Postcopy,
    /// Copy while that pays, then hand over and let the rest follow; the same risk for a shorter time.
    Hybrid,
}

impl Strategy {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Auto, Self::Precopy, Self::Postcopy, Self::Hybrid];

    /// As operators write it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Precopy => "precopy",
            Self::Postcopy => "postcopy",
            Self::Hybrid => "hybrid",
        }
    }
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Strategy {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|strategy| strategy.as_str() == text)
            .ok_or_else(|| format!("strategy {text:?} is not one of auto, precopy, postcopy, hybrid"))
    }
}

/// How far a move is, for people. The state machines of the two ends have states of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum MovePhase {
    /// Accepted; the target host is being prepared.
    Preparing,
    /// Memory is being copied while the guest runs.
    Copying,
    /// The guest is paused; the last pages and the device state travel, the owner record decides.
    SwitchingOver,
    /// The guest runs at the target; memory that is missing there follows.
    Following,
    /// Over; the outcome says how.
    Finished,
}

/// How a move ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case", tag = "result")]
pub enum MoveOutcome {
    /// The target owns and runs the machine.
    Moved,
    /// Cancelled before switch-over; the machine runs on at the source.
    Cancelled,
    /// Only measured and predicted, as asked; the machine was not paused and runs on at the source.
    Surveyed,
    /// Failed before the point of no return, or reclaimed after it; the machine runs on at the source.
    RolledBack {
        /// Why.
        reason: String,
    },
    /// Some pieces of a machine moved and others did not, or a host without pieces did not leave; the machine runs on.
    Partly {
        /// Why.
        reason: String,
    },
    /// The source was lost while the machine was still its own; nothing runs at the target.
    SourceLost {
        /// What is known.
        reason: String,
    },
    /// The guest had been handed over, and the rest of its memory could not follow: source, target or the path was lost for good.
    /// The machine is lost.
    Stranded {
        /// What is known.
        reason: String,
    },
}

/// Pages by how they travelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PageCounts {
    /// All zero: a few bytes each.
    pub zero: u64,
    /// As they are.
    pub raw: u64,
    /// Compressed with LZ4.
    pub lz4: u64,
    /// Compressed with Zstandard.
    pub zstd: u64,
    /// By what changed in them since they were sent before.
    #[serde(default)]
    pub delta: u64,
    /// Dirtied, but the same as last sent by content hash: not sent again.
    pub unchanged: u64,
}

impl PageCounts {
    /// All pages handled.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.zero + self.raw + self.lz4 + self.zstd + self.delta + self.unchanged
    }

    /// What was counted since `before`.
    #[must_use]
    pub const fn since(&self, before: &Self) -> Self {
        Self {
            zero: self.zero.saturating_sub(before.zero),
            raw: self.raw.saturating_sub(before.raw),
            lz4: self.lz4.saturating_sub(before.lz4),
            zstd: self.zstd.saturating_sub(before.zstd),
            delta: self.delta.saturating_sub(before.delta),
            unchanged: self.unchanged.saturating_sub(before.unchanged),
        }
    }

    /// Adds `other`.
    pub const fn add(&mut self, other: &Self) {
        let Self { zero, raw, lz4, zstd, delta, unchanged } = other;
        self.zero += *zero;
        self.raw += *raw;
        self.lz4 += *lz4;
        self.zstd += *zstd;
        self.delta += *delta;
        self.unchanged += *unchanged;
    }
}

/// One progress event. Every transition of the engine is one of these, with its numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MoveProgress {
    /// Where the move is.
    pub phase: MovePhase,
    /// Copy round, from 1; 0 before the first.
    pub round: u32,
    /// Pages handled so far, all rounds.
    pub pages: PageCounts,
    /// Page payload bytes on the wire so far.
    pub wire_bytes: u64,
    /// Pages that are known to differ at the target now.
    pub remaining_pages: u64,
    /// Bytes per second over the last interval.
    pub rate_bytes_per_s: u64,
    /// Pages per second the guest dirties.
    pub dirty_pages_per_s: u64,
    /// Milliseconds until switch-over as predicted now; `None` while it does not converge.
    pub eta_ms: Option<u64>,
    /// Milliseconds since the move began.
    pub elapsed_ms: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_before_there_were_deltas_are_read() {
        let older = r#"{"zero":1,"raw":2,"lz4":3,"zstd":4,"unchanged":5}"#;
        let counts: PageCounts = serde_json::from_str(older).unwrap();
        assert_eq!((counts.delta, counts.total()), (0, 15));
    }

    #[test]
    fn a_strategy_is_read_as_it_is_written() {
        for strategy in Strategy::ALL {
            assert_eq!(strategy.to_string().parse(), Ok(strategy));
        }
        assert!("post-copy".parse::<Strategy>().unwrap_err().contains("auto, precopy, postcopy, hybrid"));
    }
}
