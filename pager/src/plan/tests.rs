//! Plans against what they are for: every missing page is watched and dropped, and nothing else more than needed.

use super::*;
use crate::space::{GuestRegion, bytes_of};
use proptest::prelude::*;

fn space(lengths: &[u64]) -> Space {
    let mut first = 0;
    let place = |(number, pages): (usize, &u64)| {
        let address = 0x10_0000_0000 * (number + 1);
        let region = GuestRegion { address, first, pages: *pages, file_offset: bytes_of(first) as u64 };
        first += pages;
        region
    };
    Space::new(&lengths.iter().enumerate().map(place).collect::<Vec<_>>(), 4096).unwrap()
}

fn set(pages: u64, runs: &[(u64, u64)]) -> PageBitmap {
    let mut set = PageBitmap::new(pages);
    runs.iter().for_each(|(first, length)| set.set_range(*first..first + length));
    set
}

prop_compose! {
    fn case()(lengths in prop::collection::vec(1..6000_u64, 1..3))(
        runs in prop::collection::vec((0..lengths.iter().sum(), 1..700_u64), 0..60),
        lengths in Just(lengths),
        shards in 1..5_usize,
        whole_blocks in any::<bool>(),
        group in 1..20_u64,
    ) -> (Space, PageBitmap, usize, bool, u64) {
        let space = space(&lengths);
        let missing = set(space.pages(), &runs);
        (space, missing, shards, whole_blocks, group)
    }
}

proptest! {
    #[test]
    fn every_missing_page_is_watched_and_dropped((space, missing, shards, whole_blocks, group) in case()) {
        let shards = Shards::new(shards, space.blocks());
        let plan = plan(&space, &missing, shards, whole_blocks);
        let mut dropped = PageBitmap::new(space.pages());
        for drop in &plan.drops {
            prop_assert_eq!(space.within_region(drop).0, space.within_region(&(drop.end - 1..drop.end)).0);
            dropped.set_range(drop.clone());
        }
        let armed: Vec<u64> = (0..space.blocks()).filter(|block| missing.count_range(space.block_pages(*block)) > 0).collect();
        let mut expected = PageBitmap::new(space.pages());
        for registrations in [plan.registrations, register_groups(&space, &armed, shards, group)] {
            let mut watched = PageBitmap::new(space.pages());
            for Registration { shard, pages } in &registrations {
                for page in pages.clone() {
                    prop_assert_eq!(shards.of(space.block_of(page)), *shard);
                    prop_assert!(watched.set(page), "page {} is registered twice", page);
                }
            }
            let mut uncovered = missing.clone();
            uncovered.and_not(&watched);
            prop_assert!(uncovered.is_empty());
            if expected.is_empty() {
                // The plan proper: whole blocks that have missing pages, and only those.
                armed.iter().for_each(|block| expected.set_range(space.block_pages(*block)));
                prop_assert_eq!(&watched, &expected);
            }
        }
        let mut undropped = missing;
        undropped.and_not(&dropped);
        prop_assert!(undropped.is_empty());
        dropped.and_not(&expected);
        prop_assert!(dropped.is_empty(), "translations were dropped where nothing is missing");
    }
}

#[test]
fn what_runs_on_is_one_call() {
    let space = space(&[512 * 256]);
    let plan = plan(&space, &PageBitmap::full(512 * 256), Shards::new(1, 256), false);
    assert_eq!(plan.registrations, [Registration { shard: 0, pages: 0..512 * 256 }]);
    assert_eq!(plan.drops, std::iter::once(0..512 * 256).collect::<Vec<_>>());
}

#[test]
fn few_missing_pages_leave_their_neighbours_mapped_and_many_do_not() {
    let space = space(&[1024]);
    let scattered = |count: u64| set(1024, &(0..count).map(|page| (page * 2, 1)).collect::<Vec<_>>());
    let drops = |count| plan(&space, &scattered(count), Shards::new(1, 2), false).drops;
    let most = DROPS_PER_BLOCK_MAX as u64;
    assert_eq!(drops(most).len(), DROPS_PER_BLOCK_MAX);
    assert_eq!(drops(most + 1), std::iter::once(0..512).collect::<Vec<_>>());
}

#[test]
fn scattered_blocks_are_registered_within_the_limit() {
    let space = space(&[512 * 4096]);
    let every_other: Vec<u64> = (0..2048).map(|block| block * 2).collect();
    let shards = Shards::new(1, 4096);
    assert_eq!(register(&space, &every_other, shards, 4096).len(), 2048);
    assert_eq!(register(&space, &every_other, shards, 100).len(), 1);
    let few: Vec<u64> = (0..64).map(|block| block * 64).collect();
    let joined = register(&space, &few, shards, 10);
    assert!(joined.len() <= 10, "{joined:?}");
}
