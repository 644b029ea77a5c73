//! What can be done to a range of registered memory. Ranges are addresses of this process, whole pages of the mapping.

use super::{CheckedMapping, Userfault};
use linux_raw_sys::general as raw;
use linux_raw_sys::general::{
    uffdio_continue, uffdio_copy, uffdio_poison, uffdio_range, uffdio_register, uffdio_writeprotect, uffdio_zeropage,
};
use linux_raw_sys::ioctl::{
    UFFDIO_CONTINUE, UFFDIO_COPY, UFFDIO_REGISTER, UFFDIO_UNREGISTER, UFFDIO_WAKE, UFFDIO_WRITEPROTECT, UFFDIO_ZEROPAGE,
};
use std::ffi::c_ulong;
use std::io;
use std::ops::Range;

/// `_IOWR(0xaa, 8, struct uffdio_poison)`; linux-raw-sys has the structure only.
const UFFDIO_POISON: u32 = 0xc020_aa08;
/// `UFFDIO_CONTINUE_MODE_WP`; Linux 6.4, so wherever [`super::Features::POISON`] is. linux-raw-sys does not have it.
const CONTINUE_MODE_WP: u64 = 1 << 1;
/// `UFFDIO_COPY_MODE_WP`. linux-raw-sys does not have it.
const COPY_MODE_WP: u64 = 1 << 1;
/// `UFFDIO_WRITEPROTECT_MODE_WP`. Without it protection is taken off. linux-raw-sys does not have it.
const WRITEPROTECT_MODE_WP: u64 = 1 << 0;
const _: () = assert!(UFFDIO_REGISTER == 0xc020_aa00 && size_of::<uffdio_register>() == 0x20);
const _: () = assert!(UFFDIO_UNREGISTER == 0x8010_aa01 && size_of::<uffdio_range>() == 0x10);
const _: () = assert!(UFFDIO_WAKE == 0x8010_aa02);
const _: () = assert!(UFFDIO_COPY == 0xc028_aa03 && size_of::<uffdio_copy>() == 0x28);
const _: () = assert!(UFFDIO_ZEROPAGE == 0xc020_aa04 && size_of::<uffdio_zeropage>() == 0x20);
const _: () = assert!(UFFDIO_WRITEPROTECT == 0xc018_aa06 && size_of::<uffdio_writeprotect>() == 0x18);
const _: () = assert!(UFFDIO_CONTINUE == 0xc020_aa07 && size_of::<uffdio_continue>() == 0x20);
const _: () = assert!(size_of::<uffdio_poison>() == 0x20);

/// How far a call over a range of pages got, from its start.
#[derive(Debug)]
pub struct Progress {
    /// Bytes done; their waiters were woken.
    pub bytes: usize,
    /// What stopped it at `bytes`, when it is known. A call that did some pages and then stopped does not say why: calling again
    /// from there does.
    pub obstacle: Option<Obstacle>,
}

/// Why a page was not done.
#[derive(Debug)]
pub enum Obstacle {
    /// Something is mapped there already (`EEXIST`). Nobody was woken.
    Mapped,
    /// The file has no page there (`EFAULT`).
    Hole,
    /// Mappings are changing; again, please (`EAGAIN`).
    Changing,
    /// Not registered, or not one mapping from start to end (`ENOENT`).
    NotRegistered,
    /// Anything else.
    Other(io::Error),
}

const fn raw_range(range: &Range<usize>) -> uffdio_range {
    uffdio_range { start: range.start as u64, len: (range.end - range.start) as u64 }
}

/// `done` is what the kernel wrote into the argument: bytes, or a negative error.
fn progress(result: io::Result<()>, done: i64) -> Progress {
    let bytes = usize::try_from(done).unwrap_or(0);
    let obstacle = match result {
        Ok(()) => None,
        Err(_) if bytes > 0 => None,
        Err(error) => Some(match error.raw_os_error() {
            Some(libc::EEXIST) => Obstacle::Mapped,
            Some(libc::EFAULT) => Obstacle::Hole,
            Some(libc::EAGAIN) => Obstacle::Changing,
            Some(libc::ENOENT) => Obstacle::NotRegistered,
            _ => Obstacle::Other(error),
        }),
    };
    Progress { bytes, obstacle }
}

