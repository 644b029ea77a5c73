//! Index, address and block belong together, whatever the regions.

use super::*;
use proptest::prelude::*;

fn regions() -> impl Strategy<Value = Vec<GuestRegion>> {
    prop::collection::vec(1..1500_u64, 1..4).prop_map(|lengths| {
        let mut first = 0;
        let place = |(number, pages): (usize, &u64)| {
            let region = GuestRegion {
                address: 0x10_0000_0000 * (number + 1),
                first,
                pages: *pages,
                file_offset: first * PAGE_SIZE,
            };
            first += pages;
            region
        };
        lengths.iter().enumerate().map(place).collect()
    })
}

proptest! {
    #[test]
    fn pages_are_found_again(regions in regions(), pick in any::<prop::sample::Index>()) {
        let space = Space::new(&regions, 4096).unwrap();
        let index = pick.index(to_usize(space.pages())) as u64;
        let addresses = space.addresses(&(index..index + 1));
        prop_assert_eq!(space.index_at(addresses.start), Some(index));
        prop_assert_eq!(space.index_at(addresses.end - 1), Some(index));
        let block = space.block_of(index);
        prop_assert!(block < space.blocks());
        prop_assert!(space.block_pages(block).contains(&index));
        prop_assert!(space.blocks_beside(block).contains(&block));
    }

    #[test]
    fn parts_cover_a_run_and_stay_in_their_blocks(regions in regions(), start in 0..4000_u64, pages in 0..2000_u64) {
        let space = Space::new(&regions, 4096).unwrap();
        let run = start.min(space.pages())..(start + pages).min(space.pages());
        let mut at = run.start;
        for (block, part) in space.parts(run.clone()) {
            prop_assert_eq!(part.start, at);
            let inside = space.block_pages(block);
            prop_assert!(!part.is_empty() && part.start >= inside.start && part.end <= inside.end);
            at = part.end;
        }
        prop_assert_eq!(at, run.end);
    }

    #[test]
    fn blocks_cover_all_pages_once(regions in regions()) {
        let space = Space::new(&regions, 4096).unwrap();
        let mut at = 0;
        for block in 0..space.blocks() {
            let pages = space.block_pages(block);
            prop_assert_eq!(pages.start, at);
            prop_assert!(pages.end - pages.start <= BLOCK_PAGES);
            at = pages.end;
        }
        prop_assert_eq!(at, space.pages());
    }
}

#[test]
fn bad_regions_are_refused_by_name() {
    let good = GuestRegion { address: 0x20_0000, first: 0, pages: 512, file_offset: 0 };
    let refused = |regions: &[GuestRegion], page_bytes| Space::new(regions, page_bytes).unwrap_err().to_string();
    assert_eq!(refused(&[], 4096), "Memory region at page 0 is missing: there are none");
    let follows = GuestRegion { first: 511, ..good };
    assert_eq!(refused(&[good, follows], 4096), "Memory region at page 511 does not follow the one before it");
    let elsewhere = GuestRegion { first: 512, file_offset: 0, ..good };
    assert!(refused(&[good, elsewhere], 4096).ends_with("in the memfd"));
    assert!(refused(&[GuestRegion { pages: 0, ..good }], 4096).ends_with("empty or too long"));
    assert!(refused(&[GuestRegion { pages: u64::MAX, ..good }], 4096).ends_with("empty or too long"));
    assert!(refused(&[GuestRegion { address: usize::MAX - 4095, ..good }], 4096).ends_with("wraps around"));
    assert!(refused(&[GuestRegion { address: 0x20_1000, ..good }], 2 << 20).ends_with("whole pages of its memfd"));
    assert!(refused(&[GuestRegion { pages: 511, ..good }], 2 << 20).ends_with("whole pages of its memfd"));
}
