//! The machine: its parts put together, and its life from boot or prepare to stop.

mod build;
mod parts;
mod pause;
mod snapshot;

pub use parts::{Arrived, Released};
pub use pause::{Frozen, PauseGuard};

use crate::boot::MmioPlace;
use crate::console::{Console, Flusher};
use crate::devices::Device;
use crate::interrupts::Driver;
use crate::memory::{Filling, GuestRam};
use crate::vcpu::{RunContext, Throttle, Vcpu};
use crate::vm::Vm;
use crate::{ConsoleHandle, MachineConfig, MachineError};
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use vmotion_dirty_tracking::{DirtyBackend, DirtyTracker, LogTracker, RingCollector, RingTracker};
use vmotion_model::{CpuModel, DirtySource, MachineSpec};

/// Why a machine's guest ended. What to do about it is for the process above to decide.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum ExitReason {
    /// The guest asked to be powered off.
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// The guest's processor shut down: an exception while handling an exception while handling one.
    TripleFault,
    /// KVM or this program could not go on.
    InternalError {
        /// What happened, for people.
        text: String,
    },
}

impl std::fmt::Display for ExitReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::PowerOff => f.write_str("guest powered off"),
            Self::Reset => f.write_str("guest asked for a reset"),
            Self::TripleFault => f.write_str("guest triple-faulted"),
            Self::InternalError { text } => f.write_str(text),
        }
    }
}

/// What a machine does now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Built, nothing in it: may be filled and restored.
    Prepared,
    /// Booted or restored, not running yet.
    Ready,
    Running,
    /// A [`PauseGuard`] exists.
    Paused,
    /// A [`Frozen`] exists or was dropped: only thawing brings it back.
    Frozen,
    Stopped,
}

impl Phase {
    const fn name(self) -> &'static str {
        match self {
            Self::Prepared => "empty",
            Self::Ready => "not started",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Frozen => "frozen",
            Self::Stopped => "stopped",
        }
    }
}

/// A virtual machine in this process. Dropping it stops it.
#[derive(Debug)]
pub struct Machine {
    inner: Arc<Inner>,
}

/// Shared by the machine and its guards; fields drop in this order: vCPUs and devices before the VM, the console last.
pub(crate) struct Inner {
    phase: Mutex<Phase>,
    /// How many [`Filling`]s live.
    fillers: Arc<AtomicUsize>,
    vcpus: Mutex<Vec<Vcpu>>,
    context: Arc<RunContext>,
    devices: Vec<Arc<dyn Device>>,
    /// Where the virtio devices are, for the command line.
    places: Vec<MmioPlace>,
    rings: Option<Arc<RingCollector>>,
    vm: Arc<Vm>,
    ram: Arc<GuestRam>,
    console: Arc<Console>,
    console_handle: ConsoleHandle,
    flusher: Mutex<Option<Flusher>>,
    /// Where they are not KVM's: has a thread that stops with the machine.
    interrupts: Option<Arc<Driver>>,
    spec: MachineSpec,
    /// The machine has other parts.
    is_part: bool,
    cpu: CpuModel,
    host_tsc_khz: u32,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Machine").field("name", &self.spec.name).field("phase", &*self.phase()).finish_non_exhaustive()
    }
}

