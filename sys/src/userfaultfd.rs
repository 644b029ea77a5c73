//! userfaultfd(2): page faults of a range of memory become events of a file descriptor, and whoever reads them decides when the
//! waiting thread goes on.
//!
//! Only what shared file mappings need (ioctl_userfaultfd(2)): faults on pages the file does not have ("missing") and on pages it
//! has but this mapping does not map ("minor"). Guest memory is mapped twice: the guest's mapping, whose range is registered
//! ([`CheckedMapping`] proves that it is what it is thought to be), and a [`ServiceAlias`] of the same file, through which
//! bytes are written before [`Userfault::map_existing`] shows them to the guest.
//!
//! Why all of this is safe to call: no call here changes a byte that anybody holds a reference to: what is written is guest memory, which
//! is only ever reached through pointers. Registering the wrong memory makes
//! its users wait, poisoning it makes them fault; both are bugs, neither breaks what Rust takes for granted.

mod alias;
mod event;
mod mapping;
mod open;
mod ranges;
#[cfg(test)]
mod tests;

pub use alias::ServiceAlias;
pub use event::{EVENTS_MAX, PageFault};
pub use mapping::{CheckedMapping, drop_translations, kernel_page_bytes};
pub use open::Features;
pub use ranges::{Obstacle, Progress};

use std::ffi::c_ulong;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// An open userfaultfd, ready to register memory of this process. Closing it unregisters everything and wakes every waiter, which
/// then see whatever the file holds.
#[derive(Debug)]
pub struct Userfault {
    fd: OwnedFd,
    features: Features,
}

impl Userfault {
    /// Everything this kernel can do.
    #[must_use]
    pub const fn features(&self) -> Features {
        self.features
    }

    /// Calls an ioctl with a pointer to `argument`.
    ///
    /// # Safety
    /// `request` must be an ioctl of userfaultfd that takes a pointer to a `T`, touches no memory beyond it, and changes no
    /// contents of memory that safe code can see.
    unsafe fn ioctl<T>(&self, request: c_ulong, argument: &mut T) -> io::Result<()> {
        // SAFETY: the caller vouches for the request; the argument is valid and exclusive for the call; the fd is open.
        let result = unsafe { libc::ioctl(self.fd.as_raw_fd(), request, std::ptr::from_mut(argument)) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

impl AsFd for Userfault {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
