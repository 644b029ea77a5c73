//! From memory that is all here to memory with missing pages.

use crate::plan::{Plan, Shards, plan};
use crate::queue::FaultQueue;
use crate::shared::Shared;
use crate::space::{BLOCK_PAGES, GuestRegion, Space, bytes_of, to_usize};
use crate::state::PageStates;
use crate::stats::{Counters, Waiters};
use crate::{NEEDED, Pager, PagerError, open};
use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use vmotion_dirty_tracking::PageBitmap;
use vmotion_model::PAGE_SIZE;
use vmotion_sys::userfaultfd::{
    CheckedMapping, Features, ServiceAlias, Userfault, drop_translations, kernel_page_bytes,
};
use zerocopy::FromZeros;

/// Everything that can be done before it is known which pages are missing, and while the guest still runs elsewhere.
#[derive(Debug)]
pub struct Prepared {
    shared: Shared,
}

impl Prepared {
    /// Checks that `regions` are mappings of `memfd`, maps it a second time, and opens `shards` userfaultfds (1 to 64): one lets
    /// about 200,000 faults a second through. A few tenths of a millisecond; the guest's mapping is not changed.
    ///
    /// # Errors
    /// [`PagerError`] says what the host or the memory lacks.
    pub fn new(memfd: &File, regions: &[GuestRegion], shards: usize) -> Result<Self, PagerError> {
        let page_bytes = kernel_page_bytes(memfd).map_err(PagerError::kernel("ask for the memfd's page size"))?;
        let whole_blocks = match page_bytes as u64 {
            PAGE_SIZE => false,
            bytes if bytes == BLOCK_PAGES * PAGE_SIZE => true,
            _ => return Err(PagerError::PageSize { bytes: page_bytes }),
        };
        let space = Space::new(regions, page_bytes)?;
        let mappings = CheckedMapping::check(memfd, &space.mappings())
            .map_err(PagerError::kernel("find the guest's memory among this process's mappings"))?;
        let shards = Shards::new(shards, space.blocks());
        let needed =
            if whole_blocks { NEEDED.and(Features::MISSING_HUGETLBFS).and(Features::MINOR_HUGETLBFS) } else { NEEDED };
        let userfaults: Vec<Userfault> = (0..shards.count()).map(|_| open(needed)).collect::<Result<_, _>>()?;
        let alias = ServiceAlias::new(memfd, space.file_base(), bytes_of(space.pages()))
            .map_err(PagerError::kernel("map the memory a second time"))?;
        let memfd = memfd.try_clone().map_err(PagerError::kernel("duplicate the memfd"))?;
        let no_memory = || PagerError::kernel("keep the state of every page")(io::ErrorKind::OutOfMemory.into());
        let states = PageStates::new(to_usize(space.pages())).ok_or_else(no_memory)?;
        let blocks = to_usize(space.blocks());
        let missing_of_block = <[AtomicU32]>::new_box_zeroed_with_elems(blocks).map_err(|_| no_memory())?;
        let watched = <[AtomicBool]>::new_box_zeroed_with_elems(blocks).map_err(|_| no_memory())?;
        let waiters = userfaults.iter().map(|_| Mutex::new(Waiters::default())).collect();
        let shared = Shared {
            space,
            whole_blocks,
            shards,
            userfaults,
            alias,
            mappings,
            memfd,
            states,
            missing_of_block,
            remaining: AtomicU64::new(0),
            registrations: Vec::new(),
            watched,
            mappings_taken: AtomicI64::new(0),
            abandoned: AtomicBool::new(false),
            waiters,
            counters: Counters::new(),
        };
        Ok(Self { shared })
    }

    /// From here on touching a page of `missing` waits until it has arrived. Nothing may run in the guest's memory meanwhile: what
    /// touches it between the first and the last step sees old bytes.
    ///
    /// Costs a system call per run of 2 MiB blocks with missing pages (about 4 µs), and one for every 1024 runs of missing pages; the
    /// kernel takes about 1 µs for each run of missing pages that was mapped, 140 µs for a block where there are more than 128, a
    /// few µs for one that was mapped by a huge page, and next to nothing where nothing was mapped.
    ///
    /// # Errors
    /// [`PagerError`]; the memory is then as it was, and its missing pages are not protected.
    pub fn arm(self, missing: &PageBitmap) -> Result<(Pager, Vec<FaultQueue>), PagerError> {
        let mut shared = self.shared;
        let pages = shared.space.pages();
        if missing.pages() != pages {
            return Err(PagerError::WrongSize { given: missing.pages(), pages });
        }
        let Plan { registrations, drops } = plan(&shared.space, missing, shared.shards, shared.whole_blocks);
        for (block, part) in missing.runs().flat_map(|run| shared.space.parts(run)) {
            let pages = u32::try_from(part.end - part.start).expect("a part of a block has at most 512 pages");
            shared.missing_of(block).fetch_add(pages, Ordering::Relaxed);
            shared.states.set_missing(part);
        }
        shared.remaining = AtomicU64::new(missing.count());
        // First registered, then dropped: in the other order a touch between the two would map the page again, unseen.
        for registration in &registrations {
            let addresses = shared.space.addresses(&registration.pages);
            let registered = shared.userfaults[registration.shard].register(&addresses);
            registered.map_err(PagerError::kernel("register guest memory with userfaultfd"))?;
            for (block, _) in shared.space.parts(registration.pages.clone()) {
                shared.watched[to_usize(block)].store(true, Ordering::Release);
            }
            // The registered one, and the one behind it.
            shared.mappings_taken.fetch_add(2, Ordering::Relaxed);
        }
        shared.registrations = registrations;
        let drops: Vec<_> = drops
            .iter()
            .map(|run| {
                let (region, bytes) = shared.space.within_region(run);
                shared.mappings[region].part(bytes)
            })
            .collect();
        drop_translations(&drops).map_err(PagerError::kernel("drop the translations of missing pages"))?;
        let shared = Arc::new(shared);
        let queues = (0..shared.userfaults.len()).map(|shard| FaultQueue { shared: Arc::clone(&shared), shard });
        Ok((Pager { shared: Arc::clone(&shared) }, queues.collect()))
    }
}
