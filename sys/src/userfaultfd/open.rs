//! Opening a userfaultfd, and what the kernel can do with it.

use super::Userfault;
use linux_raw_sys::general as raw;
use linux_raw_sys::general::uffdio_api;
use linux_raw_sys::ioctl::UFFDIO_API;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::ffi::{c_int, c_ulong};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

const _: () = assert!(UFFDIO_API == 0xc018_aa3f);
const _: () = assert!(size_of::<uffdio_api>() == 24);

/// `USERFAULTFD_IOC_NEW` of `linux/userfaultfd.h`: `_IO(0xaa, 0)`. linux-raw-sys does not have it.
const USERFAULTFD_IOC_NEW: c_ulong = 0xaa00;

/// What a kernel can do; bits of `uffdio_api.features`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Features(u64);

impl Features {
    /// Faults on holes of a memfd.
    pub const MISSING_SHMEM: Self = Self(raw::UFFD_FEATURE_MISSING_SHMEM as u64);
    /// Faults on pages a memfd has but the mapping does not map; Linux 5.14.
    pub const MINOR_SHMEM: Self = Self(raw::UFFD_FEATURE_MINOR_SHMEM as u64);
    /// Like [`Self::MISSING_SHMEM`], for hugetlbfs.
    pub const MISSING_HUGETLBFS: Self = Self(raw::UFFD_FEATURE_MISSING_HUGETLBFS as u64);
    /// Like [`Self::MINOR_SHMEM`], for hugetlbfs; Linux 5.13.
    pub const MINOR_HUGETLBFS: Self = Self(raw::UFFD_FEATURE_MINOR_HUGETLBFS as u64);
    /// [`Userfault::poison`]; Linux 6.6.
    pub const POISON: Self = Self(raw::UFFD_FEATURE_POISON as u64);
    /// [`Userfault::set_protection`] of pages of a memfd, and faults that say so; Linux 5.19.
    pub const PROTECT_SHMEM: Self =
        Self((raw::UFFD_FEATURE_WP_HUGETLBFS_SHMEM | raw::UFFD_FEATURE_PAGEFAULT_FLAG_WP) as u64);
    /// Events name the thread; Linux 4.14. Always asked for.
    const THREAD_ID: Self = Self(raw::UFFD_FEATURE_THREAD_ID as u64);

    const NAMES: [(Self, &str); 6] = [
        (Self::MISSING_SHMEM, "MISSING_SHMEM"),
        (Self::MINOR_SHMEM, "MINOR_SHMEM"),
        (Self::MISSING_HUGETLBFS, "MISSING_HUGETLBFS"),
        (Self::MINOR_HUGETLBFS, "MINOR_HUGETLBFS"),
        (Self::POISON, "POISON"),
        (Self::PROTECT_SHMEM, "WP_HUGETLBFS_SHMEM"),
    ];

    /// Both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Is all of `other` here?
    #[must_use]
    pub const fn contain(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The kernel's names for what of `wanted` is not here.
    #[must_use]
    pub fn lacking(self, wanted: Self) -> Vec<&'static str> {
        let lacks = |feature: Self| wanted.contain(feature) && !self.contain(feature);
        Self::NAMES.iter().filter(|(feature, _)| lacks(*feature)).map(|(_, name)| *name).collect()
    }
}

impl Userfault {
    /// Opens one, non-blocking, that accepts faults of the kernel on behalf of this process too (those of KVM are such). By the
    /// system call, and by `/dev/userfaultfd` where that is not permitted.
    ///
    /// # Errors
    /// `PermissionDenied` when neither way is permitted; what the kernel says otherwise (`ENOSYS`: built without userfaultfd).
    pub fn open() -> io::Result<Self> {
        use rustix::mm::UserfaultfdFlags;
        // SAFETY: making the descriptor affects no memory; what it can do later is argued where it is done.
        let by_call = unsafe { rustix::mm::userfaultfd(UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK) };
        let fd = match by_call {
            Err(Errno::PERM) => Self::open_by_device().map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => io::ErrorKind::PermissionDenied.into(),
                _ => error,
            })?,
            other => other?,
        };
        Self::shake_hands(fd)
    }

    fn open_by_device() -> io::Result<OwnedFd> {
        let device = rustix::fs::open("/dev/userfaultfd", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        let flags: c_int = libc::O_CLOEXEC | libc::O_NONBLOCK;
        // SAFETY: the ioctl takes flags by value and touches no memory.
        let result = unsafe { libc::ioctl(device.as_raw_fd(), USERFAULTFD_IOC_NEW, flags) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel just made this descriptor for us, and nobody else knows it.
        Ok(unsafe { OwnedFd::from_raw_fd(result) })
    }

    /// `UFFDIO_API`, which must come first. The kernel answers with all it can do, whatever was asked for.
    fn shake_hands(fd: OwnedFd) -> io::Result<Self> {
        let mut userfault = Self { fd, features: Features(0) };
        let mut api = uffdio_api { api: u64::from(raw::UFFD_API), features: Features::THREAD_ID.0, ioctls: 0 };
        // SAFETY: an ioctl of userfaultfd that reads and writes one `uffdio_api`.
        unsafe { userfault.ioctl(c_ulong::from(UFFDIO_API), &mut api) }?;
        userfault.features = Features(api.features);
        Ok(userfault)
    }
}
