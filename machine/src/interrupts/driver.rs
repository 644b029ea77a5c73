//! The thread of a machine's interrupt controllers: waits for devices, for timers of vCPUs that are in the guest, and for the PIT.
//!
//! A vCPU that is halted waits for its own timer.

use super::{Pit, UserInterrupts, lock};
use crate::{MachineError, Part};
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime, timerfd_create,
    timerfd_settime,
};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

/// What the epoll calls the fds that are no lines.
const NO_LINE: u64 = u64::MAX;
/// Most fds that one wait tells of.
const EVENTS: usize = 8;
/// Nothing is due.
const NEVER: u64 = u64::MAX;
const NS_PER_S: u64 = 1_000_000_000;

/// The clock of APIC timers.
pub(crate) fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    // It counts from the start of the host: neither is negative.
    let part = |value: i64| u64::try_from(value).unwrap_or(0);
    part(now.tv_sec) * NS_PER_S + part(now.tv_nsec)
}

/// The PIT's line.
const PIT_LINE: usize = 0;

/// The PIT, which stands still with its machine.
#[derive(Default)]
struct Clockwork {
    pit: Pit,
    runs: bool,
}

/// When the timers of vCPUs in the guest are due, in ns, and behind them the PIT's.
struct Timers {
    due: Vec<u64>,
    /// When the alarm goes off. Not later than the earliest above.
    armed: u64,
}

