//! How much does a machine write while nobody tracks it? An estimate from a sample: some pages are chosen at random, hashed, and hashed
//! again. It costs no write protection and no fault, only the reading of the sample: what a policy may have all the time, from every
//! machine. QEMU's `calc-dirty-rate` does the same in its `page-sampling` mode.
//!
//! A page that is written faster than the sample is looked at counts once for each look.

use std::{io, time::Duration};
use xxhash_rust::xxh3::xxh3_64;

/// Pages in a sample for each GiB, as many as QEMU takes.
const PAGES_PER_GIB: u64 = 512;
/// Fewest: a share of 1 % is then seen as 0.7 to 1.3 % in two of three looks.
const PAGES_MIN: u64 = 1024;
/// Most: hashing them takes a few ms.
const PAGES_MAX: u64 = 8192;
/// A sample is looked at for so long before another is chosen.
const KEPT_FOR: Duration = Duration::from_secs(30);
/// Bytes of a page.
const PAGE_BYTES: usize = 4096;
const _: () = assert!(PAGE_BYTES as u64 == vmotion_model::PAGE_SIZE, "a page is a page everywhere");
/// Weight of the newest look in the rate, per second since the one before.
const WEIGHT_PER_SECOND: f64 = 0.2;

/// Memory that can be looked at.
pub trait PageReader {
    /// Pages in all.
    fn pages(&self) -> u64;

    /// Copies a page. One that was never touched reads as zeros, and stays untouched.
    ///
    /// # Errors
    /// When it cannot be read.
    fn read(&self, page: u64, into: &mut [u8]) -> io::Result<()>;
}

/// What samples tell.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct SampledUse {
    /// Different pages written, each second.
    pub dirty_pages_per_s: f64,
    /// Different pages written while a sample was kept, which is half a minute.
    pub working_set_pages: f64,
    /// Part of all pages that hold only zeros, from 0 to 1.
    pub zero_share: f64,
}

#[derive(Debug, Clone, Copy)]
struct Sampled {
    page: u64,
    hash: u64,
    /// Since the sample was chosen.
    changed: bool,
}

/// Looks at samples of one machine's memory, one after the other.
#[derive(Debug)]
pub struct DirtySampler {
    sample: Vec<Sampled>,
    age: Duration,
    random: u64,
    known: Option<SampledUse>,
    /// Of the sample before, until this one has been looked at for as long.
    working_set_before: f64,
    page: Box<[u8]>,
}

