//! Pages that come and go: the hazards of memory whose rights change while others use it. Each thread that waits is the test's own.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "in a test a panic is the report")]

mod common;

use common::{Guest, PAGE, skipped, watched};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use vmotion_pager::{Allow, CoherentMemory, PagerError, Touch};

struct Rig {
    guest: Arc<Guest>,
    memory: CoherentMemory,
}

impl Rig {
    /// `None`, and says so, where userfaultfd is not permitted, or the kernel is too old.
    fn new(test: &str) -> Option<Self> {
        if skipped(test) {
            return None;
        }
        let guest = Arc::new(Guest::new(&[64, 1024]));
        match CoherentMemory::new(&guest.memfd, &guest.regions) {
            Ok(memory) => Some(Self { guest, memory }),
            Err(error @ PagerError::Lacks { .. }) => {
                println!("SKIPPED {test}: {error}");
                None
            }
            Err(error) => panic!("{error:?}"),
        }
    }

    fn next_touch(&self) -> Touch {
        let mut touches = Vec::new();
        for _ in 0..5000 {
            if self.memory.read_touches(|touch| touches.push(touch)).unwrap() > 0 {
                return touches[0];
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        panic!("nobody waits");
    }

    fn reads(&self, page: u64) -> std::thread::JoinHandle<u64> {
        let guest = Arc::clone(&self.guest);
        std::thread::spawn(move || guest.read(page, 0))
    }

    fn writes(&self, page: u64, value: u64) -> std::thread::JoinHandle<()> {
        let guest = Arc::clone(&self.guest);
        std::thread::spawn(move || guest.write(page, 0, value))
    }

    fn word(&self, page: u64) -> u64 {
        let mut bytes = [0; PAGE];
        self.memory.read(page, &mut bytes).unwrap();
        u64::from_ne_bytes(bytes[..8].try_into().unwrap())
    }
}

fn page_of(word: u64) -> [u8; PAGE] {
    let mut bytes = [0; PAGE];
    bytes[..8].copy_from_slice(&word.to_ne_bytes());
    bytes
}

#[test]
fn rights_come_and_go() {
    watched(|| {
        let Some(rig) = Rig::new("rights_come_and_go") else { return };
        // In the first region, at its end, and in the second one.
        for page in [0, 63, 64, 1000] {
            let reader = rig.reads(page);
            assert!(matches!(rig.next_touch(), Touch { index, write: false, .. } if index == page));
            rig.memory.write(page, &page_of(7)).unwrap();
            rig.memory.map(page, Allow::Read).unwrap();
            assert_eq!(reader.join().unwrap(), 7);
            let writer = rig.writes(page, 8);
            assert!(matches!(rig.next_touch(), Touch { index, write: true, .. } if index == page));
            assert_eq!(rig.word(page), 7);
            rig.memory.allow_write(page).unwrap();
            writer.join().unwrap();
            rig.memory.protect(page).unwrap();
            assert_eq!(rig.word(page), 8);
            assert_eq!(rig.guest.read(page, 0), 8);
            rig.memory.unmap(page).unwrap();
            let writer = rig.writes(page, 9);
            assert!(matches!(rig.next_touch(), Touch { index, write: true, .. } if index == page));
            rig.memory.map(page, Allow::Write).unwrap();
            writer.join().unwrap();
            rig.memory.unmap(page).unwrap();
            assert_eq!(rig.word(page), 9);
            rig.memory.free(page).unwrap();
        }
        assert_eq!(rig.guest.allocated(), 0);
    });
}

#[test]
fn a_page_nobody_touched_is_zero_when_it_was_cleared() {
    watched(|| {
        let Some(rig) = Rig::new("a_page_nobody_touched_is_zero_when_it_was_cleared") else { return };
        assert!(matches!(rig.memory.map(5, Allow::Read), Err(PagerError::Vanished { index: 5 })));
        let reader = rig.reads(5);
        rig.next_touch();
        rig.memory.clear(5).unwrap();
        rig.memory.map(5, Allow::Read).unwrap();
        assert_eq!(reader.join().unwrap(), 0);
        let writer = rig.writes(5, 1);
        assert!(rig.next_touch().write);
        rig.memory.allow_write(5).unwrap();
        writer.join().unwrap();
    });
}

#[test]
fn a_page_is_placed_whether_it_has_memory_or_not() {
    watched(|| {
        let Some(rig) = Rig::new("a_page_is_placed_whether_it_has_memory_or_not") else { return };
        for (page, allow) in [(7, Allow::Read), (8, Allow::Write)] {
            for value in [1, 2] {
                let reader = rig.reads(page);
                rig.next_touch();
                rig.memory.place(page, &page_of(value), allow).unwrap();
                assert_eq!(reader.join().unwrap(), value);
                let writer = rig.writes(page, 9);
                if allow == Allow::Read {
                    assert!(rig.next_touch().write, "it is read-only");
                    assert_eq!(rig.word(page), value);
                    rig.memory.allow_write(page).unwrap();
                }
                writer.join().unwrap();
                rig.memory.unmap(page).unwrap();
            }
        }
        assert!(rig.memory.place(9, &[0; 5], Allow::Read).is_err());
    });
}

/// Two threads wait, or one waits and is served by another's fault: whoever is resolved a second time must be woken too.
#[test]
fn who_is_served_twice_goes_on() {
    watched(|| {
        let Some(rig) = Rig::new("who_is_served_twice_goes_on") else { return };
        rig.memory.clear(3).unwrap();
        for allow in [Allow::Read, Allow::Write] {
            let reader = rig.reads(3);
            rig.next_touch();
            rig.memory.map(3, allow).unwrap();
            // It is mapped: neither is an error, and the rights are what was said last.
            rig.memory.map(3, allow).unwrap();
            rig.memory.wake(3, allow).unwrap();
            assert_eq!(reader.join().unwrap(), 0);
            let writer = rig.writes(3, 0);
            if allow == Allow::Read {
                assert!(rig.next_touch().write);
                rig.memory.wake(3, Allow::Write).unwrap();
            }
            writer.join().unwrap();
            rig.memory.unmap(3).unwrap();
        }
    });
}

/// The kernel may forget where a page is whenever it likes, as it does when it swaps; dropping the translation behind the back is the same.
#[test]
fn a_page_that_the_kernel_forgot_is_mapped_again() {
    watched(|| {
        let Some(rig) = Rig::new("a_page_that_the_kernel_forgot_is_mapped_again") else { return };
        rig.memory.write(9, &page_of(7)).unwrap();
        rig.memory.map(9, Allow::Read).unwrap();
        rig.memory.unmap(9).unwrap();
        let reader = rig.reads(9);
        assert!(!rig.next_touch().write);
        rig.memory.wake(9, Allow::Read).unwrap();
        assert_eq!(reader.join().unwrap(), 7);
        let writer = rig.writes(9, 8);
        assert!(rig.next_touch().write, "it is read-only still");
        // Forgotten while it becomes writable: the marker that keeps the protection must go as well.
        rig.memory.unmap(9).unwrap();
        rig.memory.allow_write(9).unwrap();
        assert!(rig.next_touch().write);
        rig.memory.wake(9, Allow::Write).unwrap();
        writer.join().unwrap();
        assert_eq!(rig.guest.read(9, 0), 8);
    });
}

/// Protecting what is not mapped must hold when it is mapped again by anything but a grant.
#[test]
fn protection_of_a_page_that_is_not_mapped_holds() {
    watched(|| {
        let Some(rig) = Rig::new("protection_of_a_page_that_is_not_mapped_holds") else { return };
        rig.memory.write(9, &page_of(7)).unwrap();
        rig.memory.map(9, Allow::Write).unwrap();
        rig.memory.unmap(9).unwrap();
        rig.memory.protect(9).unwrap();
        let writer = rig.writes(9, 8);
        assert!(rig.next_touch().write);
        rig.memory.wake(9, Allow::Read).unwrap();
        assert!(rig.next_touch().write, "it waits still");
        assert_eq!(rig.word(9), 7);
        rig.memory.wake(9, Allow::Write).unwrap();
        writer.join().unwrap();
    });
}

/// Revoke first, read second: nothing that a thread writes as fast as it can is written after the page was read.
#[test]
fn nothing_is_written_between_revoking_and_reading() {
    watched(|| {
        let Some(rig) = Rig::new("nothing_is_written_between_revoking_and_reading") else { return };
        rig.memory.clear(0).unwrap();
        rig.memory.map(0, Allow::Write).unwrap();
        let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let writer = {
            let (guest, stop, count) = (Arc::clone(&rig.guest), Arc::clone(&stop), Arc::clone(&count));
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let next = guest.read(0, 0) + 1;
                    guest.write(0, 0, next);
                    count.store(next, Ordering::Release);
                }
            })
        };
        for round in 0..2000 {
            if round % 2 == 0 {
                rig.memory.protect(0).unwrap();
            } else {
                rig.memory.unmap(0).unwrap();
            }
            let read = rig.word(0);
            assert!(count.load(Ordering::Acquire) <= read);
            std::thread::yield_now();
            assert_eq!(rig.word(0), read, "round {round}");
            while rig.memory.read_touches(|_| ()).unwrap() > 0 {}
            rig.memory.wake(0, Allow::Write).unwrap();
        }
        stop.store(true, Ordering::Relaxed);
        // It may wait, or come to wait, for what was revoked last and given back before it said so.
        while !writer.is_finished() {
            rig.memory.read_touches(|_| ()).unwrap();
            rig.memory.wake(0, Allow::Write).unwrap();
        }
        writer.join().unwrap();
    });
}

