//! The console: what the guest prints goes to a bounded ring in memory, to a log file, and to whoever follows; what an
//! operator types goes to the serial port.
//!
//! ```text
//!   vCPU thread ─ byte ─► ring (memory only) ─┬─► flusher thread ─► log file, notify callbacks
//!                                             └─► readers, by byte offset
//! ```
//!
//! A byte costs the vCPU a lock and a store. Lines reach the log within [`FLUSH_WITHIN_MS`]. Offsets count from the
//! machine's creation and go on across hosts: the saved state carries the offset and the last bytes.

use crate::{ConsoleConfig, MachineError};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::fs::File;
use std::io::Write;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Bytes of output kept in memory for followers.
const RING_BYTES: usize = 256 << 10;
/// Bytes of output that travel with the saved state, for a follower that arrives late.
const TAIL_BYTES: usize = 8 << 10;
/// Longest time output waits for its line to end before it is flushed, in milliseconds.
const FLUSH_WITHIN_MS: u64 = 1;
/// Output that is flushed at once even without a line end, in bytes.
const FLUSH_BYTES: usize = 4 << 10;

/// Called with the new total offset whenever output was flushed. Must not block.
pub type ConsoleNotify = Box<dyn Fn(u64) + Send + Sync>;

/// What travels with a saved machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ConsoleState {
    pub(crate) offset: u64,
    pub(crate) tail: Vec<u8>,
}

#[derive(Default)]
struct Buffer {
    ring: VecDeque<u8>,
    /// Offset one past the newest byte.
    end: u64,
    /// Offset up to which the log has everything.
    flushed: u64,
    /// Output waits and no flush is due yet.
    line_complete: bool,
    closed: bool,
}

pub(crate) struct Console {
    buffer: Mutex<Buffer>,
    /// The flusher waits here for output.
    output: Condvar,
    /// Readers and flush() wait here for the flusher.
    flushed: Condvar,
    notify: Mutex<Vec<ConsoleNotify>>,
}

/// A console's flusher thread; dropping it flushes the rest and ends it.
pub(crate) struct Flusher {
    console: Arc<Console>,
    thread: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for Console {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Console").field("end", &self.lock().end).finish_non_exhaustive()
    }
}

impl Console {
    pub(crate) fn start(config: &ConsoleConfig) -> Result<(Arc<Self>, Flusher), MachineError> {
        let open = |path: &std::path::PathBuf| {
            let opened = File::options().append(true).create(true).open(path);
            opened.map_err(|source| MachineError::File { role: "Console log", path: path.clone(), source })
        };
        let log = config.log.as_ref().map(open).transpose()?;
        let buffer = Buffer { end: config.start_offset, flushed: config.start_offset, ..Buffer::default() };
        let console = Arc::new(Self {
            buffer: Mutex::new(buffer),
            output: Condvar::new(),
            flushed: Condvar::new(),
            notify: Mutex::default(),
        });
        let for_thread = Arc::clone(&console);
        let body = move || for_thread.flush_loop(log);
        let thread =
            std::thread::Builder::new().name("console".to_owned()).spawn(body).map_err(MachineError::Thread)?;
        Ok((Arc::clone(&console), Flusher { console, thread: Some(thread) }))
    }

    fn lock(&self) -> MutexGuard<'_, Buffer> {
        self.buffer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes output of the guest.
    pub(crate) fn push(&self, bytes: &[u8]) {
        let mut buffer = self.lock();
        let waiting = buffer.end > buffer.flushed;
        for byte in bytes {
            if buffer.ring.len() == RING_BYTES {
                buffer.ring.pop_front();
            }
            buffer.ring.push_back(*byte);
        }
        buffer.end += bytes.len() as u64;
        let much = buffer.end - buffer.flushed >= FLUSH_BYTES as u64;
        let complete = much || bytes.contains(&b'\n');
        buffer.line_complete |= complete;
        drop(buffer);
        if complete || !waiting {
            self.output.notify_one();
        }
    }

    /// Bytes from `from` on, as far as they are still in the ring: where they begin, and at most `max` of them.
    pub(crate) fn read(&self, from: u64, max: usize) -> (u64, Vec<u8>) {
        let buffer = self.lock();
        buffer.read(from, max)
    }

