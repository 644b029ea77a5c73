//! A machine's saved state: what [`crate::PauseGuard::save`] gives and [`crate::Machine::restore`] takes. Memory is not in it.
//!
//! Sections, all but `machine` opaque to anyone but their owner:
//!
//! | section | contents |
//! |---|---|
//! | `machine` | memory layout, number of vCPUs, TSC frequency: what must fit before anything is applied |
//! | `clock` | kvmclock, the host TSC and wall clock it was read at |
//! | `irqchips`, `pit` | the in-kernel interrupt controllers and timer |
//! | `vcpu.N` | everything of one vCPU |
//! | `device.NAME` | one device |

mod container;

pub use container::{STATE_VERSION, StateError};
pub(crate) use container::{SectionReader, SectionWriter};

use kvm_bindings::{kvm_clock_data, kvm_irqchip, kvm_pit_state2};
use serde::{Deserialize, Serialize};
use vmotion_model::MemoryLayout;

/// Version of every section this module names; raised when its meaning changes.
pub(crate) const SECTION_VERSION: u16 = 1;

/// What must fit before anything else is looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MachineFacts {
    pub(crate) layout: MemoryLayout,
    pub(crate) cpus: u8,
}

/// kvmclock and when it was read.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ClockState {
    pub(crate) clock: kvm_clock_data,
    /// Host TSC at the moment `clock` was read.
    pub(crate) host_tsc: u64,
    /// Wall clock at that moment, in nanoseconds since 1970.
    pub(crate) realtime_ns: u64,
    /// Frequency of that host's TSC.
    pub(crate) host_tsc_khz: u32,
}

/// PIC master, PIC slave and IOAPIC, in the order of KVM's chip ids.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct IrqChips {
    pub(crate) chips: [kvm_irqchip; 3],
}

impl std::fmt::Debug for IrqChips {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The chips are C unions, which have no text.
        f.debug_struct("IrqChips").finish_non_exhaustive()
    }
}

/// The in-kernel 8254.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct PitState {
    pub(crate) pit: kvm_pit_state2,
}
