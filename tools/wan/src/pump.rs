//! Carries the packets of one direction from one TUN device through a [`Link`] to the other.
//!
//! ```text
//! look ─▶ read what is there, deliver what is due ─▶ anything done? ─┬─ yes: rest [`GRAIN`] ──▶ look
//!                                                                    └─ no: sleep until a packet comes or is due ──▶ look
//! ```
//! Resting after work makes packets come in batches: at 1 Gbit/s one every 12 µs would wake the thread each time.

use crate::{
    counters::{Count, Counters},
    direction::Direction,
    impairments::Impairments,
    link::Link,
    punctual::be_punctual,
    tun::Tun,
};
use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll},
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

/// How long a busy thread rests between two looks: what a packet may be late on the way in, and again on the way out.
const GRAIN: Duration = Duration::from_micros(50);
/// Packets read, and packets delivered, before the other gets its turn.
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
    link: Link<Box<[u8]>>,
    /// Accepted by the link, not by the receiving device.
    refused: Count,
    late_max: Duration,
    late_sum: Duration,
    cpu: Duration,
    failure: Option<io::Error>,
}

impl Pump {
    /// Starts carrying. Times are those since `epoch`.
    pub(crate) fn start(
        direction: Direction,
        [from, to]: [&Arc<Tun>; 2],
        link: Link<Box<[u8]>>,
        epoch: Instant,
    ) -> io::Result<Self> {
        let state = State {
            link,
            refused: Count::default(),
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
            refused: state.refused.packets,
            late_max: state.late_max,
            late_mean: Duration::from_nanos(u64::try_from(mean).unwrap_or(u64::MAX)),
            cpu: state.cpu,
        }
    }

    /// Why it carries nothing any more; tells it once.
    pub(crate) fn take_failure(&self) -> Option<io::Error> {
        self.shared.lock().failure.take()
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
        let mut buffer = vec![0; usize::from(u16::MAX)];
        while !self.stop.load(Ordering::Relaxed) {
            let mut state = self.lock();
            let result = self.look(&mut state, &mut buffer);
            state.cpu = duration(clock_gettime(ClockId::ThreadCPUTime));
            let next = state.link.next_due();
            let slept = match result {
                Ok(Look::Unfinished) => continue,
                Ok(Look::Busy) => {
                    drop(state);
                    self.sleep(PollFlags::empty(), Some(GRAIN))
                }
                Ok(Look::Idle) => {
                    drop(state);
                    self.sleep(PollFlags::IN, next.map(|due| due.saturating_sub(self.now())))
                }
                Err(error) => {
                    state.failure = Some(error);
                    return;
                }
            };
            if let Err(error) = slept {
                self.lock().failure = Some(error);
                return;
            }
        }
    }

    /// Reads what is there and delivers what is due.
    fn look(&self, state: &mut State, buffer: &mut [u8]) -> io::Result<Look> {
        let mut read = 0;
        while read < BATCH
            && let Some(bytes) = self.from.read(buffer)?
        {
            let length = u32::try_from(bytes).expect("the buffer is shorter than 4 GiB");
            let _ = state.link.offer(self.now(), length, Box::from(&buffer[..bytes]));
            read += 1;
        }
        let mut delivered = 0;
        let mut now = self.now();
        while delivered < BATCH
            && let Some(delivery) = state.link.deliver(now)
        {
            if self.to.write(&delivery.packet).is_err() {
                state.refused.add(delivery.bytes);
            }
            let late = now.saturating_sub(delivery.due);
            state.late_max = state.late_max.max(late);
            state.late_sum += late;
            delivered += 1;
            now = self.now();
        }
        Ok(match (read, delivered) {
            (0, 0) => Look::Idle,
            (BATCH, _) | (_, BATCH) => Look::Unfinished,
            _ => Look::Busy,
        })
    }

    /// Until woken up, or `time` is over, or the sender's device is `ready`.
    fn sleep(&self, ready: PollFlags, time: Option<Duration>) -> io::Result<()> {
        let mut files = [
            PollFd::from_borrowed_fd(self.wake.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.from.as_fd(), ready),
        ];
        // A rest must not end because the device is ready: without it in the list it cannot.
        let files = if ready.is_empty() { &mut files[..1] } else { &mut files[..] };
        let time = time.map(|time| Timespec::try_from(time).unwrap_or(Timespec { tv_sec: i64::MAX, tv_nsec: 0 }));
        match poll(files, time.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
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
enum Look {
    Idle,
    Busy,
    /// There may be more right now.
    Unfinished,
}

fn duration(time: Timespec) -> Duration {
    Duration::try_from(time).unwrap_or_default()
}
