//! Carries the packets of one direction from one TUN device through a [`Link`] to the other.
//!
//! ```text
//! look ─▶ read what is there, deliver what is due ─▶ anything done? ─┬─ yes: rest a little ──▶ look
//!                                                                    └─ no: sleep until one comes or is due ──▶ look
//! ```
//! Resting after work makes packets come in batches: at 1 Gbit/s one every 12 µs would wake the thread each time.

use crate::{
    counters::Counters,
    direction::Direction,
    frame::{PREFIX, Packets},
    impairments::Impairments,
    link::{Delivery, Link},
    punctual::be_punctual,
    tun::Tun,
};
use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll},
    io::Errno,
    time::{ClockId, clock_gettime},
};
use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// Looks in a row that left something over, before others get a chance at the lock and at the processor.
const LOOKS_AT_ONCE: u32 = 8;
/// How long a busy thread rests between two looks at least: what a packet may be late on the way in, and again on the way
/// out. At 1 Gbit/s, four packets.
const REST_MIN: Duration = Duration::from_micros(50);
/// And at most.
const REST_MAX: Duration = Duration::from_micros(100);
/// In between, the part of the delay that nobody notices.
const REST_PART: u32 = 50;
/// Frames read, and packets delivered, before the other gets its turn.
const BATCH: usize = 64;

/// One direction, running.
#[derive(Debug)]
pub(crate) struct Pump {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Wakes the thread.
    wake: OwnedFd,
    stop: AtomicBool,
    from: Arc<Tun>,
    to: Arc<Tun>,
    epoch: Instant,
}

#[derive(Debug)]
struct State {
    link: Link<Packets>,
    /// Accepted by the link, not by the receiving device.
    refused: u64,
    late_max: Duration,
    late_sum: Duration,
    cpu: Duration,
    failure: Option<Errno>,
}

impl Pump {
    /// Starts carrying. Times are those since `epoch`.
    pub(crate) fn start(
        direction: Direction,
        [from, to]: [&Arc<Tun>; 2],
        link: Link<Packets>,
        epoch: Instant,
    ) -> io::Result<Self> {
        let state = State {
            link,
            refused: 0,
            late_max: Duration::ZERO,
            late_sum: Duration::ZERO,
            cpu: Duration::ZERO,
            failure: None,
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            wake: eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?,
            stop: AtomicBool::new(false),
            from: Arc::clone(from),
            to: Arc::clone(to),
            epoch,
        });
        let theirs = Arc::clone(&shared);
        let thread = thread::Builder::new().name(format!("wan-{direction}")).spawn(move || theirs.run())?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Lets `change` change the impairments, from now on. When this returns, nothing is delivered by the old ones.
    pub(crate) fn update(&self, change: impl FnOnce(&mut Impairments)) {
        let mut state = self.shared.lock();
        let mut impairments = *state.link.impairments();
        change(&mut impairments);
        state.link.set(self.shared.now(), impairments);
        drop(state);
        self.shared.wake_up();
    }

    pub(crate) fn impairments(&self) -> Impairments {
        *self.shared.lock().link.impairments()
    }

    pub(crate) fn counters(&self) -> Counters {
        let overrun = self.shared.from.overrun();
        let state = self.shared.lock();
        let link = *state.link.counters();
        let mean = u128::checked_div(state.late_sum.as_nanos(), u128::from(link.delivered.packets)).unwrap_or(0);
        Counters {
            link,
            overrun,
            refused: state.refused,
            late_max: state.late_max,
            late_mean: Duration::from_nanos(u64::try_from(mean).unwrap_or(u64::MAX)),
            cpu: state.cpu,
        }
    }

