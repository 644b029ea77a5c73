//! KVM ioctls that `kvm-ioctls` 0.25 lacks: the dirty log with manual protection, dirty rings, the guest TSC offset,
//! SREGS2, XSAVE of any size, and a handle that makes a vCPU leave `KVM_RUN` at once.

mod dirty_log;
mod dirty_ring;
mod immediate_exit;
mod vcpu;

pub use dirty_log::{clear_dirty_log, get_dirty_log};
pub use dirty_ring::{DirtyPage, DirtyRing, reset_dirty_rings};
pub use immediate_exit::ImmediateExit;
pub use vcpu::{XsaveArea, get_sregs2, queue_interrupt, set_sregs2, set_tsc_offset, tsc_offset};

use std::ffi::c_ulong;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// The magic of KVM's ioctls.
const KVMIO: c_ulong = 0xae;

/// Bytes of a page on x86-64.
const PAGE_BYTES: usize = 4096;

/// Direction bits of an ioctl number.
#[derive(Clone, Copy)]
enum Direction {
    None = 0,
    Write = 1,
    Read = 2,
    ReadWrite = 3,
}

/// `_IOC` of the kernel headers for KVM's magic.
const fn kvm_ioctl(direction: Direction, number: c_ulong, size: usize) -> c_ulong {
    ((direction as c_ulong) << 30) | ((size as c_ulong) << 16) | (KVMIO << 8) | number
}

/// Calls an ioctl whose argument is a pointer to `argument`.
///
/// # Safety
/// `request` must be an ioctl of `fd` that takes a pointer to a `T` and touches no memory beyond it, other than through
/// pointers inside `T`, which must be valid for it.
unsafe fn ioctl_pointer<T>(fd: BorrowedFd<'_>, request: c_ulong, argument: *mut T) -> io::Result<i32> {
    // SAFETY: the caller vouches for request and argument; the fd is open for the lifetime of the borrow.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), request, argument) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// A borrowed fd of anything that has a raw one (the types of `kvm-ioctls` have only that).
fn borrow(fd: &impl AsRawFd) -> BorrowedFd<'_> {
    // SAFETY: the raw fd belongs to `fd`, which outlives the borrow and keeps it open.
    unsafe { BorrowedFd::borrow_raw(fd.as_raw_fd()) }
}
