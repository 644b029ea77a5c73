//! What this host can do: whether it can run machines at all, and what its processors offer guests.

mod features;

pub(crate) use features::cpu_model;

use crate::MachineError;
use crate::vcpu::cpuid;
use kvm_bindings::{KVM_CAP_DIRTY_LOG_RING_ACQ_REL, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2};
use kvm_ioctls::{Cap, Kvm};
use std::ffi::c_ulong;
use vmotion_model::{CpuModel, DirtySource};

/// The version of KVM's interface this crate speaks; it has been 12 since 2007.
const API_VERSION: i32 = 12;

/// A host that can run machines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostFacts {
    /// Most vCPUs one machine may have here.
    pub cpus_max: usize,
    /// Does KVM offer dirty rings?
    pub dirty_ring: bool,
    /// What guests can see of the processors.
    pub cpu: CpuModel,
}

/// Asks KVM what this host can do.
///
/// # Errors
/// [`MachineError::Host`] names what is missing and what to do about it.
pub fn probe_host() -> Result<HostFacts, MachineError> {
    let kvm = open_kvm()?;
    check_capabilities(&kvm, DirtySource::Log)?;
    let ring = check_capabilities(&kvm, DirtySource::Ring).is_ok();
    Ok(HostFacts { cpus_max: kvm.get_max_vcpus(), dirty_ring: ring, cpu: cpu_model_of(&kvm)? })
}

/// What guests of this host can see of its processors: vendor, signature, feature names, TSC frequency.
pub(crate) fn cpu_model_of(kvm: &Kvm) -> Result<CpuModel, MachineError> {
    let supported = cpuid::supported(kvm)?;
    let vm = kvm.create_vm().map_err(MachineError::kvm("create a VM"))?;
    let vcpu = vm.create_vcpu(0).map_err(MachineError::kvm("create a vCPU"))?;
    let tsc_khz = vcpu.get_tsc_khz().map_err(MachineError::kvm("tell the TSC frequency"))?;
    Ok(cpu_model(&supported, tsc_khz))
}

fn missing(missing: impl Into<String>, hint: impl Into<String>) -> MachineError {
    MachineError::Host { missing: missing.into(), hint: hint.into() }
}

/// Opens `/dev/kvm`, with a reason an operator can act on when that fails.
pub(crate) fn open_kvm() -> Result<Kvm, MachineError> {
    let kvm = Kvm::new().map_err(|error| match error.errno() {
        libc::ENOENT => missing(
            "/dev/kvm does not exist",
            "load the module (`modprobe kvm_intel`, `kvm_amd` or `kvm_pvm`) and enable virtualisation in the firmware, or nested virtualisation in the cloud instance",
        ),
        libc::EACCES | libc::EPERM => missing(
            "/dev/kvm may not be opened by this user",
            "add the user to the group that owns it (`usermod -aG kvm USER`) and log in again",
        ),
        errno => missing(format!("/dev/kvm cannot be opened: {}", std::io::Error::from_raw_os_error(errno)), "check the kernel log"),
    })?;
    let version = kvm.get_api_version();
    if version != API_VERSION {
        return Err(missing(
            format!("KVM speaks interface version {version}, not {API_VERSION}"),
            "use a stock Linux kernel",
        ));
    }
    Ok(kvm)
}

/// Everything a machine with `source` needs.
pub(crate) fn check_capabilities(kvm: &Kvm, source: DirtySource) -> Result<(), MachineError> {
    let needed = [
        (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
        (Cap::Pit2, "KVM_CAP_PIT2"),
        (Cap::PitState2, "KVM_CAP_PIT_STATE2"),
        (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
        (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
        (Cap::SetIdentityMapAddr, "KVM_CAP_SET_IDENTITY_MAP_ADDR"),
        (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
        (Cap::Irqfd, "KVM_CAP_IRQFD"),
        (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
        (Cap::AdjustClock, "KVM_CAP_ADJUST_CLOCK"),
        (Cap::MpState, "KVM_CAP_MP_STATE"),
        (Cap::VcpuEvents, "KVM_CAP_VCPU_EVENTS"),
        (Cap::Debugregs, "KVM_CAP_DEBUGREGS"),
        (Cap::Xsave, "KVM_CAP_XSAVE"),
        (Cap::Xcrs, "KVM_CAP_XCRS"),
        (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
        (Cap::GetTscKhz, "KVM_CAP_GET_TSC_KHZ"),
    ];
    for (cap, name) in needed {
        if !kvm.check_extension(cap) {
            return Err(missing(format!("its KVM lacks {name}"), "use Linux 5.15 or later"));
        }
    }
    let (number, name, hint) = match source {
        DirtySource::Ring => (
            KVM_CAP_DIRTY_LOG_RING_ACQ_REL,
            "KVM_CAP_DIRTY_LOG_RING_ACQ_REL",
            "use Linux 6.1 or later, or dirty source log",
        ),
        _ => (KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, "KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2", "use Linux 5.15 or later"),
    };
    if kvm.check_extension_raw(c_ulong::from(number)) <= 0 {
        return Err(missing(format!("its KVM lacks {name}"), hint));
    }
    Ok(())
}
