//! Which pages devices wrote: KVM's log sees only what vCPUs write.
//!
//! A bit is set after the write it stands for (vm-memory's order), and taken before the page is read by a copy. So a
//! write is either read by that copy, or reported again.

use std::sync::atomic::{AtomicU64, Ordering};
use vm_memory::bitmap::{Bitmap, RefSlice, WithBitmapSlice};
use vmotion_model::PAGE_SIZE;

/// One bit per page, and above it one bit per 64 words, so that taking nothing from a large machine costs little.
#[derive(Debug, Default)]
pub(crate) struct DeviceWrites {
    words: Vec<AtomicU64>,
    summary: Vec<AtomicU64>,
}

const BITS: usize = 64;

impl DeviceWrites {
    pub(crate) fn new(pages: u64) -> Self {
        let words = super::to_usize(pages).div_ceil(BITS);
        let zeros = |count: usize| (0..count).map(|_| AtomicU64::new(0)).collect();
        Self { words: zeros(words), summary: zeros(words.div_ceil(BITS)) }
    }

    fn mark_page(&self, page: usize) {
        let Some(word) = self.words.get(page / BITS) else { return };
        let bit = 1 << (page % BITS);
        // Always an atomic OR, even when the bit looks set: a concurrent `take` may be about to remove it.
        word.fetch_or(bit, Ordering::SeqCst);
        self.summary[page / BITS / BITS].fetch_or(1 << (page / BITS % BITS), Ordering::SeqCst);
    }

    /// Clears all bits, giving each to `visit`.
    pub(crate) fn take(&self, mut visit: impl FnMut(u64)) {
        for (group, summary) in self.summary.iter().enumerate() {
            if summary.load(Ordering::SeqCst) == 0 {
                continue;
            }
            let mut words = summary.swap(0, Ordering::SeqCst);
            while words != 0 {
                let index = group * BITS + words.trailing_zeros() as usize;
                words &= words - 1;
                let mut bits = self.words[index].swap(0, Ordering::SeqCst);
                while bits != 0 {
                    visit((index * BITS) as u64 + u64::from(bits.trailing_zeros()));
                    bits &= bits - 1;
                }
            }
        }
    }
}

impl<'a> WithBitmapSlice<'a> for DeviceWrites {
    type S = RefSlice<'a, Self>;
}

impl Bitmap for DeviceWrites {
    fn mark_dirty(&self, offset: usize, len: usize) {
        if len == 0 {
            return;
        }
        let page_bytes = super::to_usize(PAGE_SIZE);
        for page in offset / page_bytes..=(offset + len - 1) / page_bytes {
            self.mark_page(page);
        }
    }

    fn dirty_at(&self, offset: usize) -> bool {
        let page = offset / super::to_usize(PAGE_SIZE);
        self.words.get(page / BITS).is_some_and(|word| word.load(Ordering::SeqCst) & (1 << (page % BITS)) != 0)
    }

    fn slice_at(&self, offset: usize) -> RefSlice<'_, Self> {
        RefSlice::new(self, offset)
    }
}