impl Userfault {
    /// `UFFDIO_REGISTER`: from now on a touch of a page that is not mapped waits, whether the file has the page (a minor fault) or
    /// not (a missing one). The kernel accepts only memfds, tmpfs and hugetlbfs for that. Splits the mapping where the range begins
    /// and ends.
    ///
    /// # Errors
    /// What the kernel says (`EINVAL`: not such a mapping; `EBUSY`: another userfaultfd has it; `ENOMEM`: the process has too many
    /// mappings, see `vm.max_map_count`).
    pub fn register(&self, range: &Range<usize>) -> io::Result<()> {
        self.register_as(range, u64::from(raw::UFFDIO_REGISTER_MODE_MISSING | raw::UFFDIO_REGISTER_MODE_MINOR))
    }

    /// Like [`Self::register`], and pages can be protected against writing ([`Self::set_protection`]). Needs
    /// [`super::Features::PROTECT_SHMEM`].
    ///
    /// # Errors
    /// As for [`Self::register`].
    pub fn register_with_protection(&self, range: &Range<usize>) -> io::Result<()> {
        let protect = raw::UFFDIO_REGISTER_MODE_WP;
        let mode = raw::UFFDIO_REGISTER_MODE_MISSING | raw::UFFDIO_REGISTER_MODE_MINOR | protect;
        self.register_as(range, u64::from(mode))
    }

    fn register_as(&self, range: &Range<usize>, mode: u64) -> io::Result<()> {
        let mut argument = uffdio_register { range: raw_range(range), mode, ioctls: 0 };
        // SAFETY: an ioctl of userfaultfd that reads and writes one `uffdio_register`. Accesses may wait from now on, which changes
        // no contents.
        unsafe { self.ioctl(c_ulong::from(UFFDIO_REGISTER), &mut argument) }
    }

    /// `UFFDIO_UNREGISTER`: faults are the kernel's own business again; waiters of the range are woken.
    ///
    /// # Errors
    /// What the kernel says (`ENOMEM`: the process has too many mappings; everything stays as it was).
    pub fn unregister(&self, range: &Range<usize>) -> io::Result<()> {
        let mut argument = raw_range(range);
        // SAFETY: an ioctl of userfaultfd that reads one `uffdio_range`; contents do not change.
        unsafe { self.ioctl(c_ulong::from(UFFDIO_UNREGISTER), &mut argument) }
    }

