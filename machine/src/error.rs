//! Why a machine could not be built, saved or restored.

use crate::state::StateError;
use std::io;
use std::path::PathBuf;
use vmotion_model::{DirtySource, LayoutError, SpecError};

/// The one error of this crate's boundary.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The host cannot run machines. Says what is missing and what to do.
    #[error("This host cannot run machines: {missing}; {hint}")]
    Host {
        /// What is missing.
        missing: String,
        /// What the operator can do about it.
        hint: String,
    },
    /// The spec is out of range.
    #[error("Machine spec is not valid")]
    Spec(#[from] SpecError),
    /// The memory size has no layout.
    #[error("Memory layout is not valid")]
    Layout(#[from] LayoutError),
    /// Guest memory could not be allocated or mapped.
    #[error("Guest memory could not be set up: {what}")]
    Memory {
        /// Which step.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// No free huge pages.
    #[error(
        "Guest memory needs {needed_pages} huge pages of 2 MiB, the host has {free_pages} free; reserve them with `sysctl vm.nr_hugepages=N`, or use backing memfd"
    )]
    HugePages {
        /// Pages the machine needs.
        needed_pages: u64,
        /// Pages the host has free.
        free_pages: u64,
    },
    /// KVM refused.
    #[error("KVM refused to {action}")]
    Kvm {
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// A file the machine needs could not be used.
    #[error("{role} {path:?} cannot be used")]
    File {
        /// What it is for: `Kernel`, `Initrd`, `Disk`, `Console log`.
        role: &'static str,
        /// Which file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel file is of no kind that boots here, or does not fit.
    #[error("Kernel {path:?} cannot be booted: {reason}")]
    Kernel {
        /// Which file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// Something does not fit the machine's memory.
    #[error("{what} does not fit into the machine's memory")]
    DoesNotFit {
        /// What.
        what: String,
    },
    /// A thread could not be started.
    #[error("Thread could not be started")]
    Thread(#[source] io::Error),
    /// A vCPU did not stop, save or restore in time, or its thread ended.
    #[error("vCPU {vcpu} does not answer")]
    VcpuSilent {
        /// Which.
        vcpu: u8,
    },
    /// A vCPU's model-specific register was refused on restore.
    #[error("vCPU {vcpu} refused MSR {msr:#x} = {value:#x}")]
    Msr {
        /// Which vCPU.
        vcpu: u8,
        /// Register number.
        msr: u32,
        /// Value it was given.
        value: u64,
    },
    /// The saved state is damaged or is not for this machine.
    #[error("Saved state cannot be used")]
    State(#[from] StateError),
    /// A device did not save or restore.
    #[error("Device {device} failed: {reason}")]
    Device {
        /// Which.
        device: String,
        /// Why.
        reason: String,
    },
    /// The call does not fit what the machine is doing.
    #[error("Machine is {state}, which does not allow to {action}")]
    WrongState {
        /// What it does now.
        state: &'static str,
        /// What was asked.
        action: &'static str,
    },
    /// A machine whose parts are on several hosts cannot have this.
    #[error("A machine on several hosts cannot have {what} {value}: {hint}")]
    NotPartible {
        /// Which field of its spec.
        what: &'static str,
        /// Its value.
        value: &'static str,
        /// What to do.
        hint: &'static str,
    },
    /// A vCPU is not where it was looked for.
    #[error("vCPU {vcpu} is {place}, which does not allow to {action}")]
    WrongVcpu {
        /// Which.
        vcpu: u8,
        /// Where it is.
        place: &'static str,
        /// What was asked.
        action: &'static str,
    },
    /// A vCPU that comes would see another time.
    #[error(
        "vCPU {vcpu} cannot keep its time: KVM on this host does not keep TSC offsets (kvm-pvm), and its TSC would be {apart_ms} ms off"
    )]
    HostTsc {
        /// Which.
        vcpu: u8,
        /// By how much its TSC would be wrong, in milliseconds.
        apart_ms: u64,
    },
    /// The machine was created for another dirty-tracking source.
    #[error("Dirty tracking by {asked:?} is not possible, the machine was created with {created:?}")]
    DirtySource {
        /// What was asked for.
        asked: DirtySource,
        /// What the machine was created with.
        created: DirtySource,
    },
}

impl MachineError {
    pub(crate) fn kvm(action: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        move |error| Self::Kvm { action, source: io::Error::from_raw_os_error(error.errno()) }
    }

    pub(crate) fn sys(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Kvm { action, source }
    }

    pub(crate) fn memory(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Memory { what, source }
    }
}
