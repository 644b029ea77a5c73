//! One bit per RAM page, in words of 64: what the dirty log speaks, and what rounds of a copy are made of.
//!
//! Invariant: bits at and beyond `pages` in the last word are always 0, so counting and comparing need no special case.

use std::ops::Range;

#[cfg(test)]
mod tests;

const BITS: u64 = 64;

/// A set of pages, by index in the memory layout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageBitmap {
    words: Vec<u64>,
    pages: u64,
}

/// On 64-bit platforms, the only ones this builds for, no index is cut off.
const fn word_of(page: u64) -> usize {
    (page / BITS) as usize
}

const fn bit_of(page: u64) -> u64 {
    1 << (page % BITS)
}

/// Ones for the bits of word `word` that lie in `range`.
const fn mask_in_word(word: usize, range: &Range<u64>) -> u64 {
    let first = word as u64 * BITS;
    let low = range.start.saturating_sub(first);
    let high = range.end.saturating_sub(first);
    let high_mask = if high >= BITS { u64::MAX } else { (1 << high) - 1 };
    let low_mask = if low >= BITS { u64::MAX } else { (1 << low) - 1 };
    high_mask & !low_mask
}

impl PageBitmap {
    /// No pages, out of `pages`.
    #[must_use]
    pub fn new(pages: u64) -> Self {
        Self { words: vec![0; word_of(pages.next_multiple_of(BITS))], pages }
    }

    /// All of `pages`.
    #[must_use]
    pub fn full(pages: u64) -> Self {
        let mut all = Self { words: vec![u64::MAX; word_of(pages.next_multiple_of(BITS))], pages };
        all.trim();
        all
    }

    /// How many pages there could be.
    #[must_use]
    pub const fn pages(&self) -> u64 {
        self.pages
    }

    /// The words; bit n of word n / 64 is page n.
    #[must_use]
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// Adds the bits of `words`, which begin at page `first`, a multiple of 64. Bits beyond the last page are dropped.
    ///
    /// # Panics
    /// When `first` is not a multiple of 64.
    pub fn or_words(&mut self, first: u64, words: &[u64]) {
        assert!(first.is_multiple_of(BITS), "words begin at page {first}, which is not at a word");
        for (own, other) in self.words.iter_mut().skip(word_of(first)).zip(words) {
            *own |= other;
        }
        self.trim();
    }

    fn trim(&mut self) {
        let used = self.pages % BITS;
        if used != 0
            && let Some(last) = self.words.last_mut()
        {
            *last &= (1 << used) - 1;
        }
    }

    /// Is `page` in the set? Pages beyond the end never are.
    #[must_use]
    pub fn contains(&self, page: u64) -> bool {
        self.words.get(word_of(page)).is_some_and(|word| word & bit_of(page) != 0)
    }

    /// Adds `page`; whether it was new. A page beyond the end is ignored.
    pub fn set(&mut self, page: u64) -> bool {
        if page >= self.pages {
            return false;
        }
        let word = &mut self.words[word_of(page)];
        let new = *word & bit_of(page) == 0;
        *word |= bit_of(page);
        new
    }

    /// Removes `page`; whether it was there.
    pub fn clear(&mut self, page: u64) -> bool {
        let Some(word) = self.words.get_mut(word_of(page)) else { return false };
        let there = *word & bit_of(page) != 0;
        *word &= !bit_of(page);
        there
    }

    /// The words that `range` touches, after cutting it to the bitmap.
    fn words_of(&self, range: &Range<u64>) -> (Range<usize>, Range<u64>) {
        let range = range.start.min(self.pages)..range.end.min(self.pages);
        if range.is_empty() {
            return (0..0, 0..0);
        }
        (word_of(range.start)..word_of(range.end - 1) + 1, range)
    }

    /// Adds every page of `range`.
    pub fn set_range(&mut self, range: Range<u64>) {
        let (words, range) = self.words_of(&range);
        for word in words {
            self.words[word] |= mask_in_word(word, &range);
        }
    }

    /// Removes every page of `range`.
    pub fn clear_range(&mut self, range: Range<u64>) {
        let (words, range) = self.words_of(&range);
        for word in words {
            self.words[word] &= !mask_in_word(word, &range);
        }
    }

