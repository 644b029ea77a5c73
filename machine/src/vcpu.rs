//! vCPUs: one thread each, which owns the KVM fd and does everything with it, running, saving and restoring.
//!
//! ```text
//!   machine ── Command ──► thread: parked ── Run ──► in the guest ── stop flag, or the guest is done ──► parked
//! ```
//!
//! Invariant: a thread that is parked has finished the I/O of its last exit, so its registers may be saved.

pub(crate) mod cpuid;
mod exits;
mod interrupts;
mod msrs;
mod run;
mod state;
mod throttle;
mod time;

pub(crate) use exits::Exits;
pub(crate) use interrupts::UserSide;
pub(crate) use msrs::MsrPlan;
pub(crate) use run::{ParkedCount, RunContext, VcpuShared};
pub(crate) use state::VcpuState;
pub use throttle::Throttle;
pub(crate) use time::Advance;

use crate::MachineError;
use crate::clock::TscShift;
use kvm_ioctls::VcpuFd;
use run::VcpuThread;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;
use vmotion_sys::kvm::XsaveArea;

/// Longest a vCPU may take to save or restore, in seconds; far beyond what any needs.
const ANSWER_S_MAX: u64 = 10;
/// Commands a vCPU thread may have waiting.
const COMMANDS_MAX: usize = 4;

/// Where a new machine begins to execute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BootEntry {
    /// 32-bit protected mode without paging; `start_info` in `ebx`.
    Pvh { entry: u64, start_info: u64 },
    /// 64-bit mode with identity-mapped page tables; the zero page in `rsi`.
    Linux64 { entry: u64, zero_page: u64, page_tables: u64, gdt: u64 },
}

/// What a vCPU thread is told.
pub(crate) enum Command {
    /// Run until told to stop through [`VcpuShared`].
    Run,
    Boot(BootEntry, SyncSender<Result<(), MachineError>>),
    Save(SyncSender<Result<VcpuState, MachineError>>),
    /// Save it for another part: with how much of [`Advance`] is in its TSC.
    Release(SyncSender<Result<(VcpuState, u64), MachineError>>),
    Restore(Box<VcpuState>, TscShift, SyncSender<Result<(), MachineError>>),
    End,
}

/// The machine's end of a vCPU.
pub(crate) struct Vcpu {
    shared: Arc<VcpuShared>,
    commands: SyncSender<Command>,
    thread: Option<JoinHandle<()>>,
}

/// What a vCPU thread is made of.
pub(crate) struct VcpuParts {
    pub(crate) id: u8,
    pub(crate) fd: VcpuFd,
    pub(crate) msrs: Arc<MsrPlan>,
    pub(crate) xsave: XsaveArea,
    pub(crate) context: Arc<RunContext>,
    /// Where the interrupt controllers are not KVM's.
    pub(crate) user: Option<UserSide>,
    /// It belongs to this part of the machine.
    pub(crate) here: bool,
}

impl Vcpu {
    /// Starts the thread, parked.
    pub(crate) fn start(parts: VcpuParts) -> Result<Self, MachineError> {
        let id = parts.id;
        let shared = Arc::new(VcpuShared::new(&parts.fd, parts.user.is_some(), parts.here)?);
        let (commands, receiver) = sync_channel(COMMANDS_MAX);
        let mut thread = VcpuThread::new(parts, Arc::clone(&shared));
        let body = move || thread.serve(&receiver);
        let thread = std::thread::Builder::new().name(format!("vcpu{id}")).spawn(body).map_err(MachineError::Thread)?;
        Ok(Self { shared, commands, thread: Some(thread) })
    }

    pub(crate) const fn shared(&self) -> &Arc<VcpuShared> {
        &self.shared
    }

    /// Hands over a command; false when the thread is gone.
    pub(crate) fn send(&self, command: Command) -> bool {
        self.commands.send(command).is_ok()
    }

    /// Makes the thread stop running and end; [`Self::join`] waits for it.
    pub(crate) fn end(&self) {
        self.shared.request_stop();
        // A thread that is gone has ended already.
        let _ = self.commands.send(Command::End);
    }

    pub(crate) fn join(&mut self) {
        if let Some(thread) = self.thread.take() {
            // A vCPU thread that panicked has printed why; the machine is being torn down.
            let _ = thread.join();
        }
    }
}

/// Asks every vCPU at once, then collects the answers: they work in parallel.
pub(crate) fn ask_all<T>(
    vcpus: &[Vcpu],
    mut command: impl FnMut(usize, SyncSender<Result<T, MachineError>>) -> Command,
) -> Result<Vec<T>, MachineError> {
    let silent = |index: usize| MachineError::VcpuSilent { vcpu: u8::try_from(index).unwrap_or(u8::MAX) };
    let mut answers: Vec<Receiver<Result<T, MachineError>>> = Vec::with_capacity(vcpus.len());
    for (index, vcpu) in vcpus.iter().enumerate() {
        let (answer, answered) = sync_channel(1);
        if !vcpu.send(command(index, answer)) {
            return Err(silent(index));
        }
        answers.push(answered);
    }
    let wait = Duration::from_secs(ANSWER_S_MAX);
    let collect = |(index, answer): (usize, Receiver<_>)| answer.recv_timeout(wait).map_err(|_| silent(index))?;
    answers.into_iter().enumerate().map(collect).collect()
}