impl Inner {
    fn phase(&self) -> MutexGuard<'_, Phase> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn vcpus(&self) -> MutexGuard<'_, Vec<Vcpu>> {
        self.vcpus.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets devices and vCPUs run. `phase` is held by the caller, so nobody pauses or stops meanwhile.
    fn run(&self, phase: &mut Phase, action: &'static str) -> Result<(), MachineError> {
        let fillers = self.fillers.load(Ordering::SeqCst);
        if fillers > 0 {
            return Err(MachineError::WrongState { state: "being filled", action });
        }
        if self.context.exits.reason().is_some() {
            return Err(MachineError::WrongState { state: "ended by its guest", action });
        }
        self.devices.iter().for_each(|device| device.resume());
        self.context.parked.start(&self.vcpus());
        *phase = Phase::Running;
        Ok(())
    }

    fn settle(&self) -> Result<(), MachineError> {
        self.devices.iter().try_for_each(|device| device.settle())
    }

    /// Takes all vCPUs out of the guest, in parallel. When one does not come, all go on.
    fn park_vcpus(&self) -> Result<(), MachineError> {
        let vcpus = self.vcpus();
        let kick = || vcpus.iter().for_each(|vcpu| vcpu.shared().request_stop());
        kick();
        if self.context.parked.wait(kick) {
            return Ok(());
        }
        let silent = vcpus.iter().zip(0u8..).find(|(vcpu, _)| !vcpu.shared().is_parked());
        let silent = silent.map_or(0, |(_, id)| id);
        self.context.parked.start(&vcpus);
        Err(MachineError::VcpuSilent { vcpu: silent })
    }

    fn stop(&self) {
        *self.phase() = Phase::Stopped;
        let mut vcpus = self.vcpus();
        vcpus.iter().for_each(Vcpu::end);
        vcpus.iter_mut().for_each(Vcpu::join);
        vcpus.clear();
        drop(vcpus);
        self.devices.iter().for_each(|device| device.quiesce());
        self.interrupts.iter().for_each(|interrupts| interrupts.stop());
        drop(self.flusher.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Machine {
    /// Builds the machine and loads its kernel. Nothing runs until [`Self::resume`].
    ///
    /// # Errors
    /// [`MachineError`] says what is wrong with the host, the spec or a file; nothing is left behind.
    pub fn boot(config: &MachineConfig) -> Result<Self, MachineError> {
        let machine = Self::prepare(config)?;
        machine.load()?;
        Ok(machine)
    }

    /// Loads the kernel into a machine that was built without contents. Nothing runs until [`Self::resume`].
    ///
    /// # Errors
    /// [`MachineError::WrongState`] when it has contents; others say what is wrong with a file.
    pub fn load(&self) -> Result<(), MachineError> {
        let mut phase = self.inner.phase();
        if *phase != Phase::Prepared {
            return Err(MachineError::WrongState { state: phase.name(), action: "load a kernel" });
        }
        self.inner.ram.decline_huge_pages();
        build::load(&self.inner)?;
        *phase = Phase::Ready;
        Ok(())
    }

    /// Builds the machine without contents, as the target of a move or a restore: vCPU threads are parked, devices
    /// exist, so that a restore only has to set registers.
    ///
    /// # Errors
    /// [`MachineError`] says what is wrong with the host, the spec or a file; nothing is left behind.
    pub fn prepare(config: &MachineConfig) -> Result<Self, MachineError> {
        Ok(Self { inner: Arc::new(build::build(config)?) })
    }

    /// Slows down those of the vCPUs that write, by `percent`, until what is returned is dropped.
    ///
    /// # Errors
    /// [`MachineError::Thread`] when the host starts no more threads.
    pub fn throttle(&self, percent: u8) -> Result<Throttle, MachineError> {
        let vcpus = self.inner.vcpus().iter().map(|vcpu| Arc::clone(vcpu.shared())).collect();
        Throttle::start(vcpus, self.inner.rings.clone(), percent).map_err(MachineError::Thread)
    }

    /// Takes over a saved state. The caller has put, or will put before [`Self::resume`], the memory in place.
    ///
    /// # Errors
    /// [`MachineError::State`] when the state is damaged or of another machine; nothing was applied then. Any other
    /// error leaves the machine unusable.
    pub fn restore(&self, state: &[u8]) -> Result<(), MachineError> {
        let mut phase = self.inner.phase();
        if *phase != Phase::Prepared {
            return Err(MachineError::WrongState { state: phase.name(), action: "restore" });
        }
        self.inner.restore(state)?;
        *phase = Phase::Ready;
        Ok(())
    }

    /// Starts the booted or restored machine.
    ///
    /// # Errors
    /// [`MachineError::WrongState`] when it is not ready: never loaded, running already, paused by a guard (which
    /// resumes it), or while a [`Filling`] lives.
    pub fn resume(&self) -> Result<(), MachineError> {
        let mut phase = self.inner.phase();
        if *phase != Phase::Ready {
            return Err(MachineError::WrongState { state: phase.name(), action: "resume" });
        }
        self.inner.run(&mut phase, "resume")
    }

    /// Stops all vCPUs (in parallel) and devices. The guard's drop resumes them.
    ///
    /// # Errors
    /// [`MachineError::WrongState`] when it does not run; [`MachineError::VcpuSilent`] when a vCPU does not stop.
    pub fn pause(&self) -> Result<PauseGuard, MachineError> {
        PauseGuard::new(Arc::clone(&self.inner))
    }

    /// Brings what the guest has written to its disks to stable storage, while it runs. Called shortly before a pause, it
    /// leaves less of that to [`PauseGuard::settle`].
    ///
    /// # Errors
    /// [`MachineError::Device`] names the disk that failed.
    pub fn settle(&self) -> Result<(), MachineError> {
        self.inner.settle()
    }

    /// The machine's memory.
    #[must_use]
    pub fn memory(&self) -> &Arc<GuestRam> {
        &self.inner.ram
    }

    /// Permission to write memory in place, on a machine that never ran; it cannot be resumed while it lives.
    ///
    /// # Errors
    /// [`MachineError::WrongState`] when it has run.
    pub fn fill(&self) -> Result<Filling, MachineError> {
        let phase = self.inner.phase();
        match *phase {
            Phase::Prepared | Phase::Ready => {
                Ok(Filling::new(Arc::clone(&self.inner.ram), Arc::clone(&self.inner.fillers)))
            }
            other => Err(MachineError::WrongState { state: other.name(), action: "fill its memory" }),
        }
    }

    /// A dirty tracker, not started. `source` must be [`DirtySource::Auto`] or what the machine was created with
    /// ([`Self::dirty_source`]): KVM decides that at creation.
    ///
    /// # Errors
    /// [`MachineError::DirtySource`] for another source.
    pub fn dirty_tracker(&self, source: DirtySource) -> Result<Box<dyn DirtyTracker>, MachineError> {
        let created = self.inner.vm.source();
        if source != DirtySource::Auto && source != created {
            return Err(MachineError::DirtySource { asked: source, created });
        }
        let backend: Arc<dyn DirtyBackend> = Arc::clone(&self.inner.vm) as _;
        Ok(match &self.inner.rings {
            Some(rings) => Box::new(RingTracker::new(backend, Arc::clone(rings))),
            None => Box::new(LogTracker::new(backend)),
        })
    }

    /// Log or ring: what the machine was created with.
    #[must_use]
    pub fn dirty_source(&self) -> DirtySource {
        self.inner.vm.source()
    }

    /// The console.
    #[must_use]
    pub fn console(&self) -> ConsoleHandle {
        self.inner.console_handle.clone()
    }

    /// What the machine was made from.
    #[must_use]
    pub fn spec(&self) -> &MachineSpec {
        &self.inner.spec
    }

    /// What its guest can see of the processors: a target must not miss any of it.
    #[must_use]
    pub fn cpu_model(&self) -> &CpuModel {
        &self.inner.cpu
    }

    /// Waits until the guest has ended; `None` when `within` passes first. The machine then stands still.
    #[must_use]
    pub fn wait_exit(&self, within: Duration) -> Option<ExitReason> {
        self.inner.context.exits.wait(within)
    }

    /// Calls `notify` once when the guest ends, from the thread it ended on; at once when it has already. It must
    /// not block, and not stop or drop the machine.
    pub fn on_exit(&self, notify: impl Fn(&ExitReason) + Send + Sync + 'static) {
        self.inner.context.exits.on_exit(Box::new(notify));
    }

    /// Ends all threads. The machine cannot be used any more. May be called again.
    pub fn stop(&self) {
        self.inner.stop();
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.inner.stop();
    }
}