impl DirtySampler {
    /// Knows nothing yet; `seed` chooses the pages.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            sample: Vec::new(),
            age: Duration::ZERO,
            random: seed | 1,
            known: None,
            working_set_before: 0.0,
            page: vec![0; PAGE_BYTES].into_boxed_slice(),
        }
    }

    /// What is known, once a sample has been looked at twice.
    #[must_use]
    pub const fn known(&self) -> Option<SampledUse> {
        self.known
    }

    /// Looks at the sample, `since` the look before; chooses another when this one is old.
    ///
    /// # Errors
    /// When the memory cannot be read; what was known stays known.
    pub fn look(&mut self, memory: &impl PageReader, since: Duration) -> io::Result<()> {
        if self.sample.is_empty() || self.age >= KEPT_FOR {
            return self.choose(memory);
        }
        let (mut changed_now, mut zeros) = (0u32, 0u32);
        let zero = xxh3_64(&[0; PAGE_BYTES]);
        for sampled in &mut self.sample {
            memory.read(sampled.page, &mut self.page)?;
            let hash = xxh3_64(&self.page);
            zeros += u32::from(hash == zero);
            if hash != sampled.hash {
                *sampled = Sampled { hash, changed: true, ..*sampled };
                changed_now += 1;
            }
        }
        self.age += since;
        if !since.is_zero() {
            self.conclude(memory.pages(), changed_now, zeros, since.as_secs_f64());
        }
        Ok(())
    }

    fn conclude(&mut self, pages: u64, changed_now: u32, zeros: u32, seconds: f64) {
        #[expect(clippy::cast_precision_loss, reason = "page counts are far below 2^52")]
        let (pages, sampled) = (pages as f64, self.sample.len() as f64);
        let each = pages / sampled;
        #[expect(clippy::cast_precision_loss, reason = "at most as many as a sample has")]
        let changed = self.sample.iter().filter(|sampled| sampled.changed).count() as f64 * each;
        let rate = f64::from(changed_now) * each / seconds;
        let before = self.known.map_or(rate, |known| known.dirty_pages_per_s);
        let weight = 1.0 - (-WEIGHT_PER_SECOND * seconds).exp();
        self.known = Some(SampledUse {
            dirty_pages_per_s: before + weight * (rate - before),
            working_set_pages: changed.max(self.working_set_before),
            zero_share: f64::from(zeros) / sampled,
        });
    }

    fn choose(&mut self, memory: &impl PageReader) -> io::Result<()> {
        let pages = memory.pages();
        let wanted = (pages / (1 << 18) * PAGES_PER_GIB).clamp(PAGES_MIN, PAGES_MAX).min(pages);
        let mut chosen: Vec<u64> = (0..wanted).map(|_| self.random_below(pages)).collect();
        chosen.sort_unstable();
        chosen.dedup();
        let mut sample = Vec::with_capacity(chosen.len());
        for page in chosen {
            memory.read(page, &mut self.page)?;
            sample.push(Sampled { page, hash: xxh3_64(&self.page), changed: false });
        }
        // Half of what the last one saw counts until this one has seen as much, so that a guest that went quiet is seen to be.
        self.working_set_before = self.known.map_or(0.0, |known| known.working_set_pages / 2.0);
        (self.sample, self.age) = (sample, Duration::ZERO);
        Ok(())
    }

    /// xorshift64*: evenly enough for a sample.
    fn random_below(&mut self, bound: u64) -> u64 {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        let number = self.random.wrapping_mul(0x2545_F491_4F6C_DD1D);
        u64::try_from((u128::from(number) * u128::from(bound)) >> 64).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    /// A page's content is its number and how often it was written.
    struct Memory(RefCell<Vec<u64>>);

    impl Memory {
        fn new(pages: usize) -> Self {
            Self(RefCell::new(vec![0; pages]))
        }

        fn write(&self, pages: std::ops::Range<usize>) {
            self.0.borrow_mut()[pages].iter_mut().for_each(|writes| *writes += 1);
        }
    }

    impl PageReader for Memory {
        fn pages(&self) -> u64 {
            self.0.borrow().len() as u64
        }

        fn read(&self, page: u64, into: &mut [u8]) -> io::Result<()> {
            into.fill(0);
            let writes = self.0.borrow()[usize::try_from(page).unwrap()];
            if writes > 0 {
                into[..8].copy_from_slice(&writes.to_le_bytes());
                into[8..16].copy_from_slice(&page.to_le_bytes());
            }
            Ok(())
        }
    }

    #[test]
    fn rate_working_set_and_zeros_are_found() {
        let memory = Memory::new(100_000);
        memory.write(0..30_000);
        let mut sampler = DirtySampler::new(7);
        sampler.look(&memory, Duration::ZERO).unwrap();
        for turn in 0..20 {
            // 3,000 different pages a second, 12,000 in all.
            let first = turn % 4 * 3_000;
            memory.write(first..first + 3_000);
            sampler.look(&memory, Duration::from_secs(1)).unwrap();
        }
        let SampledUse { dirty_pages_per_s, working_set_pages, zero_share } = sampler.known().unwrap();
        assert!((2_000.0..4_000.0).contains(&dirty_pages_per_s), "{dirty_pages_per_s}");
        assert!((9_000.0..15_000.0).contains(&working_set_pages), "{working_set_pages}");
        assert!((0.65..0.75).contains(&zero_share), "{zero_share}");
    }

    #[test]
    fn a_guest_that_falls_silent_is_seen_to_be() {
        let memory = Memory::new(4_096);
        let mut sampler = DirtySampler::new(1);
        for _ in 0..20 {
            memory.write(0..4_096);
            sampler.look(&memory, Duration::from_secs(1)).unwrap();
        }
        assert!(sampler.known().unwrap().dirty_pages_per_s > 3_500.0);
        (0..250).for_each(|_| sampler.look(&memory, Duration::from_secs(1)).unwrap());
        let known = sampler.known().unwrap();
        assert!(known.dirty_pages_per_s < 10.0 && known.working_set_pages < 300.0, "{known:?}");
    }

    #[test]
    fn nothing_is_known_before_the_second_look() {
        let memory = Memory::new(64);
        let mut sampler = DirtySampler::new(1);
        sampler.look(&memory, Duration::from_secs(1)).unwrap();
        assert_eq!(sampler.known(), None);
        sampler.look(&memory, Duration::from_secs(1)).unwrap();
        assert_eq!(sampler.known(), Some(SampledUse { zero_share: 1.0, ..SampledUse::default() }));
    }
}
