//! A guest without a processor: memory mapped as a machine maps it, threads that touch it as vCPUs do, a server that fetches.
#![allow(dead_code, reason = "every test program uses its own part of this")]
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::cast_possible_truncation,
    reason = "only used by tests, where a panic is the report"
)]

use std::fs::File;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;
use vmotion_dirty_tracking::PageBitmap;
use vmotion_pager::{FaultQueue, GuestRegion, Pager, PagerError, Resolution};
use vmotion_sys::memory::AlignedMapping;

pub(crate) const PAGE: usize = 4096;
pub(crate) const BLOCK: u64 = 512;
const WORDS: usize = PAGE / 8;

/// Runs `test` in a thread of its own and fails when it takes too long: a thread that waits for a page does not end by itself.
pub(crate) fn watched(test: impl FnOnce() + Send + 'static) {
    let (done, finished) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        test();
        let _ = done.send(());
    });
    match finished.recv_timeout(Duration::from_secs(30)) {
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("a thread hangs"),
        _ => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
    }
}

/// Says that a test is skipped, and why, where this process may not serve page faults.
pub(crate) fn skipped(test: &str) -> bool {
    match vmotion_pager::probe() {
        Ok(()) => false,
        Err(error) => {
            println!("SKIPPED {test}: {error}");
            true
        }
    }
}

pub(crate) fn free_huge_pages() -> u64 {
    let count = std::fs::read_to_string("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages");
    count.ok().and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}

/// Numbers that look random (splitmix64).
pub(crate) fn scramble(seed: u64) -> u64 {
    let mut value = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// What word `word` of page `page` must be.
pub(crate) fn word_of(page: u64, word: usize) -> u64 {
    scramble(page * WORDS as u64 + word as u64)
}

/// What page `page` must be.
pub(crate) fn bytes_of(page: u64) -> Vec<u8> {
    (0..WORDS).flat_map(|word| word_of(page, word).to_ne_bytes()).collect()
}

/// Guest memory, mapped as A.
pub(crate) struct Guest {
    pub(crate) memfd: File,
    pub(crate) regions: Vec<GuestRegion>,
    mappings: Vec<AlignedMapping>,
    pub(crate) pages: u64,
}

impl Guest {
    /// Regions of these lengths, in pages.
    pub(crate) fn new(lengths: &[u64]) -> Self {
        Self::with_flags(lengths, rustix::fs::MemfdFlags::CLOEXEC).unwrap()
    }

    pub(crate) fn of_huge_pages(lengths: &[u64]) -> std::io::Result<Self> {
        use rustix::fs::MemfdFlags;
        Self::with_flags(lengths, MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB)
    }

    fn with_flags(lengths: &[u64], flags: rustix::fs::MemfdFlags) -> std::io::Result<Self> {
        let memfd = File::from(rustix::fs::memfd_create("guest", flags)?);
        let pages = lengths.iter().sum();
        rustix::fs::ftruncate(&memfd, pages * PAGE as u64)?;
        let (mut regions, mut mappings, mut first) = (Vec::new(), Vec::new(), 0);
        for length in lengths {
            let file_offset = first * PAGE as u64;
            let mapping = AlignedMapping::new(&memfd, file_offset, *length as usize * PAGE)?;
            let address = mapping.address().expose_provenance();
            regions.push(GuestRegion { address, first, pages: *length, file_offset });
            mappings.push(mapping);
            first += length;
        }
        Ok(Self { memfd, regions, mappings, pages })
    }

    pub(crate) fn mapping(&self, region: usize) -> &AlignedMapping {
        &self.mappings[region]
    }

    pub(crate) fn address(&self, page: u64) -> usize {
        let region = self.regions.iter().rfind(|region| region.first <= page).unwrap();
        region.address + (page - region.first) as usize * PAGE
    }

    fn word_at(&self, page: u64, word: usize) -> *mut u64 {
        assert!(page < self.pages && word < WORDS);
        std::ptr::with_exposed_provenance_mut(self.address(page) + word * 8)
    }

    /// A word, as a vCPU reads it: waits while its page is missing.
    pub(crate) fn read(&self, page: u64, word: usize) -> u64 {
        // SAFETY: aligned, mapped as long as `self` lives, and only ever accessed through volatile words.
        unsafe { self.word_at(page, word).read_volatile() }
    }

    /// A word, as a vCPU writes it.
    pub(crate) fn write(&self, page: u64, word: usize, value: u64) {
        // SAFETY: as for `read`.
        unsafe { self.word_at(page, word).write_volatile(value) };
    }

    /// Fills pages with what they must be, or with something else.
    pub(crate) fn stamp(&self, pages: impl IntoIterator<Item = u64>, right: bool) {
        for page in pages {
            (0..WORDS).for_each(|word| self.write(page, word, word_of(page, word) ^ u64::from(!right)));
        }
    }

    /// Every byte of a page is what it must be.
    pub(crate) fn check(&self, page: u64) {
        for word in 0..WORDS {
            assert_eq!(self.read(page, word), word_of(page, word), "page {page} word {word}");
        }
    }

    /// A byte of the page is read inside a system call, as KVM does: the error that gives.
    pub(crate) fn touch_in_kernel(&self, page: u64) -> Option<rustix::io::Errno> {
        let (_reader, writer) = rustix::pipe::pipe().unwrap();
        let start = std::ptr::with_exposed_provenance::<u8>(self.address(page));
        // SAFETY: mapped as long as `self` lives; only the kernel reads it, and reports an error where it cannot.
        let byte = unsafe { std::slice::from_raw_parts(start, 1) };
        rustix::io::write(&writer, byte).err()
    }

    pub(crate) fn arm(&self, missing: &PageBitmap, shards: usize) -> (Pager, Vec<FaultQueue>) {
        Pager::arm(&self.memfd, &self.regions, missing, shards).unwrap()
    }

    /// Pages the memfd has memory for.
    pub(crate) fn allocated(&self) -> u64 {
        let ranges = vmotion_sys::memory::data_ranges(&self.memfd, 0..self.pages * PAGE as u64).unwrap();
        ranges.iter().map(|range| (range.end - range.start) / PAGE as u64).sum()
    }
}

pub(crate) fn set(pages: u64, members: impl IntoIterator<Item = u64>) -> PageBitmap {
    let mut set = PageBitmap::new(pages);
    members.into_iter().for_each(|page| {
        set.set(page);
    });
    set
}

/// Fetches what is demanded, from a source that has every page.
pub(crate) struct Server<'a> {
    pub(crate) pager: &'a Pager,
    pub(crate) queues: &'a [FaultQueue],
    /// Pages demanded, in order.
    pub(crate) demanded: Mutex<Vec<u64>>,
    stop: AtomicBool,
}

