//! Hosts as the inventory knows them.

use crate::{ByteSize, DatacenterName, Epoch, HostName, MachineName, MachineSpec};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// What a guest can observe of a host's processors; the same list decides compatibility before a move.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CpuModel {
    /// CPUID vendor string.
    pub vendor: String,
    /// CPUID family, model and stepping as `family.model.stepping`.
    pub signature: String,
    /// Names of CPUID features KVM offers to guests, such as `avx2`; leaf and bit where there is no name.
    pub features: BTreeSet<String>,
    /// Guest TSC frequency in kHz.
    pub tsc_khz: u32,
}

impl CpuModel {
    /// The features `self` has that `other` lacks: what a machine started here would miss there.
    #[must_use]
    pub fn missing_on(&self, other: &Self) -> Vec<String> {
        self.features.difference(&other.features).cloned().collect()
    }
}

/// How much a host can carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct HostCapacity {
    /// Hardware threads.
    pub cpus: u32,
    /// RAM for machines.
    pub memory: ByteSize,
    /// RAM already given to machines.
    pub memory_used: ByteSize,
}

/// What the controller believes about a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum HostState {
    /// Heartbeats arrive.
    Up,
    /// Heartbeats stopped: what its machines do is unknown.
    Gone,
}

/// A host in the inventory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Host {
    /// Its name, the same as in its certificate.
    pub name: HostName,
    /// Where it stands.
    pub datacenter: DatacenterName,
    /// Base URL of the agent's API.
    pub url: String,
    /// Room for machines.
    pub capacity: HostCapacity,
    /// Its processors.
    pub cpu: CpuModel,
    /// No new machines are placed on it.
    #[serde(default)]
    pub cordoned: bool,
    /// Is it to be emptied, until it is uncordoned?
    #[serde(default)]
    pub draining: bool,
    /// Up or gone, by the controller's clock.
    pub state: HostState,
    /// Milliseconds since its last heartbeat.
    pub seen_ms_ago: u64,
}

/// What a machine does, as far as is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum MachineState {
    /// Asked for, not yet running.
    Starting,
    /// Its vCPUs run.
    Running,
    /// A move away from here is under way; it runs until switch-over.
    Moving,
    /// A move to here is being filled; it does not run yet.
    Incoming,
    /// Its vCPUs stand still: between pause and the decision who owns it.
    Paused,
    /// It ended by itself or was stopped.
    Stopped,
    /// It failed; the reason is beside it.
    Failed,
    /// Its host is gone. It may or may not run; it is never restarted elsewhere without being asked.
    Unknown,
}

/// A machine as an agent reports it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MachineStatus {
    /// What it is.
    pub spec: MachineSpec,
    /// What it does.
    pub state: MachineState,
    /// Epoch this copy was started or received with.
    pub epoch: Epoch,
    /// Its name, for readers of JSON.
    pub name: MachineName,
    /// Operating-system process, where one runs.
    #[serde(default)]
    pub pid: Option<u32>,
    /// Why it stopped or failed.
    #[serde(default)]
    pub reason: Option<String>,
    /// Console bytes written since it was created, over all hosts.
    #[serde(default)]
    pub console_bytes: u64,
    /// The move it is part of.
    #[serde(default)]
    pub move_id: Option<crate::MoveId>,
}
