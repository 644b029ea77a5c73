//! How pages end being missing: they arrive, turn out to be zero, or are given up.

#![allow(clippy::unwrap_used, reason = "a panic in a test is its report")]

mod common;

use common::{BLOCK, Guest, PAGE, bytes_of, fetch, free_huge_pages, serving, set, skipped, watched};
use rustix::io::Errno;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use vmotion_dirty_tracking::PageBitmap;
use vmotion_pager::{GuestRegion, Pager, PagerError, Resolution};
use vmotion_sys::userfaultfd::{CheckedMapping, drop_translations};

#[test]
fn a_complete_block_is_the_kernels_own_business() {
    if skipped("a_complete_block_is_the_kernels_own_business") {
        return;
    }
    watched(|| {
        let guest = Guest::new(&[2 * BLOCK]);
        let (pager, queues) = guest.arm(&PageBitmap::full(guest.pages), 1);
        fetch(&pager, 0..BLOCK);
        assert_eq!((pager.remaining(), pager.is_missing(BLOCK - 1), pager.is_missing(BLOCK)), (BLOCK, false, true));
        let bytes = guest.mapping(0).bytes();
        let address = guest.address(0);
        let all = CheckedMapping::check(&guest.memfd, &[(address..address + bytes, 0)]).unwrap();
        // Nobody reads the queue: a touch that made an event would hang.
        drop_translations(&[all[0].part(0..bytes / 2)]).unwrap();
        (0..BLOCK).for_each(|page| guest.check(page));
        fetch(&pager, BLOCK..2 * BLOCK);
        assert_eq!(pager.remaining(), 0);
        drop_translations(&all).unwrap();
        (0..guest.pages).for_each(|page| guest.check(page));
        assert_eq!(queues[0].read(&mut Vec::new()).unwrap(), 0);
        // Nothing is registered any more: somebody else can.
        let (again, _queues) = guest.arm(&set(guest.pages, [5]), 1);
        assert_eq!((again.remaining(), pager.remaining()), (1, 0));
    });
}

#[test]
fn a_page_that_comes_twice_comes_once() {
    if skipped("a_page_that_comes_twice_comes_once") {
        return;
    }
    watched(|| {
        let guest = Guest::new(&[4 * BLOCK]);
        let (pager, _queues) = guest.arm(&PageBitmap::full(guest.pages), 1);
        let arrived = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for first in (0..guest.pages).step_by(100) {
                        let run = first..(first + 150).min(guest.pages);
                        let bytes: Vec<u8> = run.flat_map(bytes_of).collect();
                        arrived.fetch_add(pager.complete_from(first, &bytes).unwrap(), Ordering::Relaxed);
                    }
                });
            }
        });
        assert_eq!(arrived.into_inner(), guest.pages);
        (0..guest.pages).for_each(|page| guest.check(page));
    });
}

#[test]
fn zero_pages_replace_old_bytes_and_need_no_memory() {
    if skipped("zero_pages_replace_old_bytes_and_need_no_memory") {
        return;
    }
    watched(|| {
        let guest = Guest::new(&[3 * BLOCK]);
        guest.stamp((0..20).chain([700]), false);
        let (pager, queues) = guest.arm(&PageBitmap::full(guest.pages), 1);
        assert_eq!(pager.complete_zero(0, BLOCK).unwrap(), BLOCK);
        assert_eq!(pager.complete_zero(0, BLOCK).unwrap(), 0);
        assert_eq!(guest.allocated(), 21, "holes stay holes");
        (0..BLOCK).for_each(|page| assert_eq!(guest.read(page, 5), 0));
        // Threads that wait already, for a hole and for old bytes.
        let (hole, old) = (2 * BLOCK + 1, 700);
        let server = common::Server::new(&pager, &queues);
        std::thread::scope(|scope| {
            scope.spawn(|| server.serve(|_, _| ()));
            let waiters = [hole, old].map(|page| {
                scope.spawn({
                    let guest = &guest;
                    move || guest.read(page, 5)
                })
            });
            while pager.stats().faults_demanded < 2 {
                std::thread::sleep(Duration::from_millis(1));
            }
            assert_eq!(pager.complete_zero(BLOCK, 2 * BLOCK).unwrap(), 2 * BLOCK);
            waiters.into_iter().for_each(|waiter| assert_eq!(waiter.join().unwrap(), 0));
            server.stop();
        });
        let stats = pager.stats();
        assert_eq!((stats.pages_zero, stats.pages_demanded, stats.fetched.count), (3 * BLOCK, 2, 2), "{stats:?}");
        assert_eq!(pager.remaining(), 0);
    });
}

