//! The working set and its ledger. The ledger remembers, in memory of its own, how often each page was written: a page
//! that comes back older than that (or not at all) is a page somebody lost.

use core::ptr;

use crate::boot::Region;
use crate::clock::Clock;
use crate::content::{self, Content};
use crate::programs::Words;
use crate::stamp::{self, MEMORY_MAGIC, Mismatch, PAGE_WORDS, Stamp};

const PAGE_BYTES: u64 = 4096;
/// Kept free of the working set, for alignment and for what a loader may have mapped oddly.
const SPARE_BYTES: u64 = 1 << 20;

/// RAM as a sequence of pages, and where the ledger is.
#[derive(Clone, Copy, Default)]
pub struct Layout {
    regions: [Region; 8],
    ledger: u64,
    /// Pages of the working set.
    pub pages: u64,
}

impl Layout {
    /// Places a ledger and up to `wanted_bytes` of working set in the given RAM; `pages` says how much it became.
    pub fn plan(regions: &[Region; 8], wanted_bytes: u64) -> Self {
        let mut layout = Self { regions: *regions, ledger: 0, pages: 0 };
        let total: u64 = regions.iter().map(|region| region.end - region.start).sum();
        let room = total.saturating_sub(SPARE_BYTES) / (PAGE_BYTES + 8);
        layout.pages = (wanted_bytes / PAGE_BYTES).min(room);
        // The ledger is contiguous, so it comes from the largest region, and limits the pages if even that is small.
        if let Some(largest) = layout.regions.iter_mut().max_by_key(|region| region.end - region.start) {
            let fits = (largest.end - largest.start) / 16;
            layout.pages = layout.pages.min(fits);
            layout.ledger = largest.start;
            largest.start += (layout.pages * 8).next_multiple_of(PAGE_BYTES);
        }
        let left: u64 = layout.regions.iter().map(|region| (region.end - region.start) / PAGE_BYTES).sum();
        layout.pages = layout.pages.min(left);
        layout
    }

    /// The words of a page that belongs to no [`Part`].
    pub fn words(&self, page: u64) -> &'static Words {
        assert!(page < self.pages);
        let words: *const Words = ptr::with_exposed_provenance(self.address(page));
        // SAFETY: a page of RAM in the plan, aligned; where programs run there are no parts, so it is only ever accessed by atomics.
        unsafe { &*words }
    }

    fn address(&self, page: u64) -> usize {
        let mut offset = page * PAGE_BYTES;
        for region in &self.regions {
            let bytes = region.end - region.start;
            if offset < bytes {
                return (region.start + offset) as usize;
            }
            offset -= bytes;
        }
        unreachable!("page {page} lies outside the working set")
    }
}

/// How much of a page that was written before a write changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Extent {
    /// All of it.
    Page,
    /// The stamp, and one line of content: two of 64 lines. The checksum is that of the whole page all the same.
    Line,
}

/// Bytes of a line.
const LINE_BYTES: usize = 64;
/// Room in which content makes more than padding.
const SCRATCH_BYTES: usize = 3 * LINE_BYTES;

/// The pages one vCPU owns.
pub struct Part {
    layout: Layout,
    first: u64,
    /// How many; may be zero when there are more vCPUs than pages.
    pub pages: u64,
    cpu: u64,
    content: Content,
    extent: Extent,
    seed: u64,
}

/// A page that failed, with its number in the whole working set.
pub struct Corrupt {
    /// Number of the page.
    pub page: u64,
    /// Its physical address.
    pub address: u64,
    /// What the ledger says.
    pub expected_generation: u64,
    /// What the page says.
    pub mismatch: Mismatch,
}

impl Part {
    /// The part of vCPU `cpu` among `cpus`.
    ///
    /// # Safety
    /// Each (cpu, cpus) may be taken once, with the same `cpus` everywhere, so that no page has two owners.
    pub unsafe fn new(layout: &Layout, cpu: u64, cpus: u64, (content, extent): (Content, Extent), seed: u64) -> Self {
        let first = layout.pages * cpu / cpus;
        let pages = layout.pages * (cpu + 1) / cpus - first;
        Self { layout: *layout, first, pages, cpu, content, extent, seed }
    }

