//! Which pages something happens to most, such as going back and forth, in a table of bounded size.
//!
//! From: Metwally, Agrawal and El Abbadi, *Efficient computation of frequent and top-k elements in data streams* (2005), Space-Saving: a page
//! that is not in the full table takes the place, and the count, of the one with the fewest. So counts may be too high, never too low, and
//! what happens more than one time in [`HotPages::PAGES_MAX`] is in it.

use vmotion_model::PageNumber;

/// The pages that it happened to most.
#[derive(Debug, Clone, Default)]
pub struct HotPages {
    pages: Vec<(PageNumber, u64)>,
}

impl HotPages {
    /// Pages in the table.
    pub const PAGES_MAX: usize = 32;

    /// Once more `page`.
    pub fn count(&mut self, page: PageNumber) {
        if let Some((_, count)) = self.pages.iter_mut().find(|(known, _)| *known == page) {
            *count += 1;
        } else if self.pages.len() < Self::PAGES_MAX {
            self.pages.push((page, 1));
        } else if let Some(least) = self.pages.iter_mut().min_by_key(|(_, count)| *count) {
            *least = (page, least.1 + 1);
        }
    }

    /// The pages and how often it happened to them, most often first.
    #[must_use]
    pub fn hottest_first(&self) -> Vec<(PageNumber, u64)> {
        let mut pages = self.pages.clone();
        pages.sort_by_key(|(page, count)| (std::cmp::Reverse(*count), page.0));
        pages
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hottest_pages_stay_in_a_crowd() {
        let mut hot = HotPages::default();
        for round in 0..10_000 {
            hot.count(PageNumber(round + 100));
            hot.count(PageNumber(1));
            if round % 2 == 0 {
                hot.count(PageNumber(2));
            }
        }
        let pages = hot.hottest_first();
        assert_eq!(pages.len(), HotPages::PAGES_MAX);
        assert!(pages[0].0 == PageNumber(1) && pages[0].1 >= 10_000);
        assert!(pages[1].0 == PageNumber(2) && pages[1].1 >= 5_000);
    }
}
