//! `KVM_GET_DIRTY_LOG` into a caller's buffer and `KVM_CLEAR_DIRTY_LOG`, for machines that enabled
//! `KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2`: reading the log then does not clear it, clearing write-protects again.

use super::{Direction, borrow, ioctl_pointer, kvm_ioctl};
use kvm_bindings::{kvm_clear_dirty_log, kvm_dirty_log};
use std::ffi::c_ulong;
use std::io;
use std::os::fd::AsRawFd;

const KVM_GET_DIRTY_LOG: c_ulong = kvm_ioctl(Direction::Write, 0x42, size_of::<kvm_dirty_log>());
const KVM_CLEAR_DIRTY_LOG: c_ulong = kvm_ioctl(Direction::ReadWrite, 0xc0, size_of::<kvm_clear_dirty_log>());
const _: () = assert!(KVM_GET_DIRTY_LOG == 0x4010_ae42);
const _: () = assert!(KVM_CLEAR_DIRTY_LOG == 0xc018_aec0);

/// Pages in a word of the log; also the alignment `KVM_CLEAR_DIRTY_LOG` wants.
const PAGES_PER_WORD: u64 = 64;

/// Reads the dirty log of `slot`, which has `pages` pages, into `words` (bit n of word n / 64 is page n).
///
/// # Errors
/// `InvalidInput` when `words` is shorter than the log; otherwise what the kernel says (`ENOENT`: the slot is not logged;
/// `ENXIO`: the machine uses dirty rings).
pub fn get_dirty_log(vm: &impl AsRawFd, slot: u32, pages: u64, words: &mut [u64]) -> io::Result<()> {
    if (words.len() as u64) < pages.div_ceil(PAGES_PER_WORD) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "buffer is shorter than the dirty log"));
    }
    let mut log = kvm_dirty_log { slot, ..Default::default() };
    log.__bindgen_anon_1.dirty_bitmap = words.as_mut_ptr().cast();
    // SAFETY: the kernel writes one bit per page of the slot, rounded up to words, which fits `words` as checked above;
    // a slot larger than `pages` is the caller's lie about its own machine, excluded by passing the slot's own size.
    unsafe { ioctl_pointer(borrow(vm), KVM_GET_DIRTY_LOG, &raw mut log) }.map(drop)
}

/// Clears the log of `pages` pages of `slot` from `first` on where `words` has bits set, and write-protects them again.
///
/// `first` is a multiple of 64, and so is `pages` unless the run ends with the slot: the kernel refuses anything else.
///
/// # Errors
/// `InvalidInput` when `words` is shorter than the run; otherwise what the kernel says.
pub fn clear_dirty_log(vm: &impl AsRawFd, slot: u32, first: u64, pages: u32, words: &[u64]) -> io::Result<()> {
    if (words.len() as u64) < u64::from(pages).div_ceil(PAGES_PER_WORD) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "mask is shorter than the run to clear"));
    }
    let mut clear = kvm_clear_dirty_log { slot, num_pages: pages, first_page: first, ..Default::default() };
    clear.__bindgen_anon_1.dirty_bitmap = words.as_ptr().cast_mut().cast();
    // SAFETY: the kernel only reads `pages` bits, rounded up to words, from the mask, which has them as checked above.
    unsafe { ioctl_pointer(borrow(vm), KVM_CLEAR_DIRTY_LOG, &raw mut clear) }.map(drop)
}