    /// Forgets what the RAM held before this program.
    pub fn clear_ledger(&mut self) {
        for page in 0..self.pages {
            *self.ledger(page) = 0;
        }
    }

    fn ledger(&mut self, page: u64) -> &mut u64 {
        assert!(page < self.pages);
        let address = self.layout.ledger + 8 * (self.first + page);
        let entry: *mut u64 = ptr::with_exposed_provenance_mut(address as usize);
        // SAFETY: `plan` reserved eight bytes per page there, aligned, in RAM used for nothing else; this entry's
        // only owner is this part, and the borrow of `self` keeps the reference unique.
        unsafe { &mut *entry }
    }

    fn page(&mut self, page: u64) -> &mut [u64; PAGE_WORDS] {
        assert!(page < self.pages);
        let address = self.layout.address(self.first + page);
        let words: *mut [u64; PAGE_WORDS] = ptr::with_exposed_provenance_mut(address);
        // SAFETY: a page of RAM in the plan, aligned, owned by this part only; the borrow of `self` keeps it unique.
        unsafe { &mut *words }
    }

    /// Verifies a page against the ledger; pages never written are not looked at. A corrupt page is reported once and
    /// then written afresh.
    ///
    /// # Errors
    /// The page is not what was last written.
    pub fn verify(&mut self, page: u64, clock: &mut Clock) -> Result<bool, Corrupt> {
        let generation = *self.ledger(page);
        if generation == 0 {
            return Ok(false);
        }
        let index = self.first + page;
        let checked = if self.content == Content::AllZero {
            let words = self.page(page);
            let found = Stamp::read(words);
            if stamp::is_zero(words) { Ok(()) } else { Err(Mismatch { found, checksum_fits: false, all_zero: false }) }
        } else {
            stamp::verify(self.page(page), MEMORY_MAGIC, 0, index, generation)
        };
        checked.map(|()| true).map_err(|mismatch| {
            self.overwrite(page, Extent::Page, clock);
            let address = self.layout.address(index) as u64;
            Corrupt { page: index, address, expected_generation: generation, mismatch }
        })
    }

    /// Verifies a page, then writes its next generation.
    ///
    /// # Errors
    /// The page was not what was last written; it is now.
    pub fn write(&mut self, page: u64, clock: &mut Clock) -> Result<(), Corrupt> {
        let verified = self.verify(page, clock);
        // A page that was never written has nothing that could stay.
        let extent = if *self.ledger(page) == 0 { Extent::Page } else { self.extent };
        self.overwrite(page, extent, clock);
        verified.map(|_| ())
    }

    fn overwrite(&mut self, page: u64, extent: Extent, clock: &mut Clock) {
        let generation = *self.ledger(page) + 1;
        let index = self.first + page;
        let mut seed = self.seed ^ index.rotate_left(32) ^ generation;
        let stamp = Stamp {
            magic: MEMORY_MAGIC,
            index,
            generation,
            cpu: self.cpu,
            seed: content::next_random(&mut seed),
            written_us: clock.now_us(),
            disk: 0,
        };
        let content = self.content;
        let words = self.page(page);
        let filled = bytes_of(&mut words[stamp::HEADER_WORDS..]);
        match extent {
            Extent::Page => content::fill(content, filled, stamp.seed),
            Extent::Line => {
                let (lines, _) = filled.as_chunks_mut::<LINE_BYTES>();
                let line = &mut lines[stamp.seed as usize % (PAGE_BYTES as usize / LINE_BYTES - 1)];
                let mut fresh = [0; SCRATCH_BYTES];
                content::fill(content, &mut fresh, stamp.seed);
                line.copy_from_slice(&fresh[..LINE_BYTES]);
            }
        }
        if content == Content::AllZero {
            words[..stamp::HEADER_WORDS].fill(0);
        } else {
            stamp.apply(words);
        }
        *self.ledger(page) = generation;
    }
}

/// The same memory as bytes.
pub fn bytes_of(words: &mut [u64]) -> &mut [u8] {
    let bytes = size_of_val(words);
    // SAFETY: u64 has no padding and any bytes make a valid one; length and lifetime are the slice's own.
    unsafe { core::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), bytes) }
}
