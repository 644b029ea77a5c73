//! A digest of all guest memory, the same on both ends when every byte is.

use crate::guest::{GuestError, GuestPages};
use vmotion_model::PAGE_SIZE;
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

/// xxh3-128 over the xxh3-128 of every page, in order of the layout. Pages never touched count as zero pages without
/// being read, so the digest does not depend on which of the two a page is.
///
/// # Errors
/// When the host cannot tell which pages were touched.
pub fn memory_digest(guest: &(impl GuestPages + ?Sized)) -> Result<[u8; 16], GuestError> {
    #[expect(clippy::cast_possible_truncation, reason = "4096")]
    const PAGE: usize = PAGE_SIZE as usize;
    // Hashing is bound by memory; a few threads halve the pause that verification costs.
    let threads = std::thread::available_parallelism().map_or(1, |count| count.get().min(8)) as u64;
    let total = guest.layout().total_pages();
    let touched = guest.touched()?;
    let zero = xxh3_128(&[0; PAGE]).to_le_bytes();
    let part = total.div_ceil(threads).max(1);
    let hashes: Vec<Vec<u8>> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|worker| {
                let touched = &touched;
                scope.spawn(move || {
                    let mut page = [0; PAGE];
                    let mut hashes = Vec::new();
                    for index in (worker * part).min(total)..((worker + 1) * part).min(total) {
                        if touched.contains(index) {
                            guest.read_page(index, &mut page);
                            hashes.extend_from_slice(&xxh3_128(&page).to_le_bytes());
                        } else {
                            hashes.extend_from_slice(&zero);
                        }
                    }
                    hashes
                })
            })
            .collect();
        workers.into_iter().map(|worker| worker.join().unwrap_or_default()).collect()
    });
    let mut digest = Xxh3::new();
    for part in &hashes {
        digest.update(part);
    }
    Ok(digest.digest128().to_le_bytes())
}
