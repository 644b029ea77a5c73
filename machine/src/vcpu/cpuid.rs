//! The processor a guest sees: what KVM supports, with this vCPU's place in the topology put in.
//!
//! One socket, one thread per core, APIC id = vCPU number.

use crate::MachineError;
use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm};

/// Everything KVM can offer on this host.
pub(crate) fn supported(kvm: &Kvm) -> Result<CpuId, MachineError> {
    kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(MachineError::kvm("tell the supported CPUID"))
}

/// Is the LAPIC's TSC-deadline timer there? KVM reports it as a capability, not in its CPUID.
pub(crate) fn has_deadline_timer(kvm: &Kvm) -> bool {
    kvm.check_extension(Cap::TscDeadlineTimer)
}

const HYPERVISOR: u32 = 1 << 31;
const TSC_DEADLINE: u32 = 1 << 24;
const X2APIC: u32 = 1 << 21;
const HYPER_THREADING: u32 = 1 << 28;
/// KVM's own leaf of features, and those of them that need its LAPIC: asynchronous page faults, ends of interrupts without an exit, kicks
/// of halted processors, IPIs and yields by hypercall, destinations of 15 bits.
const KVM_FEATURES: u32 = 0x4000_0001;
/// Those that show the clock of the host's KVM, and what it took from its vCPUs: old and new clock, time that was stolen, a clock that is in step.
const KVM_FEATURES_OF_ITS_TIME: u32 = 1 | 1 << 3 | 1 << 5 | 1 << 24;
const KVM_FEATURES_OF_ITS_LAPIC: u32 = 1 << 4 | 1 << 6 | 1 << 7 | 1 << 10 | 1 << 11 | 1 << 13 | 1 << 14 | 1 << 15;

/// `supported` as vCPU `vcpu` of `cpus` sees it.
pub(crate) fn for_vcpu(supported: &CpuId, deadline_timer: bool, vcpu: u8, cpus: u8) -> CpuId {
    let mut cpuid = supported.clone();
    for entry in cpuid.as_mut_slice() {
        place(entry, deadline_timer, u32::from(vcpu), u32::from(cpus));
    }
    cpuid
}

/// `cpuid` less what only KVM's LAPIC offers.
pub(crate) fn without_kernel_lapic(mut cpuid: CpuId) -> CpuId {
    for entry in cpuid.as_mut_slice() {
        match entry.function {
            1 => entry.ecx &= !(X2APIC | TSC_DEADLINE),
            KVM_FEATURES => entry.eax &= !KVM_FEATURES_OF_ITS_LAPIC,
            _ => {}
        }
    }
    cpuid
}

/// `cpuid` less clocks that each host has for itself: a processor that goes from one to another would see time go back.
pub(crate) fn without_host_time(mut cpuid: CpuId) -> CpuId {
    for entry in cpuid.as_mut_slice().iter_mut().filter(|entry| entry.function == KVM_FEATURES) {
        entry.eax &= !KVM_FEATURES_OF_ITS_TIME;
    }
    cpuid
}

fn place(entry: &mut kvm_cpuid_entry2, deadline_timer: bool, vcpu: u32, cpus: u32) {
    // Bits needed to number the vCPUs.
    let id_bits = cpus.next_power_of_two().trailing_zeros();
    match entry.function {
        1 => {
            // Initial APIC id, logical processors, CLFLUSH size (kept).
            entry.ebx = entry.ebx & 0xff00 | vcpu << 24 | cpus << 16;
            entry.ecx |= HYPERVISOR;
            if deadline_timer {
                entry.ecx |= TSC_DEADLINE;
            }
            if cpus > 1 {
                entry.edx |= HYPER_THREADING;
            }
        }
        // Deterministic caches: cores of the package, and the last level shared by all of them.
        4 if entry.eax & 0x1f != 0 => {
            let level = entry.eax >> 5 & 7;
            let sharing = if level >= 3 { (1 << id_bits) - 1 } else { 0 };
            entry.eax = entry.eax & 0x3fff | sharing << 14 | ((1 << id_bits) - 1) << 26;
        }
        // Extended topology: level 0 is threads (one each), level 1 is cores.
        0xb | 0x1f => {
            let (shift, processors, kind) = match entry.index {
                0 => (0, 1, 1),
                1 => (id_bits, cpus, 2),
                _ => (0, 0, 0),
            };
            (entry.eax, entry.ebx, entry.ecx) = (shift, processors, entry.index | kind << 8);
            entry.edx = vcpu;
        }
        // AMD: cores in the package and bits of their ids.
        0x8000_0008 if entry.ecx != 0 => entry.ecx = entry.ecx & !0xf0ff | id_bits << 12 | (cpus - 1),
        // AMD: extended APIC id, one thread per core, one node.
        0x8000_001e => (entry.eax, entry.ebx, entry.ecx) = (vcpu, vcpu, 0),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic in a test is its report")]

    use super::*;

    #[test]
    fn clocks_of_the_host_are_hidden_and_nothing_else() {
        let features = kvm_cpuid_entry2 { function: KVM_FEATURES, eax: u32::MAX, edx: 7, ..Default::default() };
        let other = kvm_cpuid_entry2 { function: 1, eax: u32::MAX, ..Default::default() };
        let hidden = without_host_time(CpuId::from_entries(&[features, other]).unwrap());
        let left = kvm_cpuid_entry2 { eax: !0x0100_0029, ..features };
        assert_eq!(hidden.as_slice(), [left, other]);
    }
}
