//! What a machine is made of, as the operator asked for it. The spec travels with every move.

use crate::{ByteSize, MachineName};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// How guest memory is backed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Backing {
    /// A memfd with 4 KiB pages (transparent huge pages where the host gives them).
    #[default]
    Memfd,
    /// A memfd on 2 MiB hugetlb pages; the host must have them reserved.
    Huge2m,
}

/// Which KVM facility tells what the guest wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum DirtySource {
    /// Chosen by what the host's KVM offers and the size of the machine.
    #[default]
    Auto,
    /// `KVM_GET_DIRTY_LOG` with manual protection.
    Log,
    /// `KVM_CAP_DIRTY_LOG_RING_ACQ_REL`: one ring per vCPU.
    Ring,
}

/// Who delivers a machine's interrupts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum InterruptController {
    /// KVM, with the controllers of a PC.
    #[default]
    Kernel,
    /// The machine's own process, with the same: what a machine needs that is to span several hosts.
    User,
}

/// A disk both hosts can open.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DiskSpec {
    /// File or block device, the same path on every host that may run the machine.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub path: PathBuf,
    /// Opened read-only, and refused writes.
    #[serde(default)]
    pub read_only: bool,
}

impl std::str::FromStr for DiskSpec {
    type Err = SpecError;

    /// `path[,ro]`.
    fn from_str(text: &str) -> Result<Self, SpecError> {
        let (path, read_only) = match text.strip_suffix(",ro") {
            Some(path) => (path, true),
            None => (text, false),
        };
        if path.is_empty() || path.contains(',') {
            return Err(SpecError::Disk(text.to_owned()));
        }
        Ok(Self { path: path.into(), read_only })
    }
}

/// A machine, as created. Paths are on the host that runs it; kernel and initrd are only needed to boot, not to move.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MachineSpec {
    /// Its name.
    pub name: MachineName,
    /// vCPUs, 1 to 64.
    pub cpus: u8,
    /// RAM, 16 MiB to 1 TiB, a whole number of MiB.
    pub memory: ByteSize,
    /// PVH ELF or bzImage.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub kernel: PathBuf,
    /// Initial ramdisk.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub initrd: Option<PathBuf>,
    /// Kernel command line, without what vmotion adds for its devices.
    #[serde(default)]
    pub cmdline: String,
    /// virtio-blk disks, in order.
    #[serde(default)]
    pub disks: Vec<DiskSpec>,
    /// How memory is backed.
    #[serde(default)]
    pub backing: Backing,
    /// Which dirty-tracking source moves use.
    #[serde(default)]
    pub dirty_source: DirtySource,
    /// Who delivers interrupts.
    #[serde(default)]
    pub interrupts: InterruptController,
}

/// Why a spec was refused. Each names the field, the value and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// vCPU count out of range.
    #[error("cpus {0} is out of range: use 1 to {max}", max = MachineSpec::CPUS_MAX)]
    Cpus(u8),
    /// Memory size out of range or not whole MiB.
    #[error("memory {0} is out of range: use a whole number of MiB from 16M to 1T")]
    Memory(ByteSize),
    /// Huge pages need a whole number of them.
    #[error("memory {0} is not a multiple of 2 MiB, which huge pages need")]
    HugeMemory(ByteSize),
    /// Command line too long for the boot protocol.
    #[error("cmdline has {0} bytes, at most {max} are accepted", max = MachineSpec::CMDLINE_BYTES_MAX)]
    Cmdline(usize),
    /// Command line with a byte a kernel cannot take.
    #[error("cmdline must be printable ASCII without line breaks")]
    CmdlineText,
    /// Too many disks.
    #[error("{0} disks were given, at most {max} are accepted", max = MachineSpec::DISKS_MAX)]
    Disks(usize),
    /// Unreadable disk argument.
    #[error("disk {0:?} is not valid: use PATH or PATH,ro")]
    Disk(String),
}

impl MachineSpec {
    /// Most vCPUs.
    pub const CPUS_MAX: u8 = 64;
    /// Least RAM.
    pub const MEMORY_MIN: ByteSize = ByteSize::mib(16);
    /// Most RAM.
    pub const MEMORY_MAX: ByteSize = ByteSize::gib(1024);
    /// Longest command line, in bytes, leaving room for what vmotion adds within 4 KiB.
    pub const CMDLINE_BYTES_MAX: usize = 2048;
    /// Most disks.
    pub const DISKS_MAX: usize = 8;

    /// Checks every limit that does not need a host.
    ///
    /// # Errors
    /// The first [`SpecError`] found.
    pub fn validate(&self) -> Result<(), SpecError> {
        if self.cpus == 0 || self.cpus > Self::CPUS_MAX {
            return Err(SpecError::Cpus(self.cpus));
        }
        let whole_mib = self.memory.bytes().is_multiple_of(1 << 20);
        if self.memory < Self::MEMORY_MIN || self.memory > Self::MEMORY_MAX || !whole_mib {
            return Err(SpecError::Memory(self.memory));
        }
        if self.backing == Backing::Huge2m && !self.memory.bytes().is_multiple_of(2 << 20) {
            return Err(SpecError::HugeMemory(self.memory));
        }
        if self.cmdline.len() > Self::CMDLINE_BYTES_MAX {
            return Err(SpecError::Cmdline(self.cmdline.len()));
        }
        if !self.cmdline.bytes().all(|b| (b' '..=b'~').contains(&b)) {
            return Err(SpecError::CmdlineText);
        }
        if self.disks.len() > Self::DISKS_MAX {
            return Err(SpecError::Disks(self.disks.len()));
        }
        Ok(())
    }
}
