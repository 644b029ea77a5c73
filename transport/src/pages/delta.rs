//! What changed within a page since it was sent last, as bytes, and the page made of the earlier one and those bytes.
//!
//! ```text
//! | lines u64 | for each line that changed: | words u8 | for each word that changed: | bytes u8 | the bytes that changed |
//! ```
//! Three levels of masks, lowest bit first: 64 lines of 64 bytes, 8 words of a line, 8 bytes of a word. A mask has no bit that
//! leads outside the page, so a peer can at most send too few bytes. A counter that went up costs 11 bytes, a cache line of noise 81.

use super::hash::PAGE_BYTES;

/// A page's bytes.
pub(super) type Page = [u8; PAGE_BYTES];

const LINE_BYTES: usize = 64;
const WORD_BYTES: usize = 8;
/// The mask of lines.
const LINES_BYTES: usize = 8;
/// Least bytes of a delta: one byte of one word of one line.
pub(super) const DELTA_BYTES_MIN: usize = LINES_BYTES + 3;
/// Most bytes of a delta that we make: what takes more than half a page is better sent as a page.
pub(super) const DELTA_BYTES_MAX: usize = PAGE_BYTES / 2;
/// Most bytes that a line takes: its mask, and for each word a mask and all its bytes.
const LINE_DELTA_BYTES_MAX: usize = 1 + LINE_BYTES / WORD_BYTES * (1 + WORD_BYTES);

/// Room for a delta while it is made.
pub(super) type DeltaBuffer = [u8; DELTA_BYTES_MAX + LINE_DELTA_BYTES_MAX];

/// Writes into `into` what makes `page` of `base`; its length, unless that is more than `bytes_max`, at most [`DELTA_BYTES_MAX`].
pub(super) fn encode(base: &Page, page: &Page, bytes_max: usize, into: &mut DeltaBuffer) -> Option<usize> {
    let bytes_max = bytes_max.min(DELTA_BYTES_MAX);
    let ((base_lines, _), (lines, _)) = (base.as_chunks::<LINE_BYTES>(), page.as_chunks::<LINE_BYTES>());
    let (mut changed, mut at) = (0u64, LINES_BYTES);
    for (number, (old, new)) in base_lines.iter().zip(lines).enumerate() {
        if old == new {
            continue;
        }
        changed |= 1 << number;
        at += encode_line(old, new, &mut into[at..]);
        if at > bytes_max {
            return None;
        }
    }
    into[..LINES_BYTES].copy_from_slice(&changed.to_le_bytes());
    Some(at)
}

/// `into` has room for [`LINE_DELTA_BYTES_MAX`] bytes.
fn encode_line(old: &[u8; LINE_BYTES], new: &[u8; LINE_BYTES], into: &mut [u8]) -> usize {
    let ((old_words, _), (words, _)) = (old.as_chunks::<WORD_BYTES>(), new.as_chunks::<WORD_BYTES>());
    let (mut changed, mut at) = (0u8, 1);
    for (number, (old, new)) in old_words.iter().zip(words).enumerate() {
        let bytes = nonzero_bytes(u64::from_le_bytes(*old) ^ u64::from_le_bytes(*new));
        if bytes == 0 {
            continue;
        }
        changed |= 1 << number;
        into[at] = bytes;
        at += 1;
        for (number, byte) in new.iter().enumerate() {
            if bytes & 1 << number != 0 {
                into[at] = *byte;
                at += 1;
            }
        }
    }
    into[0] = changed;
    at
}

/// One bit for each byte of `word` that is not zero.
const fn nonzero_bytes(word: u64) -> u8 {
    const LOW: u64 = 0x7f7f_7f7f_7f7f_7f7f;
    // The top bit of each byte that is not zero, and then these bits side by side.
    let tops = (((word & LOW) + LOW) | word) & !LOW;
    ((tops >> 7).wrapping_mul(0x0102_0408_1020_4080) >> 56) as u8
}

