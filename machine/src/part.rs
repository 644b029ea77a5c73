//! A machine of which only a part is in this process: some of its vCPUs, perhaps its devices. The other parts are on other hosts.
//!
//! Every part has all vCPUs, built and parked, and the interrupt controller of each: those of vCPUs that are elsewhere are only asked whether
//! an interrupt is for them. So a vCPU that comes finds everything but its registers in place. Devices and the I/O APIC are in one part;
//! the others send their vCPUs' accesses there.

use crate::interrupts::{Addressing, Message};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;
use vmotion_model::MachineSpec;

/// vCPUs of a machine, by their numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct VcpuSet(u64);

impl VcpuSet {
    /// None.
    pub const NONE: Self = Self(0);

    /// The set and this one. A vCPU that no machine can have is in no set.
    #[must_use]
    pub const fn with(self, vcpu: u8) -> Self {
        if vcpu < MachineSpec::CPUS_MAX { Self(self.0 | 1 << vcpu) } else { self }
    }

    /// The set but this one.
    #[must_use]
    pub const fn without(self, vcpu: u8) -> Self {
        if vcpu < MachineSpec::CPUS_MAX { Self(self.0 & !(1 << vcpu)) } else { self }
    }

    /// Is it in the set?
    #[must_use]
    pub const fn contains(self, vcpu: u8) -> bool {
        vcpu < MachineSpec::CPUS_MAX && self.0 >> vcpu & 1 == 1
    }

    /// In ascending order.
    pub fn iter(self) -> impl Iterator<Item = u8> {
        (0..MachineSpec::CPUS_MAX).filter(move |vcpu| self.contains(*vcpu))
    }
}

impl FromIterator<u8> for VcpuSet {
    fn from_iter<I: IntoIterator<Item = u8>>(vcpus: I) -> Self {
        vcpus.into_iter().fold(Self::NONE, Self::with)
    }
}

/// An address space of devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Space {
    /// `in` and `out`.
    Ports,
    /// Addresses of guest-physical space that are not RAM.
    Memory,
}

impl fmt::Display for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ports => "port",
            Self::Memory => "address",
        })
    }
}

/// The other parts of a machine, as this one needs them.
pub trait Elsewhere: fmt::Debug + Send + Sync {
    /// Brings `message` to `vcpu`, which is not here. What is brought to one vCPU arrives in order. Never blocks: called by vCPU threads
    /// and by the thread of the interrupt controllers.
    fn interrupt(&self, vcpu: u8, message: Message);
    /// Tells all other parts what interrupts find `vcpu` by, which is here. Never blocks.
    fn addressing(&self, vcpu: u8, addressing: Addressing);
    /// Tells the part with the I/O APIC that a level-triggered interrupt is over. Never blocks.
    fn end_of_interrupt(&self, vector: u8);
    /// Has `vcpu` read from a device that is not here, and waits for what it reads. When that part is gone, all ones: the machine ends.
    fn read(&self, vcpu: u8, space: Space, address: u64, data: &mut [u8]);
    /// Has `vcpu` write to a device that is not here, and waits until that is done.
    fn write(&self, vcpu: u8, space: Space, address: u64, data: &[u8]);
}

/// What of a machine is in this process when it begins.
#[derive(Debug, Clone)]
pub struct Part {
    /// The vCPUs that run here.
    pub vcpus: VcpuSet,
    /// All devices are here, or none.
    pub devices: bool,
    /// The rest.
    pub elsewhere: Arc<dyn Elsewhere>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_has_what_was_put_in_and_nothing_else() {
        let set: VcpuSet = [0, 5, 63, 64, 255].into_iter().collect();
        assert_eq!(set.iter().collect::<Vec<_>>(), [0, 5, 63]);
        assert_eq!(set.without(5).without(200).iter().collect::<Vec<_>>(), [0, 63]);
        assert!(!set.contains(64) && !VcpuSet::NONE.contains(0));
    }
}
