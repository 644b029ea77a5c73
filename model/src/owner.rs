//! Who may run a machine. Epochs only grow; one compare-and-set of this record decides a move.

use crate::{HostName, MachineName};
use serde::{Deserialize, Serialize};
use std::fmt;

/// A machine's ownership generation. Every effect outside the guest carries or checks it; lower ones are refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Epoch(pub u64);

impl Epoch {
    /// The epoch a machine is created with.
    pub const FIRST: Self = Self(1);

    /// The one after this. Saturates: 2^64 moves will not happen.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "epoch {}", self.0)
    }
}

/// What the owner is entitled to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum OwnerState {
    /// The owner may run the machine.
    Running,
    /// The operator stopped the machine; the owner keeps its definition and runs nothing.
    Stopped,
}

/// `{machine, epoch, owner, state}` in the store.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct OwnerRecord {
    /// The machine.
    pub machine: MachineName,
    /// Grows by one with every change of owner, and with every reclaim by the same owner.
    pub epoch: Epoch,
    /// The one host that may run it.
    pub owner: HostName,
    /// What the owner may do.
    pub state: OwnerState,
}

impl OwnerRecord {
    /// The record a switch-over to `target` (or a reclaim, when `target` is the owner) would set in place of this one.
    #[must_use]
    pub fn handed_to(&self, target: &HostName) -> Self {
        Self { machine: self.machine.clone(), epoch: self.epoch.next(), owner: target.clone(), state: self.state }
    }
}
