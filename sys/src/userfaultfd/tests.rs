//! What the kernel does, as this module's users rely on it. Each thread that waits is one this test started, and is woken.

use super::*;
use crate::memory::{AlignedMapping, HUGE_PAGE_BYTES};
use std::fs::File;
use std::ops::Range;
use std::sync::mpsc;
use std::time::Duration;

const PAGE: usize = 4096;
const BYTES: usize = 2 * HUGE_PAGE_BYTES;

/// A memfd mapped for a guest (A) and for us (B), all of A registered.
struct Rig {
    userfault: Userfault,
    file: File,
    guest: AlignedMapping,
    alias: ServiceAlias,
}

impl Rig {
    /// `None`, and says so, where userfaultfd is not permitted.
    fn new(test: &str) -> Option<Self> {
        Self::with(test, false)
    }

    /// With protection against writing: only where the kernel has it, too.
    fn with(test: &str, protection: bool) -> Option<Self> {
        let userfault = match Userfault::open() {
            Ok(userfault) => userfault,
            Err(error) => {
                println!("SKIPPED {test}: {error}");
                return None;
            }
        };
        assert!(userfault.features().contain(Features::MISSING_SHMEM.and(Features::MINOR_SHMEM)));
        let file = memfd();
        let guest = AlignedMapping::new(&file, 0, BYTES).unwrap();
        let alias = ServiceAlias::new(&file, 0, BYTES).unwrap();
        let rig = Self { userfault, file, guest, alias };
        if protection && !rig.userfault.features().contain(Features::PROTECT_SHMEM.and(Features::POISON)) {
            println!("SKIPPED {test}: this kernel cannot protect pages of a memfd");
            return None;
        }
        let all = rig.pages(0, BYTES / PAGE);
        let register = if protection { Userfault::register_with_protection } else { Userfault::register };
        register(&rig.userfault, &all).unwrap();
        Some(rig)
    }

    fn pages(&self, first: usize, pages: usize) -> Range<usize> {
        let start = self.guest.address().expose_provenance() + first * PAGE;
        start..start + pages * PAGE
    }

    fn checked(&self) -> CheckedMapping {
        CheckedMapping::check(&self.file, &[(self.pages(0, BYTES / PAGE), 0)]).unwrap().remove(0)
    }

    /// The first byte of a page of A, read by another thread.
    fn touch(&self, page: usize) -> mpsc::Receiver<u8> {
        let address = self.pages(page, 1).start;
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || {
            // SAFETY: mapped as long as the rig lives, which each test makes outlive its threads; only bytes, never references.
            let byte = unsafe { std::ptr::with_exposed_provenance::<u8>(address).read_volatile() };
            let _ = sender.send(byte);
        });
        receiver
    }

    fn next_fault(&self) -> PageFault {
        let mut faults = Vec::new();
        for _ in 0..2000 {
            if self.userfault.read_faults(|fault| faults.push(fault)).unwrap() > 0 {
                return faults[0];
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        panic!("no fault came");
    }
}

fn memfd() -> File {
    let memfd = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&memfd, BYTES as u64).unwrap();
    File::from(memfd)
}

fn wait(thread: &mpsc::Receiver<u8>) -> u8 {
    thread.recv_timeout(Duration::from_secs(10)).expect("the thread goes on")
}

#[test]
fn a_hole_is_a_missing_fault_and_a_stale_page_a_minor_one() {
    let Some(rig) = Rig::new("a_hole_is_a_missing_fault_and_a_stale_page_a_minor_one") else { return };
    for (page, minor) in [(3, false), (4, true)] {
        if minor {
            rig.alias.write(page * PAGE, &[1]).unwrap();
        }
        let thread = rig.touch(page);
        let fault = rig.next_fault();
        assert_eq!((fault.address, fault.minor, fault.write), (rig.pages(page, 1).start, minor, false));
        assert!(fault.thread != 0);
        rig.alias.write(page * PAGE, &[7]).unwrap();
        let done = rig.userfault.map_existing(&rig.pages(page, 1));
        assert!(done.bytes == PAGE && done.obstacle.is_none(), "{done:?}");
        assert_eq!(wait(&thread), 7);
    }
}

