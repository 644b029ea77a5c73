//! The vCPU thread: enters the guest, answers its exits, and stops cleanly when asked.

use super::exits::Exits;
use super::interrupts::Turn;
use super::state::{VcpuState, boot, restore, save};
use super::time::{Advance, follow};
use super::{Command, Vcpu, VcpuParts};
use crate::MachineError;
use crate::bus::Buses;
use crate::devices::ShutdownSink;
use crate::machine::ExitReason;
use crate::part::Space;
use kvm_bindings::KVM_EXIT_DIRTY_RING_FULL;
use kvm_ioctls::{VcpuExit, VcpuFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::Thread;
use std::time::{Duration, Instant};
use vmotion_dirty_tracking::RingCollector;
use vmotion_sys::kvm::ImmediateExit;
use vmotion_sys::signal::KickTarget;

/// How long to wait for vCPUs to park before kicking them again, in milliseconds. A kick is never lost by design; this
/// is the belt to those braces.
const KICK_AGAIN_MS: u64 = 20;
/// Longest a vCPU may take to leave the guest, in seconds.
const PARK_S_MAX: u64 = 10;

/// A nap looks for a stop this often, in milliseconds: a pause must not wait for it.
const NAP_SLICE_MS: u64 = 1;

/// How other threads stop a vCPU.
#[derive(Debug)]
pub(crate) struct VcpuShared {
    stop: AtomicBool,
    /// Changed only under the lock of [`ParkedCount`].
    parked: AtomicBool,
    /// It belongs to this part of the machine; else it stays parked. Changed only while it is parked.
    here: AtomicBool,
    immediate_exit: ImmediateExit,
    thread: OnceLock<KickTarget>,
    /// How long to stay out of the guest once, in microseconds.
    nap_us: AtomicU32,
    /// Where the interrupt controllers are in user space: a halted vCPU sleeps in its thread.
    sleeper: Option<Sleeper>,
}

/// A vCPU thread that may sleep outside of KVM.
#[derive(Debug, Default)]
struct Sleeper {
    thread: OnceLock<Thread>,
    asleep: AtomicBool,
    /// Somebody wants it to look at everything again. Cleared by the thread before it looks.
    kicked: AtomicBool,
}

impl VcpuShared {
    pub(super) fn new(fd: &VcpuFd, may_sleep: bool, here: bool) -> Result<Self, MachineError> {
        let immediate_exit = ImmediateExit::map(fd).map_err(MachineError::sys("map a vCPU"))?;
        Ok(Self {
            stop: AtomicBool::new(true),
            parked: AtomicBool::new(true),
            here: AtomicBool::new(here),
            immediate_exit,
            thread: OnceLock::new(),
            nap_us: AtomicU32::new(0),
            sleeper: may_sleep.then(Sleeper::default),
        })
    }

    /// Its thread's number, from when that has begun.
    pub(crate) fn thread(&self) -> Option<u32> {
        self.thread.get().map(|thread| thread.thread())
    }

    /// Makes the vCPU leave the guest and park. The flag first: a thread that is between exits sees it; one that is
    /// about to enter returns at once; one that is inside is kicked out by the signal.
    pub(crate) fn request_stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
        self.kick();
    }

    /// Makes the vCPU leave the guest, or its sleep, and look at everything again.
    pub(crate) fn kick(&self) {
        if let Some(sleeper) = &self.sleeper {
            // Before the look at `asleep`: a thread that is about to sleep says so first and then looks at this.
            sleeper.kicked.store(true, Ordering::SeqCst);
            if sleeper.asleep.load(Ordering::SeqCst) {
                sleeper.thread.get().into_iter().for_each(Thread::unpark);
                return;
            }
        }
        self.immediate_exit.set(true);
        if let Some(thread) = self.thread.get() {
            thread.kick();
        }
    }

    /// Before looking at what has arrived: whoever comes from now on keeps the vCPU out of the guest and awake.
    fn look(&self) {
        if let Some(sleeper) = &self.sleeper {
            sleeper.kicked.store(false, Ordering::SeqCst);
            self.immediate_exit.set(false);
        }
    }

    /// Sleeps until kicked since the last look, or at most so long. May return at any time.
    pub(super) fn sleep(&self, at_most: Option<Duration>) {
        let Some(sleeper) = &self.sleeper else { return };
        sleeper.asleep.store(true, Ordering::SeqCst);
        if !sleeper.kicked.load(Ordering::SeqCst) {
            match at_most {
                Some(time) => std::thread::park_timeout(time),
                None => std::thread::park(),
            }
        }
        sleeper.asleep.store(false, Ordering::SeqCst);
    }

    /// The guest's CR8 at the last exit, where its interrupt controller is in user space.
    pub(super) fn cr8(&self) -> u8 {
        self.immediate_exit.cr8()
    }

    /// Makes the vCPU leave the guest and stay out for `time` once. A stop ends the nap.
    pub(super) fn nap(&self, time: Duration) {
        self.nap_us.store(u32::try_from(time.as_micros()).unwrap_or(u32::MAX), Ordering::SeqCst);
        self.kick();
    }

    /// Takes the nap that was asked for, if any.
    fn take_nap(&self) {
        let us = self.nap_us.swap(0, Ordering::SeqCst);
        if us == 0 {
            return;
        }
        // Before the next look at `stop`: a stop that comes later sets it again.
        self.immediate_exit.set(false);
        let until = Instant::now() + Duration::from_micros(u64::from(us));
        while !self.stop.load(Ordering::SeqCst) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            std::thread::sleep(left.min(Duration::from_millis(NAP_SLICE_MS)));
        }
    }

    /// Is it parked, with nothing left to finish?
    pub(crate) fn is_parked(&self) -> bool {
        self.parked.load(Ordering::SeqCst)
    }

    /// Does it belong to this part of the machine?
    pub(crate) fn is_here(&self) -> bool {
        self.here.load(Ordering::SeqCst)
    }

    /// It leaves this part of the machine or comes to it, while it is parked.
    pub(crate) fn set_here(&self, here: bool) {
        self.here.store(here, Ordering::SeqCst);
    }

    /// Allows the vCPU to run.
    fn allow_run(&self) {
        // A vCPU that takes interrupts by itself clears it by itself: it may have been set for one.
        if self.sleeper.is_none() {
            self.immediate_exit.set(false);
        }
        self.stop.store(false, Ordering::SeqCst);
    }
}

