//! Both dirty-tracking sources against a guest that writes exactly the pages it is told to.

#![allow(clippy::unwrap_used, reason = "a panic in a test is its report")]

mod common;

use common::tiny::{FIRST_PAGE, PAGES, write_elf};
use common::{Probe, Watcher, kvm_or_skip, spec};
use std::time::Duration;
use vmotion_dirty_tracking::{DirtyTracker, PageBitmap, TrackError};
use vmotion_machine::{ConsoleConfig, Machine, MachineConfig, MachineError};
use vmotion_model::DirtySource;

struct Tiny {
    machine: Machine,
    watcher: Watcher,
    total: u64,
    _directory: tempfile::TempDir,
}

impl Tiny {
    fn boot(source: DirtySource) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let spec = spec(write_elf(directory.path()), 1, 32, source, "");
        let machine = Machine::boot(&MachineConfig { spec, console: ConsoleConfig::default(), part: None }).unwrap();
        machine.resume().unwrap();
        let total = machine.memory().total_pages();
        Self { machine, watcher: Watcher::default(), total, _directory: directory }
    }

    /// Lets the guest write 64 pages, `stride` apart; which those are.
    fn write(&mut self, stride: u8) -> PageBitmap {
        self.watcher.read(&self.machine);
        assert_eq!(self.machine.console().input(&[stride]), 1);
        self.watcher.wait_for(&self.machine, "D\n", Duration::from_secs(10));
        let mut pages = PageBitmap::new(self.total);
        for n in 0..PAGES {
            pages.set(FIRST_PAGE + n * u64::from(stride));
        }
        pages
    }

    fn fetch(&self, tracker: &mut dyn DirtyTracker) -> PageBitmap {
        let mut pages = PageBitmap::new(self.total);
        let count = tracker.fetch(&mut pages).unwrap();
        assert_eq!(count, pages.count());
        pages
    }
}

fn reports_what_was_written(test: &str, source: DirtySource) {
    if !kvm_or_skip(test) {
        return;
    }
    let mut guest = Tiny::boot(source);
    let mut tracker = guest.machine.dirty_tracker(DirtySource::Auto).unwrap();
    assert_eq!(tracker.source(), source);
    guest.write(1);
    tracker.start().unwrap();
    assert_eq!(guest.fetch(&mut *tracker), guest.machine.memory().allocated().unwrap(), "all that holds data");
    tracker.clear(&PageBitmap::full(guest.total), 0..guest.total).unwrap();
    assert!(guest.fetch(&mut *tracker).is_empty());

    let written = guest.write(3);
    assert_eq!(guest.fetch(&mut *tracker), written);
    assert_eq!(guest.fetch(&mut *tracker), written, "a page stays reported until it is cleared");

    // Clear an odd part in the middle, then all.
    let part = FIRST_PAGE + 10..FIRST_PAGE + 101;
    tracker.clear(&written, part.clone()).unwrap();
    let mut left = written.clone();
    left.clear_range(part);
    assert_eq!(guest.fetch(&mut *tracker), left);
    tracker.clear(&PageBitmap::full(guest.total), 0..guest.total).unwrap();
    assert!(guest.fetch(&mut *tracker).is_empty());

    let again = guest.write(5);
    let mut both = guest.write(2);
    both.or(&again);
    assert_eq!(guest.fetch(&mut *tracker), both, "cleared pages are reported when they are written again");

    tracker.stop().unwrap();
    guest.write(7);
    let mut pages = PageBitmap::new(guest.total);
    assert!(matches!(tracker.fetch(&mut pages), Err(TrackError::NotStarted)));
    tracker.start().unwrap();
    let held = guest.machine.memory().allocated().unwrap();
    assert_eq!(guest.fetch(&mut *tracker), held, "a second start begins afresh");
    tracker.clear(&held, 0..guest.total).unwrap();
    // Also where nothing was before.
    let last = guest.write(9);
    assert_eq!(guest.fetch(&mut *tracker), last);
}

#[test]
fn the_log_reports_what_was_written() {
    reports_what_was_written("the_log_reports_what_was_written", DirtySource::Log);
}

#[test]
fn the_ring_reports_what_was_written() {
    reports_what_was_written("the_ring_reports_what_was_written", DirtySource::Ring);
}

#[test]
fn a_source_the_machine_was_not_created_with_is_refused() {
    if !kvm_or_skip("a_source_the_machine_was_not_created_with_is_refused") {
        return;
    }
    let guest = Tiny::boot(DirtySource::Auto);
    let refused = guest.machine.dirty_tracker(DirtySource::Ring).map(|tracker| tracker.source());
    assert!(matches!(refused, Err(MachineError::DirtySource { created: DirtySource::Log, .. })), "{refused:?}");
}

#[test]
fn bitmaps_of_another_size_are_refused() {
    if !kvm_or_skip("bitmaps_of_another_size_are_refused") {
        return;
    }
    let guest = Tiny::boot(DirtySource::Log);
    let mut tracker = guest.machine.dirty_tracker(DirtySource::Log).unwrap();
    tracker.start().unwrap();
    assert!(matches!(tracker.fetch(&mut PageBitmap::new(1)), Err(TrackError::WrongSize { .. })));
}

/// As fast as the guest can write, with every page a fault: rings fill, vCPUs wait for the reaper, nothing is lost.
#[test]
fn a_guest_that_writes_as_fast_as_it_can_is_tracked() {
    if !kvm_or_skip("a_guest_that_writes_as_fast_as_it_can_is_tracked") {
        return;
    }
    let probe = Probe::new(2, 192, DirtySource::Ring, "ws=134217728 rate=max verify=0 seconds=4 poweroff=0x600:0x34");
    let machine = Machine::boot(&probe.config).unwrap();
    let mut tracker = machine.dirty_tracker(DirtySource::Ring).unwrap();
    tracker.start().unwrap();
    machine.resume().unwrap();
    let mut watcher = Watcher::default();
    watcher.wait_for(&machine, "READY", Duration::from_secs(20));
    let mut pages = PageBitmap::new(machine.memory().total_pages());
    tracker.fetch(&mut pages).unwrap();
    let filled = (128 << 20) / 4096;
    assert!(pages.count() >= filled, "{} of {filled} pages seen", pages.count());
    let guard = machine.pause().unwrap();
    let mut touched = machine.memory().allocated().unwrap();
    touched.and_not(&pages);
    drop(guard);
    assert_eq!(touched.count(), 0, "pages were touched and not reported");
}