#[test]
fn a_zero_page_is_answered_while_its_block_still_misses_pages() {
    if skipped("a_zero_page_is_answered_while_its_block_still_misses_pages") {
        return;
    }
    watched(|| {
        let guest = Guest::new(&[BLOCK]);
        let (pager, queues) = guest.arm(&PageBitmap::full(BLOCK), 1);
        pager.complete_zero(0, 100).unwrap();
        let demanded = serving(&pager, &queues, || assert_eq!(guest.read(50, 1), 0));
        assert!(demanded.is_empty());
        assert_eq!(pager.stats().pages_fresh, 1);
    });
}

#[test]
fn giving_up_ends_every_wait_with_an_error() {
    if skipped("giving_up_ends_every_wait_with_an_error") {
        return;
    }
    for dropped in [false, true] {
        watched(move || {
            let guest = Guest::new(&[2 * BLOCK]);
            guest.stamp([1, 3], true);
            let (pager, queues) = guest.arm(&set(guest.pages, [0, 2, 600]), 1);
            let mut pager = Some(pager);
            std::thread::scope(|scope| {
                let waiters = [0, 600].map(|page| {
                    let guest = &guest;
                    scope.spawn(move || guest.touch_in_kernel(page))
                });
                let mut faults = Vec::new();
                while faults.len() < 2 {
                    queues[0].read(&mut faults).unwrap();
                    std::thread::sleep(Duration::from_millis(1));
                }
                let given_up = pager.as_ref().unwrap();
                if dropped {
                    pager = None;
                } else {
                    assert_eq!(given_up.abandon().unwrap(), 3);
                    assert_eq!(given_up.abandon().unwrap(), 3);
                    assert!(matches!(given_up.complete_from(0, &bytes_of(0)), Err(PagerError::Abandoned)));
                    assert!(matches!(given_up.resolve(&faults[0]), Err(PagerError::Abandoned)));
                }
                for waiter in waiters {
                    assert_eq!(waiter.join().unwrap(), Some(Errno::FAULT));
                }
            });
            assert_eq!(guest.touch_in_kernel(2), Some(Errno::FAULT), "a later touch");
            guest.check(1);
            guest.check(3);
        });
    }
}

#[test]
fn memory_of_huge_pages_arrives_by_whole_ones() {
    let test = "memory_of_huge_pages_arrives_by_whole_ones";
    if skipped(test) {
        return;
    }
    if free_huge_pages() < 4 {
        println!("SKIPPED {test}: fewer than 4 huge pages of 2 MiB are free on this host (vm.nr_hugepages)");
        return;
    }
    watched(|| {
        let guest = Guest::of_huge_pages(&[3 * BLOCK, BLOCK]).unwrap();
        // The first keeps what it has, the second has old bytes in places, the third and the fourth are holes.
        guest.stamp(0..2 * BLOCK, true);
        let stale: Vec<u64> = (BLOCK + 5..BLOCK + 10).chain([2 * BLOCK - 1]).collect();
        guest.stamp(stale.iter().copied(), false);
        let missing = set(guest.pages, stale.iter().copied().chain(2 * BLOCK..4 * BLOCK));
        let (pager, queues) = guest.arm(&missing, 1);
        let waiter = |page: u64| {
            let guest = &guest;
            move || guest.check(page)
        };
        std::thread::scope(|scope| {
            // A present page of a huge page with missing ones.
            let present = scope.spawn(waiter(BLOCK));
            let mut faults = Vec::new();
            while queues[0].read(&mut faults).unwrap() == 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
            assert_eq!(faults[0].index(), BLOCK);
            let Resolution::Demand(runs) = pager.resolve(&faults[0]).unwrap() else { panic!("nothing is demanded") };
            assert_eq!(runs, [BLOCK + 5..BLOCK + 10, 2 * BLOCK - 1..2 * BLOCK]);
            assert_eq!(pager.resolve(&faults[0]).unwrap(), Resolution::Waiting);
            fetch(&pager, runs[0].clone());
            assert_eq!(pager.stats().fetched.count, 0, "not before all of it is here");
            fetch(&pager, runs[1].clone());
            present.join().unwrap();
        });
        assert_eq!(pager.stats().fetched.count, 1);
        (BLOCK..2 * BLOCK).for_each(|page| guest.check(page));
        let demanded = serving(&pager, &queues, || {
            guest.check(2 * BLOCK + 77);
            assert_eq!(pager.complete_zero(3 * BLOCK, BLOCK).unwrap(), BLOCK);
            assert_eq!(guest.read(3 * BLOCK, 0), 0);
        });
        assert_eq!(demanded, (2 * BLOCK..3 * BLOCK).collect::<Vec<_>>());
        (0..3 * BLOCK).for_each(|page| guest.check(page));
        assert_eq!(pager.remaining(), 0);
    });
}

