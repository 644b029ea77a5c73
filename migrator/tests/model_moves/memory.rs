//! The model guest's memory, and what the guest knows of it.
//!
//! Every page holds what follows from its number and the stamp it was last written with. The stamps are the guest's
//! registers: they travel in the saved state, the pages do not, so whoever has the registers can tell a wrong page. A stamp is the
//! number of the write that made the page anew, and how many writes of one word each came after that.

use std::sync::Arc;
use tokio::sync::Notify;
use vmotion_dirty_tracking::PageBitmap;
use vmotion_migrator::guest::GuestError;
use vmotion_transport::session::DemandSender;

pub(crate) const PAGE: usize = 4096;
/// The part of a stamp that counts writes of one word.
const WORDS_BITS: u32 = 3;
const WORDS_MAX: u64 = (1 << WORDS_BITS) - 1;
/// One write in so many makes a page anew, unless that is due.
const ANEW: u64 = 3;

/// What the guest knows, and takes with it.
#[derive(Debug, Clone)]
pub(crate) struct Registers {
    next_stamp: u64,
    /// What each page was last written with; 0 for never.
    stamps: Vec<u64>,
}

impl Registers {
    fn new(pages: u64) -> Self {
        Self { next_stamp: 1, stamps: vec![0; index(pages)] }
    }

    pub(crate) fn save(&self) -> Vec<u8> {
        std::iter::once(&self.next_stamp).chain(&self.stamps).flat_map(|word| word.to_le_bytes()).collect()
    }

    pub(crate) fn load(state: &[u8], pages: u64) -> Result<Self, GuestError> {
        let mut words = state.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap()));
        let registers = words.next().map(|next_stamp| Self { next_stamp, stamps: words.collect() });
        let fits =
            registers.filter(|registers| registers.stamps.len() == index(pages) && state.len().is_multiple_of(8));
        fits.ok_or_else(|| GuestError("state of another guest".to_owned()))
    }
}

/// Whom to ask for a missing page, and who was asked for already.
struct Following {
    demands: DemandSender,
    all_here: Arc<Notify>,
    asked: PageBitmap,
}

/// RAM, and the host's view of it.
pub(crate) struct Memory {
    bytes: Vec<u8>,
    pub(crate) touched: PageBitmap,
    /// Written and not cleared; `None` while nothing is tracked.
    pub(crate) dirty: Option<PageBitmap>,
    pub(crate) fetches: u32,
    pub(crate) registers: Registers,
    /// Declared missing, and not here yet.
    missing: PageBitmap,
    following: Option<Following>,
    /// Filled by nobody but the guest and what follows it.
    closed: bool,
    /// Something was filled in all the same, or is not what the state says. A guest that cannot have the machine any more, because the
    /// offer was taken back while it was loaded, is sent pages that are not for it, and must not run.
    pub(crate) spoiled: Option<String>,
    expected: Vec<u8>,
}

impl Memory {
    pub(crate) fn new(pages: u64) -> Self {
        Self {
            bytes: vec![0; index(pages) * PAGE],
            touched: PageBitmap::new(pages),
            dirty: None,
            fetches: 0,
            registers: Registers::new(pages),
            missing: PageBitmap::new(pages),
            following: None,
            closed: false,
            spoiled: None,
            expected: vec![0; PAGE],
        }
    }

    pub(crate) fn pages(&self) -> u64 {
        self.touched.pages()
    }

    pub(crate) fn page(&self, page: u64) -> &[u8] {
        self.run(page, 1)
    }

    fn run(&self, first: u64, pages: u64) -> &[u8] {
        &self.bytes[index(first) * PAGE..index(first + pages) * PAGE]
    }

    /// Stamps a page, by all of its bytes or by one word. Marked as dirty after it was written, so that whoever clears the mark sees what was written.
    pub(crate) fn write(&mut self, page: u64) {
        let number = self.registers.next_stamp;
        self.registers.next_stamp += 1;
        let before = self.registers.stamps[index(page)];
        let anew = before == 0 || before & WORDS_MAX == WORDS_MAX || number.is_multiple_of(ANEW);
        let stamp = if anew { number << WORDS_BITS } else { before + 1 };
        self.registers.stamps[index(page)] = stamp;
        make_content(page, stamp, &mut self.bytes[index(page) * PAGE..][..PAGE]);
        self.touched.set(page);
        if let Some(dirty) = &mut self.dirty {
            dirty.set(page);
        }
    }

