//! Measures what a page fault costs that is answered on this host, and what arming costs: nothing is asserted.
//!
//! ```text
//! cargo run -p vmotion-pager --example stall [FAULTS]
//! ```
//!
//! A round trip: a thread touches a page, its event is read, the page is completed, the thread goes on. The network would come on top.
//! Measured with a server that sleeps between events, as it will, and with one that does not, which leaves out what it costs to
//! wake a processor up.
#![expect(clippy::print_stdout, reason = "it prints what it measured")]

use std::error::Error;
use std::fs::File;
use std::time::{Duration, Instant};
use vmotion_dirty_tracking::PageBitmap;
use vmotion_pager::{FaultQueue, GuestRegion, Pager, Prepared, Resolution, Stalls};
use vmotion_sys::memory::{AlignedMapping, HUGE_PAGE_BYTES};

type Outcome<T> = Result<T, Box<dyn Error>>;

const PAGE: usize = 4096;
const BLOCK_PAGES: u64 = 512;
const FAULTS: u64 = 20_000;
/// Memory of the guest that is armed, in pages: 512 MiB.
const ARMED_PAGES: u64 = 131_072;

struct Guest {
    memfd: File,
    mapping: AlignedMapping,
    pages: u64,
}

impl Guest {
    fn new(pages: u64) -> Outcome<Self> {
        let memfd = File::from(rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC)?);
        rustix::fs::ftruncate(&memfd, pages * PAGE as u64)?;
        let mapping = AlignedMapping::new(&memfd, 0, usize::try_from(pages)? * PAGE)?;
        Ok(Self { memfd, mapping, pages })
    }

    fn regions(&self) -> [GuestRegion; 1] {
        [GuestRegion {
            address: self.mapping.address().expose_provenance(),
            first: 0,
            pages: self.pages,
            file_offset: 0,
        }]
    }

    /// Touches a page as a vCPU does; how long that took.
    fn touch(&self, page: u64) -> Duration {
        let address = self.mapping.address().wrapping_add(usize::try_from(page * PAGE as u64).unwrap_or(usize::MAX));
        let start = Instant::now();
        // SAFETY: callers name pages of the mapping, which is accessed by volatile reads only.
        let _ = unsafe { address.read_volatile() };
        start.elapsed()
    }
}

/// Serves faults until nothing is missing, as a thread that has nothing else to do.
fn serve(pager: &Pager, queue: &FaultQueue, sleep: bool) -> Outcome<()> {
    let page = [7; PAGE];
    let mut faults = Vec::new();
    while pager.remaining() > 0 {
        if sleep {
            let mut polled = [rustix::event::PollFd::new(queue, rustix::event::PollFlags::IN)];
            rustix::event::poll(&mut polled, Some(&rustix::time::Timespec { tv_sec: 0, tv_nsec: 10_000_000 }))?;
        }
        queue.read(&mut faults)?;
        for fault in faults.drain(..) {
            if let Resolution::Demand(runs) = pager.resolve(&fault)? {
                for index in runs.into_iter().flatten() {
                    pager.complete_from(index, &page)?;
                }
            }
        }
    }
    Ok(())
}

fn print_touches(what: &str, mut touches: Vec<Duration>, stalls: Stalls) {
    touches.sort_unstable();
    let at = |percent: usize| touches.get(touches.len() * percent / 100).copied().unwrap_or_default();
    println!(
        "{what:<46} {:>6} touches: p50 {:>6.1?}, p99 {:>6.1?}; of it the pager: p50 {:>6.1?}, p99 {:>6.1?}, longest {:>6.1?}",
        touches.len(),
        at(50),
        at(99),
        stalls.p50,
        stalls.p99,
        stalls.max
    );
}

