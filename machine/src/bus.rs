//! From an address to the device behind it. Built once, then read-only: vCPU threads look up without a lock.

use crate::devices::Device;
use crate::part::{Elsewhere, Space};
use std::ops::Range;
use std::sync::Arc;

struct Entry {
    range: Range<u64>,
    /// What the device calls the start of the range.
    offset: u64,
    device: Arc<dyn Device>,
}

/// One address space: ports or MMIO. Entries are sorted and do not overlap.
#[derive(Default)]
pub(crate) struct Bus {
    entries: Vec<Entry>,
}

impl Bus {
    /// Puts `device` at `start`.
    ///
    /// # Panics
    /// When the range is taken: the machine's address map is fixed in this crate, so that is a mistake in it.
    pub(crate) fn insert(&mut self, start: u64, length: u64, device: Arc<dyn Device>) {
        self.insert_at(start, length, 0, device);
    }

    /// Puts `device`, or a part of it, at `start`, which it calls `offset`.
    ///
    /// # Panics
    /// As [`Self::insert`].
    pub(crate) fn insert_at(&mut self, start: u64, length: u64, offset: u64, device: Arc<dyn Device>) {
        let range = start..start + length;
        let at = self.entries.partition_point(|entry| entry.range.start < range.start);
        let free_before = at == 0 || self.entries[at - 1].range.end <= range.start;
        let free_after = at == self.entries.len() || range.end <= self.entries[at].range.start;
        assert!(free_before && free_after, "{} overlaps another device at {range:#x?}", device.name());
        self.entries.insert(at, Entry { range, offset, device });
    }

    fn find(&self, address: u64) -> Option<(&dyn Device, u64)> {
        let after = self.entries.partition_point(|entry| entry.range.start <= address);
        let entry = self.entries.get(after.checked_sub(1)?)?;
        entry.range.contains(&address).then(|| (&*entry.device, address - entry.range.start + entry.offset))
    }

    /// Reads; an address without a device gives all ones, as an empty bus does.
    pub(crate) fn read(&self, address: u64, data: &mut [u8]) {
        match self.find(address) {
            Some((device, offset)) => device.read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// Writes; an address without a device swallows it.
    pub(crate) fn write(&self, address: u64, data: &[u8]) {
        if let Some((device, offset)) = self.find(address) {
            device.write(offset, data);
        }
    }
}

/// All devices of a machine, wherever they are.
#[derive(Default)]
pub(crate) struct Buses {
    pub(crate) ports: Bus,
    pub(crate) memory: Bus,
    /// Where they are not here.
    pub(crate) elsewhere: Option<Arc<dyn Elsewhere>>,
}

impl Buses {
    const fn of(&self, space: Space) -> &Bus {
        match space {
            Space::Ports => &self.ports,
            Space::Memory => &self.memory,
        }
    }

    /// `vcpu` reads.
    pub(crate) fn read(&self, vcpu: u8, space: Space, address: u64, data: &mut [u8]) {
        match &self.elsewhere {
            Some(elsewhere) => elsewhere.read(vcpu, space, address, data),
            None => self.of(space).read(address, data),
        }
    }

    /// `vcpu` writes.
    pub(crate) fn write(&self, vcpu: u8, space: Space, address: u64, data: &[u8]) {
        match &self.elsewhere {
            Some(elsewhere) => elsewhere.write(vcpu, space, address, data),
            None => self.of(space).write(address, data),
        }
    }
}