/// How many vCPUs are in or on their way into the guest.
///
/// Parking, and taking back a stop, happen under one lock: a vCPU either parks before a stop is taken back and is started
/// again, or sees that there is no stop any more and goes on.
#[derive(Debug, Default)]
pub(crate) struct ParkedCount {
    running: Mutex<usize>,
    parked: Condvar,
}

impl ParkedCount {
    fn lock(&self) -> MutexGuard<'_, usize> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts all parked `vcpus` that may not be parked any longer, and takes back the stop of those that are not.
    pub(crate) fn start(&self, vcpus: &[Vcpu]) {
        let mut running = self.lock();
        // All before the first runs: it may stop them all at once.
        let here = || vcpus.iter().filter(|vcpu| vcpu.shared().is_here());
        here().for_each(|vcpu| vcpu.shared().allow_run());
        for vcpu in here() {
            // Not parked: still in the guest from before a stop that was taken back. Gone: its thread has ended.
            if vcpu.shared().is_parked() && vcpu.send(Command::Run) {
                vcpu.shared().parked.store(false, Ordering::SeqCst);
                *running += 1;
            }
        }
    }

    /// Parks the vCPU, unless its stop was taken back; whether it did.
    fn park(&self, vcpu: &VcpuShared) -> bool {
        let mut running = self.lock();
        if !vcpu.stop.load(Ordering::SeqCst) {
            return false;
        }
        vcpu.parked.store(true, Ordering::SeqCst);
        *running = running.saturating_sub(1);
        self.parked.notify_all();
        true
    }

    /// Waits until all are parked, calling `kick` now and then; false when they take too long.
    pub(crate) fn wait(&self, kick: impl FnMut()) -> bool {
        self.wait_until(|running| running == 0, kick)
    }

    /// Waits until `vcpu` is parked, calling `kick` now and then; false when it takes too long.
    pub(crate) fn wait_for(&self, vcpu: &VcpuShared, kick: impl FnMut()) -> bool {
        self.wait_until(|_| vcpu.is_parked(), kick)
    }

