//! The guest's own content and stamp code, compiled for the host: pages must compress like real memory, and stamps
//! must notice every kind of damage.

use crate::ELF;

#[path = "../guest/src/content.rs"]
#[allow(dead_code, clippy::cast_possible_truncation, unreachable_pub, reason = "written for the 64-bit guest")]
mod content;
#[path = "../guest/src/stamp.rs"]
#[allow(dead_code, unreachable_pub, reason = "written for the guest")]
mod stamp;

use content::Content;
use stamp::{MEMORY_MAGIC, PAGE_WORDS, Stamp};

fn page(content: Content, index: u64, generation: u64) -> [u64; PAGE_WORDS] {
    let mut seed = index << 32 | generation;
    let seed = content::next_random(&mut seed);
    let mut bytes = [0; PAGE_WORDS * 8];
    content::fill(content, &mut bytes[stamp::HEADER_WORDS * 8..], seed);
    let (words, _) = bytes.as_chunks::<8>();
    let mut page: [u64; PAGE_WORDS] = std::array::from_fn(|word| u64::from_le_bytes(words[word]));
    Stamp { magic: MEMORY_MAGIC, index, generation, cpu: 0, seed, written_us: 12_345_678, disk: 0 }.apply(&mut page);
    page
}

fn bytes(page: &[u64; PAGE_WORDS]) -> Vec<u8> {
    page.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Percent of independent pages left after (lz4, zstd level 1).
fn percent_left(content: Content) -> (usize, usize) {
    const PAGES: usize = 500;
    let (mut lz4, mut zstd) = (0, 0);
    for index in 0..PAGES as u64 {
        let page = bytes(&page(content, index, 1));
        lz4 += lz4_flex::block::compress(&page).len();
        zstd += zstd::bulk::compress(&page, 1).expect("memory suffices").len();
    }
    (lz4 * 100 / (PAGES * 4096), zstd * 100 / (PAGES * 4096))
}

#[test]
fn text_compresses_like_program_memory() {
    let (lz4, zstd) = percent_left(Content::Text);
    println!("text: lz4 leaves {lz4} %, zstd level 1 {zstd} %");
    assert!((55..=63).contains(&lz4), "lz4 leaves {lz4} % (zstd {zstd} %)");
    assert!((39..=51).contains(&zstd), "zstd leaves {zstd} % (lz4 {lz4} %)");
}

#[test]
fn random_does_not_compress_and_zero_does() {
    let (lz4, zstd) = percent_left(Content::Random);
    assert!(lz4 >= 98 && zstd >= 98, "lz4 {lz4} %, zstd {zstd} %");
    let (lz4, zstd) = percent_left(Content::Zero);
    assert!(lz4 <= 4 && zstd <= 4, "lz4 {lz4} %, zstd {zstd} %");
}

#[test]
fn whole_page_verifies() {
    for content in [Content::Text, Content::Random, Content::Zero] {
        assert_eq!(stamp::verify(&page(content, 7, 3), MEMORY_MAGIC, 0, 7, 3), Ok(()));
    }
}

#[test]
fn every_single_bit_matters() {
    let good = page(Content::Text, 7, 3);
    for bit in (0..PAGE_WORDS * 64).step_by(37) {
        let mut bad = good;
        bad[bit / 64] ^= 1 << (bit % 64);
        assert!(stamp::verify(&bad, MEMORY_MAGIC, 0, 7, 3).is_err(), "bit {bit} flipped unnoticed");
    }
}

#[test]
fn stale_foreign_and_missing_pages_are_told_apart() {
    let stale = stamp::verify(&page(Content::Text, 7, 2), MEMORY_MAGIC, 0, 7, 3).expect_err("stale");
    assert_eq!((stale.found.generation, stale.checksum_fits, stale.all_zero), (2, true, false));
    let foreign = stamp::verify(&page(Content::Text, 8, 3), MEMORY_MAGIC, 0, 7, 3).expect_err("foreign");
    assert_eq!((foreign.found.index, foreign.checksum_fits), (8, true));
    let missing = stamp::verify(&[0; PAGE_WORDS], MEMORY_MAGIC, 0, 7, 3).expect_err("missing");
    assert!(missing.all_zero && !missing.checksum_fits);
}

#[test]
fn swapped_words_change_the_checksum() {
    let mut page = page(Content::Random, 1, 1);
    page.swap(100, 108);
    assert!(stamp::verify(&page, MEMORY_MAGIC, 0, 1, 1).is_err());
}

#[test]
fn image_is_a_64_bit_elf() {
    assert_eq!(&ELF[..5], b"\x7fELF\x02");
}
