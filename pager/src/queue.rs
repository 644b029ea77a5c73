//! Faults as they come from the kernel.

use crate::PagerError;
use crate::shared::Shared;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;
use std::time::Instant;

/// A thread (a vCPU, a device, a kernel thread on behalf of KVM) waits for a page. To be given to [`crate::Pager::resolve`]: the
/// thread waits until then, and longer.
#[derive(Debug, Clone, Copy)]
pub struct Fault {
    pub(crate) index: u64,
    pub(crate) minor: bool,
    pub(crate) write: bool,
    pub(crate) thread: u32,
    pub(crate) read_at: Instant,
}

impl Fault {
    /// The page, by index. Of memory made of 2 MiB pages: the first of its 512.
    #[must_use]
    pub const fn index(&self) -> u64 {
        self.index
    }

    /// The thread wants to write.
    #[must_use]
    pub const fn is_write(&self) -> bool {
        self.write
    }
}

/// The faults of one shard of the memory. To be polled for reading (edge-triggered too, when it is read until 0 comes); closed when
/// it and the pager are dropped.
///
/// Pages may be resolved by any thread, but only the queue of their shard reports their faults: read all of them until
/// [`crate::Pager::remaining`] is 0, then drop them.
#[derive(Debug)]
pub struct FaultQueue {
    pub(crate) shared: Arc<Shared>,
    pub(crate) shard: usize,
}

impl FaultQueue {
    /// Appends the faults that wait to be read, at most 64, and says how many; 0 when there is none. Never blocks.
    ///
    /// # Errors
    /// [`PagerError::Kernel`] for what `read` says.
    pub fn read(&self, into: &mut Vec<Fault>) -> Result<usize, PagerError> {
        let before = into.len();
        let mut read_at = None;
        let read = self.shared.userfaults[self.shard].read_faults(|fault| {
            // Events tell addresses of registered memory only, which is memory of the space.
            if let Some(index) = self.shared.space.index_at(fault.address) {
                let read_at = *read_at.get_or_insert_with(Instant::now);
                into.push(Fault { index, minor: fault.minor, write: fault.write, thread: fault.thread, read_at });
            }
        });
        read.map_err(PagerError::kernel("read page faults"))?;
        Ok(into.len() - before)
    }
}

impl AsFd for FaultQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.userfaults[self.shard].as_fd()
    }
}

impl AsRawFd for FaultQueue {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}
