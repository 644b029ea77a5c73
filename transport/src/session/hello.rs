//! Negotiation: a pure function from what both ends are to an agreement or a named difference.
//!
//! Incompatible peers are refused here, before a byte of memory moves.

use serde::{Deserialize, Serialize};
use std::{collections::BTreeSet, fmt};
use vmotion_model::{CpuModel, Epoch, MachineName, MemoryLayout, MoveId, PAGE_SIZE};

/// Oldest wire version this build speaks.
pub const WIRE_VERSION_MIN: u16 = 1;
/// Newest wire version this build speaks.
pub const WIRE_VERSION_MAX: u16 = 3;
/// From this wire version on a target understands that an offer is taken back and the move goes on.
pub const WIRE_VERSION_RENEWAL: u16 = 2;

/// From this wire version on a target takes marks in quick succession, parts of flows a second time, and a saved state twice.
pub const WIRE_VERSION_COPIES: u16 = 3;

/// Pages may come after the hand-over, on demand.
pub const FEATURE_POST_COPY: &str = "post-copy";
/// Pages that are sent again may come as what changed in them.
pub const FEATURE_DELTA: &str = "delta";

/// What a source says first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Oldest wire version it speaks.
    pub version_min: u16,
    /// Newest wire version it speaks.
    pub version_max: u16,
    /// Features it can use.
    pub features: BTreeSet<String>,
    /// Page size in bytes.
    pub page_size: u64,
    /// The machine's RAM.
    pub layout: MemoryLayout,
    /// The processors the guest has seen.
    pub cpu: CpuModel,
    /// vCPUs of the machine.
    pub cpus: u8,
    /// Version of the saved state it will send.
    pub state_version: u16,
    /// The machine.
    pub machine: MachineName,
    /// The move.
    pub move_id: MoveId,
    /// The source's epoch.
    pub epoch: Epoch,
    /// Bulk connections it would open.
    pub flows: u8,
}

/// What a target compares a [`Hello`] with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetFacts {
    /// Features it can use.
    pub features: BTreeSet<String>,
    /// RAM of the machine it prepared.
    pub layout: MemoryLayout,
    /// Its processors.
    pub cpu: CpuModel,
    /// vCPUs it prepared.
    pub cpus: u8,
    /// Newest saved state it can load.
    pub state_version_max: u16,
    /// The machine it expects.
    pub machine: MachineName,
    /// The move it expects.
    pub move_id: MoveId,
    /// Bulk connections it accepts.
    pub flows_max: u8,
}

/// What both will do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// Wire version.
    pub version: u16,
    /// Features both have.
    pub features: BTreeSet<String>,
    /// Bulk connections to open.
    pub flows: u8,
    /// UDP port of the target's demand lane, where memory can follow the guest.
    pub demand_port: Option<u16>,
}

/// What kind of refusal crosses the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum WireErrorCode {
    /// No common protocol version.
    Version,
    /// The two ends differ in something that must be equal.
    Incompatible,
    /// Not the machine or move that is expected here.
    Unexpected,
    /// The target could not load or run what it was sent.
    Failed,
    /// The operator or the other end gave up.
    Cancelled,
}

/// The one error that crosses the wire.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireError {
    /// What kind.
    pub code: WireErrorCode,
    /// What differs, or what failed; no full stop.
    pub detail: String,
}

impl WireError {
    /// A refusal that says `detail`.
    #[must_use]
    pub fn new(code: WireErrorCode, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into() }
    }
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}

