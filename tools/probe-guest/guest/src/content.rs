//! What the probe guest fills pages with. This file stands alone: the host-side tests of the parent crate include it
//! to measure how well its pages compress.
//!
//! `text` is made to compress like the memory of ordinary programs: independent 4 KiB pages leave 55-63 % with lz4 and
//! 39-51 % with zstd level 1. Words come from a fixed invented vocabulary with a Zipf-like choice, mixed with numbers.

const WORDS: usize = 256;
const PICKS: usize = 4096;
const SLOT_BYTES: usize = 16;

/// What pages are filled with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Content {
    /// Words and numbers.
    Text,
    /// Zeros behind the stamp.
    Zero,
    /// Zeros everywhere, no stamp.
    AllZero,
    /// Incompressible.
    Random,
}

/// The next value of a SplitMix64 sequence.
pub const fn next_random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut value = *state;
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// Invented words, each in a slot of its own so that writing one is a single 16-byte copy, and a table that turns
/// twelve random bits into a word with the more frequent words more often.
struct Vocabulary {
    slots: [[u8; SLOT_BYTES]; WORDS],
    lengths: [u8; WORDS],
    picks: [u16; PICKS],
}

impl Vocabulary {
    const fn new() -> Self {
        let consonants = b"ttnsrhldcmfpgwbvkxjq";
        let vowels = b"eeeaaoiiou";
        let mut state = 7;
        let mut slots = [[b' '; SLOT_BYTES]; WORDS];
        let mut lengths = [0; WORDS];
        let mut word = 0;
        while word < WORDS {
            let syllables = 2 + (word > 24) as usize + (next_random(&mut state) % 3) as usize;
            let mut length = 0;
            let mut syllable = 0;
            while syllable < syllables {
                let draw = next_random(&mut state);
                // Low ranks of each table are the frequent letters: the smaller of two draws favours them.
                slots[word][length] = consonants[smaller(draw, 20)];
                slots[word][length + 1] = vowels[smaller(draw >> 32, 10)];
                length += 2;
                if draw >> 60 < 6 {
                    slots[word][length] = consonants[smaller(draw >> 16, 20)];
                    length += 1;
                }
                syllable += 1;
            }
            lengths[word] = length as u8 + 1;
            word += 1;
        }
        Self { slots, lengths, picks: picks() }
    }
}

const fn smaller(draw: u64, bound: u64) -> usize {
    let first = draw % bound;
    let second = (draw >> 8) % bound;
    if first < second { first as usize } else { second as usize }
}

/// Word `r` gets a share of about 1 / (r + OFFSET) of the table.
const fn picks() -> [u16; PICKS] {
    const OFFSET: u64 = 3;
    let mut total = 0;
    let mut word = 0;
    while word < WORDS as u64 {
        total += (1 << 32) / (word + OFFSET);
        word += 1;
    }
    let mut table = [0; PICKS];
    let mut passed = 0;
    let mut pick = 0;
    word = 0;
    while word < WORDS as u64 {
        passed += (1 << 32) / (word + OFFSET);
        while pick < PICKS && (pick as u64) * total < passed * PICKS as u64 {
            table[pick] = word as u16;
            pick += 1;
        }
        word += 1;
    }
    table
}

static VOCABULARY: Vocabulary = Vocabulary::new();

/// Fills `page` from `seed`; the same seed gives the same page.
pub fn fill(content: Content, page: &mut [u8], seed: u64) {
    match content {
        Content::Text => fill_text(page, seed),
        Content::Zero | Content::AllZero => page.fill(0),
        Content::Random => fill_random(page, seed),
    }
}

fn fill_random(page: &mut [u8], seed: u64) {
    let mut state = seed;
    for word in page.chunks_exact_mut(8) {
        word.copy_from_slice(&next_random(&mut state).to_le_bytes());
    }
}

fn fill_text(page: &mut [u8], seed: u64) {
    let mut state = seed;
    let mut at = 0;
    // One draw decides four words (12 bits each) and what follows them (the other 16 bits).
    while at + 6 * SLOT_BYTES <= page.len() {
        let draw = next_random(&mut state);
        for shift in [0, 12, 24, 36] {
            let word = VOCABULARY.picks[(draw >> shift) as usize % PICKS] as usize;
            page[at..at + SLOT_BYTES].copy_from_slice(&VOCABULARY.slots[word]);
            at += VOCABULARY.lengths[word] as usize;
        }
        match (draw >> 48) & 15 {
            0..=4 => {
                let number = decimal(next_random(&mut state));
                page[at..at + 8].copy_from_slice(&number);
                page[at + 8] = b' ';
                at += 9;
            }
            5..=6 => {
                page[at - 1] = b'.';
                page[at] = b'\n';
                at += 1;
            }
            _ => {}
        }
    }
    page[at..].fill(b'\n');
}

/// Eight decimal digits of a random value.
fn decimal(value: u64) -> [u8; 8] {
    let mut rest = value % 100_000_000;
    let mut digits = [b'0'; 8];
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    digits
}
