//! Threads touch memory like vCPUs while its pages arrive: demanded, pushed, both at once.

#![allow(clippy::unwrap_used, reason = "a panic in a test is its report")]

mod common;

use common::{BLOCK, Guest, Server, bytes_of, fetch, scramble, serving, set, skipped, watched, word_of};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, mpsc};
use std::time::Duration;
use vmotion_dirty_tracking::PageBitmap;
use vmotion_pager::Pager;

/// Reads and writes pages in random order, each thread its own pages, checking all it reads.
fn run_vcpu(guest: &Guest, number: u64, vcpus: u64) {
    let own = guest.pages / vcpus;
    for step in 0..own * 2 {
        let page = scramble(number << 40 | step) % own * vcpus + number;
        assert_eq!(guest.read(page, 17), word_of(page, 17), "page {page}");
        // A word nobody compares with the source.
        guest.write(page, 0, step);
        assert_eq!(guest.read(page, 0), step);
        // Any vCPU may read any page.
        let other = scramble(step << 8 | number) % guest.pages;
        assert_eq!(guest.read(other, 511), word_of(other, 511), "page {other}");
    }
}

fn check_all_but_first_words(guest: &Guest) {
    for page in 0..guest.pages {
        for word in 1..512 {
            assert_eq!(guest.read(page, word), word_of(page, word), "page {page} word {word}");
        }
    }
}

/// A source behind a link: answers demands later and in another order, and pushes all pages meanwhile, some of them twice.
fn run_vcpus_while_all_arrives(guest: &Guest, pager: &Pager, queues: &[vmotion_pager::FaultQueue]) {
    let server = Server::new(pager, queues);
    let arrived = AtomicU64::new(0);
    let (demand, demands) = mpsc::channel::<std::ops::Range<u64>>();
    let demands = Mutex::new(demands);
    let missing = pager.remaining();
    std::thread::scope(|scope| {
        let server = &server;
        scope.spawn(move || server.serve(|_, run| demand.send(run).unwrap()));
        scope.spawn(|| {
            while let Ok(run) = demands.lock().unwrap().recv() {
                std::thread::sleep(Duration::from_micros(100));
                let bytes: Vec<u8> = run.clone().flat_map(bytes_of).collect();
                arrived.fetch_add(pager.complete_from(run.start, &bytes).unwrap(), Ordering::Relaxed);
            }
        });
        for pusher in 0..2 {
            let arrived = &arrived;
            scope.spawn(move || {
                let batches = guest.pages.div_ceil(64);
                for step in 0..batches {
                    let batch = if pusher == 0 { step } else { batches - 1 - step };
                    let run = batch * 64..(batch * 64 + 64).min(guest.pages);
                    let bytes: Vec<u8> = run.clone().flat_map(bytes_of).collect();
                    arrived.fetch_add(pager.complete_from(run.start, &bytes).unwrap(), Ordering::Relaxed);
                    std::thread::sleep(Duration::from_micros(200));
                }
            });
        }
        let vcpus: Vec<_> = (0..3).map(|vcpu| scope.spawn(move || run_vcpu(guest, vcpu, 3))).collect();
        vcpus.into_iter().for_each(|vcpu| vcpu.join().unwrap());
        while pager.remaining() > 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
        server.stop();
    });
    let demanded = server.assert_demanded_once();
    assert_eq!(arrived.into_inner(), missing, "each page arrived once");
    check_all_but_first_words(guest);
    let stats = pager.stats();
    assert_eq!(stats.faults_demanded, demanded as u64);
    assert_eq!(stats.pages_demanded + stats.pages_pushed, missing);
    // Threads in time to find a page pushed by then are no stalls; those that were told to wait are.
    assert!(stats.fetched.count <= stats.faults_demanded + stats.faults_waiting);
}

#[test]
fn all_memory_arrives_under_running_vcpus() {
    let test = "all_memory_arrives_under_running_vcpus";
    if skipped(test) {
        return;
    }
    watched(|| {
        // Regions that do not end with a block.
        let guest = Guest::new(&[3 * BLOCK + 7, 2 * BLOCK, 100]);
        let (pager, queues) = guest.arm(&PageBitmap::full(guest.pages), 1);
        run_vcpus_while_all_arrives(&guest, &pager, &queues);
    });
}

#[test]
fn old_bytes_are_never_seen() {
    if skipped("old_bytes_are_never_seen") {
        return;
    }
    watched(|| {
        let guest = Guest::new(&[6 * BLOCK]);
        // What a pre-copy leaves: everything mapped, some pages dirtied since.
        let stale = |page: &u64| scramble(*page).is_multiple_of(7);
        guest.stamp(0..guest.pages, true);
        guest.stamp((0..guest.pages).filter(stale), false);
        let (pager, queues) = guest.arm(&set(guest.pages, (0..guest.pages).filter(stale)), 3);
        assert_eq!(queues.len(), 3);
        run_vcpus_while_all_arrives(&guest, &pager, &queues);
    });
}

