//! Guest memory without a machine around it.

use super::*;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use vmotion_model::{MemoryRegion, PageNumber};

fn two_regions() -> GuestRam {
    let region = |start, pages| MemoryRegion { start: PageNumber(start), pages };
    let layout = MemoryLayout::new(vec![region(0, 128), region(1024, 64)]).unwrap();
    GuestRam::new(layout, Backing::Memfd).unwrap()
}

#[test]
fn runs_cross_regions_and_only_touched_pages_are_allocated() {
    let ram = two_regions();
    assert!(ram.allocated().unwrap().is_empty());
    let written: Vec<u8> = (0..4 * 4096u32).map(|n| (n / 7).to_le_bytes()[0]).collect();
    ram.write_run(126, &written).unwrap();
    assert_eq!(ram.allocated().unwrap().runs().collect::<Vec<_>>(), vec![126..130]);
    let mut read = vec![0; written.len()];
    ram.read_run(126, 4, &mut read).unwrap();
    assert_eq!(read, written);
    ram.discard(127..129).unwrap();
    assert_eq!(ram.allocated().unwrap().runs().collect::<Vec<_>>(), vec![126..127, 129..130]);
}

#[test]
fn accesses_outside_are_refused() {
    let ram = two_regions();
    let mut page = [0; 4096];
    assert!(ram.read_page(192, &mut page).is_err());
    assert!(ram.read_page(u64::MAX, &mut page).is_err());
    assert!(ram.read_run(0, 2, &mut page).is_err());
    assert!(ram.write_run(191, &[0; 8192]).is_err());
    assert!(ram.write_run(0, &[]).is_err());
    let filling = Filling::new(Arc::new(ram), Arc::new(AtomicUsize::new(0)));
    assert!(filling.with_run_mut(127, 2, |_| ()).is_err());
    assert!(filling.with_run_mut(0, u64::MAX, |_| ()).is_err());
}

#[test]
fn device_writes_are_recorded_and_copies_are_not() {
    let ram = two_regions();
    ram.write_run(5, &[1; 4096]).unwrap();
    ram.devices().write_slice(&[7; 8192], vm_memory::GuestAddress(1024 * 4096 + 4000)).unwrap();
    let mut pages = PageBitmap::new(ram.total_pages());
    ram.take_device_writes(&mut pages);
    assert_eq!(pages.runs().collect::<Vec<_>>(), vec![128..131]);
    pages.clear_all();
    ram.take_device_writes(&mut pages);
    assert!(pages.is_empty());
}

#[test]
fn populate_allocates() {
    let ram = two_regions();
    ram.populate(100..140).unwrap();
    assert_eq!(ram.allocated().unwrap().runs().collect::<Vec<_>>(), vec![100..140]);
}