    fn wait_until(&self, is_done: impl Fn(usize) -> bool, mut kick: impl FnMut()) -> bool {
        let deadline = Instant::now() + Duration::from_secs(PARK_S_MAX);
        let mut running = self.lock();
        while !is_done(*running) {
            let again = Duration::from_millis(KICK_AGAIN_MS);
            let (guard, waited) = self.parked.wait_timeout(running, again).unwrap_or_else(PoisonError::into_inner);
            running = guard;
            if waited.timed_out() && !is_done(*running) {
                if Instant::now() > deadline {
                    return false;
                }
                kick();
            }
        }
        true
    }
}

/// What all vCPUs of a machine share.
pub(crate) struct RunContext {
    pub(crate) buses: Buses,
    pub(crate) exits: Arc<Exits>,
    pub(crate) parked: ParkedCount,
    /// Of a machine with parts on several hosts; else it stays 0.
    pub(crate) advance: Advance,
    /// Where the machine has dirty rings: who empties a full one. Set once the rings of all vCPUs are mapped.
    pub(crate) rings: OnceLock<Arc<RingCollector>>,
}

pub(super) struct VcpuThread {
    parts: VcpuParts,
    shared: Arc<VcpuShared>,
    /// How much of [`Advance`] is in its TSC offset.
    advanced: u64,
}

/// What an exit means for the thread.
enum Next {
    Enter,
    Interrupted,
    Ended(ExitReason),
}

impl VcpuThread {
    pub(super) const fn new(parts: VcpuParts, shared: Arc<VcpuShared>) -> Self {
        Self { parts, shared, advanced: 0 }
    }

    /// Serves commands until told to end, or until the machine is gone.
    pub(super) fn serve(&mut self, commands: &Receiver<Command>) {
        // Nobody else sets it.
        let _ = self.shared.thread.set(KickTarget::current());
        if let Some(sleeper) = &self.shared.sleeper {
            let _ = sleeper.thread.set(std::thread::current());
        }
        while let Ok(command) = commands.recv() {
            // An asker that does not wait for its answer any more has given up on this machine.
            match command {
                Command::Run => self.run(),
                Command::Boot(entry, answer) => drop(answer.send(boot(&self.parts.fd, entry))),
                Command::Save(answer) => drop(answer.send(save(&mut self.parts, &self.shared))),
                Command::Release(answer) => drop(answer.send(self.release())),
                Command::Restore(state, shift, answer) => {
                    self.advanced = self.parts.context.advance.total();
                    drop(answer.send(restore(&mut self.parts, *state, &shift.advanced(self.advanced))));
                }
                Command::End => return,
            }
        }
    }

    fn release(&mut self) -> Result<(VcpuState, u64), MachineError> {
        follow(&self.parts.fd, self.parts.context.advance.total(), &mut self.advanced)?;
        Ok((save(&mut self.parts, &self.shared)?, self.advanced))
    }

    fn run(&mut self) {
        loop {
            if let Some(reason) = self.run_until_stopped() {
                self.parts.context.exits.shut_down(reason);
            }
            if self.parts.context.parked.park(&self.shared) {
                return;
            }
        }
    }

    fn run_until_stopped(&mut self) -> Option<ExitReason> {
        loop {
            self.shared.look();
            self.shared.take_nap();
            if self.shared.stop.load(Ordering::SeqCst) {
                return self.finish_io();
            }
            let total = self.parts.context.advance.total();
            if let Err(error) = follow(&self.parts.fd, total, &mut self.advanced) {
                return Some(internal_reason(self.parts.id, &error_text(&error)));
            }
            match self.take_turn() {
                Ok(Turn::Enter) => {}
                Ok(Turn::Slept | Turn::Restart) => continue,
                Err(reason) => return Some(reason),
            }
            match self.enter() {
                Next::Enter | Next::Interrupted => {}
                Next::Ended(reason) => return Some(reason),
            }
        }
    }

    /// What the vCPU does before it enters the guest, where its interrupt controller is in user space.
    fn take_turn(&mut self) -> Result<Turn, ExitReason> {
        let failed = |id, error| internal_reason(id, &error_text(&error));
        let VcpuParts { id, fd, user, .. } = &mut self.parts;
        let Some(user) = user else { return Ok(Turn::Enter) };
        let turn = user.prepare(fd, &self.shared).map_err(|error| failed(*id, error))?;
        if turn == Turn::Restart {
            // Else KVM would finish it with the registers of the processor that starts again.
            if let Some(reason) = self.finish_io() {
                return Err(reason);
            }
            let VcpuParts { id, fd, user, .. } = &mut self.parts;
            user.as_mut().map_or(Ok(()), |user| user.restart(fd)).map_err(|error| failed(*id, error))?;
        }
        Ok(turn)
    }