    /// Number of the stamp that the next write gets.
    pub(crate) const fn next_stamp(&self) -> u64 {
        self.registers.next_stamp
    }

    /// Does the page hold what the guest last wrote? If not, in words.
    pub(crate) fn check(&mut self, page: u64) -> Result<(), String> {
        let mut expected = std::mem::take(&mut self.expected);
        let stamp = self.registers.stamps[index(page)];
        make_content(page, stamp, &mut expected);
        let found = self.page(page);
        let right = found == expected;
        let first_word = u64::from_le_bytes(found[..8].try_into().unwrap());
        self.expected = expected;
        if right {
            Ok(())
        } else {
            Err(format!("page {page}, last written with stamp {stamp}, begins {first_word:#x}"))
        }
    }

    /// Memory is lent to whoever fills it, before the guest runs.
    pub(crate) fn fill(&mut self, first: u64, pages: u64) -> Result<&mut [u8], String> {
        if self.closed {
            let wrong = format!("{pages} pages from {first} were written below a guest that is complete");
            self.spoiled.get_or_insert_with(|| wrong.clone());
            return Err(wrong);
        }
        self.touched.set_range(first..first + pages);
        Ok(&mut self.bytes[index(first) * PAGE..index(first + pages) * PAGE])
    }

    /// No more filling: state is loaded, or memory follows.
    pub(crate) const fn close(&mut self) {
        self.closed = true;
    }

    pub(crate) fn declare_missing(&mut self, first: u64, pages: u64) {
        self.missing.set_range(first..first + pages);
    }

    pub(crate) fn forget_missing(&mut self) {
        self.missing.clear_all();
    }

    pub(crate) fn missing(&self) -> &PageBitmap {
        &self.missing
    }

    pub(crate) fn follow(&mut self, demands: DemandSender, all_here: Arc<Notify>) {
        let asked = PageBitmap::new(self.pages());
        self.following = Some(Following { demands, all_here, asked });
        self.close();
        self.tell_if_done();
    }

    pub(crate) const fn is_live(&self) -> bool {
        self.following.is_some()
    }

    /// Asks for a page that somebody waits for; true the first time.
    pub(crate) fn ask(&mut self, page: u64) -> bool {
        let Some(following) = &mut self.following else { return false };
        let first = following.asked.set(page);
        if first {
            following.demands.ask(page);
        }
        first
    }

    /// What the pages from `first` on hold; those that are here already keep what the guest made of them.
    pub(crate) fn complete(&mut self, first: u64, pages: u64, bytes: Option<&[u8]>) {
        for page in first..first + pages {
            if !self.missing.clear(page) {
                continue;
            }
            let place = &mut self.bytes[index(page) * PAGE..][..PAGE];
            match bytes {
                Some(bytes) => place.copy_from_slice(&bytes[index(page - first) * PAGE..][..PAGE]),
                None => place.fill(0),
            }
            self.touched.set(page);
        }
        self.tell_if_done();
    }

    fn tell_if_done(&self) {
        if let Some(Following { all_here, .. }) = &self.following
            && self.missing.is_empty()
        {
            all_here.notify_one();
        }
    }

    /// Pages that were asked for.
    pub(crate) fn asked(&self) -> u64 {
        self.following.as_ref().map_or(0, |following| following.asked.count())
    }
}

pub(crate) const fn index(page: u64) -> usize {
    page as usize
}

fn make_content(page: u64, stamp: u64, into: &mut [u8]) {
    let (written, words) = (stamp >> WORDS_BITS, stamp & WORDS_MAX);
    let first = (written ^ page << 40).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut state = first;
    match written % 7 {
        // Never written, or back to zero.
        0 => into.fill(0),
        // Compressible.
        1..=3 => into.chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&state.to_le_bytes())),
        // Not compressible.
        _ => {
            for word in into.chunks_exact_mut(8) {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                word.copy_from_slice(&state.to_le_bytes());
            }
        }
    }
    for word in 1..=words {
        let value = first.rotate_left(13 * word as u32).wrapping_mul(0xd134_2543_de82_ef95);
        let at = (value >> 32) as usize % (PAGE / 8) * 8;
        into[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
}