impl TargetFacts {
    /// Checks `hello` field by field.
    ///
    /// # Errors
    /// A [`WireError`] that names the first field that differs, with both values.
    pub fn negotiate(&self, hello: &Hello) -> Result<Welcome, WireError> {
        let version = hello.version_max.min(WIRE_VERSION_MAX);
        if version < hello.version_min || version < WIRE_VERSION_MIN {
            let detail = format!(
                "wire version: source speaks {} to {}, target {WIRE_VERSION_MIN} to {WIRE_VERSION_MAX}",
                hello.version_min, hello.version_max
            );
            return Err(WireError::new(WireErrorCode::Version, detail));
        }
        let unexpected = |field: &str, found: &dyn fmt::Display, wanted: &dyn fmt::Display| {
            Err(WireError::new(
                WireErrorCode::Unexpected,
                format!("{field}: source has {found}, target expects {wanted}"),
            ))
        };
        if hello.machine != self.machine {
            return unexpected("machine", &hello.machine, &self.machine);
        }
        if hello.move_id != self.move_id {
            return unexpected("move", &hello.move_id, &self.move_id);
        }
        let incompatible = |detail: String| Err(WireError::new(WireErrorCode::Incompatible, detail));
        if hello.page_size != PAGE_SIZE {
            return incompatible(format!("page size: source has {} bytes, target {PAGE_SIZE}", hello.page_size));
        }
        if hello.layout != self.layout {
            let (source, target) = (hello.layout.total_bytes(), self.layout.total_bytes());
            return incompatible(format!("memory layout: source has {source} bytes of RAM, target {target}"));
        }
        if hello.cpus != self.cpus {
            return incompatible(format!("cpus: source has {}, target {}", hello.cpus, self.cpus));
        }
        if hello.state_version > self.state_version_max {
            let (source, target) = (hello.state_version, self.state_version_max);
            return incompatible(format!("saved state version: source writes {source}, target reads up to {target}"));
        }
        if hello.cpu.vendor != self.cpu.vendor {
            return incompatible(format!(
                "cpu vendor: source has {:?}, target {:?}",
                hello.cpu.vendor, self.cpu.vendor
            ));
        }
        let missing = hello.cpu.missing_on(&self.cpu);
        if !missing.is_empty() {
            return incompatible(format!("cpu features: target lacks {}", missing.join(", ")));
        }
        let features = hello.features.intersection(&self.features).cloned().collect();
        Ok(Welcome { version, features, flows: hello.flows.clamp(1, self.flows_max.max(1)), demand_port: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Hello, TargetFacts) {
        let layout = MemoryLayout::for_ram(64 << 20).unwrap();
        let cpu = CpuModel { vendor: "AuthenticAMD".into(), ..CpuModel::default() };
        let hello = Hello {
            version_min: 1,
            version_max: 1,
            features: BTreeSet::new(),
            page_size: PAGE_SIZE,
            layout: layout.clone(),
            cpu: cpu.clone(),
            cpus: 2,
            state_version: 1,
            machine: "vm1".parse().unwrap(),
            move_id: MoveId::numbered(1),
            epoch: Epoch::FIRST,
            flows: 2,
        };
        let facts = TargetFacts {
            features: BTreeSet::new(),
            layout,
            cpu,
            cpus: 2,
            state_version_max: 1,
            machine: "vm1".parse().unwrap(),
            move_id: MoveId::numbered(1),
            flows_max: 8,
        };
        (hello, facts)
    }

    #[test]
    fn equal_ends_agree() {
        let (hello, facts) = pair();
        assert_eq!(facts.negotiate(&hello).unwrap().flows, 2);
    }

    #[test]
    fn each_difference_is_named() {
        type Change = fn(&mut Hello);
        let cases: [(Change, &str); 7] = [
            (|h| (h.version_min, h.version_max) = (7, 9), "wire version: source speaks 7 to 9"),
            (|h| h.page_size = 16384, "page size: source has 16384"),
            (|h| h.layout = MemoryLayout::for_ram(32 << 20).unwrap(), "memory layout"),
            (|h| h.cpus = 4, "cpus: source has 4, target 2"),
            (|h| h.machine = "vm2".parse().unwrap(), "machine: source has vm2, target expects vm1"),
            (|h| h.cpu.features = ["avx512f".to_owned()].into(), "cpu features: target lacks avx512f"),
            (|h| h.state_version = 2, "saved state version"),
        ];
        for (change, expected) in cases {
            let (mut hello, facts) = pair();
            change(&mut hello);
            let refusal = facts.negotiate(&hello).unwrap_err();
            assert!(refusal.detail.contains(expected), "{refusal} should name {expected:?}");
        }
    }
}
