//! The bitmap against the obvious model of it: a set of numbers.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeSet;

fn bitmap_of(pages: u64, set: &BTreeSet<u64>) -> PageBitmap {
    let mut bitmap = PageBitmap::new(pages);
    for page in set {
        bitmap.set(*page);
    }
    bitmap
}

fn pages_of(bitmap: &PageBitmap) -> BTreeSet<u64> {
    bitmap.runs().flatten().collect()
}

prop_compose! {
    fn machine()(pages in 1u64..400)(
        pages in Just(pages),
        one in prop::collection::btree_set(0..pages, 0..200),
        two in prop::collection::btree_set(0..pages, 0..200),
        start in 0..pages + 70,
        length in 0..pages + 70,
    ) -> (u64, BTreeSet<u64>, BTreeSet<u64>, Range<u64>) {
        (pages, one, two, start..start + length)
    }
}

proptest! {
    #[test]
    fn runs_give_back_the_set_and_are_maximal((pages, one, _, range) in machine()) {
        let bitmap = bitmap_of(pages, &one);
        prop_assert_eq!(&pages_of(&bitmap), &one);
        prop_assert_eq!(bitmap.count(), one.len() as u64);
        prop_assert_eq!(bitmap.is_empty(), one.is_empty());
        let runs: Vec<_> = bitmap.runs().collect();
        prop_assert!(runs.windows(2).all(|pair| pair[0].end < pair[1].start), "adjacent runs: {runs:?}");
        let inside: BTreeSet<u64> = bitmap.runs_in(range.clone()).flatten().collect();
        let expected: BTreeSet<u64> = one.iter().copied().filter(|page| range.contains(page)).collect();
        prop_assert_eq!(bitmap.count_range(range), expected.len() as u64);
        prop_assert_eq!(inside, expected);
    }

    #[test]
    fn set_algebra_agrees_with_sets((pages, one, two, range) in machine()) {
        let apply = |change: &dyn Fn(&mut PageBitmap, &PageBitmap)| {
            let mut bitmap = bitmap_of(pages, &one);
            change(&mut bitmap, &bitmap_of(pages, &two));
            pages_of(&bitmap)
        };
        prop_assert_eq!(apply(&|a, b| a.or(b)), one.union(&two).copied().collect());
        prop_assert_eq!(apply(&|a, b| a.and(b)), one.intersection(&two).copied().collect());
        prop_assert_eq!(apply(&|a, b| a.and_not(b)), one.difference(&two).copied().collect());
        let outside_or_not_two = |page: &u64| !range.contains(page) || !two.contains(page);
        prop_assert_eq!(
            apply(&|a, b| a.and_not_range(b, range.clone())),
            one.iter().copied().filter(outside_or_not_two).collect()
        );
    }

    #[test]
    fn ranges_set_and_clear_what_they_say((pages, one, _, range) in machine()) {
        let mut set = bitmap_of(pages, &one);
        set.set_range(range.clone());
        let expected: BTreeSet<u64> = (0..pages).filter(|page| one.contains(page) || range.contains(page)).collect();
        prop_assert_eq!(pages_of(&set), expected);
        let mut cleared = bitmap_of(pages, &one);
        cleared.clear_range(range.clone());
        let expected: BTreeSet<u64> = one.iter().copied().filter(|page| !range.contains(page)).collect();
        prop_assert_eq!(pages_of(&cleared), expected);
    }

    #[test]
    fn masked_words_are_the_part_in_range((pages, one, _, range) in machine()) {
        let bitmap = bitmap_of(pages, &one);
        let words = bitmap.masked_words(range.clone());
        let mut copy = PageBitmap::new(pages);
        copy.or_words(range.start / 64 * 64, &words);
        let expected: BTreeSet<u64> = one.iter().copied().filter(|page| range.contains(page)).collect();
        prop_assert_eq!(pages_of(&copy), expected);
    }
}

#[test]
fn bits_beyond_the_end_are_dropped() {
    let mut bitmap = PageBitmap::new(70);
    bitmap.or_words(64, &[u64::MAX, u64::MAX]);
    assert_eq!(bitmap.count(), 6);
    assert!(!bitmap.set(70));
    assert_eq!(PageBitmap::full(70).count(), 70);
    assert_eq!(PageBitmap::full(70).runs().collect::<Vec<_>>(), vec![0..70]);
}