impl<'a> Server<'a> {
    pub(crate) fn new(pager: &'a Pager, queues: &'a [FaultQueue]) -> Self {
        Self { pager, queues, demanded: Mutex::new(Vec::new()), stop: AtomicBool::new(false) }
    }

    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Serves until [`Self::stop`], and hands what must be fetched to `fetch`.
    pub(crate) fn serve(&self, mut fetch: impl FnMut(&Pager, Range<u64>)) {
        let mut faults = Vec::new();
        while !self.stop.load(Ordering::Relaxed) {
            let mut polled: Vec<_> = self
                .queues
                .iter()
                .map(|queue| rustix::event::PollFd::new(queue, rustix::event::PollFlags::IN))
                .collect();
            let timeout = rustix::time::Timespec { tv_sec: 0, tv_nsec: 5_000_000 };
            rustix::event::poll(&mut polled, Some(&timeout)).unwrap();
            for queue in self.queues {
                while queue.read(&mut faults).unwrap() > 0 {}
            }
            for fault in faults.drain(..) {
                match self.pager.resolve(&fault) {
                    Ok(Resolution::Demand(runs)) => {
                        for run in runs {
                            self.demanded.lock().unwrap().extend(run.clone());
                            fetch(self.pager, run);
                        }
                    }
                    Ok(Resolution::Answered | Resolution::Waiting) | Err(PagerError::Abandoned) => {}
                    Err(error) => panic!("{error:?}"),
                }
            }
        }
    }

    /// Nothing was demanded twice.
    pub(crate) fn assert_demanded_once(&self) -> usize {
        let mut demanded = self.demanded.lock().unwrap().clone();
        let all = demanded.len();
        demanded.sort_unstable();
        demanded.dedup();
        assert_eq!(demanded.len(), all, "a page was demanded twice");
        all
    }
}

/// Brings pages from the source, at once.
pub(crate) fn fetch(pager: &Pager, run: Range<u64>) {
    let bytes: Vec<u8> = run.clone().flat_map(bytes_of).collect();
    pager.complete_from(run.start, &bytes).unwrap();
}

/// Serves while `body` runs, and gives back what was demanded.
pub(crate) fn serving(pager: &Pager, queues: &[FaultQueue], body: impl FnOnce()) -> Vec<u64> {
    let server = Server::new(pager, queues);
    std::thread::scope(|scope| {
        scope.spawn(|| server.serve(fetch));
        // So that a failed assertion is not hidden behind a server that goes on.
        let stop = StopOnDrop(&server);
        body();
        drop(stop);
    });
    server.assert_demanded_once();
    server.demanded.into_inner().unwrap()
}

struct StopOnDrop<'a, 'b>(&'a Server<'b>);

impl Drop for StopOnDrop<'_, '_> {
    fn drop(&mut self) {
        self.0.stop();
    }
}