    /// Why it carries nothing any more.
    pub(crate) fn failure(&self) -> Option<io::Error> {
        self.shared.lock().failure.map(io::Error::from)
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.wake_up();
        if let Some(thread) = self.thread.take() {
            // A panic has been printed.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn run(&self) {
        // Refused to ordinary users, who cannot make devices either. Packets would be later.
        let _ = be_punctual();
        let mut buffer = vec![0; PREFIX + usize::from(u16::MAX)];
        let mut unfinished = 0;
        while !self.stop.load(Ordering::Relaxed) {
            let mut state = self.lock();
            let look = self.look(&mut state, &mut buffer);
            state.cpu = duration(clock_gettime(ClockId::ThreadCPUTime));
            let next = state.link.next_due();
            let rest = (state.link.impairments().delay / REST_PART).clamp(REST_MIN, REST_MAX);
            drop(state);
            unfinished = if look == Ok(Look::Unfinished) { (unfinished + 1) % LOOKS_AT_ONCE } else { 0 };
            let slept = look.and_then(|look| match look {
                Look::Unfinished if unfinished > 0 => Ok(()),
                Look::Unfinished | Look::Busy => self.sleep(PollFlags::empty(), Some(rest)),
                Look::Idle => self.sleep(PollFlags::IN, next.map(|due| due.saturating_sub(self.now()))),
            });
            if let Err(error) = slept {
                self.lock().failure = Some(error);
                return;
            }
        }
    }

    /// Reads what is there and delivers what is due.
    fn look(&self, state: &mut State, buffer: &mut [u8]) -> Result<Look, Errno> {
        let mut read = 0;
        while read < BATCH
            && let Some(bytes) = self.from.read(buffer)?
        {
            let now = self.now();
            for (length, packet) in Packets::of(&buffer[..bytes]).each() {
                let _ = state.link.offer(now, length, packet);
            }
            read += 1;
        }
        let now = self.now();
        let mut delivered = 0;
        let mut together: Option<Packets> = None;
        while delivered < BATCH
            && let Some(Delivery { packet, due, .. }) = state.link.deliver(now)
        {
            if !together.as_mut().is_some_and(|before| before.join(&packet))
                && let Some(before) = together.replace(packet)
            {
                state.refused += self.write(&before);
            }
            let late = now.saturating_sub(due);
            state.late_max = state.late_max.max(late);
            state.late_sum += late;
            delivered += 1;
        }
        if let Some(last) = together {
            state.refused += self.write(&last);
        }
        Ok(match (read, delivered) {
            (0, 0) => Look::Idle,
            (BATCH, _) | (_, BATCH) => Look::Unfinished,
            _ => Look::Busy,
        })
    }

    /// How many packets the receiving device refused.
    fn write(&self, packets: &Packets) -> u64 {
        if self.to.write(packets.parts().slices()).is_ok() { 0 } else { packets.count().into() }
    }

    /// Until woken up, or `time` is over, or the sender's device is `ready`.
    fn sleep(&self, ready: PollFlags, time: Option<Duration>) -> Result<(), Errno> {
        let mut files = [
            PollFd::from_borrowed_fd(self.wake.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.from.as_fd(), ready),
        ];
        // A rest must not end because the device is ready: without it in the list it cannot.
        let files = if ready.is_empty() { &mut files[..1] } else { &mut files[..] };
        let time = time.map(|time| Timespec::try_from(time).unwrap_or(Timespec { tv_sec: i64::MAX, tv_nsec: 0 }));
        match poll(files, time.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
        if files[0].revents().contains(PollFlags::IN) {
            // Takes all that was written; nobody else reads.
            let _ = rustix::io::read(&self.wake, &mut [0; 8]);
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Numbers stay sensible even if a thread panicked between two of them.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake_up(&self) {
        // It fails only when it has been written 2⁶⁴ times without being read.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    fn now(&self) -> Duration {
        self.epoch.elapsed()
    }
}

/// What a look found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    Idle,
    Busy,
    /// There may be more right now.
    Unfinished,
}

fn duration(time: Timespec) -> Duration {
    Duration::try_from(time).unwrap_or_default()
}