/// Every `stride`th page is missing, `stale` or never written, and touched in order.
fn round_trips(faults: u64, stale: bool, sleep: bool) -> Outcome<()> {
    let guest = Guest::new((faults * 2).next_multiple_of(BLOCK_PAGES))?;
    // Of a machine whose host has other machines too, free memory is slow the first time: not what is measured.
    guest.mapping.populate(0..guest.mapping.bytes())?;
    let mut missing = PageBitmap::new(guest.pages);
    (0..faults).for_each(|fault| {
        missing.set(fault * 2);
    });
    if !stale {
        use rustix::fs::FallocateFlags;
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&guest.memfd, flags, 0, guest.pages * PAGE as u64)?;
    }
    let (pager, queues) = Pager::arm(&guest.memfd, &guest.regions(), &missing, 1)?;
    let (touches, served) = std::thread::scope(|scope| {
        let server = scope.spawn(|| serve(&pager, &queues[0], sleep).map_err(|error| error.to_string()));
        let touches: Vec<_> = (0..faults).map(|fault| guest.touch(fault * 2)).collect();
        (touches, server.join())
    });
    served.map_err(|_| "the server panicked")??;
    let pages = if stale { "old bytes" } else { "never written" };
    let server = if sleep { "sleeps" } else { "spins" };
    print_touches(&format!("missing pages ({pages}), server {server}"), touches, pager.stats().fetched);
    Ok(())
}

/// What it costs to bring pages nobody waits for, in batches of 64.
fn pushing(stale: bool) -> Outcome<()> {
    let guest = Guest::new(ARMED_PAGES / 4)?;
    if stale {
        guest.mapping.populate(0..guest.mapping.bytes())?;
    }
    let (pager, _queues) = Pager::arm(&guest.memfd, &guest.regions(), &PageBitmap::full(guest.pages), 1)?;
    let batch = vec![7; 64 * PAGE];
    let start = Instant::now();
    for first in (0..guest.pages).step_by(64) {
        pager.complete_from(first, &batch)?;
    }
    let each = start.elapsed() / u32::try_from(guest.pages)?;
    println!("pages pushed, {}: {each:.2?} each", if stale { "old bytes" } else { "never written" });
    Ok(())
}

/// What the blackout waits for, after a pre-copy that left `missing` pages scattered over memory that is mapped.
fn arming(huge: bool, missing: u64) -> Outcome<()> {
    let guest = Guest::new(ARMED_PAGES)?;
    if huge {
        guest.mapping.populate_huge(0..guest.mapping.bytes())?;
    } else {
        guest.mapping.populate(0..guest.mapping.bytes())?;
    }
    let step = ARMED_PAGES / missing;
    let mut set = PageBitmap::new(ARMED_PAGES);
    (0..missing).for_each(|page| {
        // A little off, so that runs do not fall into step with blocks.
        set.set(page * step + page * 7919 % step);
    });
    let start = Instant::now();
    let prepared = Prepared::new(&guest.memfd, &guest.regions(), 1)?;
    let preparing = start.elapsed();
    let start = Instant::now();
    let (pager, _queues) = prepared.arm(&set)?;
    let arming = start.elapsed();
    let pages = if huge { "2 MiB" } else { "4 KiB" };
    let (missing, mib) = (pager.remaining(), ARMED_PAGES * PAGE as u64 / HUGE_PAGE_BYTES as u64 * 2);
    println!("arming {mib} MiB of {pages} pages, {missing:>6} missing: {arming:>8.1?}, before that {preparing:.1?}");
    Ok(())
}

fn main() -> Outcome<()> {
    let faults = std::env::args().nth(1).map_or(Ok(FAULTS), |count| count.parse())?;
    vmotion_pager::probe()?;
    for (stale, sleep) in [(false, true), (true, true), (false, false), (true, false)] {
        round_trips(faults, stale, sleep)?;
    }
    pushing(false)?;
    pushing(true)?;
    for huge in [false, true] {
        for missing in [100, 1000, 10_000, 65_536] {
            arming(huge, missing)?;
        }
    }
    Ok(())
}