    /// Lets KVM finish the I/O of the last exit, which happens when the guest is entered next: enters it with the
    /// immediate-exit flag, until KVM says that it would enter now.
    fn finish_io(&mut self) -> Option<ExitReason> {
        loop {
            // Every time: taking back a stop clears the flag, which only means that the guest runs a little on.
            self.shared.immediate_exit.set(true);
            match self.enter() {
                Next::Enter => {}
                Next::Interrupted => break,
                Next::Ended(reason) => return Some(reason),
            }
        }
        if !self.shared.stop.load(Ordering::SeqCst) {
            self.shared.immediate_exit.set(false);
        }
        None
    }

    fn enter(&mut self) -> Next {
        let VcpuParts { id, fd, context, user, .. } = &mut self.parts;
        match fd.run() {
            Ok(VcpuExit::IoOut(port, data)) => context.buses.write(*id, Space::Ports, u64::from(port), data),
            Ok(VcpuExit::IoIn(port, data)) => context.buses.read(*id, Space::Ports, u64::from(port), data),
            Ok(VcpuExit::MmioWrite(address, data)) => {
                if !user.as_mut().is_some_and(|user| user.write(self.shared.cr8(), address, data)) {
                    context.buses.write(*id, Space::Memory, address, data);
                }
            }
            Ok(VcpuExit::MmioRead(address, data)) => {
                if !user.as_mut().is_some_and(|user| user.read(self.shared.cr8(), address, data)) {
                    context.buses.read(*id, Space::Memory, address, data);
                }
            }
            Ok(VcpuExit::Unsupported(KVM_EXIT_DIRTY_RING_FULL)) => {
                if let Some(rings) = context.rings.get()
                    && let Err(error) = rings.reap()
                {
                    return internal(*id, &format!("its full dirty ring cannot be emptied: {error}"));
                }
            }
            Ok(VcpuExit::Shutdown) => return Next::Ended(ExitReason::TripleFault),
            Ok(VcpuExit::Hlt) => {
                if let Some(user) = user {
                    user.halt(fd);
                }
            }
            Ok(VcpuExit::Intr | VcpuExit::IrqWindowOpen | VcpuExit::SetTpr) => {}
            Ok(VcpuExit::InternalError) => return self.internal_error(),
            Ok(VcpuExit::FailEntry(reason, cpu)) => {
                return internal(*id, &format!("the processor refused to enter the guest: {reason:#x} on CPU {cpu}"));
            }
            Ok(other) => return internal(*id, &format!("unexpected exit {other:?}")),
            Err(error) if error.errno() == libc::EINTR => return Next::Interrupted,
            // EAGAIN: a processor that waits for INIT was woken.
            Err(error) if error.errno() == libc::EAGAIN => {}
            Err(error) => return internal(*id, &format!("KVM_RUN failed: {error}")),
        }
        Next::Enter
    }

    fn internal_error(&mut self) -> Next {
        let registers = self.parts.fd.get_regs().map(|regs| format!("rip {:#x}, rsp {:#x}", regs.rip, regs.rsp));
        let run = self.parts.fd.get_kvm_run();
        // SAFETY: KVM_EXIT_INTERNAL_ERROR fills this member of the union; every bit pattern of it is valid.
        let detail = unsafe { run.__bindgen_anon_1.internal };
        let count = usize::try_from(detail.ndata).unwrap_or(0).min(detail.data.len());
        let text = format!(
            "KVM internal error {} {:x?} at {}",
            detail.suberror,
            &detail.data[..count],
            registers.unwrap_or_else(|error| error.to_string())
        );
        internal(self.parts.id, &text)
    }
}

fn internal(vcpu: u8, text: &str) -> Next {
    Next::Ended(internal_reason(vcpu, text))
}

fn internal_reason(vcpu: u8, text: &str) -> ExitReason {
    ExitReason::InternalError { text: format!("vCPU {vcpu}: {text}") }
}

/// The error with what it comes from.
fn error_text(error: &MachineError) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}
