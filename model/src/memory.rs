//! Guest-physical memory: addresses, page numbers, and the layout both ends of a move must agree on.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Bytes in a page: the unit of dirty tracking, of the wire and of the page directory.
pub const PAGE_SIZE: u64 = 4096;

/// A guest-physical byte address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct GuestAddress(pub u64);

/// A guest-physical page: address divided by [`PAGE_SIZE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PageNumber(pub u64);

impl PageNumber {
    /// The page that holds `address`.
    #[must_use]
    pub const fn of(address: GuestAddress) -> Self {
        Self(address.0 / PAGE_SIZE)
    }

    /// The address of the page's first byte.
    #[must_use]
    pub const fn address(self) -> GuestAddress {
        GuestAddress(self.0 * PAGE_SIZE)
    }
}

impl fmt::Display for GuestAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Display for PageNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "page {:#x}", self.0)
    }
}

/// A run of RAM in guest-physical space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct MemoryRegion {
    /// First page.
    pub start: PageNumber,
    /// Length in pages; never 0 in a checked layout.
    pub pages: u64,
}

impl MemoryRegion {
    /// One past the last page.
    #[must_use]
    pub const fn end(&self) -> PageNumber {
        PageNumber(self.start.0 + self.pages)
    }

    /// Length in bytes.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.pages * PAGE_SIZE
    }

    /// Does the region hold `page`?
    #[must_use]
    pub const fn contains(&self, page: PageNumber) -> bool {
        page.0 >= self.start.0 && page.0 < self.start.0 + self.pages
    }
}

/// The RAM of a machine, as sorted, non-overlapping regions. It is what a source tells and a target checks before any
/// page moves; a page outside it is a protocol violation.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Vec<MemoryRegion>", into = "Vec<MemoryRegion>")]
pub struct MemoryLayout {
    regions: Vec<MemoryRegion>,
}

/// Why a memory layout was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// No RAM at all.
    #[error("Memory layout has no regions")]
    Empty,
    /// More regions than any machine has.
    #[error("Memory layout has {0} regions, at most {max} are accepted", max = MemoryLayout::REGIONS_MAX)]
    TooMany(usize),
    /// A region of no pages, or one that ends beyond the address space.
    #[error("Memory region at {start} with {pages} pages is empty or too large")]
    BadRegion {
        /// Its first page.
        start: PageNumber,
        /// Its length in pages.
        pages: u64,
    },
    /// Regions must be sorted and must not touch the one before.
    #[error("Memory region at {0} overlaps the one before it or is out of order")]
    Overlap(PageNumber),
}

impl MemoryLayout {
    /// Most regions a layout may have. Ours have one or two.
    pub const REGIONS_MAX: usize = 64;
    /// Highest page number plus one: 52 physical address bits.
    pub const PAGES_MAX: u64 = 1 << 40;
    /// Where the hole for 32-bit devices (virtio-mmio, IOAPIC, LAPIC, firmware) begins, in bytes.
    pub const HOLE_START: u64 = 0xd000_0000;
    /// Where RAM goes on above the hole, in bytes.
    pub const HOLE_END: u64 = 0x1_0000_0000;

    /// A checked layout from `regions`.
    ///
    /// # Errors
    /// [`LayoutError`] names the first region that breaks a rule.
    pub fn new(regions: Vec<MemoryRegion>) -> Result<Self, LayoutError> {
        if regions.is_empty() {
            return Err(LayoutError::Empty);
        }
        if regions.len() > Self::REGIONS_MAX {
            return Err(LayoutError::TooMany(regions.len()));
        }
        let mut free_from = 0;
        for region in &regions {
            let end = region.start.0.checked_add(region.pages);
            let end = end.filter(|end| region.pages > 0 && *end <= Self::PAGES_MAX);
            let Some(end) = end else {
                return Err(LayoutError::BadRegion { start: region.start, pages: region.pages });
            };
            if region.start.0 < free_from {
                return Err(LayoutError::Overlap(region.start));
            }
            free_from = end;
        }
        Ok(Self { regions })
    }

