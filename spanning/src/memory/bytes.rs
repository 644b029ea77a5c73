//! The bytes of a page on their way.

use crate::directory::Content;
use std::fmt;
use std::sync::Arc;
use vmotion_model::PAGE_SIZE;

/// Bytes in a page.
pub(super) const PAGE_BYTES: usize = 4096;
const _: () = assert!(PAGE_BYTES as u64 == PAGE_SIZE);

/// The bytes of one page, which several streams and homes may hold at a time.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct PageBytes(Arc<[u8]>);

impl PageBytes {
    /// A copy of `bytes`; `None` when they are not one page.
    #[must_use]
    pub fn copy_of(bytes: &[u8]) -> Option<Self> {
        (bytes.len() == PAGE_BYTES).then(|| Self(bytes.into()))
    }

    /// All of them.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for PageBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PageBytes(…)")
    }
}

/// What is in a page. Zero pages never travel, whoever made them so.
pub(super) fn content_of(page: &[u8; PAGE_BYTES]) -> Content<PageBytes> {
    // By the word: four times as fast as by the byte, and a page that is not zero mostly says so in its first line.
    let (words, _) = page.as_chunks::<16>();
    if words.iter().all(|word| u128::from_ne_bytes(*word) == 0) {
        Content::Zero
    } else {
        Content::Bytes(PageBytes(page.as_slice().into()))
    }
}