#[test]
fn obstacles_are_named() {
    let Some(rig) = Rig::new("obstacles_are_named") else { return };
    rig.alias.populate(0..2 * PAGE).unwrap();
    let first = rig.userfault.map_existing(&rig.pages(0, 3));
    assert_eq!(first.bytes, 2 * PAGE);
    assert!(first.obstacle.is_none(), "part of it was done: {first:?}");
    assert!(matches!(rig.userfault.map_existing(&rig.pages(2, 1)).obstacle, Some(Obstacle::Hole)));
    assert!(matches!(rig.userfault.map_existing(&rig.pages(1, 2)).obstacle, Some(Obstacle::Mapped)));
    assert!(matches!(rig.userfault.map_zero(&rig.pages(1, 1)).obstacle, Some(Obstacle::Mapped)));
    rig.userfault.unregister(&rig.pages(0, 512)).unwrap();
    assert!(matches!(rig.userfault.map_existing(&rig.pages(1, 1)).obstacle, Some(Obstacle::NotRegistered)));
    rig.userfault.wake(&rig.pages(0, 512)).unwrap();
}

#[test]
fn dropped_translations_fault_and_keep_their_bytes() {
    let Some(rig) = Rig::new("dropped_translations_fault_and_keep_their_bytes") else { return };
    for page in 0..8 {
        rig.alias.write(page * PAGE, &[9]).unwrap();
        assert_eq!(rig.userfault.map_existing(&rig.pages(page, 1)).bytes, PAGE);
    }
    let all = rig.checked();
    drop_translations(&[all.part(0..PAGE), all.part(5 * PAGE..6 * PAGE)]).unwrap();
    // Still mapped: no event.
    assert_eq!(wait(&rig.touch(1)), 9);
    assert_eq!(rig.userfault.read_faults(|_| ()).unwrap(), 0);
    let thread = rig.touch(5);
    assert!(rig.next_fault().minor);
    assert_eq!(rig.userfault.map_existing(&rig.pages(5, 1)).bytes, PAGE);
    assert_eq!(wait(&thread), 9);
}

#[test]
fn a_zero_page_fills_a_hole() {
    let Some(rig) = Rig::new("a_zero_page_fills_a_hole") else { return };
    let thread = rig.touch(600);
    assert!(!rig.next_fault().minor);
    assert_eq!(rig.userfault.map_zero(&rig.pages(600, 1)).bytes, PAGE);
    assert_eq!(wait(&thread), 0);
}

#[test]
fn copied_pages_fill_holes_only() {
    let Some(rig) = Rig::new("copied_pages_fill_holes_only") else { return };
    let thread = rig.touch(1);
    assert!(!rig.next_fault().minor);
    rig.alias.write(2 * PAGE, &[9]).unwrap();
    let all = rig.checked();
    let done = rig.userfault.copy(&all.part(0..3 * PAGE), &[7; 3 * PAGE]);
    assert!(done.bytes == 2 * PAGE && done.obstacle.is_none(), "up to what the file has: {done:?}");
    assert_eq!(wait(&thread), 7);
    let refused = rig.userfault.copy(&all.part(2 * PAGE..3 * PAGE), &[7; PAGE]);
    assert!(matches!(refused, Progress { bytes: 0, obstacle: Some(Obstacle::Mapped) }));
    assert_eq!(rig.userfault.map_existing(&rig.pages(2, 1)).bytes, PAGE);
    assert_eq!(wait(&rig.touch(2)), 9);
    assert!(matches!(rig.userfault.copy(&all.part(0..PAGE), &[]).obstacle, Some(Obstacle::Other(_))));
}

#[test]
fn protected_pages_are_read_and_their_writers_wait() {
    let Some(rig) = Rig::with("protected_pages_are_read_and_their_writers_wait", true) else { return };
    rig.alias.write(0, &[7]).unwrap();
    let page = rig.pages(0, 1);
    assert_eq!(rig.userfault.map_existing_protected(&page).bytes, PAGE);
    assert_eq!(wait(&rig.touch(0)), 7);
    let address = page.start;
    let writer = std::thread::spawn(move || {
        // SAFETY: mapped as long as the rig lives, which outlives this thread; only bytes, never references.
        unsafe { std::ptr::with_exposed_provenance_mut::<u8>(address).write_volatile(8) };
    });
    let fault = rig.next_fault();
    assert!(fault.protected && fault.write && !fault.minor, "{fault:?}");
    let mut byte = [0];
    rig.alias.read(0, &mut byte).unwrap();
    assert_eq!(byte, [7]);
    rig.userfault.set_protection(&page, false).unwrap();
    writer.join().unwrap();
    rig.userfault.set_protection(&page, true).unwrap();
    rig.alias.read(0, &mut byte).unwrap();
    assert_eq!(byte, [8]);
}