    /// The layout of an ordinary machine with `bytes` of RAM (rounded down to whole pages): from address 0, with the
    /// hole for 32-bit devices left out.
    ///
    /// # Errors
    /// [`LayoutError::BadRegion`] when `bytes` is less than one page.
    pub fn for_ram(bytes: u64) -> Result<Self, LayoutError> {
        let low = bytes.min(Self::HOLE_START) / PAGE_SIZE;
        let high = bytes.saturating_sub(Self::HOLE_START) / PAGE_SIZE;
        let mut regions = vec![MemoryRegion { start: PageNumber(0), pages: low }];
        if high > 0 {
            regions.push(MemoryRegion { start: PageNumber(Self::HOLE_END / PAGE_SIZE), pages: high });
        }
        Self::new(regions)
    }

    /// The regions, in ascending order.
    #[must_use]
    pub fn regions(&self) -> &[MemoryRegion] {
        &self.regions
    }

    /// All RAM, in pages.
    #[must_use]
    pub fn total_pages(&self) -> u64 {
        self.regions.iter().map(|region| region.pages).sum()
    }

    /// All RAM, in bytes.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.total_pages() * PAGE_SIZE
    }

    /// Is `page` RAM?
    #[must_use]
    pub fn contains(&self, page: PageNumber) -> bool {
        self.regions.iter().any(|region| region.contains(page))
    }

    /// Is the whole run of `count` pages from `first` RAM, within one region?
    #[must_use]
    pub fn contains_run(&self, first: PageNumber, count: u64) -> bool {
        count > 0
            && self.regions.iter().any(|region| {
                region.contains(first) && first.0.checked_add(count).is_some_and(|end| end <= region.end().0)
            })
    }

    /// The position of `page` when all RAM is laid end to end: an index for per-page tables and the offset in the
    /// memfd, in pages. `None` when it is not RAM.
    #[must_use]
    pub fn index_of(&self, page: PageNumber) -> Option<u64> {
        let mut before = 0;
        for region in &self.regions {
            if region.contains(page) {
                return Some(before + (page.0 - region.start.0));
            }
            before += region.pages;
        }
        None
    }

    /// The page at position `index`; the inverse of [`Self::index_of`].
    #[must_use]
    pub fn page_at(&self, index: u64) -> Option<PageNumber> {
        let mut before = 0;
        for region in &self.regions {
            if index < before + region.pages {
                return Some(PageNumber(region.start.0 + (index - before)));
            }
            before += region.pages;
        }
        None
    }
}

impl TryFrom<Vec<MemoryRegion>> for MemoryLayout {
    type Error = LayoutError;
    fn try_from(regions: Vec<MemoryRegion>) -> Result<Self, LayoutError> {
        Self::new(regions)
    }
}

impl From<MemoryLayout> for Vec<MemoryRegion> {
    fn from(layout: MemoryLayout) -> Self {
        layout.regions
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ram_above_the_hole_continues_at_4_gib() {
        let layout = MemoryLayout::for_ram(4 << 30).unwrap();
        assert_eq!(layout.total_bytes(), 4 << 30);
        assert_eq!(layout.regions().len(), 2);
        assert!(!layout.contains(PageNumber::of(GuestAddress(0xfee0_0000))));
        assert!(layout.contains(PageNumber::of(GuestAddress(0x1_0000_0000))));
    }

    #[test]
    fn hostile_regions_are_refused() {
        let region = |start, pages| MemoryRegion { start: PageNumber(start), pages };
        assert_eq!(MemoryLayout::new(vec![]), Err(LayoutError::Empty));
        assert!(MemoryLayout::new(vec![region(u64::MAX, 2)]).is_err());
        assert!(MemoryLayout::new(vec![region(0, 0)]).is_err());
        assert_eq!(MemoryLayout::new(vec![region(0, 4), region(3, 4)]), Err(LayoutError::Overlap(PageNumber(3))));
        assert!(!MemoryLayout::for_ram(1 << 20).unwrap().contains_run(PageNumber(1), u64::MAX));
    }

    proptest! {
        #[test]
        fn index_and_page_are_inverse(bytes in 4096u64..(8 << 30), pick in 0.0f64..1.0) {
            let layout = MemoryLayout::for_ram(bytes).unwrap();
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            let index = ((layout.total_pages() - 1) as f64 * pick) as u64;
            let page = layout.page_at(index).unwrap();
            prop_assert_eq!(layout.index_of(page), Some(index));
        }
    }
}
