//! A second mapping of a vCPU's `kvm_run` page, of which only two bytes are touched. `immediate_exit` lets another thread
//! make the next `KVM_RUN` return `EINTR` before it enters the guest, without sharing the vCPU itself; `cr8` can be read while
//! the data of an exit is borrowed.

use super::{PAGE_BYTES, borrow};
use kvm_bindings::kvm_run;
use std::io;
use std::mem::offset_of;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};

/// Sets and clears `kvm_run.immediate_exit` of one vCPU, and reads its `cr8`.
#[derive(Debug)]
pub struct ImmediateExit {
    page: NonNull<u8>,
}

// SAFETY: only two bytes of the page are accessed, and only atomically.
unsafe impl Send for ImmediateExit {}
// SAFETY: as above; concurrent atomic accesses are fine.
unsafe impl Sync for ImmediateExit {}

impl ImmediateExit {
    /// Maps the first page of `vcpu`'s `kvm_run`.
    ///
    /// # Errors
    /// What `mmap` says.
    pub fn map(vcpu: &impl AsRawFd) -> io::Result<Self> {
        let flags = rustix::mm::MapFlags::SHARED;
        let protection = rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::WRITE;
        let bytes = PAGE_BYTES;
        // SAFETY: a new shared mapping at an address of the kernel's choice, overlapping nothing of ours.
        let address = unsafe { rustix::mm::mmap(std::ptr::null_mut(), bytes, protection, flags, borrow(vcpu), 0) }?;
        let page = NonNull::new(address.cast()).ok_or_else(|| io::Error::other("mmap returned null"))?;
        Ok(Self { page })
    }

    /// While `on`, every `KVM_RUN` finishes pending I/O and returns `EINTR` instead of entering the guest.
    pub fn set(&self, on: bool) {
        // SAFETY: the offset is within the first page, which is mapped.
        let address = unsafe { self.page.add(offset_of!(kvm_run, immediate_exit)) };
        // SAFETY: the byte lives as long as the mapping; the kernel reads it once per `KVM_RUN`.
        let flag = unsafe { AtomicU8::from_ptr(address.as_ptr()) };
        flag.store(u8::from(on), Ordering::SeqCst);
    }

    /// The guest's CR8 as the last `KVM_RUN` left it; of meaning only for machines without an interrupt controller in KVM.
    #[must_use]
    pub fn cr8(&self) -> u8 {
        // SAFETY: the offset is within the first page, which is mapped.
        let address = unsafe { self.page.add(offset_of!(kvm_run, cr8)) };
        // SAFETY: the byte, the lowest of a little-endian u64, lives as long as the mapping; the kernel writes it during `KVM_RUN`.
        let class = unsafe { AtomicU8::from_ptr(address.as_ptr()) };
        class.load(Ordering::SeqCst)
    }
}

impl Drop for ImmediateExit {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `map` with this length, and no reference into it outlives `self`.
        let result = unsafe { rustix::mm::munmap(self.page.as_ptr().cast(), PAGE_BYTES) };
        debug_assert!(result.is_ok(), "munmap of kvm_run failed: {result:?}");
    }
}
