//! Address ranges of this process that are known to be shared mappings of a file, and dropping their translations.

use rustix::fs::fstatfs;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;

/// `HUGETLBFS_MAGIC` of `linux/magic.h`.
const HUGETLBFS_MAGIC: i64 = 0x9584_58f6;
const SMALL_PAGE_BYTES: usize = 4096;
/// `UIO_MAXIOV`: most ranges one `process_madvise` takes.
const RANGES_A_CALL: usize = 1024;
/// `PIDFD_SELF` of `linux/pidfd.h`; Linux 6.14.
const PIDFD_SELF: libc::c_int = -10_000;

/// Bytes in the pages that faults on mappings of `file` are about: 4096, or the huge page's size for hugetlbfs.
///
/// # Errors
/// What `fstatfs` says.
pub fn kernel_page_bytes(file: &File) -> io::Result<usize> {
    let filesystem = fstatfs(file)?;
    if filesystem.f_type != HUGETLBFS_MAGIC {
        return Ok(SMALL_PAGE_BYTES);
    }
    usize::try_from(filesystem.f_bsize).map_err(io::Error::other)
}

/// A range of this process's addresses that was found to be a shared mapping of a file, so that its bytes live in the file
/// whatever happens to translations.
#[derive(Debug, Clone)]
pub struct CheckedMapping {
    range: Range<usize>,
}

impl CheckedMapping {
    /// Looks up each `(addresses, offset)` in `/proc/self/maps`: they must map `file`, shared, from `offset` on, without a gap.
    /// Costs about 0.1 ms. That they stay mapped so is up to whoever mapped them.
    ///
    /// # Errors
    /// `InvalidInput` for a range that is anything else, or whose ends are not at pages; what reading says.
    pub fn check(file: &File, ranges: &[(Range<usize>, u64)]) -> io::Result<Vec<Self>> {
        let metadata = file.metadata()?;
        let maps = std::fs::read_to_string("/proc/self/maps")?;
        let of_file = |mapping: &Mapping| mapping.inode == metadata.ino() && mapping.device == metadata.dev();
        let mappings: Vec<_> = maps.lines().filter_map(Mapping::parse).filter(of_file).collect();
        ranges.iter().map(|(range, offset)| Self::check_one(&mappings, range, *offset)).collect()
    }

    fn check_one(mappings: &[Mapping], range: &Range<usize>, offset: u64) -> io::Result<Self> {
        let refused = |why: &str| {
            io::Error::new(io::ErrorKind::InvalidInput, format!("{:#x}..{:#x} {why}", range.start, range.end))
        };
        if range.is_empty() || !(range.start | range.end).is_multiple_of(SMALL_PAGE_BYTES) {
            return Err(refused("is empty or not whole pages"));
        }
        let mut covered = range.start;
        while covered < range.end {
            let Some(mapping) = mappings.iter().find(|mapping| mapping.range.contains(&covered)) else {
                return Err(refused("is not a shared mapping of the file"));
            };
            let expected = offset + (covered - range.start) as u64;
            if mapping.offset + (covered - mapping.range.start) as u64 != expected {
                return Err(refused("maps another part of the file"));
            }
            covered = mapping.range.end;
        }
        Ok(Self { range: range.clone() })
    }

    /// The addresses.
    #[must_use]
    pub const fn range(&self) -> &Range<usize> {
        &self.range
    }

    /// The part of it from byte `part.start` to `part.end`; cut at its end.
    #[must_use]
    pub fn part(&self, part: Range<usize>) -> Self {
        let at = |offset: usize| self.range.start.saturating_add(offset).min(self.range.end);
        Self { range: at(part.start)..at(part.end) }
    }

    /// Forgets where its pages are; see [`drop_translations`].
    ///
    /// # Errors
    /// What `madvise` says (`EINVAL`: part of a hugetlbfs page, or locked memory).
    pub fn drop_translations(&self) -> io::Result<()> {
        drop_one(self)
    }