#[test]
fn faults_of_the_kernel_are_served_and_lost_pages_end_in_an_error() {
    watched(|| {
        let Some(rig) = Rig::new("faults_of_the_kernel_are_served_and_lost_pages_end_in_an_error") else { return };
        let in_kernel = |page| {
            let guest = Arc::clone(&rig.guest);
            std::thread::spawn(move || guest.touch_in_kernel(page))
        };
        let thread = in_kernel(1);
        assert!(matches!(rig.next_touch(), Touch { index, write: false, .. } if index == 1));
        rig.memory.clear(1).unwrap();
        rig.memory.map(1, Allow::Read).unwrap();
        assert_eq!(thread.join().unwrap(), None);
        // Never there; a stale copy that was protected; one that is mapped.
        for page in [2, 3, 4] {
            if page > 2 {
                rig.memory.clear(page).unwrap();
                rig.memory.map(page, Allow::Read).unwrap();
            }
            if page < 4 {
                rig.memory.unmap(page).unwrap();
                let thread = in_kernel(page);
                rig.next_touch();
                rig.memory.poison(page).unwrap();
                assert_eq!(thread.join().unwrap(), Some(rustix::io::Errno::FAULT));
            }
            rig.memory.poison(page).unwrap();
            assert_eq!(in_kernel(page).join().unwrap(), Some(rustix::io::Errno::FAULT));
        }
    });
}

#[test]
fn pages_beyond_the_memory_are_refused() {
    let Some(rig) = Rig::new("pages_beyond_the_memory_are_refused") else { return };
    let pages = rig.memory.pages();
    assert_eq!(pages, 1088);
    assert!(rig.memory.clear(pages).is_err());
    assert!(rig.memory.map(u64::MAX, Allow::Read).is_err());
    assert!(rig.memory.unmap(pages).is_err());
    assert!(rig.memory.poison(pages).is_err());
    assert!(rig.memory.free(pages).is_err());
    assert!(rig.memory.write(0, &[0; 5]).is_err());
    assert!(rig.memory.read(0, &mut [0; 5000]).is_err());
}