    fn flush_loop(&self, mut log: Option<File>) {
        loop {
            let mut buffer = self.lock();
            while buffer.end == buffer.flushed && !buffer.closed {
                buffer = self.output.wait(buffer).unwrap_or_else(PoisonError::into_inner);
            }
            let deadline = Instant::now() + Duration::from_millis(FLUSH_WITHIN_MS);
            while !buffer.line_complete && !buffer.closed {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    break;
                }
                buffer = self.output.wait_timeout(buffer, left).unwrap_or_else(PoisonError::into_inner).0;
            }
            buffer.line_complete = false;
            let (start, bytes) = buffer.read(buffer.flushed, RING_BYTES);
            let (closed, end) = (buffer.closed, start + bytes.len() as u64);
            drop(buffer);
            if let Some(file) = &mut log
                && let Err(error) = file.write_all(&bytes)
            {
                // A full disk must not stop the guest; the ring still has the output.
                tracing::error!(%error, "console log cannot be written, it has a gap from here on");
                log = None;
            }
            let mut buffer = self.lock();
            buffer.flushed = buffer.flushed.max(end);
            let done = closed && buffer.end == buffer.flushed;
            drop(buffer);
            self.flushed.notify_all();
            if !bytes.is_empty() {
                let notify = self.notify.lock().unwrap_or_else(PoisonError::into_inner);
                notify.iter().for_each(|call| call(end));
            }
            if done {
                return;
            }
        }
    }

    /// Waits until the log has everything printed so far, at most `within`.
    pub(crate) fn flush(&self, within: Duration) {
        let mut buffer = self.lock();
        let end = buffer.end;
        buffer.line_complete = true;
        self.output.notify_one();
        let deadline = Instant::now() + within;
        while buffer.flushed < end {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            buffer = self.flushed.wait_timeout(buffer, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    pub(crate) fn save(&self) -> ConsoleState {
        let buffer = self.lock();
        let (_, tail) = buffer.read(buffer.end.saturating_sub(TAIL_BYTES as u64), TAIL_BYTES);
        ConsoleState { offset: buffer.end, tail }
    }

    /// Takes over another host's offset and last bytes; those were logged there and are not logged again.
    pub(crate) fn restore(&self, state: ConsoleState) {
        let ConsoleState { offset, tail } = state;
        let mut buffer = self.lock();
        buffer.ring = tail.into();
        buffer.end = offset;
        buffer.flushed = offset;
    }
}

impl Buffer {
    fn read(&self, from: u64, max: usize) -> (u64, Vec<u8>) {
        let oldest = self.end - self.ring.len() as u64;
        let start = from.clamp(oldest, self.end);
        let skip = usize::try_from(start - oldest).unwrap_or(usize::MAX);
        (start, self.ring.iter().skip(skip).take(max).copied().collect())
    }
}

impl Drop for Flusher {
    fn drop(&mut self) {
        self.console.lock().closed = true;
        self.console.output.notify_one();
        if let Some(thread) = self.thread.take() {
            // A flusher that panicked has logged what it could.
            let _ = thread.join();
        }
        self.console.flushed.notify_all();
    }
}

/// Input accepted for the serial port.
pub(crate) trait ConsoleInput: Send + Sync {
    /// Takes as many bytes as fit, and says how many.
    fn push_input(&self, bytes: &[u8]) -> usize;
}

/// Where there is no serial port.
pub(crate) struct NoInput;

impl ConsoleInput for NoInput {
    fn push_input(&self, _: &[u8]) -> usize {
        0
    }
}

/// A machine's console: read output by offset, push input. Cheap to clone, safe to keep after the machine is gone.
#[derive(Clone)]
pub struct ConsoleHandle {
    console: Arc<Console>,
    input: Arc<dyn ConsoleInput>,
}

impl std::fmt::Debug for ConsoleHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.console.fmt(f)
    }
}

impl ConsoleHandle {
    pub(crate) fn new(console: Arc<Console>, input: Arc<dyn ConsoleInput>) -> Self {
        Self { console, input }
    }

    /// Offset one past the newest byte of output: how many bytes the machine printed since it was created, over all hosts.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.console.lock().end
    }

    /// Output from `from` on: the offset it really begins at (later than `from` when the ring no longer has it), and at
    /// most `max` bytes. Empty when there is nothing new.
    #[must_use]
    pub fn read(&self, from: u64, max: usize) -> (u64, Vec<u8>) {
        self.console.read(from, max)
    }

    /// Waits until all output so far is in the log, for `within` at most.
    pub fn flush(&self, within: Duration) {
        self.console.flush(within);
    }

    /// Waits until there is flushed output beyond `offset`; false when `within` passes or the machine is gone first.
    #[must_use]
    pub fn wait_beyond(&self, offset: u64, within: Duration) -> bool {
        let deadline = Instant::now() + within;
        let mut buffer = self.console.lock();
        loop {
            if buffer.flushed > offset {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || buffer.closed {
                return false;
            }
            buffer = self.console.flushed.wait_timeout(buffer, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Calls `notify` with the new offset after every flush, from the console's own thread. It must not block.
    pub fn on_output(&self, notify: ConsoleNotify) {
        self.console.notify.lock().unwrap_or_else(PoisonError::into_inner).push(notify);
    }

    /// Types `bytes`; how many the serial port took (its buffer has 64). Call again with the rest later.
    pub fn input(&self, bytes: &[u8]) -> usize {
        self.input.push_input(bytes)
    }
}