#[test]
fn huge_pages_under_the_memfd_change_nothing() {
    let test = "huge_pages_under_the_memfd_change_nothing";
    if skipped(test) {
        return;
    }
    watched(move || {
        let guest = Guest::new(&[4 * BLOCK]);
        if let Err(error) = guest.mapping(0).populate_huge(0..guest.mapping(0).bytes()) {
            println!("SKIPPED {test}: no huge pages to be had: {error}");
            return;
        }
        guest.stamp(0..guest.pages, true);
        // Few, many, none and all of a block.
        let stale = |page: &u64| match page / BLOCK {
            0 => page.is_multiple_of(100),
            1 => page.is_multiple_of(2),
            2 => false,
            _ => true,
        };
        guest.stamp((0..guest.pages).filter(stale), false);
        let (pager, queues) = guest.arm(&set(guest.pages, (0..guest.pages).filter(stale)), 1);
        run_vcpus_while_all_arrives(&guest, &pager, &queues);
    });
}

#[test]
fn only_missing_pages_are_demanded() {
    if skipped("only_missing_pages_are_demanded") {
        return;
    }
    watched(|| {
        let guest = Guest::new(&[4 * BLOCK]);
        guest.stamp(0..guest.pages, true);
        // Few in the first block, so many in the second that its translations are dropped as a whole, none in the last two.
        let many = (BLOCK..2 * BLOCK).filter(|page| page % BLOCK % 3 == 1);
        let missing: Vec<u64> = (0..BLOCK).step_by(100).chain(many).collect();
        guest.stamp(missing.iter().copied(), false);
        let (pager, queues) = guest.arm(&set(guest.pages, missing.iter().copied()), 1);
        let mut demanded = serving(&pager, &queues, || {
            (0..guest.pages).for_each(|page| guest.check(page));
        });
        demanded.sort_unstable();
        assert_eq!(demanded, missing);
        let stats = pager.stats();
        assert_eq!(stats.faults_demanded, missing.len() as u64);
        // The first block's other pages stayed mapped. The second's are one, and then runs of two between missing ones.
        assert_eq!((stats.pages_mapped, stats.faults_local), (341, 171), "{stats:?}");
    });
}

#[test]
fn a_present_run_is_mapped_at_its_first_fault() {
    if skipped("a_present_run_is_mapped_at_its_first_fault") {
        return;
    }
    watched(|| {
        let guest = Guest::new(&[BLOCK]);
        // Never mapped in A: as if another mapping had been filled.
        let other = vmotion_sys::userfaultfd::ServiceAlias::new(&guest.memfd, 0, guest.mapping(0).bytes()).unwrap();
        other.write(0, &(0..BLOCK).flat_map(bytes_of).collect::<Vec<_>>()).unwrap();
        let (pager, queues) = guest.arm(&set(BLOCK, [300]), 1);
        let demanded = serving(&pager, &queues, || {
            guest.check(150);
            (0..300).for_each(|page| guest.check(page));
        });
        let stats = pager.stats();
        assert_eq!((demanded.len(), stats.pages_mapped), (0, 300), "{stats:?}");
        // The run is mapped while the thread goes on, which may be quicker on some pages.
        assert!(stats.faults_local <= 300, "{stats:?}");
        drop(pager);
    });
}

#[test]
fn holes_are_answered_without_the_source() {
    if skipped("holes_are_answered_without_the_source") {
        return;
    }
    watched(|| {
        let guest = Guest::new(&[2 * BLOCK]);
        guest.stamp([3], false);
        let (pager, queues) = guest.arm(&set(guest.pages, [3, 600]), 1);
        let demanded = serving(&pager, &queues, || {
            for page in [2, 4, 5, 511, 512] {
                assert_eq!(guest.read(page, 9), 0);
                guest.write(page, 9, page);
                assert_eq!(guest.read(page, 9), page);
            }
            guest.check(3);
            guest.check(600);
        });
        assert_eq!(demanded, [3, 600]);
        let stats = pager.stats();
        // The last missing page of each block gave it back to the kernel.
        assert_eq!((stats.pages_fresh, stats.pages_mapped), (5, 0), "{stats:?}");
        assert_eq!(pager.remaining(), 0);
    });
}

#[test]
fn a_page_asked_for_is_not_demanded_by_its_fault() {
    if skipped("a_page_asked_for_is_not_demanded_by_its_fault") {
        return;
    }
    watched(|| {
        let guest = Guest::new(&[2 * BLOCK]);
        let (pager, queues) = guest.arm(&set(guest.pages, [10, 11, 14, 20, 700]), 1);
        assert_eq!(pager.missing_near(12, 3), [11, 14, 10]);
        assert_eq!(pager.missing_near(11, 9), [10, 14, 20, 700], "the page itself is no neighbour");
        assert!(pager.ask(11));
        assert!(!pager.ask(11) && !pager.ask(12) && !pager.ask(u64::MAX));
        assert_eq!(pager.missing_near(12, 3), [14, 10, 20]);
        let touched = AtomicBool::new(false);
        let demanded = serving(&pager, &queues, || {
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    guest.check(11);
                    touched.store(true, Ordering::Relaxed);
                });
                while pager.stats().faults_waiting == 0 {
                    std::thread::sleep(Duration::from_millis(1));
                }
                assert!(!touched.load(Ordering::Relaxed) && pager.is_missing(11));
                fetch(&pager, 11..12);
            });
        });
        assert!(demanded.is_empty());
        let stats = pager.stats();
        assert_eq!((stats.pages_demanded, stats.fetched.count), (1, 1));
        assert!(stats.fetched.total > Duration::ZERO && stats.fetched.max >= stats.fetched.p50);
    });
}
