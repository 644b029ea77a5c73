//! The copy engine: guest pages into flows, one thread a flow. **This is where a page is sent.**
//!
//! ```text
//! bitmap ─▶ worker k: its 2 MiB ranges ─▶ clear dirty bits ─▶ read page ─▶ BatchEncoder ─▶ FlowSender (bounded) ─▶ QUIC
//! ```
//! A page always belongs to the same flow, so its versions arrive in the order they were sent. Dirty bits of a range are
//! cleared just before its pages are read: a write after the read is reported again, a write before it is in the copy.

use crate::{
    guest::GuestPages,
    limit::{BandwidthLimit, Pacer},
    owed::{OwedPages, PushWindow},
    push_pace::ALWAYS_AHEAD,
};
use std::{
    ops::Range,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};
use tokio::sync::oneshot;
use vmotion_dirty_tracking::{DirtyTracker, PageBitmap};
use vmotion_model::PageCounts;
use vmotion_transport::{
    pages::{BatchEncoder, KnownPages, PageHasher, WireCost},
    session::{FlowSender, FrameParts, SessionError},
};

/// Pages in the unit of work: 2 MiB, the size of a huge page and of a home shard.
const RANGE_PAGES: u64 = 512;

/// Marks of pushed ranges count from here; rounds stay below.
pub(crate) const PUSH_MARKS: u64 = 1 << 32;
/// How often a worker that waits looks whether it is to stop.
const STOP_CHECK: Duration = Duration::from_millis(100);

/// A tracker that the workers share. Held for one clearing ioctl at a time.
pub(crate) type SharedTracker = Arc<Mutex<Box<dyn DirtyTracker>>>;

pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A tracker stays usable when another worker panicked between two calls of it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Why a round was not copied.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CopyError {
    #[error("Pages cannot be sent")]
    Session(#[from] SessionError),
    #[error("Dirty pages cannot be tracked")]
    Track(#[from] vmotion_dirty_tracking::TrackError),
    #[error("Copying was stopped")]
    Stopped,
}

/// What all workers of a move count together.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pages: Mutex<PageCounts>,
    bytes: AtomicU64,
    done: AtomicU64,
}

impl Counters {
    pub(crate) fn pages(&self) -> PageCounts {
        *lock(&self.pages)
    }

    /// Bytes handed to the transport.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Pages looked at in the current round.
    pub(crate) fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Notes pages that are zero without having been looked at.
    pub(crate) fn add_untouched(&self, pages: u64) {
        lock(&self.pages).zero += pages;
    }

    fn add(&self, counts: &PageCounts) {
        lock(&self.pages).add(counts);
    }
}

/// What the workers share.
struct Shared<M: ?Sized> {
    tracker: SharedTracker,
    known: KnownPages,
    wire: Arc<WireCost>,
    counters: Arc<Counters>,
    stop: AtomicBool,
    /// The round at work is to end where it is.
    cut_short: AtomicBool,
    flows: u64,
    limit: Arc<BandwidthLimit>,
    machine: Arc<M>,
}

/// What a worker does with the pages of its ranges.
#[derive(Debug, Clone)]
pub(crate) enum Task {
    /// Send them while the guest runs: clear dirty bits before reading.
    Copy(Arc<PageBitmap>),
    /// Send them; the guest stands still.
    CopyLast(Arc<PageBitmap>),
    /// Say that they are missing.
    Declare(Arc<PageBitmap>),
    /// Send what is owed of all memory, near the last demand first, `ahead` batches ahead of the target at most.
    Push {
        owed: Arc<OwedPages>,
        /// One for each flow.
        windows: Arc<[PushWindow]>,
        ahead: u64,
    },
}

/// One round for one worker.
struct Job {
    task: Task,
    mark: u64,
    done: oneshot::Sender<Result<(), CopyError>>,
}

/// What pages go out by.
pub(crate) struct Outlet {
    pub(crate) flows: Vec<FlowSender>,
    pub(crate) wire: Arc<WireCost>,
    pub(crate) limit: Arc<BandwidthLimit>,
    /// Memory for earlier versions of pages, in bytes, all flows together; 0 where the target takes no deltas.
    pub(crate) delta_bytes: u64,
}

/// The workers of a move. Dropping it stops them.
pub(crate) struct Copier<M: ?Sized> {
    shared: Arc<Shared<M>>,
    jobs: Vec<mpsc::Sender<Job>>,
}

impl<M: ?Sized> Drop for Copier<M> {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

impl<M: GuestPages + ?Sized + 'static> Copier<M> {
    /// Starts one thread for each flow.
    ///
    /// # Errors
    /// When the host starts no more threads.
    pub(crate) fn start(
        machine: Arc<M>,
        tracker: SharedTracker,
        hasher: &PageHasher,
        outlet: Outlet,
    ) -> std::io::Result<Self> {
        let Outlet { flows, wire, limit, delta_bytes } = outlet;
        let count = flows.len() as u64;
        let shared = Arc::new(Shared {
            tracker,
            known: KnownPages::all_zero(machine.layout().total_pages(), hasher),
            wire,
            counters: Arc::new(Counters::default()),
            stop: AtomicBool::new(false),
            cut_short: AtomicBool::new(false),
            flows: count,
            limit,
            machine,
        });
        let mut jobs = Vec::new();
        for (number, flow) in (0u64..).zip(flows) {
            let (sender, receiver) = mpsc::channel();
            let mut worker = Worker {
                shared: Arc::clone(&shared),
                flow,
                number,
                encoder: BatchEncoder::new(hasher.clone(), None).with_deltas(delta_bytes / count.max(1)),
                pacer: Pacer::default(),
            };
            thread::Builder::new().name(format!("copy-{number}")).spawn(move || worker.run(&receiver))?;
            jobs.push(sender);
        }
        Ok(Self { shared, jobs })
    }

    pub(crate) fn counters(&self) -> &Arc<Counters> {
        &self.shared.counters
    }

    /// Performs `task`, then sends `mark` on every flow; returns when everything was handed to the transport.
    ///
    /// # Errors
    /// [`CopyError`] of the first worker that failed.
    pub(crate) async fn perform(&self, task: Task, mark: u64) -> Result<(), CopyError> {
        self.shared.counters.done.store(0, Ordering::Relaxed);
        self.shared.cut_short.store(false, Ordering::Relaxed);
        self.go_on(task, mark).await
    }

    /// The same as part of the round at work, which counts on.
    ///
    /// # Errors
    /// [`CopyError`] of the first worker that failed.
    pub(crate) async fn go_on(&self, task: Task, mark: u64) -> Result<(), CopyError> {
        let mut waiting = Vec::new();
        for worker in &self.jobs {
            let (done, answer) = oneshot::channel();
            worker.send(Job { task: task.clone(), mark, done }).map_err(|_| CopyError::Stopped)?;
            waiting.push(answer);
        }
        for answer in waiting {
            answer.await.map_err(|_| CopyError::Stopped)??;
        }
        Ok(())
    }

    /// The frame of page `index`, if it is still owed; encoded by `encoder`, which belongs to the demand lane.
    pub(crate) fn answer(&self, index: u64, owed: &OwedPages, encoder: &mut BatchEncoder) -> Option<[bytes::Bytes; 2]> {
        if !owed.take(index) {
            return None;
        }
        self.shared.known.forget(index);
        encoder.push(index, &self.shared.known, |page| self.shared.machine.read_page(index, page));
        let frame = encoder.finish(&self.shared.wire);
        self.shared.counters.add(&encoder.take_counts());
        let bytes: usize = frame.iter().flatten().map(bytes::Bytes::len).sum();
        self.shared.counters.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        frame
    }

    /// Ends the round at work early, in good order: what was not read stays dirty.
    pub(crate) fn cut_short(&self) {
        self.shared.cut_short.store(true, Ordering::Relaxed);
    }
}

struct Worker<M: ?Sized> {
    shared: Arc<Shared<M>>,
    flow: FlowSender,
    number: u64,
    encoder: BatchEncoder,
    pacer: Pacer,
}

impl<M: GuestPages + ?Sized> Worker<M> {
    fn run(&mut self, jobs: &mpsc::Receiver<Job>) {
        while let Ok(job) = jobs.recv() {
            let result = self.round(&job);
            let failed = result.is_err();
            // The driver may have given up waiting.
            let _ = job.done.send(result);
            if failed {
                return;
            }
        }
    }

    fn round(&mut self, job: &Job) -> Result<(), CopyError> {
        match &job.task {
            Task::Copy(pages) => self.copy(pages, true)?,
            Task::CopyLast(pages) => self.copy(pages, false)?,
            Task::Declare(pages) => self.declare(pages)?,
            Task::Push { owed, windows, ahead } => self.push(owed, windows, *ahead)?,
        }
        self.flush_with(Some(job.mark))
    }

    /// The ranges of this worker, by index of their first page.
    fn ranges(&self, total: u64) -> impl Iterator<Item = Range<u64>> + use<M> {
        let step = usize::try_from(self.shared.flows).unwrap_or(1);
        let ranges = (self.number..total.div_ceil(RANGE_PAGES)).step_by(step);
        ranges.map(move |range| range * RANGE_PAGES..((range + 1) * RANGE_PAGES).min(total))
    }

    fn copy(&mut self, pages: &PageBitmap, clear: bool) -> Result<(), CopyError> {
        for range in self.ranges(pages.pages()) {
            let dirty = pages.count_range(range.clone());
            if dirty == 0 {
                continue;
            }
            if clear && self.shared.cut_short.load(Ordering::Relaxed) {
                return Ok(());
            }
            if clear {
                lock(&self.shared.tracker).clear(pages, range.clone())?;
            }
            if dirty == RANGE_PAGES {
                self.encoder.announce(range.start, dirty);
                self.flush_if_full()?;
            }
            for index in pages.runs_in(range).flatten() {
                self.read(index)?;
            }
            self.shared.counters.done.fetch_add(dirty, Ordering::Relaxed);
        }
        Ok(())
    }

    fn read(&mut self, index: u64) -> Result<(), CopyError> {
        let machine = &self.shared.machine;
        self.encoder.push(index, &self.shared.known, |page| machine.read_page(index, page));
        self.flush_if_full()
    }

    fn declare(&mut self, pages: &PageBitmap) -> Result<(), CopyError> {
        for range in self.ranges(pages.pages()) {
            for run in pages.runs_in(range) {
                // By runs, not by pages: this is part of the pause.
                self.encoder.push_missing(run.start, u32::try_from(run.end - run.start).unwrap_or(u32::MAX));
                self.flush_if_full()?;
            }
        }
        Ok(())
    }

    /// Ranges in order, but what was demanded last goes before: whoever touched a page touches its neighbours next.
    fn push(&mut self, owed: &OwedPages, windows: &[PushWindow], ahead: u64) -> Result<(), CopyError> {
        // Whoever runs there sees pages as soon as they are placed: they are sent as a whole from now on.
        self.encoder.forget_versions();
        let total = self.shared.machine.layout().total_pages();
        let window = usize::try_from(self.number).ok().and_then(|number| windows.get(number));
        let (mut sent, mut hinted) = (0, None);
        let mut ranges = self.ranges(total);
        loop {
            let near = owed.near().map(|page| page / RANGE_PAGES * RANGE_PAGES).filter(|first| {
                let ours = first / RANGE_PAGES % self.shared.flows == self.number;
                ours && hinted != Some(*first) && owed.any_in(*first, RANGE_PAGES)
            });
            let range = match near {
                Some(first) => first..(first + RANGE_PAGES).min(total),
                None => match ranges.next() {
                    Some(range) => range,
                    None => return Ok(()),
                },
            };
            hinted = near;
            if !owed.any_in(range.start, RANGE_PAGES) {
                continue;
            }
            let (mut gathered, mut batch) = (0, owed.pace().batch_pages());
            for index in range.clone() {
                if !owed.take(index) {
                    continue;
                }
                gathered += 1;
                self.shared.known.forget(index);
                let machine = &self.shared.machine;
                self.encoder.push(index, &self.shared.known, |page| machine.read_page(index, page));
                if self.encoder.is_full() || gathered >= batch {
                    self.push_batch(owed, window, gathered, &mut sent, ahead)?;
                    (gathered, batch) = (0, owed.pace().batch_pages());
                }
            }
            if gathered > 0 {
                self.push_batch(owed, window, gathered, &mut sent, ahead)?;
            }
        }
    }

    /// A batch of `pages` and its mark, in its turn; then waits until the target is close enough behind.
    fn push_batch(
        &mut self,
        owed: &OwedPages,
        window: Option<&PushWindow>,
        pages: u64,
        sent: &mut u64,
        ahead: u64,
    ) -> Result<(), CopyError> {
        let heard = window.map(PushWindow::heard).unwrap_or_default();
        let turn = owed.pace().reserve(pages, heard, Instant::now());
        if !turn.is_zero() && window.is_none_or(|window| window.on_the_way() >= ALWAYS_AHEAD) {
            thread::sleep(turn);
        }
        let mark = PUSH_MARKS + *sent;
        *sent += 1;
        if let Some(window) = window {
            window.sent(mark, pages, Instant::now());
        }
        self.flush_with(Some(mark))?;
        let Some(window) = window.filter(|_| *sent > ahead) else { return Ok(()) };
        while !window.wait_for(mark - ahead, STOP_CHECK) {
            if self.shared.stop.load(Ordering::Relaxed) {
                return Err(CopyError::Stopped);
            }
        }
        Ok(())
    }

    fn flush_if_full(&mut self) -> Result<(), CopyError> {
        if self.encoder.is_full() { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), CopyError> {
        self.flush_with(None)
    }

    /// Sends what is gathered, and `mark` behind it.
    fn flush_with(&mut self, mark: Option<u64>) -> Result<(), CopyError> {
        if self.shared.stop.load(Ordering::Relaxed) {
            return Err(CopyError::Stopped);
        }
        let frame = self.encoder.finish(&self.shared.wire);
        // Before the bytes, which may have to wait: what was counted is on its way.
        self.shared.counters.add(&self.encoder.take_counts());
        if frame.is_none() && mark.is_none() {
            return Ok(());
        }
        let [head, payload] = frame.unwrap_or_default();
        let mark = mark.map(|mark| self.encoder.mark(mark)).unwrap_or_default();
        self.send([head, payload, mark])
    }

    fn send(&mut self, frame: FrameParts) -> Result<(), CopyError> {
        let length = frame.iter().map(bytes::Bytes::len).sum::<usize>() as u64;
        let Shared { limit, flows, stop, .. } = &*self.shared;
        if !self.pacer.wait_for(length, limit, *flows, stop) {
            return Err(CopyError::Stopped);
        }
        self.flow.send_blocking(frame)?;
        self.shared.counters.bytes.fetch_add(length, Ordering::Relaxed);
        Ok(())
    }
}
