//! Content hashes of pages, keyed by the move's ticket.
//!
//! xxh3-64 with a secret of this move only: a guest cannot craft two pages that collide, and an accident has a chance of
//! 2^-64 per comparison. Both ends derive the same secret, so batch digests can be compared.

use crate::session::MoveTicket;
use vmotion_model::PAGE_SIZE;
use xxhash_rust::xxh3::{Xxh3, xxh3_64_with_secret};

/// xxh3 asks for at least 136 bytes; the customary length is 192.
const SECRET_BYTES: usize = 192;

/// Hashes pages of one move.
#[derive(Clone)]
pub struct PageHasher {
    secret: [u8; SECRET_BYTES],
    zero: u64,
}

impl std::fmt::Debug for PageHasher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The secret stays out of logs.
        f.debug_struct("PageHasher").finish_non_exhaustive()
    }
}

impl PageHasher {
    /// The hasher of the move that `ticket` belongs to.
    #[must_use]
    pub fn new(ticket: &MoveTicket) -> Self {
        let mut secret = [0; SECRET_BYTES];
        for (counter, chunk) in secret.chunks_mut(16).enumerate() {
            let mut state = Xxh3::new();
            state.update(b"vmotion page hash");
            state.update(ticket.as_bytes());
            state.update(&counter.to_le_bytes());
            chunk.copy_from_slice(&state.digest128().to_le_bytes());
        }
        let zero = xxh3_64_with_secret(&[0; PAGE_BYTES], &secret);
        Self { secret, zero }
    }

    /// Hash of some bytes: a page, or the page hashes of a batch.
    #[must_use]
    pub fn hash(&self, bytes: &[u8]) -> u64 {
        xxh3_64_with_secret(bytes, &self.secret)
    }

    /// Hash of the all-zero page.
    #[must_use]
    pub const fn zero_page(&self) -> u64 {
        self.zero
    }
}

#[expect(clippy::cast_possible_truncation, reason = "4096")]
pub(super) const PAGE_BYTES: usize = PAGE_SIZE as usize;

/// Is the page all zero? Grouped so that the compiler uses vector loads; stops at the first group that is not.
pub(super) fn is_zero(page: &[u8]) -> bool {
    let (groups, rest) = page.as_chunks::<128>();
    rest.iter().all(|byte| *byte == 0)
        && groups.iter().all(|group| {
            let (words, _) = group.as_chunks::<8>();
            words.iter().fold(0, |seen, word| seen | u64::from_ne_bytes(*word)) == 0
        })
}