    /// Takes all access away (`mprotect` with `PROT_NONE`): touching it is an error from now on (`SIGSEGV`, and `EFAULT` inside system
    /// calls), also for threads that were waiting for a page of it, once they are woken. Splits the mapping.
    ///
    /// # Errors
    /// What `mprotect` says (`ENOMEM`: the process has too many mappings).
    pub fn forbid(&self) -> io::Result<()> {
        let address = std::ptr::with_exposed_provenance_mut(self.range.start);
        // SAFETY: a shared mapping of guest memory, which was checked; nobody holds a reference into that, and an access through a
        // pointer ends the process instead of seeing anything wrong.
        unsafe { rustix::mm::mprotect(address, self.range.len(), rustix::mm::MprotectFlags::empty()) }?;
        Ok(())
    }
}

/// A line of `/proc/self/maps` (proc_pid_maps(5)), of a shared mapping.
struct Mapping {
    range: Range<usize>,
    offset: u64,
    device: u64,
    inode: u64,
}

impl Mapping {
    /// `7f0c00000000-7f0c20000000 rw-s 00000000 00:01 1030 /memfd:guest-ram (deleted)`; `None` for private mappings.
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split_ascii_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let range = usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?;
        if !fields.next()?.ends_with('s') {
            return None;
        }
        let offset = u64::from_str_radix(fields.next()?, 16).ok()?;
        let (major, minor) = fields.next()?.split_once(':')?;
        let device = rustix::fs::makedev(u32::from_str_radix(major, 16).ok()?, u32::from_str_radix(minor, 16).ok()?);
        let inode = fields.next()?.parse().ok()?;
        Some(Self { range, offset, device, inode })
    }
}

/// Forgets where the pages of `ranges` are (`MADV_DONTNEED`): the bytes stay in the file, the next touch is a fault, and so is that of
/// a guest whose memory they are (KVM's own translations are dropped with them). One system call for every 1024 ranges where the
/// kernel can (`process_madvise` on itself, Linux 6.14), one per range elsewhere.
///
/// # Errors
/// What the kernel says (`EINVAL`: part of a hugetlbfs page, or locked memory).
pub fn drop_translations(ranges: &[CheckedMapping]) -> io::Result<()> {
    let vectors: Vec<_> = ranges
        .iter()
        .map(|checked| libc::iovec {
            iov_base: std::ptr::with_exposed_provenance_mut(checked.range.start),
            iov_len: checked.range.len(),
        })
        .collect();
    let mut at_once = true;
    for (chunk, ranges) in vectors.chunks(RANGES_A_CALL).zip(ranges.chunks(RANGES_A_CALL)) {
        at_once = at_once && drop_at_once(chunk);
        if !at_once {
            ranges.iter().try_for_each(drop_one)?;
        }
    }
    Ok(())
}

/// Whether the kernel did all of it in one call.
fn drop_at_once(vectors: &[libc::iovec]) -> bool {
    let bytes: usize = vectors.iter().map(|vector| vector.iov_len).sum();
    // SAFETY: all ranges are shared mappings of a file, which was checked, so dropping translations loses no bytes; the vectors are
    // only read.
    let done = unsafe {
        libc::syscall(
            libc::SYS_process_madvise,
            PIDFD_SELF,
            vectors.as_ptr(),
            vectors.len(),
            libc::MADV_DONTNEED,
            0 as libc::c_uint,
        )
    };
    usize::try_from(done) == Ok(bytes)
}

fn drop_one(checked: &CheckedMapping) -> io::Result<()> {
    let address = std::ptr::with_exposed_provenance_mut(checked.range.start);
    // SAFETY: a shared mapping of a file, which was checked: dropping translations loses no bytes.
    unsafe { rustix::mm::madvise(address, checked.range.len(), rustix::mm::Advice::LinuxDontNeed) }?;
    Ok(())
}
