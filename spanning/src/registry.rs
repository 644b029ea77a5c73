//! Who has which piece of a machine: decided in the store, by compare-and-set, for all hosts.

use crate::directory::{HostId, ShardNumber};
use std::fmt;
use thiserror::Error;
use vmotion_model::Epoch;

/// A piece of a machine that has a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Piece {
    /// A vCPU, by its number.
    Vcpu(u8),
    /// The homes of 2 MiB of memory.
    Shard(ShardNumber),
}

impl fmt::Display for Piece {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vcpu(vcpu) => write!(f, "vcpu{vcpu}"),
            Self::Shard(shard) => shard.fmt(f),
        }
    }
}

/// Where a piece is, and since when.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Placement {
    /// The host.
    pub host: HostId,
    /// Grows with every move.
    pub epoch: Epoch,
}

/// The store does not answer. Whoever asked knows nothing, and asks again.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("The store does not say who has {piece}: {reason}")]
pub struct Unheard {
    /// Of which piece.
    pub piece: Piece,
    /// What came instead.
    pub reason: String,
}

/// The store, as a spanning machine needs it. Calls block, so none is made by a thread that brings pages.
pub trait Registry: Send + Sync {
    /// Gives `piece` to `wanted.host` in `wanted.epoch`, unless somebody has it in that epoch or a later one; who has it now. Asked again, the
    /// answer is the same.
    ///
    /// # Errors
    /// The store did not answer: the piece may have been given or not.
    fn claim(&self, piece: Piece, wanted: Placement) -> Result<Placement, Unheard>;
}