#[test]
fn a_page_that_cannot_be_written_is_demanded_again() {
    let test = "a_page_that_cannot_be_written_is_demanded_again";
    if skipped(test) {
        return;
    }
    if free_huge_pages() > 0 {
        println!("SKIPPED {test}: huge pages are free on this host, so that writing one cannot be made to fail");
        return;
    }
    watched(move || {
        let guest = match Guest::of_huge_pages(&[BLOCK]) {
            Ok(guest) => guest,
            Err(error) => return println!("SKIPPED {test}: no hugetlbfs: {error}"),
        };
        let (pager, queues) = guest.arm(&PageBitmap::full(BLOCK), 1);
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| guest.touch_in_kernel(3));
            let whole: Vec<_> = std::iter::once(0..BLOCK).collect();
            // The second time, only the page that could not be written: the others were demanded, and stay so.
            for demanded in [whole, std::iter::once(3..4).collect()] {
                let mut faults = Vec::new();
                while queues[0].read(&mut faults).unwrap() == 0 {
                    std::thread::sleep(Duration::from_millis(1));
                }
                assert_eq!(pager.resolve(&faults[0]).unwrap(), Resolution::Demand(demanded));
                let error = pager.complete_from(3, &bytes_of(3)).unwrap_err();
                assert_eq!(error.to_string(), "Could not write guest memory");
                assert_eq!((pager.is_missing(3), pager.remaining()), (true, BLOCK));
            }
            pager.abandon().unwrap();
            assert_eq!(waiter.join().unwrap(), Some(Errno::FAULT));
        });
    });
}

#[test]
fn what_cannot_be_served_is_refused_by_name() {
    if skipped("what_cannot_be_served_is_refused_by_name") {
        return;
    }
    let guest = Guest::new(&[BLOCK]);
    let refused = |regions: &[GuestRegion], missing: u64| {
        Pager::arm(&guest.memfd, regions, &PageBitmap::full(missing), 1).unwrap_err().to_string()
    };
    assert_eq!(refused(&guest.regions, 511), "A set of 511 pages does not fit memory of 512 pages");
    let elsewhere = GuestRegion { address: 0x1000, ..guest.regions[0] };
    assert_eq!(refused(&[elsewhere], BLOCK), "Could not find the guest's memory among this process's mappings");
    let (pager, _queues) = guest.arm(&set(BLOCK, [0]), 1);
    let busy = Pager::arm(&guest.memfd, &guest.regions, &PageBitmap::full(BLOCK), 1).unwrap_err();
    assert_eq!(busy.to_string(), "Could not register guest memory with userfaultfd");
    assert!(matches!(pager.complete_from(511, &[0; 2 * PAGE]), Err(PagerError::Outside { end: 513, .. })));
    assert!(matches!(pager.complete_from(u64::MAX, &[0; PAGE]), Err(PagerError::Outside { .. })));
    assert!(matches!(pager.complete_from(0, &[0; PAGE - 1]), Err(PagerError::NotPages { .. })));
    assert!(matches!(pager.complete_zero(1, u64::MAX), Err(PagerError::Outside { .. })));
    assert!(!pager.is_missing(u64::MAX));
}

#[test]
fn more_blocks_than_a_process_may_have_mappings_are_served() {
    if skipped("more_blocks_than_a_process_may_have_mappings_are_served") {
        return;
    }
    watched(|| {
        // 156 GiB of addresses, hardly any of memory: every other block misses one page. Neither can all of these blocks be
        // registered for themselves, nor, later, each be unregistered while the others are not.
        let blocks = 80_000;
        let guest = Guest::new(&[blocks * BLOCK]);
        let missing = || (0..blocks).step_by(2).map(|block| block * BLOCK + 9);
        guest.stamp([BLOCK + 9], true);
        let (pager, queues) = guest.arm(&set(guest.pages, missing()), 2);
        let demanded = serving(&pager, &queues, || {
            guest.check(9);
            // Blocks between are watched too, for want of mappings; nothing of them is missing.
            guest.check(BLOCK + 9);
            assert_eq!(guest.read(3 * BLOCK, 0), 0);
        });
        assert_eq!(demanded, [9]);
        assert!(missing().skip(1).all(|page| pager.complete_zero(page, 1).unwrap() == 1));
        assert_eq!(pager.remaining(), 0);
        // Nobody reads the queues any more.
        for block in [0, 1, 5, blocks / 2, blocks - 2, blocks - 1] {
            assert_eq!(guest.read(block * BLOCK + 1, 0), 0);
        }
    });
}
