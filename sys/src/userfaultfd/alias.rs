//! A second mapping of guest memory, registered with nobody.

use crate::memory::AlignedMapping;
use std::fs::File;
use std::io;
use std::ops::Range;

/// A mapping of a file through which pages are written while the file's other mapping waits for them. It is never registered, so
/// whoever serves faults can use it without waiting for himself.
#[derive(Debug)]
pub struct ServiceAlias {
    mapping: AlignedMapping,
}

impl ServiceAlias {
    /// Maps `bytes` of `file` from `offset` on.
    ///
    /// # Errors
    /// What `mmap` says.
    pub fn new(file: &File, offset: u64, bytes: usize) -> io::Result<Self> {
        Ok(Self { mapping: AlignedMapping::new(file, offset, bytes)? })
    }

    /// Writing through it makes small pages only from now on, whatever the host's setting for transparent huge pages is.
    ///
    /// # Errors
    /// What `madvise` says (`EINVAL`: a kernel without transparent huge pages, which has only small ones anyway).
    pub fn decline_huge_pages(&self) -> io::Result<()> {
        self.mapping.decline_huge_pages()
    }

    fn part(&self, offset: usize, bytes: usize) -> io::Result<*mut u8> {
        if offset.checked_add(bytes).is_none_or(|end| end > self.mapping.bytes()) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(self.mapping.address().wrapping_add(offset))
    }

    /// Copies `bytes` to byte `offset` of the mapping.
    ///
    /// # Errors
    /// `InvalidInput` beyond the mapping's end.
    pub fn write(&self, offset: usize, bytes: &[u8]) -> io::Result<()> {
        let to = self.part(offset, bytes.len())?;
        // SAFETY: the target lies within the mapping, as was just checked; the source is a slice and nothing else ever points into
        // this mapping, so the two do not overlap. Writes to guest memory may race with the guest's own, as those of a device may:
        // no reference to it exists that could be wronged.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
        Ok(())
    }

    /// Copies the bytes from byte `offset` of the mapping on into `into`. Whoever writes them meanwhile may be seen with half of what
    /// he writes. Allocates pages where the file has holes.
    ///
    /// # Errors
    /// `InvalidInput` beyond the mapping's end.
    pub fn read(&self, offset: usize, into: &mut [u8]) -> io::Result<()> {
        let from = self.part(offset, into.len())?;
        // SAFETY: the source lies within the mapping, as was just checked; the target is an exclusive slice and nothing else ever points
        // into this mapping, so the two do not overlap. Bytes of any value are bytes; no reference to guest memory exists.
        unsafe { std::ptr::copy_nonoverlapping(from, into.as_mut_ptr(), into.len()) };
        Ok(())
    }

    /// Clears `range` (in bytes). Allocates pages where the file has holes.
    ///
    /// # Errors
    /// `InvalidInput` beyond the mapping's end.
    pub fn clear(&self, range: Range<usize>) -> io::Result<()> {
        let to = self.part(range.start, range.len())?;
        // SAFETY: within the mapping, as was just checked; as for `write`, no reference into it exists.
        unsafe { to.write_bytes(0, range.len()) };
        Ok(())
    }

    /// Allocates and maps `range` (in bytes, whole pages), so that writing it cannot fail for want of memory. Contents stay.
    ///
    /// # Errors
    /// What `madvise` says (`ENOMEM`, `EFAULT`: no memory, or no huge page, is left).
    pub fn populate(&self, range: Range<usize>) -> io::Result<()> {
        self.mapping.populate(range)
    }
}
