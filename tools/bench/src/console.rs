//! A guest seen from outside: its heartbeats by this machine's clock, at the old place and at the new.
//!
//! Each console has a thread of its own that runs before all ordinary work: an observer that waits for a processor would
//! see gaps that are its own.

use crate::{process::wait_for, stats};
use anyhow::{Context as _, Result, bail};
use std::{
    io::{ErrorKind, Read as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};
use vmotion_probe_guest::{ConsoleEvent, ConsoleLine, ConsoleReader, Touches};

/// How long a thread sits in one read.
const READ_PATIENCE: Duration = Duration::from_millis(50);
const CONNECT_EVERY: Duration = Duration::from_millis(2);
const NICE_OBSERVER: i32 = -20;
/// The lowest of the real-time priorities.
const REAL_TIME_PRIORITY: &str = "1";

#[derive(Debug, Default)]
struct Seen {
    beats: Vec<(Instant, u8)>,
    failures: Vec<String>,
    attached: bool,
    ready: bool,
    written: u64,
    touches: Option<Touches>,
}

/// Watches one console until it is dropped.
#[derive(Debug)]
pub(crate) struct Console {
    seen: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Console {
    /// Watches the console at `path` as soon as there is one.
    pub(crate) fn watch(path: &Path) -> Result<Self> {
        let (seen, stop) = (Arc::<Mutex<Seen>>::default(), Arc::<AtomicBool>::default());
        let (for_thread, stopped, path) = (Arc::clone(&seen), Arc::clone(&stop), path.to_owned());
        let body = move || follow(&path, &for_thread, &stopped);
        let thread = thread::Builder::new().name("observer".to_owned()).spawn(body)?;
        Ok(Self { seen, stop, thread: Some(thread) })
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the console is there and nothing of it is missed any more.
    pub(crate) fn wait_until_attached(&self, patience: Duration) -> Result<()> {
        wait_for("console", patience, || Ok(self.seen().attached.then_some(())))
    }

    /// Waits until the guest has filled its working set.
    pub(crate) fn wait_until_ready(&self, patience: Duration) -> Result<()> {
        wait_for("guest that is ready", patience, || Ok(self.seen().ready.then_some(())))
    }

    /// Waits until a heartbeat came from here.
    pub(crate) fn wait_for_beat(&self, patience: Duration) -> Result<()> {
        wait_for("heartbeat at the target", patience, || Ok((!self.seen().beats.is_empty()).then_some(())))
    }

    /// The last histogram of touches.
    pub(crate) fn touches(&self) -> Option<Touches> {
        self.seen().touches.clone()
    }

    /// An error when the guest complained.
    pub(crate) fn check(&self) -> Result<()> {
        match self.seen().failures.first() {
            Some(failure) => bail!("the guest complains: {failure}"),
            None => Ok(()),
        }
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn follow(path: &PathBuf, seen: &Mutex<Seen>, stop: &AtomicBool) {
    come_first();
    let mut stream = loop {
        match UnixStream::connect(path) {
            Ok(stream) => break stream,
            Err(_) if !stop.load(Ordering::Relaxed) => thread::sleep(CONNECT_EVERY),
            Err(_) => return,
        }
    };
    if stream.set_read_timeout(Some(READ_PATIENCE)).is_err() {
        return;
    }
    seen.lock().unwrap_or_else(PoisonError::into_inner).attached = true;
    let mut reader = ConsoleReader::new();
    let mut buffer = [0; 4096];
    while !stop.load(Ordering::Relaxed) {
        match stream.read(&mut buffer) {
            Ok(0) => return,
            Ok(count) => {
                let now = Instant::now();
                take(&mut seen.lock().unwrap_or_else(PoisonError::into_inner), now, reader.push(&buffer[..count]));
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => return,
        }
    }
}

/// Gives this thread a real-time priority: a nice value counts only within its session, where the kernel groups work.
fn come_first() {
    let thread = rustix::thread::gettid().as_raw_nonzero().to_string();
    let set =
        Command::new("chrt").args(["--fifo", "--pid", REAL_TIME_PRIORITY, &thread]).stderr(Stdio::null()).status();
    // Without it, the observer is as good as any other process.
    if !set.is_ok_and(|status| status.success()) {
        let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), NICE_OBSERVER);
    }
}

fn take(seen: &mut Seen, now: Instant, events: Vec<ConsoleEvent>) {
    for event in events {
        match event {
            ConsoleEvent::Beat(beat) => seen.beats.push((now, beat)),
            ConsoleEvent::Line(line) => {
                if line.is_failure() {
                    seen.failures.push(format!("{line:?}"));
                }
                match line {
                    ConsoleLine::Ready { .. } => seen.ready = true,
                    ConsoleLine::Second(second) => seen.written = second.written,
                    ConsoleLine::Touches(touches) => seen.touches = Some(touches),
                    _ => {}
                }
            }
        }
    }
}

/// What the heartbeats say of a move.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Beats {
    /// From the last beat at the source to the first at the target.
    pub(crate) gap_ms: f64,
    /// Of the gaps in the quiet time before the move.
    pub(crate) before_p99_ms: f64,
    pub(crate) before_max_ms: f64,
    /// Longest while pages were copied.
    pub(crate) copying_max_ms: f64,
    /// From the question to the first beat at the target.
    pub(crate) handover_ms: f64,
    /// Of the gaps at the target until the move was over.
    pub(crate) after_p99_ms: f64,
    /// Longest at the target.
    pub(crate) after_max_ms: f64,
    /// Missing from the sequence over the whole time watched.
    pub(crate) missing: u64,
}

impl Beats {
    /// Of a guest that did not move.
    pub(crate) const UNKNOWN: Self = Self {
        gap_ms: f64::NAN,
        before_p99_ms: f64::NAN,
        before_max_ms: f64::NAN,
        copying_max_ms: f64::NAN,
        handover_ms: f64::NAN,
        after_p99_ms: f64::NAN,
        after_max_ms: f64::NAN,
        missing: 0,
    };
}

/// When what happened.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Times {
    /// The watch before the move began.
    pub(crate) watched: Instant,
    /// The move was asked for.
    pub(crate) asked: Instant,
    /// It was over.
    pub(crate) over: Instant,
}

/// Compares both consoles.
pub(crate) fn compare(source: &Console, target: &Console, times: Times) -> Result<Beats> {
    let Times { watched, asked, over } = times;
    source.check()?;
    target.check()?;
    let (source, target) = (source.seen(), target.seen());
    let last = source.beats.last().context("No heartbeat at the source")?;
    let first = target.beats.first().context("No heartbeat at the target")?;
    if target.written == 0 {
        bail!("the guest did not report at the target");
    }
    let gaps = |beats: &[(Instant, u8)], from: Instant, to: Instant| -> Vec<f64> {
        let within = beats.windows(2).filter(|pair| pair[0].0 >= from && pair[1].0 <= to);
        within.map(|pair| ms(pair[0].0, pair[1].0)).collect()
    };
    let before = gaps(&source.beats, watched, asked);
    let following = gaps(&target.beats, asked, over);
    let watched_beats = source.beats.iter().filter(|(at, _)| *at >= watched).chain(&target.beats);
    Ok(Beats {
        gap_ms: ms(last.0, first.0),
        before_p99_ms: stats::quantile(&before, 0.99),
        before_max_ms: stats::quantile(&before, 1.0),
        copying_max_ms: stats::quantile(&gaps(&source.beats, asked, last.0), 1.0),
        handover_ms: ms(asked, first.0),
        after_p99_ms: stats::quantile(&following, 0.99),
        after_max_ms: stats::quantile(&gaps(&target.beats, asked, Instant::now()), 1.0),
        missing: missing(watched_beats.map(|(_, beat)| *beat)),
    })
}

fn missing(beats: impl Iterator<Item = u8>) -> u64 {
    let mut tracker = vmotion_probe_guest::BeatTracker::default();
    beats.map(|beat| u64::from(tracker.observe(beat))).sum()
}

fn ms(from: Instant, to: Instant) -> f64 {
    to.saturating_duration_since(from).as_secs_f64() * 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_beats_are_counted_across_the_wrap() {
        assert_eq!(missing([126, 127, 0, 1].into_iter()), 0);
        assert_eq!(missing([126, 0, 3].into_iter()), 3);
    }
}
