//! Memory calls on ranges the caller owns.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;

/// Which parts of `within` (in bytes) of a file hold data rather than holes, in ascending order. For a memfd: the pages
/// ever touched. Reading the file's mapping outside them gives zeros (and would allocate them).
/// Costs about 50 ns per page that holds data, nothing per page of a hole.
///
/// # Errors
/// What `lseek` says.
pub fn data_ranges(file: &File, within: Range<u64>) -> io::Result<Vec<Range<u64>>> {
    use rustix::fs::SeekFrom;
    let mut ranges = Vec::new();
    let mut from = within.start;
    while from < within.end {
        let start = match rustix::fs::seek(file.as_fd(), SeekFrom::Data(from)) {
            Ok(start) if start < within.end => start,
            Ok(_) | Err(rustix::io::Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let end = rustix::fs::seek(file.as_fd(), SeekFrom::Hole(start))?.min(within.end);
        ranges.push(start..end);
        from = end;
    }
    Ok(ranges)
}

/// Frees the memory of `within` (in bytes) of a file: it reads as zero afterwards, and is mapped nowhere any more. Its length stays.
///
/// # Errors
/// What `fallocate` says.
pub fn punch_hole(file: &File, within: Range<u64>) -> io::Result<()> {
    use rustix::fs::FallocateFlags;
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(file, flags, within.start, within.end.saturating_sub(within.start))?;
    Ok(())
}

const SMALL_PAGE_BYTES: usize = 4096;
/// Size and alignment of a huge page of x86-64.
pub const HUGE_PAGE_BYTES: usize = 2 << 20;

/// A shared mapping of a file that begins at a multiple of [`HUGE_PAGE_BYTES`], which `mmap` alone does not promise: without
/// it huge pages of the file cannot be mapped as such. Unmapped when dropped.
#[derive(Debug)]
pub struct AlignedMapping {
    address: *mut u8,
    bytes: usize,
}

// SAFETY: an address range of the process; what is done with the memory is up to whoever takes the pointer.
unsafe impl Send for AlignedMapping {}
// SAFETY: as above; the type itself never accesses the memory.
unsafe impl Sync for AlignedMapping {}

impl AlignedMapping {
    /// Maps `bytes` of `file` from `offset`, readable and writable, without reserving memory for it.
    ///
    /// # Errors
    /// What `mmap` says.
    pub fn new(file: &File, offset: u64, bytes: usize) -> io::Result<Self> {
        use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous};
        let reserved = bytes + HUGE_PAGE_BYTES;
        // SAFETY: a fresh range that nothing else knows; nothing of it can be accessed.
        let start = unsafe {
            mmap_anonymous(std::ptr::null_mut(), reserved, ProtFlags::empty(), MapFlags::PRIVATE | MapFlags::NORESERVE)
        }?;
        let skip = start.align_offset(HUGE_PAGE_BYTES);
        let flags = MapFlags::SHARED | MapFlags::NORESERVE | MapFlags::FIXED;
        // SAFETY: `skip` is less than HUGE_PAGE_BYTES, so `skip..skip + bytes` lies within the range just reserved, which is ours
        // to replace.
        let mapped = unsafe {
            mmap(start.wrapping_byte_add(skip), bytes, ProtFlags::READ | ProtFlags::WRITE, flags, file.as_fd(), offset)
        };
        let unmap = |from: usize, length: usize| {
            if length > 0 {
                // SAFETY: parts of the reserved range that nobody was told about. When this fails, address space is wasted.
                let _ = unsafe { rustix::mm::munmap(start.wrapping_byte_add(from), length) };
            }
        };
        match mapped {
            Ok(address) => {
                unmap(0, skip);
                unmap(skip + bytes, reserved - skip - bytes);
                Ok(Self { address: address.cast(), bytes })
            }
            Err(error) => {
                unmap(0, reserved);
                Err(error.into())
            }
        }
    }

    /// Allocates and maps `range` (in bytes, page-aligned) for writing (`MADV_POPULATE_WRITE`), so that later writes do not fault.
    /// Contents stay.
    ///
    /// # Errors
    /// What `madvise` says (`EINVAL`: older than Linux 5.14, or outside the mapping; `ENOMEM`, `EFAULT`: memory ran out).
    pub fn populate(&self, range: Range<usize>) -> io::Result<()> {
        let start = self.part(&range)?;
        // SAFETY: populating changes no contents, and the range is ours.
        unsafe { rustix::mm::madvise(start.cast(), range.len(), rustix::mm::Advice::LinuxPopulateWrite) }?;
        Ok(())
    }

    /// Allocates and maps huge pages for `range` (in bytes, multiples of [`HUGE_PAGE_BYTES`]), whatever the host's setting for
    /// transparent huge pages is (`MADV_COLLAPSE`). A tenth of the cost of [`Self::populate`] a byte, and shallower page tables.
    /// Contents stay.
    ///
    /// # Errors
    /// What `madvise` says (`EINVAL`: older than Linux 6.1, or huge pages were declined for the mapping; `ENOMEM`, `EAGAIN`: none
    /// to be had now). Part of the range may have become huge.
    pub fn populate_huge(&self, range: Range<usize>) -> io::Result<()> {
        let start = self.part(&range)?;
        // The kernel collapses only where there is a page already.
        for huge in range.clone().step_by(HUGE_PAGE_BYTES) {
            self.populate(huge..huge + SMALL_PAGE_BYTES.min(range.end - huge))?;
        }
        // SAFETY: collapsing changes no contents, and the range is ours. rustix does not name this advice.
        let result = unsafe { libc::madvise(start.cast(), range.len(), libc::MADV_COLLAPSE) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Asks for small pages only from now on (`MADV_NOHUGEPAGE`).
    ///
    /// # Errors
    /// What `madvise` says (`EINVAL`: a kernel without transparent huge pages, which has only small ones anyway).
    pub fn decline_huge_pages(&self) -> io::Result<()> {
        // SAFETY: the advice changes no contents, and the range is ours.
        unsafe { rustix::mm::madvise(self.address.cast(), self.bytes, rustix::mm::Advice::LinuxNoHugepage) }?;
        Ok(())
    }

    fn part(&self, range: &Range<usize>) -> io::Result<*mut u8> {
        if range.start > range.end || range.end > self.bytes {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // SAFETY: within the mapping, as was just checked.
        Ok(unsafe { self.address.add(range.start) })
    }

    /// Where it begins.
    #[must_use]
    pub const fn address(&self) -> *mut u8 {
        self.address
    }

    /// Its length in bytes.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for AlignedMapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`; whoever took the pointer promised not to use it beyond this value's life.
        let _ = unsafe { rustix::mm::munmap(self.address.cast(), self.bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn huge_pages_keep_what_was_written_and_lie_aligned() {
        let memfd = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let bytes = 2 * HUGE_PAGE_BYTES;
        rustix::fs::ftruncate(&memfd, bytes as u64).unwrap();
        let file = File::from(memfd);
        let mapping = AlignedMapping::new(&file, 0, bytes).unwrap();
        assert_eq!(mapping.address().align_offset(HUGE_PAGE_BYTES), 0);
        // SAFETY: within the mapping, and only this test uses it.
        unsafe { mapping.address().write(7) };
        let huge = mapping.populate_huge(0..bytes);
        // Old kernels and full hosts refuse; contents must survive either way.
        if huge.is_ok() {
            assert_eq!(
                data_ranges(&file, 0..bytes as u64).unwrap(),
                std::iter::once(0..bytes as u64).collect::<Vec<_>>()
            );
        }
        // SAFETY: within the mapping, and only this test uses it.
        let first = unsafe { mapping.address().read() };
        // SAFETY: the last byte of the mapping.
        let last = unsafe { mapping.address().wrapping_add(bytes - 1).read() };
        assert_eq!((first, last), (7, 0));
    }
}
