//! The log tracker against a model of KVM's log with two slots, the second of which does not end at a word.

use super::*;
use crate::Slot;
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::io;
use std::sync::Mutex;

const SLOTS: [Slot; 2] = [Slot { id: 0, first: 0, pages: 128 }, Slot { id: 1, first: 128, pages: 100 }];
const TOTAL: u64 = 228;

#[derive(Default)]
struct ModelKvm {
    written: Mutex<BTreeSet<u64>>,
    device: Mutex<BTreeSet<u64>>,
    initially_all_written: bool,
}

/// Pages that hold data before tracking starts.
const TOUCHED: [Range<u64>; 2] = [3..70, 120..131];

impl DirtyBackend for ModelKvm {
    fn slots(&self) -> &[Slot] {
        &SLOTS
    }

    fn initially_all_written(&self) -> bool {
        self.initially_all_written
    }

    fn touched(&self, among: &PageBitmap) -> io::Result<PageBitmap> {
        let mut pages = PageBitmap::new(TOTAL);
        TOUCHED.into_iter().for_each(|range| pages.set_range(range));
        pages.and(among);
        Ok(pages)
    }

    fn set_logging(&self, _on: bool) -> io::Result<()> {
        let all = if self.initially_all_written { 0..TOTAL } else { 0..0 };
        *self.written.lock().unwrap() = all.collect();
        Ok(())
    }

    fn read_log(&self, slot: &Slot, words: &mut [u64]) -> io::Result<()> {
        words.fill(0);
        for page in self.written.lock().unwrap().iter().filter(|page| slot.range().contains(page)) {
            words[usize::try_from((page - slot.first) / 64).unwrap()] |= 1 << ((page - slot.first) % 64);
        }
        Ok(())
    }

    fn clear_log(&self, slot: &Slot, first: u64, pages: u32, mask: &[u64]) -> io::Result<()> {
        let end = first + u64::from(pages);
        // What the kernel insists on.
        assert!(first.is_multiple_of(64) && (end.is_multiple_of(64) || end == slot.pages) && end <= slot.pages);
        assert!(mask.len() as u64 >= u64::from(pages).div_ceil(64));
        for page in 0..u64::from(pages) {
            if mask[usize::try_from(page / 64).unwrap()] & (1 << (page % 64)) != 0 {
                self.written.lock().unwrap().remove(&(slot.first + first + page));
            }
        }
        Ok(())
    }

    fn take_device_writes(&self, into: &mut PageBitmap) {
        for page in std::mem::take(&mut *self.device.lock().unwrap()) {
            into.set(page);
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    Write(u64),
    DeviceWrite(u64),
    Clear(BTreeSet<u64>, Range<u64>),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..TOTAL).prop_map(Step::Write),
        (0..TOTAL).prop_map(Step::DeviceWrite),
        (prop::collection::btree_set(0..TOTAL, 0..100), 0..TOTAL + 9, 0..TOTAL)
            .prop_map(|(pages, start, length)| Step::Clear(pages, start..start + length)),
    ]
}

proptest! {
    #[test]
    fn a_page_stays_reported_until_it_is_cleared(
        steps in prop::collection::vec(step(), 1..40),
        initially_all_written: bool,
    ) {
        let kvm = Arc::new(ModelKvm { initially_all_written, ..ModelKvm::default() });
        let mut tracker = LogTracker::new(Arc::clone(&kvm) as _);
        tracker.start().unwrap();
        let mut expected: BTreeSet<u64> = TOUCHED.into_iter().flatten().collect();
        for step in steps {
            match step {
                Step::Write(page) => {
                    kvm.written.lock().unwrap().insert(page);
                    expected.insert(page);
                }
                Step::DeviceWrite(page) => {
                    kvm.device.lock().unwrap().insert(page);
                    expected.insert(page);
                }
                Step::Clear(pages, range) => {
                    let mut bitmap = PageBitmap::new(TOTAL);
                    pages.iter().for_each(|page| { bitmap.set(*page); });
                    tracker.clear(&bitmap, range.clone()).unwrap();
                    expected.retain(|page| !(pages.contains(page) && range.contains(page)));
                }
            }
            let mut fetched = PageBitmap::new(TOTAL);
            prop_assert_eq!(tracker.fetch(&mut fetched).unwrap(), expected.len() as u64);
            prop_assert_eq!(fetched.runs().flatten().collect::<BTreeSet<_>>(), expected.clone());
        }
    }
}
