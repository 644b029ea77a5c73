//! The stamp: what makes every page able to prove which page it is, how old it is, and that none of it changed. This
//! file stands alone, so that host-side code can read the guest's pages too.
//!
//! A page is 512 little-endian words; the first eight are the header.

/// Words of a page.
pub const PAGE_WORDS: usize = 512;
/// Words of the header.
pub const HEADER_WORDS: usize = 8;
/// First word of a memory page.
pub const MEMORY_MAGIC: u64 = u64::from_le_bytes(*b"VMPROBE1");
/// First word of a disk block; `index` is then the block number.
pub const DISK_MAGIC: u64 = u64::from_le_bytes(*b"VMPRDSK1");
const CHECKSUM_WORD: usize = 7;

/// The header of a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stamp {
    /// [`MEMORY_MAGIC`] or [`DISK_MAGIC`].
    pub magic: u64,
    /// Number of the page in its working set, or of the block on its disk.
    pub index: u64,
    /// How often it has been written, from 1.
    pub generation: u64,
    /// Who wrote it.
    pub cpu: u64,
    /// Seed of the content.
    pub seed: u64,
    /// Writer's clock, in µs since the guest started.
    pub written_us: u64,
    /// Disk number for blocks, zero for memory.
    pub disk: u64,
}

/// Why a page is not what it should be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mismatch {
    /// The header as found.
    pub found: Stamp,
    /// The checksum fits the content found: the page is whole, but the wrong one.
    pub checksum_fits: bool,
    /// Every byte is zero: the page is not there at all.
    pub all_zero: bool,
}

impl Stamp {
    /// Writes the header, checksum last, over content already in place.
    pub fn apply(&self, page: &mut [u64; PAGE_WORDS]) {
        let Self { magic, index, generation, cpu, seed, written_us, disk } = *self;
        page[..HEADER_WORDS].copy_from_slice(&[magic, index, generation, cpu, seed, written_us, disk, 0]);
        page[CHECKSUM_WORD] = checksum(page);
    }

    /// Reads the header, right or wrong.
    pub fn read(page: &[u64; PAGE_WORDS]) -> Self {
        Self {
            magic: page[0],
            index: page[1],
            generation: page[2],
            cpu: page[3],
            seed: page[4],
            written_us: page[5],
            disk: page[6],
        }
    }
}

/// Checks that `page` is number `index` of its kind and disk, at `generation`, and whole.
///
/// # Errors
/// What was found instead.
pub fn verify(page: &[u64; PAGE_WORDS], magic: u64, disk: u64, index: u64, generation: u64) -> Result<(), Mismatch> {
    let found = Stamp::read(page);
    let checksum_fits = checksum(page) == page[CHECKSUM_WORD];
    if checksum_fits && (found.magic, found.disk, found.index, found.generation) == (magic, disk, index, generation) {
        return Ok(());
    }
    Err(Mismatch { found, checksum_fits, all_zero: is_zero(page) })
}

/// Whether every byte is zero.
pub fn is_zero(page: &[u64; PAGE_WORDS]) -> bool {
    page.iter().fold(0, |all, word| all | word) == 0
}

/// Checksum of a page, its own field left out. Eight independent multiply chains keep the multiplier busy: 0.2 µs.
fn checksum(page: &[u64; PAGE_WORDS]) -> u64 {
    const FACTOR: u64 = 0x9e37_79b1_85eb_ca87;
    let mut lanes: [u64; 8] = core::array::from_fn(|lane| FACTOR.wrapping_mul(lane as u64 + 1));
    let mut row: [u64; 8] = core::array::from_fn(|word| page[word]);
    row[CHECKSUM_WORD] = 0;
    let (rows, _) = page[HEADER_WORDS..].as_chunks::<8>();
    mix(&mut lanes, &row, FACTOR);
    for row in rows {
        mix(&mut lanes, row, FACTOR);
    }
    lanes.iter().fold(0, |sum: u64, lane| (sum ^ (lane ^ (lane >> 32))).wrapping_mul(FACTOR))
}

fn mix(lanes: &mut [u64; 8], row: &[u64; 8], factor: u64) {
    for (lane, word) in lanes.iter_mut().zip(row) {
        *lane = (lane.rotate_left(23) ^ word).wrapping_mul(factor);
    }
}
