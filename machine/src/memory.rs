//! Guest memory: one sealed memfd with the layout's regions end to end, mapped once per region.
//!
//! Who may touch what: vCPUs and devices write at any time while the machine runs, so every safe access here is a
//! volatile copy. `&mut [u8]` views exist only through [`Filling`], a token that keeps the machine from running.
//!
//! Pages are 4 KiB, and transparent huge pages are declined once a machine has its contents: dirty tracking and post-copy
//! work page by page, and a huge page touched in one place counts as 512 written ones. Memory that is about to be filled
//! wholly is the exception ([`GuestRam::populate`]): a huge page costs a tenth of 512 small ones there, nothing is wasted,
//! and it may stay. `Backing::Huge2m` is for those who want huge pages everywhere.

mod device_writes;
mod fill;
#[cfg(test)]
mod tests;

pub(crate) use device_writes::DeviceWrites;
pub use fill::Filling;

use crate::MachineError;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{Bytes, FileOffset, GuestMemoryMmap, GuestRegionMmap, MemoryRegionAddress};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
use vmotion_dirty_tracking::PageBitmap;
use vmotion_model::{Backing, MemoryLayout, PAGE_SIZE};
use vmotion_sys::memory::{AlignedMapping, HUGE_PAGE_BYTES};

/// What devices access guest memory through; its bitmap records what they write.
pub(crate) type DeviceMemory = GuestMemoryMmap<DeviceWrites>;

/// Pages that one stripe lock covers in a row.
const STRIPE_PAGES: u64 = 512;
/// Stripe locks; pages `STRIPE_PAGES * STRIPES` apart share one.
const STRIPES: usize = 64;

/// The RAM of a machine.
#[derive(Debug)]
pub struct GuestRam {
    layout: MemoryLayout,
    memfd: File,
    backing: Backing,
    /// Points into `mappings`, and therefore never leaves this struct other than by reference.
    regions: DeviceMemory,
    mappings: Vec<AlignedMapping>,
    /// Keeps plain `&mut` views of [`Filling`] apart from each other and from copies made through this type.
    stripes: Vec<RwLock<()>>,
}

/// Access to guest memory outside its bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("Pages {first}..{end} by index are outside guest memory of {total} pages, or the buffer is of another length")]
pub struct OutsideRam {
    /// First page index asked for.
    pub first: u64,
    /// One past the last.
    pub end: u64,
    /// Pages the machine has.
    pub total: u64,
}

const fn to_usize(value: u64) -> usize {
    #[expect(clippy::cast_possible_truncation, reason = "usize has 64 bits on the only platform this builds for")]
    let value = value as usize;
    value
}