#[test]
fn protection_of_a_page_survives_its_translation_and_hides_it_from_poison() {
    let Some(rig) = Rig::with("protection_of_a_page_survives_its_translation_and_hides_it_from_poison", true) else {
        return;
    };
    rig.alias.write(0, &[7]).unwrap();
    let page = rig.pages(0, 1);
    assert_eq!(rig.userfault.map_existing_protected(&page).bytes, PAGE);
    rig.checked().part(0..PAGE).drop_translations().unwrap();
    assert!(matches!(rig.userfault.poison(&page).obstacle, Some(Obstacle::Mapped)));
    rig.userfault.set_protection(&page, false).unwrap();
    assert_eq!(rig.userfault.poison(&page).bytes, PAGE);
}

/// Writes the first byte of a page of A into a pipe: a fault inside a system call, as KVM's are.
fn touch_in_kernel(rig: &Rig, page: usize) -> mpsc::Receiver<Option<i32>> {
    let address = rig.pages(page, 1).start;
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let (_reader, writer) = rustix::pipe::pipe().unwrap();
        // SAFETY: the kernel reads one byte of a mapping that outlives the thread, and reports an error where it cannot.
        let written = unsafe { libc::write(writer.as_raw_fd(), std::ptr::with_exposed_provenance(address), 1) };
        let error = (written < 0).then(|| io::Error::last_os_error().raw_os_error()).flatten();
        let _ = sender.send(error);
    });
    receiver
}

#[test]
fn poisoned_and_forbidden_pages_end_the_wait_with_an_error() {
    let Some(rig) = Rig::new("poisoned_and_forbidden_pages_end_the_wait_with_an_error") else { return };
    if rig.userfault.features().contain(Features::POISON) {
        let thread = touch_in_kernel(&rig, 1);
        rig.next_fault();
        assert_eq!(rig.userfault.poison(&rig.pages(0, 2)).bytes, 2 * PAGE);
        assert_eq!(thread.recv_timeout(Duration::from_secs(10)).unwrap(), Some(libc::EFAULT));
    }
    let thread = touch_in_kernel(&rig, 520);
    rig.next_fault();
    rig.checked().part(HUGE_PAGE_BYTES..BYTES).forbid().unwrap();
    rig.userfault.wake(&rig.pages(512, 512)).unwrap();
    assert_eq!(thread.recv_timeout(Duration::from_secs(10)).unwrap(), Some(libc::EFAULT));
}

#[test]
fn closing_wakes_waiters() {
    let Some(rig) = Rig::new("closing_wakes_waiters") else { return };
    let thread = rig.touch(0);
    rig.next_fault();
    let Rig { userfault, guest, .. } = rig;
    drop(userfault);
    assert_eq!(wait(&thread), 0);
    drop(guest);
}

#[test]
fn only_shared_mappings_of_the_file_pass_the_check() {
    let file = memfd();
    let guest = AlignedMapping::new(&file, 0, BYTES).unwrap();
    let start = guest.address().expose_provenance();
    let check = |file: &File, range: Range<usize>, offset| CheckedMapping::check(file, &[(range, offset)]);
    assert!(check(&file, start..start + BYTES, 0).is_ok());
    assert!(check(&file, start + PAGE..start + BYTES, PAGE as u64).is_ok());
    assert!(check(&file, start..start + BYTES, PAGE as u64).is_err(), "another part of the file");
    assert!(check(&file, start..start + BYTES + HUGE_PAGE_BYTES, 0).is_err(), "beyond the mapping");
    assert!(check(&file, start..start + 1, 0).is_err(), "not whole pages");
    assert!(check(&memfd(), start..start + BYTES, 0).is_err(), "another file");
    let heap = vec![0_u8; 4 * PAGE];
    let inside = heap.as_ptr().addr().next_multiple_of(PAGE);
    assert!(check(&file, inside..inside + PAGE, 0).is_err(), "not a mapping of a file");
}

#[test]
fn page_sizes_are_told_apart() {
    assert_eq!(kernel_page_bytes(&memfd()).unwrap(), PAGE);
    let huge = rustix::fs::MemfdFlags::HUGETLB | rustix::fs::MemfdFlags::HUGE_2MB;
    match rustix::fs::memfd_create("test", huge) {
        Ok(memfd) => assert_eq!(kernel_page_bytes(&File::from(memfd)).unwrap(), HUGE_PAGE_BYTES),
        Err(error) => println!("SKIPPED page_sizes_are_told_apart (hugetlbfs part): {error}"),
    }
}

#[test]
fn writes_beyond_the_alias_are_refused() {
    let alias = ServiceAlias::new(&memfd(), 0, BYTES).unwrap();
    assert!(alias.write(BYTES - 1, &[1]).is_ok());
    assert!(alias.write(BYTES, &[1]).is_err());
    assert!(alias.write(usize::MAX, &[1, 2]).is_err());
    assert!(alias.clear(BYTES - PAGE..BYTES + 1).is_err());
}
