//! The dirty ring of one vCPU: memory shared with the kernel, which appends an entry when the vCPU first writes a page.
//!
//! Protocol of an entry's flags: 0 → (kernel) dirty → (we) reset → (`KVM_RESET_DIRTY_RINGS`) 0 and write-protected again.
//! Invariant: entries are collected in ring order, so `next` always points at the oldest entry not collected yet.

use super::{Direction, PAGE_BYTES, borrow, kvm_ioctl};
use kvm_bindings::{KVM_DIRTY_LOG_PAGE_OFFSET, kvm_dirty_gfn};
use std::ffi::{c_long, c_ulong};
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

const KVM_RESET_DIRTY_RINGS: c_ulong = kvm_ioctl(Direction::None, 0xc7, 0);
const _: () = assert!(KVM_RESET_DIRTY_RINGS == 0xaec7);
const _: () = assert!(size_of::<kvm_dirty_gfn>() == 16);

const FLAG_DIRTY: u32 = 1;
const FLAG_RESET: u32 = 2;

/// A page the guest wrote, as the kernel names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirtyPage {
    /// Memory slot (address space in the upper half, 0 for ordinary memory).
    pub slot: u32,
    /// Page within the slot.
    pub offset: u64,
}

/// The mapped ring of one vCPU.
#[derive(Debug)]
pub struct DirtyRing {
    entries: NonNull<kvm_dirty_gfn>,
    length: usize,
    next: usize,
}

// SAFETY: the mapping is shared memory owned by this value alone; moving it to another thread moves the only reader.
unsafe impl Send for DirtyRing {}

impl DirtyRing {
    /// Bytes of one entry; ring sizes given to `KVM_CAP_DIRTY_LOG_RING_ACQ_REL` are a power of two times this.
    pub const ENTRY_BYTES: usize = size_of::<kvm_dirty_gfn>();

    /// Maps the ring of `vcpu`, of as many `entries` as were enabled on the machine.
    ///
    /// # Errors
    /// What `mmap` says (`EINVAL`: the machine has no dirty rings, or of another size).
    pub fn map(vcpu: &impl AsRawFd, entries: usize) -> io::Result<Self> {
        let page_bytes = PAGE_BYTES;
        let offset = u64::from(KVM_DIRTY_LOG_PAGE_OFFSET) * page_bytes as u64;
        let flags = rustix::mm::MapFlags::SHARED;
        let protection = rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::WRITE;
        let bytes = entries * Self::ENTRY_BYTES;
        // SAFETY: a new shared mapping at an address of the kernel's choice, overlapping nothing of ours.
        let address =
            unsafe { rustix::mm::mmap(std::ptr::null_mut(), bytes, protection, flags, borrow(vcpu), offset) }?;
        let entries_pointer = NonNull::new(address.cast()).ok_or_else(|| io::Error::other("mmap returned null"))?;
        Ok(Self { entries: entries_pointer, length: entries, next: 0 })
    }

    /// Hands every entry the kernel has published to `visit` and marks it for reset. At most one round of the ring.
    ///
    /// Afterwards [`reset_dirty_rings`] must be called before the pages are read, or later writes to them are missed.
    pub fn collect(&mut self, mut visit: impl FnMut(DirtyPage)) -> u64 {
        let mut collected = 0;
        while collected < self.length as u64 {
            // SAFETY: `next` is below `length`, so the entry lies within the mapping.
            let entry = unsafe { self.entries.add(self.next) }.as_ptr();
            // SAFETY: the entry is valid for reads; taking a field's address does not read it.
            let flags_address = unsafe { &raw mut (*entry).flags };
            // SAFETY: the field is aligned, lives as long as the mapping, and the kernel accesses it atomically too.
            let flags = unsafe { AtomicU32::from_ptr(flags_address) };
            if flags.load(Ordering::Acquire) & FLAG_DIRTY == 0 {
                break;
            }
            // SAFETY: the kernel published the entry (acquired above) and does not write it again before a reset.
            let page = unsafe { entry.read_volatile() };
            visit(DirtyPage { slot: page.slot, offset: page.offset });
            flags.store(FLAG_RESET, Ordering::Release);
            self.next = (self.next + 1) % self.length;
            collected += 1;
        }
        collected
    }
}

impl Drop for DirtyRing {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `map` with this length, and no reference into it outlives `self`.
        let result = unsafe { rustix::mm::munmap(self.entries.as_ptr().cast(), self.length * Self::ENTRY_BYTES) };
        debug_assert!(result.is_ok(), "munmap of a dirty ring failed: {result:?}");
    }
}

/// Takes collected entries off all rings of the machine and write-protects their pages again; how many they were.
///
/// # Errors
/// What the kernel says (`ENOTTY`/`EINVAL`: the machine has no dirty rings).
pub fn reset_dirty_rings(vm: &impl AsRawFd) -> io::Result<u64> {
    // SAFETY: the ioctl takes no argument.
    let result = unsafe { libc::ioctl(vm.as_raw_fd(), KVM_RESET_DIRTY_RINGS, 0 as c_long) };
    u64::try_from(result).map_err(|_| io::Error::last_os_error())
}
