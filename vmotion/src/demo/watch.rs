//! Watching a guest from outside: its heartbeats by this machine's clock, and what it says of its memory.

use anyhow::{Context as _, Result, bail};
use serde::Serialize;
use std::{
    fmt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use tokio::{
    io::AsyncReadExt as _,
    net::UnixStream,
    time::{sleep, timeout},
};
use vmotion_probe_guest::{BeatTracker, ConsoleEvent, ConsoleLine, ConsoleReader};

/// What was seen.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Observation {
    /// Heartbeats seen.
    pub(crate) beats: u64,
    /// Heartbeats missing from the sequence.
    pub(crate) beats_missing: u64,
    /// Longest time without a heartbeat before the move, ms.
    pub(crate) gap_before_ms: f64,
    /// Longest time without a heartbeat around switch-over, ms: the downtime as seen from outside.
    pub(crate) gap_move_ms: f64,
    /// Longest time without a heartbeat after the move, ms.
    pub(crate) gap_after_ms: f64,
    /// Pages written and verified, as the guest counts.
    pub(crate) written: u64,
    /// See `written`.
    pub(crate) verified: u64,
    /// Everything the guest complained of; empty when all is well.
    pub(crate) errors: Vec<String>,
}

impl fmt::Display for Observation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "  outside    longest gap between heartbeats: {:.1} ms at switch-over ({:.1} ms before the move, {:.1} ms after)",
            self.gap_move_ms, self.gap_before_ms, self.gap_after_ms
        )?;
        writeln!(f, "  heartbeats {} seen, {} missing", self.beats, self.beats_missing)?;
        write!(f, "  guest      {} pages written, {} verified, ", self.written, self.verified)?;
        if self.errors.is_empty() {
            write!(f, "no page lost, stale or damaged")
        } else {
            write!(f, "{} ERRORS: {}", self.errors.len(), self.errors.join("; "))
        }
    }
}

/// Follows a probe guest's console socket, first at one host, then at the other.
pub(crate) struct Watcher {
    stream: UnixStream,
    next: PathBuf,
    reader: ConsoleReader,
    beats: BeatTracker,
    last: Option<Instant>,
    seen: Observation,
    ready: bool,
}

enum Gap {
    Before,
    Move,
    After,
}

impl Watcher {
    /// Attaches at `here`; the machine is expected to go on at `there`.
    pub(crate) async fn attach(here: &Path, there: &Path) -> Result<Self> {
        let stream = UnixStream::connect(here).await.with_context(|| format!("Cannot attach to {}", here.display()))?;
        Ok(Self {
            stream,
            next: there.to_owned(),
            reader: ConsoleReader::new(),
            beats: BeatTracker::default(),
            last: None,
            seen: Observation::default(),
            ready: false,
        })
    }

    /// Waits until the guest has filled its working set.
    pub(crate) async fn until_ready(&mut self, patience: Duration) -> Result<()> {
        let start = Instant::now();
        while !self.ready {
            if start.elapsed() > patience {
                bail!("the guest was not ready within {patience:?}");
            }
            self.read(Gap::Before, Duration::from_millis(100)).await?;
        }
        // Filling is not the steady state.
        self.seen.gap_before_ms = 0.0;
        Ok(())
    }

    /// Watches for a while.
    pub(crate) async fn watch(&mut self, duration: Duration) -> Result<()> {
        let start = Instant::now();
        while start.elapsed() < duration {
            let gap = if self.next.as_os_str().is_empty() { Gap::After } else { Gap::Before };
            self.read(gap, Duration::from_millis(50)).await?;
        }
        Ok(())
    }

    /// Follows the old copy to its end, then the new one to its first heartbeats.
    pub(crate) async fn until_moved(&mut self, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        // The new console is attached before switch-over, so that its first heartbeat is timed when it comes.
        let mut fresh = loop {
            match UnixStream::connect(&self.next).await {
                Ok(stream) => break stream,
                Err(_) if Instant::now() < deadline => sleep(Duration::from_millis(1)).await,
                Err(error) => bail!("the target's console never appeared: {error}"),
            }
        };
        let mut first = [0; 4096];
        loop {
            if Instant::now() > deadline {
                bail!("the machine did not move within {patience:?}");
            }
            let mut buffer = [0; 4096];
            tokio::select! {
                biased;
                count = self.stream.read(&mut buffer) => match count? {
                    0 => bail!("the machine ended instead of moving"),
                    count => self.take(&buffer[..count], &Gap::Before),
                },
                count = fresh.read(&mut first) => {
                    let now = Instant::now();
                    // What the old copy said last may still be on the way through its socket.
                    while let Ok(Ok(count)) = timeout(Duration::from_millis(1), self.stream.read(&mut buffer)).await {
                        if count == 0 {
                            break;
                        }
                        self.take_at(&buffer[..count], None, &Gap::Before);
                    }
                    let count = count?;
                    self.take_at(&first[..count], Some(now), &Gap::Move);
                    self.stream = fresh;
                    self.next = PathBuf::new();
                    return Ok(());
                }
            }
        }
    }

    /// What was seen.
    pub(crate) fn finish(self) -> Observation {
        self.seen
    }

    async fn read(&mut self, gap: Gap, patience: Duration) -> Result<()> {
        let mut buffer = [0; 4096];
        match timeout(patience, self.stream.read(&mut buffer)).await {
            Ok(Ok(0)) => bail!("the machine's console ended"),
            Ok(Ok(count)) => self.take(&buffer[..count], &gap),
            Ok(Err(error)) => return Err(error.into()),
            Err(_) => {}
        }
        Ok(())
    }

    fn take(&mut self, bytes: &[u8], gap: &Gap) {
        self.take_at(bytes, Some(Instant::now()), gap);
    }

    /// Bytes read at `at`; `None` for bytes that lay there for a while and say nothing about time.
    fn take_at(&mut self, bytes: &[u8], at: Option<Instant>, gap: &Gap) {
        for event in self.reader.push(bytes) {
            match event {
                ConsoleEvent::Beat(beat) => {
                    self.seen.beats += 1;
                    self.seen.beats_missing += u64::from(self.beats.observe(beat));
                    if let (Some(last), Some(now)) = (self.last, at) {
                        let ms = now.duration_since(last).as_secs_f64() * 1000.0;
                        let longest = match gap {
                            Gap::Before => &mut self.seen.gap_before_ms,
                            Gap::Move => &mut self.seen.gap_move_ms,
                            Gap::After => &mut self.seen.gap_after_ms,
                        };
                        *longest = longest.max(ms);
                    }
                    self.last = at.or(self.last);
                }
                ConsoleEvent::Line(line) => self.line(&line),
            }
        }
    }

    fn line(&mut self, line: &ConsoleLine) {
        if line.is_failure() {
            self.seen.errors.push(format!("{line:?}"));
        }
        match line {
            ConsoleLine::Ready { .. } => self.ready = true,
            ConsoleLine::Second(second) => {
                self.seen.written = second.written;
                self.seen.verified = second.verified;
            }
            _ => {}
        }
    }
}
