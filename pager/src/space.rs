//! Where pages are: index in the memory layout, address in A, byte in B, and the 2 MiB block that faults are served by.
//!
//! Invariant: regions run on in index order without gaps, and the memfd holds their pages in that order, so that B is one piece.

use crate::PagerError;
use std::ops::Range;
use vmotion_model::PAGE_SIZE;

#[cfg(test)]
mod tests;

/// Pages of a block: what a huge page of x86-64 holds.
pub(crate) const BLOCK_PAGES: u64 = 512;

/// One region of guest RAM as it is mapped for the guest (A).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuestRegion {
    /// Host address of its first byte, at a page of the backing memory.
    pub address: usize,
    /// Index of its first page; regions are given in ascending order, without gaps, from 0.
    pub first: u64,
    /// Its length in pages.
    pub pages: u64,
    /// Where its first byte lies in the memfd, in bytes: regions follow each other there too.
    pub file_offset: u64,
}

#[derive(Debug, Clone, Copy)]
struct Placed {
    region: GuestRegion,
    first_block: u64,
}

/// All regions, checked.
#[derive(Debug)]
pub(crate) struct Space {
    placed: Vec<Placed>,
    pages: u64,
    blocks: u64,
}

pub(crate) const fn to_usize(value: u64) -> usize {
    #[expect(clippy::cast_possible_truncation, reason = "usize has 64 bits on the only platform this builds for")]
    let value = value as usize;
    value
}

/// Bytes of `pages` pages.
pub(crate) const fn bytes_of(pages: u64) -> usize {
    to_usize(pages * PAGE_SIZE)
}

impl Space {
    /// Checks `regions` of a memfd whose pages have `page_bytes` bytes.
    pub(crate) fn new(regions: &[GuestRegion], page_bytes: usize) -> Result<Self, PagerError> {
        let mut space = Self { placed: Vec::new(), pages: 0, blocks: 0 };
        let base = regions.first().map_or(0, |region| region.file_offset);
        for region in regions {
            let problem = |problem| PagerError::Region { first: region.first, problem };
            if region.first != space.pages {
                return Err(problem("does not follow the one before it"));
            }
            let end = region.first.checked_add(region.pages).and_then(|end| end.checked_mul(PAGE_SIZE));
            let Some(end_bytes) = end.filter(|_| region.pages > 0) else { return Err(problem("is empty or too long")) };
            if region.address.checked_add(bytes_of(region.pages)).is_none() || base.checked_add(end_bytes).is_none() {
                return Err(problem("wraps around"));
            }
            if region.file_offset != base + region.first * PAGE_SIZE {
                return Err(problem("does not follow the one before it in the memfd"));
            }
            let ends = [region.address, to_usize(region.file_offset), bytes_of(region.pages)];
            if ends.iter().any(|value| !value.is_multiple_of(page_bytes)) {
                return Err(problem("does not consist of whole pages of its memfd"));
            }
            space.placed.push(Placed { region: *region, first_block: space.blocks });
            space.pages += region.pages;
            space.blocks += region.pages.div_ceil(BLOCK_PAGES);
        }
        if space.pages == 0 {
            Err(PagerError::Region { first: 0, problem: "is missing: there are none" })
        } else {
            Ok(space)
        }
    }

    /// All pages; indices are below.
    pub(crate) const fn pages(&self) -> u64 {
        self.pages
    }

    /// All blocks; block numbers are below. The last block of a region may be short.
    pub(crate) const fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Where B begins in the memfd, in bytes.
    pub(crate) fn file_base(&self) -> u64 {
        self.placed.first().map_or(0, |placed| placed.region.file_offset)
    }

    fn placed_of(&self, index: u64) -> &Placed {
        let after = self.placed.partition_point(|placed| placed.region.first <= index);
        &self.placed[after.saturating_sub(1)]
    }

    fn placed_of_block(&self, block: u64) -> &Placed {
        let after = self.placed.partition_point(|placed| placed.first_block <= block);
        &self.placed[after.saturating_sub(1)]
    }

    /// The block of a page.
    pub(crate) fn block_of(&self, index: u64) -> u64 {
        let placed = self.placed_of(index);
        placed.first_block + (index - placed.region.first) / BLOCK_PAGES
    }

    /// The pages of a block.
    pub(crate) fn block_pages(&self, block: u64) -> Range<u64> {
        let Placed { region, first_block } = self.placed_of_block(block);
        let first = region.first + (block - first_block) * BLOCK_PAGES;
        first..(first + BLOCK_PAGES).min(region.first + region.pages)
    }

    /// The blocks of the region that `block` lies in.
    pub(crate) fn blocks_beside(&self, block: u64) -> Range<u64> {
        let Placed { region, first_block } = self.placed_of_block(block);
        *first_block..first_block + region.pages.div_ceil(BLOCK_PAGES)
    }

    /// `run` cut at block boundaries, with the block of each part. `run` is within [`Self::pages`].
    pub(crate) fn parts(&self, run: Range<u64>) -> impl Iterator<Item = (u64, Range<u64>)> {
        let mut at = run.start;
        std::iter::from_fn(move || {
            if at >= run.end {
                return None;
            }
            let block = self.block_of(at);
            let part = at..self.block_pages(block).end.min(run.end);
            at = part.end;
            Some((block, part))
        })
    }

    /// Addresses in A of a run of pages of one region.
    pub(crate) fn addresses(&self, run: &Range<u64>) -> Range<usize> {
        let region = &self.placed_of(run.start).region;
        let start = region.address + bytes_of(run.start - region.first);
        start..start + bytes_of(run.end - run.start)
    }

    /// Regions as ranges of addresses, with where each begins in the memfd.
    pub(crate) fn mappings(&self) -> Vec<(Range<usize>, u64)> {
        let of = |Placed { region, .. }: &Placed| {
            (region.address..region.address + bytes_of(region.pages), region.file_offset)
        };
        self.placed.iter().map(of).collect()
    }

    /// Which region a page lies in, and the bytes of `run` within it.
    pub(crate) fn within_region(&self, run: &Range<u64>) -> (usize, Range<usize>) {
        let after = self.placed.partition_point(|placed| placed.region.first <= run.start);
        let region = after.saturating_sub(1);
        let first = self.placed[region].region.first;
        (region, bytes_of(run.start - first)..bytes_of(run.end - first))
    }

    /// Bytes in B of a run of pages.
    pub(crate) const fn alias_bytes(run: &Range<u64>) -> Range<usize> {
        bytes_of(run.start)..bytes_of(run.end)
    }

    /// The page that an address in A belongs to.
    pub(crate) fn index_at(&self, address: usize) -> Option<u64> {
        self.placed.iter().find_map(|Placed { region, .. }| {
            let offset = address.checked_sub(region.address)? as u64 / PAGE_SIZE;
            (offset < region.pages).then_some(region.first + offset)
        })
    }
}