impl GuestRam {
    /// Allocates (without touching) and maps memory for `layout`.
    pub(crate) fn new(layout: MemoryLayout, backing: Backing) -> Result<Self, MachineError> {
        let memfd = create_memfd(&layout, backing)?;
        let (mut regions, mut mappings) = (Vec::new(), Vec::new());
        let mut offset = 0;
        for region in layout.regions() {
            let bytes = to_usize(region.bytes());
            let mapping = AlignedMapping::new(&memfd, offset, bytes).map_err(MachineError::memory("map the memfd"))?;
            let file = memfd.try_clone().map_err(MachineError::memory("duplicate the memfd"))?;
            let builder = MmapRegionBuilder::new_with_bitmap(bytes, DeviceWrites::new(region.pages))
                .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
                .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE)
                .with_file_offset(FileOffset::new(file, offset));
            // SAFETY: a mapping of this length, protection and kind, which lives as long as the region: both belong to the value
            // made here, and the region is never given away.
            let view = unsafe { builder.with_raw_mmap_pointer(mapping.address()) }
                .build()
                .map_err(|error| MachineError::Memory { what: "view the memfd", source: io::Error::other(error) })?;
            let start = vm_memory::GuestAddress(region.start.address().0);
            let wraps = || MachineError::Memory {
                what: "place a region",
                source: io::Error::other("it wraps around the address space"),
            };
            regions.push(GuestRegionMmap::new(view, start).ok_or_else(wraps)?);
            mappings.push(mapping);
            offset += region.bytes();
        }
        let regions = GuestMemoryMmap::from_regions(regions)
            .map_err(|error| MachineError::Memory { what: "join the regions", source: io::Error::other(error) })?;
        let stripes = (0..STRIPES).map(|_| RwLock::new(())).collect();
        Ok(Self { layout, memfd, backing, regions, mappings, stripes })
    }

    /// From now on new pages are small ones: the machine has its contents.
    pub(crate) fn decline_huge_pages(&self) {
        for mapping in self.mappings.iter().filter(|_| self.backing == Backing::Memfd) {
            if let Err(error) = mapping.decline_huge_pages() {
                tracing::debug!(%error, "transparent huge pages could not be declined");
            }
        }
    }

    /// The regions of guest-physical space that are RAM.
    #[must_use]
    pub const fn layout(&self) -> &MemoryLayout {
        &self.layout
    }

    /// All RAM, in pages.
    #[must_use]
    pub fn total_pages(&self) -> u64 {
        self.layout.total_pages()
    }

    /// The memfd that holds the memory: byte `index * PAGE_SIZE` is the first of page `index`.
    #[must_use]
    pub const fn memfd(&self) -> &File {
        &self.memfd
    }

    pub(crate) const fn devices(&self) -> &DeviceMemory {
        &self.regions
    }

    /// Host address and layout index range of each region, in ascending order.
    pub(crate) fn mappings(&self) -> impl Iterator<Item = (*mut u8, Range<u64>, u64)> + '_ {
        let mut first = 0;
        self.regions.iter().map(move |region| {
            let pages = region.len() / PAGE_SIZE;
            let range = first..first + pages;
            first += pages;
            (region.as_ptr(), range, region.start_addr().0)
        })
    }

    /// Where the guest's memory is mapped in this process: host address and page indices of each region, ascending. The bytes of page
    /// `index` are at `index * PAGE_SIZE` of [`Self::memfd`].
    pub fn mapped_at(&self) -> impl Iterator<Item = (usize, Range<u64>)> + '_ {
        self.mappings().map(|(address, pages, _)| (address.addr(), pages))
    }

    fn check(&self, first: u64, pages: u64, bytes: usize) -> Result<Range<u64>, OutsideRam> {
        let total = self.total_pages();
        let outside = OutsideRam { first, end: first.saturating_add(pages), total };
        let end = first.checked_add(pages).filter(|end| *end <= total).ok_or(outside)?;
        if pages == 0 || to_usize(pages * PAGE_SIZE) != bytes { Err(outside) } else { Ok(first..end) }
    }

    /// The parts of the checked `run` that lie in one region each: region, offset in it, and bytes from the run's start.
    fn parts(
        &self,
        run: Range<u64>,
    ) -> impl Iterator<Item = (&GuestRegionMmap<DeviceWrites>, MemoryRegionAddress, Range<usize>)> {
        let mut first = 0;
        self.regions.iter().filter_map(move |region| {
            let pages = region.len() / PAGE_SIZE;
            let here = run.start.max(first)..run.end.min(first + pages);
            let offset = MemoryRegionAddress(here.start.saturating_sub(first) * PAGE_SIZE);
            first += pages;
            if here.is_empty() {
                return None;
            }
            let from = to_usize((here.start - run.start) * PAGE_SIZE);
            Some((region, offset, from..to_usize((here.end - run.start) * PAGE_SIZE)))
        })
    }

    fn stripes_of(run: &Range<u64>) -> Vec<usize> {
        let blocks = run.start / STRIPE_PAGES..=(run.end - 1) / STRIPE_PAGES;
        let mut stripes: Vec<usize> = blocks.take(STRIPES).map(|block| to_usize(block) % STRIPES).collect();
        // One order for everybody, so that two runs over two stripes cannot wait for each other.
        stripes.sort_unstable();
        stripes
    }

    fn lock_read(&self, run: &Range<u64>) -> Vec<RwLockReadGuard<'_, ()>> {
        let lock = |stripe: usize| self.stripes[stripe].read().unwrap_or_else(std::sync::PoisonError::into_inner);
        Self::stripes_of(run).into_iter().map(lock).collect()
    }

    fn lock_write(&self, run: &Range<u64>) -> Vec<RwLockWriteGuard<'_, ()>> {
        let lock = |stripe: usize| self.stripes[stripe].write().unwrap_or_else(std::sync::PoisonError::into_inner);
        Self::stripes_of(run).into_iter().map(lock).collect()
    }

    /// Copies one page into `into` (4096 bytes), while the guest may be writing it: the copy may then be torn, and
    /// dirty tracking says so.
    ///
    /// # Errors
    /// [`OutsideRam`] when there is no such page or `into` has another length.
    pub fn read_page(&self, index: u64, into: &mut [u8]) -> Result<(), OutsideRam> {
        self.read_run(index, 1, into)
    }

    /// Copies `pages` pages from `first` on into `into`, which has exactly their length; see [`Self::read_page`].
    ///
    /// Reading a page that was never touched allocates it: skip what [`Self::allocated`] does not list.
    ///
    /// # Errors
    /// [`OutsideRam`] when a page does not exist or `into` has another length.
    pub fn read_run(&self, first: u64, pages: u64, into: &mut [u8]) -> Result<(), OutsideRam> {
        let run = self.check(first, pages, into.len())?;
        let _locks = self.lock_read(&run);
        let total = self.total_pages();
        for (region, offset, bytes) in self.parts(run) {
            let copied = region.read_slice(&mut into[bytes], offset);
            copied.map_err(|_| OutsideRam { first, end: first + pages, total })?;
        }
        Ok(())
    }

    /// Copies `from`, a whole number of pages, over the pages from `first` on. Not recorded as a device write: this is
    /// for putting memory in place before a machine runs.
    ///
    /// # Errors
    /// [`OutsideRam`] when a page does not exist or `from` is not whole pages.
    pub fn write_run(&self, first: u64, from: &[u8]) -> Result<(), OutsideRam> {
        let run = self.check(first, from.len() as u64 / PAGE_SIZE, from.len())?;
        let _locks = self.lock_write(&run);
        let outside = OutsideRam { first, end: run.end, total: self.total_pages() };
        for (region, offset, bytes) in self.parts(run) {
            let slice = region.get_mmap();
            let copied = vm_memory::VolatileMemory::get_slice(&*slice, to_usize(offset.0), bytes.len());
            let Ok(target) = copied else { return Err(outside) };
            // SAFETY: source and target are valid for the length; guest memory is never the caller's slice. The copy
            // bypasses the bitmap of device writes on purpose.
            unsafe {
                std::ptr::copy_nonoverlapping(from[bytes].as_ptr(), target.ptr_guard_mut().as_ptr(), target.len())
            };
        }
        Ok(())
    }

    /// Allocates and maps the pages of `run` in this process, so that filling them does not fault page by page. Whole,
    /// aligned 2 MiB become huge pages where the host has them and the machine's contents are not complete yet.
    ///
    /// # Errors
    /// [`MachineError::Memory`] when memory runs out.
    pub fn populate(&self, run: Range<u64>) -> Result<(), MachineError> {
        let run = run.start.min(self.total_pages())..run.end.min(self.total_pages());
        let mut first = 0;
        for mapping in &self.mappings {
            let pages = mapping.bytes() as u64 / PAGE_SIZE;
            let here = run.start.clamp(first, first + pages) - first..run.end.clamp(first, first + pages) - first;
            first += pages;
            if here.is_empty() {
                continue;
            }
            let bytes = to_usize(here.start * PAGE_SIZE)..to_usize(here.end * PAGE_SIZE);
            let whole = bytes.start.is_multiple_of(HUGE_PAGE_BYTES) && bytes.end.is_multiple_of(HUGE_PAGE_BYTES);
            if whole && self.backing == Backing::Memfd && mapping.populate_huge(bytes.clone()).is_ok() {
                continue;
            }
            mapping.populate(bytes).map_err(MachineError::memory("populate guest memory"))?;
        }
        Ok(())
    }

    /// Gives the pages of `run` back to the host: they read as zero afterwards.
    ///
    /// # Errors
    /// [`MachineError::Memory`] when the host refuses.
    pub fn discard(&self, run: Range<u64>) -> Result<(), MachineError> {
        let run = run.start.min(self.total_pages())..run.end.min(self.total_pages());
        if run.is_empty() {
            return Ok(());
        }
        let _locks = self.lock_write(&run);
        let flags = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
        let bytes = (run.end - run.start) * PAGE_SIZE;
        rustix::fs::fallocate(&self.memfd, flags, run.start * PAGE_SIZE, bytes)
            .map_err(|error| MachineError::Memory { what: "discard pages", source: error.into() })
    }

    /// The pages that were ever touched; all others are zero. Costs about 50 ns per such page.
    ///
    /// # Errors
    /// [`MachineError::Memory`] when the memfd cannot tell.
    pub fn allocated(&self) -> Result<PageBitmap, MachineError> {
        let touched = self.touched_among(&PageBitmap::full(self.total_pages()));
        touched.map_err(MachineError::memory("ask which pages are allocated"))
    }

    /// Those of `pages` that were ever touched; nearly free when none was.
    pub(crate) fn touched_among(&self, pages: &PageBitmap) -> io::Result<PageBitmap> {
        let mut touched = PageBitmap::new(self.total_pages());
        for run in pages.runs() {
            let bytes = run.start * PAGE_SIZE..run.end * PAGE_SIZE;
            for range in vmotion_sys::memory::data_ranges(&self.memfd, bytes)? {
                touched.set_range(range.start / PAGE_SIZE..range.end.div_ceil(PAGE_SIZE));
            }
        }
        Ok(touched)
    }

    /// Moves the record of device writes into `into`.
    pub(crate) fn take_device_writes(&self, into: &mut PageBitmap) {
        let mut first = 0;
        for region in self.regions.iter() {
            region.get_mmap().bitmap().take(|page| {
                into.set(first + page);
            });
            first += region.len() / PAGE_SIZE;
        }
    }
}