/// Makes of `page`, which is as it was sent last, what `delta` begins with; what follows the delta. `None` when there is no delta:
/// its bytes end early, or a mask says that nothing changed, which nobody sends.
pub(super) fn apply<'d>(mut delta: &'d [u8], page: &mut [u8]) -> Option<&'d [u8]> {
    let (lines, _) = page.as_chunks_mut::<LINE_BYTES>();
    let changed = u64::from_le_bytes(take(&mut delta)?);
    if changed == 0 {
        return None;
    }
    for (_, line) in lines.iter_mut().enumerate().filter(|(number, _)| changed & 1 << number != 0) {
        let [changed] = take(&mut delta)?;
        if changed == 0 {
            return None;
        }
        let (words, _) = line.as_chunks_mut::<WORD_BYTES>();
        for (_, word) in words.iter_mut().enumerate().filter(|(number, _)| changed & 1 << number != 0) {
            let [changed] = take(&mut delta)?;
            if changed == 0 {
                return None;
            }
            for (_, byte) in word.iter_mut().enumerate().filter(|(number, _)| changed & 1 << number != 0) {
                [*byte] = take(&mut delta)?;
            }
        }
    }
    Some(delta)
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (now, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(*now)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NO_DELTA: DeltaBuffer = [0; DELTA_BYTES_MAX + LINE_DELTA_BYTES_MAX];

    fn page(seed: u64) -> Page {
        let mut state = seed;
        std::array::from_fn(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33).to_le_bytes()[0]
        })
    }

    proptest! {
        #[test]
        fn any_pair_of_pages_gives_the_later_one_or_no_delta(
            seed in any::<u64>(),
            changes in prop::collection::vec((0..PAGE_BYTES, any::<u8>()), 0..400),
            bytes_max in 0..PAGE_BYTES,
        ) {
            let base = page(seed);
            let mut later = base;
            for (at, byte) in changes {
                later[at] = byte;
            }
            let mut delta = NO_DELTA;
            if let Some(length) = encode(&base, &later, bytes_max, &mut delta) {
                prop_assert!(length <= bytes_max.max(LINES_BYTES));
                let mut made = base;
                let rest = apply(&delta[..length + 3], &mut made);
                if base == later {
                    prop_assert_eq!(rest, None, "nothing changed");
                } else {
                    prop_assert_eq!(rest.map(<[u8]>::len), Some(3), "what follows is left");
                    prop_assert!(made == later);
                    for short in 0..length {
                        prop_assert_eq!(apply(&delta[..short], &mut made), None);
                    }
                }
            }
        }

        #[test]
        fn hostile_bytes_are_a_delta_or_none_and_never_leave_the_page(bytes in prop::collection::vec(any::<u8>(), 0..6000)) {
            let mut pages = [7; 3 * PAGE_BYTES];
            let _ = apply(&bytes, &mut pages[PAGE_BYTES..2 * PAGE_BYTES]);
            prop_assert!(pages[..PAGE_BYTES].iter().chain(&pages[2 * PAGE_BYTES..]).all(|byte| *byte == 7));
        }

        #[test]
        fn bytes_that_are_not_zero_are_found(word in any::<u64>(), mask in any::<u64>()) {
            let word = word & mask;
            let expected = (0..8).fold(0, |bits, at| bits | u8::from(word.to_le_bytes()[at] != 0) << at);
            prop_assert_eq!(nonzero_bytes(word), expected);
        }
    }

    #[test]
    fn a_counter_costs_eleven_bytes_and_a_line_of_noise_eighty_one() {
        let base = page(1);
        let (mut counted, mut noisy) = (base, base);
        counted[800] = counted[800].wrapping_add(1);
        noisy[640..704].iter_mut().for_each(|byte| *byte = !*byte);
        assert_eq!(encode(&base, &counted, DELTA_BYTES_MAX, &mut NO_DELTA.clone()), Some(DELTA_BYTES_MIN));
        assert_eq!(encode(&base, &noisy, DELTA_BYTES_MAX, &mut NO_DELTA.clone()), Some(81));
    }

    #[test]
    fn a_page_that_changed_as_a_whole_has_no_delta() {
        assert_eq!(encode(&page(1), &page(2), usize::MAX, &mut NO_DELTA.clone()), None);
    }

    #[test]
    fn masks_that_say_nothing_are_refused() {
        let one_line = 1u64.to_le_bytes();
        assert_eq!(apply(&[0; 100], &mut page(1)), None);
        assert_eq!(apply(&[&one_line[..], &[0; 9]].concat(), &mut page(1)), None);
        assert_eq!(apply(&[&one_line[..], &[1, 0, 0]].concat(), &mut page(1)), None);
    }
}