    /// Removes every page.
    pub fn clear_all(&mut self) {
        self.words.fill(0);
    }

    /// How many pages are in the set.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// How many pages of `range` are in the set.
    #[must_use]
    pub fn count_range(&self, range: Range<u64>) -> u64 {
        let (words, range) = self.words_of(&range);
        words.map(|word| u64::from((self.words[word] & mask_in_word(word, &range)).count_ones())).sum()
    }

    /// Is no page in the set?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    /// Adds the pages of `other`.
    ///
    /// # Panics
    /// When the two are not of one size: they describe different machines.
    pub fn or(&mut self, other: &Self) {
        assert_eq!(self.pages, other.pages, "bitmaps of different machines");
        self.words.iter_mut().zip(&other.words).for_each(|(own, other)| *own |= other);
    }

    /// Keeps only the pages that `other` has too.
    ///
    /// # Panics
    /// When the two are not of one size: they describe different machines.
    pub fn and(&mut self, other: &Self) {
        assert_eq!(self.pages, other.pages, "bitmaps of different machines");
        self.words.iter_mut().zip(&other.words).for_each(|(own, other)| *own &= other);
    }

    /// Removes the pages of `other`.
    ///
    /// # Panics
    /// When the two are not of one size: they describe different machines.
    pub fn and_not(&mut self, other: &Self) {
        assert_eq!(self.pages, other.pages, "bitmaps of different machines");
        self.words.iter_mut().zip(&other.words).for_each(|(own, other)| *own &= !other);
    }

    /// Removes the pages of `other` that lie in `range`.
    ///
    /// # Panics
    /// When the two are not of one size: they describe different machines.
    pub fn and_not_range(&mut self, other: &Self, range: Range<u64>) {
        assert_eq!(self.pages, other.pages, "bitmaps of different machines");
        let (words, range) = self.words_of(&range);
        for word in words {
            self.words[word] &= !(other.words[word] & mask_in_word(word, &range));
        }
    }

    /// The words of `self` that cover `range`, with bits outside it 0. The first word begins at `range.start` rounded
    /// down to a multiple of 64.
    #[must_use]
    pub fn masked_words(&self, range: Range<u64>) -> Vec<u64> {
        let (words, range) = self.words_of(&range);
        words.map(|word| self.words[word] & mask_in_word(word, &range)).collect()
    }

    /// Runs of consecutive pages in the set, ascending.
    #[must_use]
    pub fn runs(&self) -> Runs<'_> {
        self.runs_in(0..self.pages)
    }

    /// Runs of consecutive pages in the set and in `range`, ascending, cut at its ends.
    #[must_use]
    pub fn runs_in(&self, range: Range<u64>) -> Runs<'_> {
        Runs { bitmap: self, at: range.start, end: range.end.min(self.pages) }
    }

    /// First page at or after `from` whose bit is `wanted`, or the end.
    fn find(&self, from: u64, end: u64, wanted: bool) -> u64 {
        if from >= end {
            return end;
        }
        let flip = if wanted { 0 } else { u64::MAX };
        let mut word = word_of(from);
        let mut bits = (self.words[word] ^ flip) & (u64::MAX << (from % BITS));
        while bits == 0 {
            word += 1;
            if word as u64 * BITS >= end {
                return end;
            }
            bits = self.words[word] ^ flip;
        }
        (word as u64 * BITS + u64::from(bits.trailing_zeros())).min(end)
    }
}

/// Iterator over runs of pages; see [`PageBitmap::runs`].
#[derive(Debug, Clone)]
pub struct Runs<'a> {
    bitmap: &'a PageBitmap,
    at: u64,
    end: u64,
}

impl Iterator for Runs<'_> {
    type Item = Range<u64>;

    fn next(&mut self) -> Option<Range<u64>> {
        let start = self.bitmap.find(self.at, self.end, true);
        if start >= self.end {
            self.at = self.end;
            return None;
        }
        self.at = self.bitmap.find(start, self.end, false);
        Some(start..self.at)
    }
}
