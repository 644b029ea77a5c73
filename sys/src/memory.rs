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

/// Allocates and maps `bytes` from `address` for writing (`MADV_POPULATE_WRITE`), so that later writes do not fault.
///
/// # Errors
/// What `madvise` says (`EINVAL`: older than Linux 5.14; `ENOMEM`, `EFAULT`: memory ran out).
///
/// # Safety
/// The range must be a mapping the caller owns.
pub unsafe fn populate_write(address: *mut u8, bytes: usize) -> io::Result<()> {
    // SAFETY: populating changes no contents; the caller owns the range.
    unsafe { rustix::mm::madvise(address.cast(), bytes, rustix::mm::Advice::LinuxPopulateWrite) }?;
    Ok(())
}

/// Asks for 4 KiB pages only (`MADV_NOHUGEPAGE`).
///
/// # Errors
/// What `madvise` says (`EINVAL`: a kernel without transparent huge pages, which has only small ones anyway).
///
/// # Safety
/// The range must be a mapping the caller owns.
pub unsafe fn no_huge_pages(address: *mut u8, bytes: usize) -> io::Result<()> {
    // SAFETY: the advice changes no contents; the caller owns the range.
    unsafe { rustix::mm::madvise(address.cast(), bytes, rustix::mm::Advice::LinuxNoHugepage) }?;
    Ok(())
}