    /// `UFFDIO_WAKE`: whoever waits for a page of the range tries again. It need not be registered any more.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn wake(&self, range: &Range<usize>) -> io::Result<()> {
        let mut argument = raw_range(range);
        // SAFETY: an ioctl of userfaultfd that reads one `uffdio_range`; contents do not change.
        unsafe { self.ioctl(c_ulong::from(UFFDIO_WAKE), &mut argument) }
    }

    /// `UFFDIO_CONTINUE`: maps the pages that the file has, writable, and wakes their waiters.
    #[must_use]
    pub fn map_existing(&self, range: &Range<usize>) -> Progress {
        self.continue_as(range, 0)
    }

    /// Like [`Self::map_existing`], protected against writing: a write is a fault. Needs [`Self::register_with_protection`] and Linux 6.4,
    /// which every kernel is that has [`super::Features::POISON`].
    #[must_use]
    pub fn map_existing_protected(&self, range: &Range<usize>) -> Progress {
        self.continue_as(range, CONTINUE_MODE_WP)
    }

    fn continue_as(&self, range: &Range<usize>, mode: u64) -> Progress {
        let mut argument = uffdio_continue { range: raw_range(range), mode, mapped: 0 };
        // SAFETY: an ioctl of userfaultfd that reads and writes one `uffdio_continue`. What becomes visible is what the file holds
        // there, which is what the mapping would have shown without userfaultfd.
        let result = unsafe { self.ioctl(c_ulong::from(UFFDIO_CONTINUE), &mut argument) };
        progress(result, argument.mapped)
    }

    /// `UFFDIO_WRITEPROTECT`: when it has returned with `protect`, nobody can write the pages that are mapped, nor those that are not when they
    /// are mapped by anything but [`Self::map_existing`]. Without, they may be written again, and their waiters are woken. Needs
    /// [`Self::register_with_protection`].
    ///
    /// # Errors
    /// What the kernel says (`ENOENT`: not registered so; `EAGAIN`: mappings are changing, again please).
    pub fn set_protection(&self, range: &Range<usize>, protect: bool) -> io::Result<()> {
        let mode = if protect { WRITEPROTECT_MODE_WP } else { 0 };
        let mut argument = uffdio_writeprotect { range: raw_range(range), mode };
        // SAFETY: an ioctl of userfaultfd that reads one `uffdio_writeprotect`; contents do not change.
        unsafe { self.ioctl(c_ulong::from(UFFDIO_WRITEPROTECT), &mut argument) }
    }

    /// `UFFDIO_COPY`: gives the file pages that hold `bytes` where it has holes, maps them and wakes their waiters, at about half the
    /// cost of doing that in two steps: nothing is cleared that is overwritten, and no second mapping needs the pages. Not for hugetlbfs.
    /// Where the file has a page, [`Obstacle::Mapped`] is reported whether this mapping maps it or not. `place` and `bytes` are equally
    /// many whole pages.
    #[must_use]
    pub fn copy(&self, place: &CheckedMapping, bytes: &[u8]) -> Progress {
        self.copy_as(place, bytes, 0)
    }

    /// Like [`Self::copy`], protected against writing. Needs [`Self::register_with_protection`].
    #[must_use]
    pub fn copy_protected(&self, place: &CheckedMapping, bytes: &[u8]) -> Progress {
        self.copy_as(place, bytes, COPY_MODE_WP)
    }

    fn copy_as(&self, place: &CheckedMapping, bytes: &[u8], mode: u64) -> Progress {
        if bytes.len() != place.range().len() {
            return Progress { bytes: 0, obstacle: Some(Obstacle::Other(io::ErrorKind::InvalidInput.into())) };
        }
        let (dst, src) = (place.range().start as u64, bytes.as_ptr().expose_provenance() as u64);
        let mut argument = uffdio_copy { dst, src, len: bytes.len() as u64, mode, copy: 0 };
        // SAFETY: an ioctl of userfaultfd that reads and writes one `uffdio_copy`, and reads the slice it points to. What it writes are
        // holes of a shared mapping of guest memory, which was checked: as for `ServiceAlias::write`, no reference into that exists.
        let result = unsafe { self.ioctl(c_ulong::from(UFFDIO_COPY), &mut argument) };
        progress(result, argument.copy)
    }

    /// `UFFDIO_ZEROPAGE`: gives the file zero pages where it has holes, maps them and wakes their waiters, at less than half the cost
    /// of doing that in two steps. Not for hugetlbfs. Where the file has a page, [`Obstacle::Mapped`] is reported whether this
    /// mapping maps it or not.
    #[must_use]
    pub fn map_zero(&self, range: &Range<usize>) -> Progress {
        let mut argument = uffdio_zeropage { range: raw_range(range), mode: 0, zeropage: 0 };
        // SAFETY: an ioctl of userfaultfd that reads and writes one `uffdio_zeropage`. Holes of a file read as zero before and after.
        let result = unsafe { self.ioctl(c_ulong::from(UFFDIO_ZEROPAGE), &mut argument) };
        progress(result, argument.zeropage)
    }

    /// `UFFDIO_POISON`: from now on touching the pages that are not mapped is answered like a memory error: `SIGBUS`, and `EFAULT` or
    /// `EHWPOISON` inside system calls. Waiters are woken to just that. Needs [`super::Features::POISON`].
    #[must_use]
    pub fn poison(&self, range: &Range<usize>) -> Progress {
        let mut argument = uffdio_poison { range: raw_range(range), mode: 0, updated: 0 };
        // SAFETY: an ioctl of userfaultfd that reads and writes one `uffdio_poison`; pages that are mapped stay as they are.
        let result = unsafe { self.ioctl(c_ulong::from(UFFDIO_POISON), &mut argument) };
        progress(result, argument.updated)
    }
}