fn create_memfd(layout: &MemoryLayout, backing: Backing) -> Result<File, MachineError> {
    use rustix::fs::{MemfdFlags, SealFlags};
    let base = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let flags = match backing {
        Backing::Memfd => base,
        Backing::Huge2m => base | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB,
    };
    let failed = |what| move |error: rustix::io::Errno| MachineError::Memory { what, source: error.into() };
    if backing == Backing::Huge2m {
        check_huge_pages(layout.total_bytes())?;
    }
    let memfd = rustix::fs::memfd_create("guest-ram", flags).map_err(failed("create a memfd"))?;
    rustix::fs::ftruncate(&memfd, layout.total_bytes()).map_err(failed("size the memfd"))?;
    // Nobody who is handed the memfd can make accesses through the mapping fault by shrinking it.
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&memfd, seals).map_err(failed("seal the memfd"))?;
    Ok(File::from(memfd))
}

/// The kernel kills a process that touches a huge page it cannot have: ask before.
fn check_huge_pages(bytes: u64) -> Result<(), MachineError> {
    let path = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";
    let free_pages = std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0);
    let needed_pages = bytes.div_ceil(2 << 20);
    if free_pages < needed_pages { Err(MachineError::HugePages { needed_pages, free_pages }) } else { Ok(()) }
}
