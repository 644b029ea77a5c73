//! A machine's saved state: what [`crate::PauseGuard::save`] gives and [`crate::Machine::restore`] takes. Memory is not in it.
//!
//! Sections, all but `machine` opaque to anyone but their owner:
//!
//! | section | contents |
//! |---|---|
//! | `machine` | memory layout, number of vCPUs, TSC frequency: what must fit before anything is applied |
//! | `clock` | kvmclock, the host TSC and wall clock it was read at |
//! | `irqchips`, `pit` | the in-kernel interrupt controllers and timer |
//! | `ioapic`, `pics`, `pit.user` | in place of these, of a machine whose interrupt controllers are in user space |
//! | `vcpu.N` | everything of one vCPU |
//! | `device.NAME` | one device |

mod container;

pub use container::{STATE_VERSION, StateError};
pub(crate) use container::{SectionReader, SectionWriter};

use crate::interrupts::{IoApic, Pics, Pit};
use crate::vcpu::VcpuState;
use kvm_bindings::{kvm_clock_data, kvm_irqchip, kvm_pit_state2};
use serde::{Deserialize, Serialize};
use vmotion_model::{MachineSpec, MemoryLayout};

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

/// The machine's interrupt controllers, but for the local ones: those are saved with their vCPUs.
#[derive(Debug, Clone)]
pub(crate) enum Controllers {
    Kernel { chips: Box<IrqChips>, pit: PitState },
    User { io_apic: Box<IoApic>, pics: Pics, pit: Box<Pit> },
}

impl Controllers {
    pub(crate) fn write(&self, writer: &mut SectionWriter) -> Result<(), StateError> {
        match self {
            Self::Kernel { chips, pit } => {
                writer.put("irqchips", SECTION_VERSION, chips)?;
                writer.put("pit", SECTION_VERSION, pit)
            }
            Self::User { io_apic, pics, pit } => {
                writer.put(IO_APIC, SECTION_VERSION, io_apic)?;
                writer.put(PICS, SECTION_VERSION, pics)?;
                writer.put(PIT, SECTION_VERSION, pit)
            }
        }
    }

    fn read(reader: &mut SectionReader<'_>) -> Result<Self, StateError> {
        if reader.names().any(|name| name == IO_APIC) {
            let io_apic = reader.take(IO_APIC, SECTION_VERSION)?;
            let pics = reader.take(PICS, SECTION_VERSION)?;
            return Ok(Self::User { io_apic, pics, pit: reader.take(PIT, SECTION_VERSION)? });
        }
        let chips = Box::new(reader.take("irqchips", SECTION_VERSION)?);
        Ok(Self::Kernel { chips, pit: reader.take("pit", SECTION_VERSION)? })
    }
}

const IO_APIC: &str = "ioapic";
const PICS: &str = "pics";
const PIT: &str = "pit.user";

pub(crate) fn vcpu_section(id: u8) -> String {
    format!("vcpu.{id}")
}

pub(crate) fn device_section(name: &str) -> String {
    format!("{DEVICE_PREFIX}{name}")
}

const DEVICE_PREFIX: &str = "device.";

/// A saved state with every section but the devices' decoded. Nothing of it has been applied.
pub(crate) struct ParsedState<'a> {
    pub(crate) facts: MachineFacts,
    pub(crate) clock: ClockState,
    pub(crate) controllers: Controllers,
    pub(crate) vcpus: Vec<VcpuState>,
    /// What is left: the devices.
    pub(crate) devices: SectionReader<'a>,
}

impl<'a> ParsedState<'a> {
    pub(crate) fn parse(state: &'a [u8]) -> Result<Self, StateError> {
        let mut reader = SectionReader::open(state)?;
        let facts: MachineFacts = reader.take("machine", SECTION_VERSION)?;
        if facts.cpus == 0 || facts.cpus > MachineSpec::CPUS_MAX {
            return Err(StateError::Limit("vCPUs"));
        }
        let clock = reader.take("clock", SECTION_VERSION)?;
        let controllers = Controllers::read(&mut reader)?;
        let vcpus = (0..facts.cpus).map(|id| {
            let vcpu: VcpuState = reader.take(&vcpu_section(id), SECTION_VERSION)?;
            vcpu.check()?;
            Ok(vcpu)
        });
        let vcpus = vcpus.collect::<Result<_, StateError>>()?;
        Ok(Self { facts, clock, controllers, vcpus, devices: reader })
    }
}

/// What a saved state is of, as far as can be told without a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateSummary {
    /// RAM of the machine it was saved from.
    pub layout: MemoryLayout,
    /// Its vCPUs.
    pub cpus: u8,
    /// Its devices, by name.
    pub devices: Vec<String>,
}

/// Checks and decodes `state`, which may come from anywhere, without a machine. The devices' own payloads are checked
/// when a machine takes them.
///
/// # Errors
/// [`StateError`] says what is wrong with it.
pub fn inspect_state(state: &[u8]) -> Result<StateSummary, StateError> {
    let ParsedState { facts, clock: _, controllers: _, vcpus: _, devices } = ParsedState::parse(state)?;
    let MachineFacts { layout, cpus } = facts;
    let device = |section: &str| match section.strip_prefix(DEVICE_PREFIX) {
        Some(device) => Ok(device.to_owned()),
        None => Err(StateError::Leftover(section.to_owned())),
    };
    let devices = devices.names().map(device).collect::<Result<_, _>>()?;
    Ok(StateSummary { layout, cpus, devices })
}