/// A machine's interrupt controllers, and what drives them.
pub(crate) struct Driver {
    controller: UserInterrupts,
    lines: Mutex<Vec<(EventFd, usize)>>,
    timers: Mutex<Timers>,
    clockwork: Mutex<Clockwork>,
    alarm: OwnedFd,
    end: EventFd,
    epoll: Epoll,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Driver {
    /// For a machine with `cpus` vCPUs, or a part of it, after power-up.
    pub(crate) fn new(cpus: u8, part: Option<&Part>) -> Result<Arc<Self>, MachineError> {
        let alarm = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK);
        let alarm = alarm.map_err(|error| MachineError::sys("create a timer")(error.into()))?;
        let end = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC);
        let driver = Self {
            controller: UserInterrupts::new(cpus, part),
            lines: Mutex::default(),
            timers: Mutex::new(Timers { due: vec![NEVER; usize::from(cpus) + 1], armed: NEVER }),
            clockwork: Mutex::default(),
            alarm,
            end: end.map_err(MachineError::sys("create an eventfd"))?,
            epoll: Epoll::new().map_err(MachineError::sys("create an epoll"))?,
            thread: Mutex::default(),
        };
        driver.watch(&driver.alarm, NO_LINE)?;
        driver.watch(&driver.end, NO_LINE)?;
        Ok(Arc::new(driver))
    }

    /// Starts the thread. [`Self::stop`] must be called then, which nothing else does: the thread has the driver.
    pub(crate) fn start(self: &Arc<Self>) -> Result<(), MachineError> {
        let driver = Arc::clone(self);
        let thread = std::thread::Builder::new().name("interrupts".to_owned()).spawn(move || driver.serve());
        *lock(&self.thread) = Some(thread.map_err(MachineError::Thread)?);
        Ok(())
    }

    pub(crate) const fn controller(&self) -> &UserInterrupts {
        &self.controller
    }

    /// An eventfd whose writes raise `pin`.
    pub(crate) fn line(&self, pin: u32) -> Result<EventFd, MachineError> {
        let event = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC);
        let event = event.map_err(MachineError::sys("create an eventfd"))?;
        let ours = event.try_clone().map_err(MachineError::sys("duplicate an eventfd"))?;
        let mut lines = lock(&self.lines);
        self.watch(&ours, lines.len() as u64)?;
        lines.push((ours, pin as usize));
        Ok(event)
    }

    fn watch(&self, fd: &impl AsRawFd, name: u64) -> Result<(), MachineError> {
        let event = EpollEvent::new(EventSet::IN, name);
        let added = self.epoll.ctl(ControlOperation::Add, fd.as_raw_fd(), event);
        added.map_err(MachineError::sys("watch an eventfd"))
    }

    /// Raises the lines of devices that have said so. When this returns nothing of before is under way: an interrupt is in an
    /// APIC, where a save finds it.
    pub(crate) fn raise_lines(&self) {
        // Held all the while: what was read is not raised yet.
        lock(&self.lines).iter().for_each(|line| self.raise(line));
    }

    fn raise(&self, (event, pin): &(EventFd, usize)) {
        if event.read().is_ok() {
            self.controller.pulse(*pin);
        }
    }

    /// The timer of `vcpu` is due then, or not at all, and somebody else must say so: it is going to be in the guest.
    pub(crate) fn arm(&self, vcpu: usize, due_ns: Option<u64>) {
        let due_ns = due_ns.unwrap_or(NEVER);
        let mut timers = lock(&self.timers);
        timers.due[vcpu] = due_ns;
        if due_ns < timers.armed {
            timers.armed = due_ns;
            self.set_alarm(due_ns);
        }
    }

    fn set_alarm(&self, at_ns: u64) {
        let part = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        // A time of 0 would disarm it.
        let at_ns = at_ns.max(1);
        let it_value = Timespec { tv_sec: part(at_ns / NS_PER_S), tv_nsec: part(at_ns % NS_PER_S) };
        let once = Itimerspec { it_interval: Timespec::default(), it_value };
        if let Err(error) = timerfd_settime(&self.alarm, TimerfdTimerFlags::ABSTIME, &once) {
            tracing::error!(%error, "the timers of a machine's processors cannot be set");
        }
    }

    /// Kicks vCPUs whose timers are due.
    fn ring(&self) {
        let mut timers = lock(&self.timers);
        let now_ns = now_ns();
        let due: Vec<usize> = (0..timers.due.len()).filter(|vcpu| timers.due[*vcpu] <= now_ns).collect();
        due.iter().for_each(|vcpu| timers.due[*vcpu] = NEVER);
        timers.armed = timers.due.iter().copied().min().unwrap_or(NEVER);
        if timers.armed != NEVER {
            self.set_alarm(timers.armed);
        }
        let pit = timers.due.len() - 1;
        drop(timers);
        for timer in due {
            if timer == pit { self.run_pit() } else { self.controller.kick(timer) }
        }
    }

    fn run_pit(&self) {
        let mut clockwork = lock(&self.clockwork);
        if !clockwork.runs {
            return;
        }
        let (interrupts, due_ns) = clockwork.pit.run(now_ns());
        // The lock is held: a machine that stands still has nothing under way.
        if interrupts {
            self.controller.pulse(PIT_LINE);
        }
        self.arm_pit(due_ns);
    }

    fn arm_pit(&self, due_ns: Option<u64>) {
        let pit = lock(&self.timers).due.len() - 1;
        self.arm(pit, due_ns);
    }

    /// The guest has the PIT do something, at a time in ns.
    pub(crate) fn with_pit<T>(&self, act: impl FnOnce(&mut Pit, u64) -> T) -> T {
        let mut clockwork = lock(&self.clockwork);
        let result = act(&mut clockwork.pit, now_ns());
        if clockwork.runs {
            // Under the lock, so that the last who sets it is the last who has looked.
            self.arm_pit(clockwork.pit.due_ns());
        }
        result
    }

    /// The PIT runs, or interrupts no more until it does.
    pub(crate) fn set_pit_running(&self, runs: bool) {
        let mut clockwork = lock(&self.clockwork);
        clockwork.runs = runs;
        self.arm_pit(clockwork.pit.due_ns().filter(|_| runs));
    }

    pub(crate) fn save_pit(&self) -> Pit {
        lock(&self.clockwork).pit.saved(now_ns())
    }

    pub(crate) fn restore_pit(&self, pit: Pit) {
        lock(&self.clockwork).pit = pit.restored(now_ns());
    }

    fn serve(&self) {
        let mut events = [EpollEvent::default(); EVENTS];
        loop {
            let count = match self.epoll.wait(-1, &mut events) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
                Err(error) => {
                    tracing::error!(%error, "a machine gets no more interrupts");
                    return;
                }
            };
            for event in &events[..count] {
                if event.data() != NO_LINE {
                    let lines = lock(&self.lines);
                    lines
                        .iter()
                        .skip(usize::try_from(event.data()).unwrap_or(usize::MAX))
                        .take(1)
                        .for_each(|line| self.raise(line));
                } else if self.end.read().is_ok() {
                    return;
                } else if rustix::io::read(&self.alarm, &mut [0; 8]).is_ok() {
                    self.ring();
                }
            }
        }
    }

    /// Ends the thread. May be called again.
    pub(crate) fn stop(&self) {
        if let Some(thread) = lock(&self.thread).take() {
            // Fails only when it was told so 2^64 times.
            let _ = self.end.write(1);
            // A thread that panicked has printed why; the machine is being torn down.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic in a test is its report")]

    use super::*;
    use std::sync::mpsc::{Receiver, channel};
    use std::time::Duration;

    const SOON: Duration = Duration::from_secs(20);
    /// A vector on pin 4, for the vCPU with the id 1.
    const ENTRY: [(u64, u32); 4] = [(0, 0x19), (0x10, 1 << 24), (0, 0x18), (0x10, 0x51)];

    fn driver() -> (Arc<Driver>, Receiver<usize>) {
        let driver = Driver::new(2, None).unwrap();
        driver.controller().write_local(1, 0xf0, 0x1ff, 0);
        ENTRY.into_iter().for_each(|(offset, value)| driver.controller().write_io(offset, value));
        let (kick, kicked) = channel();
        driver.controller().set_kick(Box::new(move |vcpu| kick.send(vcpu).unwrap()));
        (driver, kicked)
    }

    #[test]
    fn devices_and_timers_kick_whom_they_are_for() {
        let (driver, kicked) = driver();
        let line = driver.line(4).unwrap();
        driver.start().unwrap();
        line.write(1).unwrap();
        assert_eq!(kicked.recv_timeout(SOON), Ok(1));
        assert_eq!(driver.controller().slot(1).apic.take(), Some(0x51));
        driver.arm(0, Some(now_ns() + NS_PER_S * 3600));
        driver.arm(1, Some(now_ns() + 1000));
        assert_eq!(kicked.recv_timeout(SOON), Ok(1));
        driver.arm(0, Some(0));
        assert_eq!(kicked.recv_timeout(SOON), Ok(0));
        driver.stop();
        driver.stop();
        assert_eq!(Arc::strong_count(&driver), 1, "its thread has let go of it");
    }

    #[test]
    fn what_devices_have_said_is_there_after_the_lines_were_raised() {
        let (driver, kicked) = driver();
        driver.line(4).unwrap().write(1).unwrap();
        driver.raise_lines();
        assert_eq!(kicked.try_recv(), Ok(1));
        assert_eq!(driver.controller().slot(1).apic.pending(), Some(0x51));
    }
}
