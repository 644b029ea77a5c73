//! Model-specific registers: which to save, and setting them again.
//!
//! The list is the host's own (`KVM_GET_MSR_INDEX_LIST`), less what cannot be read. Ordering facts:
//! - `IA32_TSC_DEADLINE` is set after the TSC and the LAPIC: KVM arms the timer from both, and ignores the deadline
//!   while the LAPIC timer is not in deadline mode.
//! - `IA32_TSC` is not restored by value where the TSC offset is: a write by value races with time passing.

use crate::MachineError;
use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::{Kvm, VcpuFd};

pub(super) const IA32_TSC: u32 = 0x10;
pub(super) const IA32_TSC_DEADLINE: u32 = 0x6e0;

/// Entries KVM takes in one call.
const BATCH: usize = 256;
/// Most registers a saved vCPU may have.
pub(crate) const MSRS_MAX: usize = 2048;

/// Registers to save, found out once per machine, outside any pause.
#[derive(Debug)]
pub(crate) struct MsrPlan {
    indices: Vec<u32>,
}

fn entry(index: u32, data: u64) -> kvm_msr_entry {
    kvm_msr_entry { index, data, ..Default::default() }
}

fn batch(entries: &[kvm_msr_entry]) -> Result<Msrs, MachineError> {
    Msrs::from_entries(entries).map_err(|error| MachineError::Kvm {
        action: "take a list of MSRs",
        source: std::io::Error::other(format!("{error:?}")),
    })
}

impl MsrPlan {
    /// Tries every register KVM lists on `vcpu` and keeps those that can be read.
    pub(crate) fn probe(kvm: &Kvm, vcpu: &VcpuFd) -> Result<Self, MachineError> {
        let listed = kvm.get_msr_index_list().map_err(MachineError::kvm("list its MSRs"))?;
        let mut left: Vec<u32> = listed.as_slice().to_vec();
        let mut indices = Vec::with_capacity(left.len());
        while !left.is_empty() {
            let tried: Vec<_> = left.iter().take(BATCH).map(|index| entry(*index, 0)).collect();
            let mut msrs = batch(&tried)?;
            // A failure on the first register is reported as an error or as none read, depending on the kernel.
            let read = vcpu.get_msrs(&mut msrs).unwrap_or(0);
            indices.extend(left.drain(..read));
            if read < tried.len() {
                left.remove(0);
            }
        }
        Ok(Self { indices })
    }

    /// The registers' values.
    pub(super) fn read(&self, vcpu: &VcpuFd) -> Result<Vec<(u32, u64)>, MachineError> {
        let mut values = Vec::with_capacity(self.indices.len());
        for indices in self.indices.chunks(BATCH) {
            let wanted: Vec<_> = indices.iter().map(|index| entry(*index, 0)).collect();
            let mut msrs = batch(&wanted)?;
            let read = vcpu.get_msrs(&mut msrs).map_err(MachineError::kvm("read MSRs"))?;
            if read != wanted.len() {
                let source = std::io::Error::other(format!("MSR {:#x} cannot be read any more", wanted[read].index));
                return Err(MachineError::Kvm { action: "read MSRs", source });
            }
            values.extend(msrs.as_slice().iter().map(|msr| (msr.index, msr.data)));
        }
        Ok(values)
    }
}

/// Sets `values` in order. A register that refuses its value but already has it is fine: some hosts list registers
/// they do not let anyone write. Any other refusal is an error that names the register.
pub(super) fn write(vcpu: &VcpuFd, id: u8, values: &[(u32, u64)]) -> Result<(), MachineError> {
    let mut left = values;
    while !left.is_empty() {
        let entries: Vec<_> = left.iter().take(BATCH).map(|(index, data)| entry(*index, *data)).collect();
        let written = vcpu.set_msrs(&batch(&entries)?).unwrap_or(0);
        left = &left[written..];
        if written < entries.len() {
            let (msr, value) = left[0];
            if !already_is(vcpu, msr, value) {
                return Err(MachineError::Msr { vcpu: id, msr, value });
            }
            left = &left[1..];
        }
    }
    Ok(())
}

fn already_is(vcpu: &VcpuFd, msr: u32, value: u64) -> bool {
    let Ok(mut msrs) = batch(&[entry(msr, 0)]) else { return false };
    vcpu.get_msrs(&mut msrs).is_ok_and(|read| read == 1) && msrs.as_slice()[0].data == value
}
