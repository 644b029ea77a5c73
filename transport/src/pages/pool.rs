//! Batch buffers that come back: a fresh quarter of a MiB from the allocator is 64 page faults, each batch.

use super::format::BATCH_BYTES_MAX;
use bytes::Bytes;
use std::sync::{Arc, Mutex, PoisonError};

/// Buffers kept for reuse: what one flow has in flight and queued. More are given back to the allocator.
const KEPT_MAX: usize = 192;

/// Buffers of [`BATCH_BYTES_MAX`] bytes.
#[derive(Debug, Clone, Default)]
pub(super) struct BufferPool {
    free: Arc<Mutex<Vec<Box<[u8]>>>>,
}

impl BufferPool {
    /// A buffer with arbitrary old contents.
    pub(super) fn take(&self) -> Box<[u8]> {
        let reused = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        reused.unwrap_or_else(|| vec![0; BATCH_BYTES_MAX].into_boxed_slice())
    }

    /// The first `length` bytes of `buffer`, which returns to the pool when the last handle to them is gone.
    pub(super) fn freeze(&self, buffer: Box<[u8]>, length: usize) -> Bytes {
        Bytes::from_owner(Lent { buffer, length, pool: self.clone() })
    }
}

struct Lent {
    buffer: Box<[u8]>,
    length: usize,
    pool: BufferPool,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.buffer[..self.length]
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let mut free = self.pool.free.lock().unwrap_or_else(PoisonError::into_inner);
        if free.len() < KEPT_MAX {
            free.push(std::mem::take(&mut self.buffer));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_once_its_bytes_are_dropped() {
        let pool = BufferPool::default();
        let mut buffer = pool.take();
        buffer[..3].copy_from_slice(b"abc");
        let address = buffer.as_ptr().addr();
        let bytes = pool.freeze(buffer, 3);
        let clone = bytes.slice(1..);
        drop(bytes);
        let other = pool.take();
        assert_ne!(other.as_ptr().addr(), address, "still lent");
        assert_eq!(&clone[..], b"bc");
        drop(clone);
        let again = pool.take();
        assert_eq!(again.as_ptr().addr(), address);
    }
}
