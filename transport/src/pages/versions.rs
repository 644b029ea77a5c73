//! Pages as they were sent last, kept at the source for the delta of the next time.
//!
//! A cache of one flow, within a budget of memory. It holds pages that were sent a second time: those that were sent once may never
//! be written again. The one invariant: a version is a base only while its hash is what the target is known to hold
//! ([`super::KnownPages`]), so whatever else was sent meanwhile, or forgotten, makes it useless by itself.
//!
//! What is replaced: a guest writes its pages in rounds, often one after the other, and where they are more than fit,
//! replacing the oldest would throw each out just before it is needed. So a version stays while its page keeps being sent, and goes
//! when it was not for a whole round, or when its page was written as a whole.

use super::{
    delta::{DELTA_BYTES_MAX, DeltaBuffer, Page, encode},
    hash::PAGE_BYTES,
};
use std::collections::HashMap;

/// Memory that comes at a time: 256 KiB.
const CHUNK_PAGES: usize = 64;
/// Of a page and everything kept about it: table and map may have twice the room they need.
const VERSION_BYTES: u64 = PAGE_BYTES as u64 + 128;
/// Versions looked at for one that can go.
const LOOKS: usize = 8;
/// A version goes when its page was not sent for so many rounds.
const ROUNDS_UNUSED: u32 = 2;
/// So many pages in a row that changed as a whole: then this guest writes whole pages, and only a few are looked at from then on.
const MISSES_MAX: u32 = 64;
/// One page in so many is looked at then. Always the same ones, so that the versions of these are there.
const RARELY: u64 = 32;

/// What one flow sent last.
#[derive(Debug, Default)]
pub(super) struct SentVersions {
    slots: Vec<Slot>,
    slots_max: usize,
    /// The bytes of the slots, in order, [`CHUNK_PAGES`] in each.
    chunks: Vec<Vec<Page>>,
    places: HashMap<u64, usize>,
    /// Where room was found last.
    hand: usize,
    round: u32,
    /// Pages in a row that had no delta.
    misses: u32,
}

/// What is known of one version.
#[derive(Debug, Clone, Copy)]
struct Slot {
    page: u64,
    hash: u64,
    /// When its page was sent last.
    round: u32,
    /// The page had a delta the last time it was sent, or was sent only once since it is here.
    pays: bool,
}

/// A page that is about to be sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sent<'p> {
    pub(super) index: u64,
    pub(super) bytes: &'p Page,
    pub(super) hash: u64,
    /// Of what the target holds in its place.
    pub(super) before: u64,
}

impl SentVersions {
    /// A cache that takes `budget_bytes` of memory at most; nothing before there is something to keep.
    pub(super) fn within(budget_bytes: u64) -> Self {
        Self { slots_max: usize::try_from(budget_bytes / VERSION_BYTES).unwrap_or(usize::MAX), ..Self::default() }
    }

    /// Keeps `sent` for the next time, as far as there is room, and writes its delta against the version before into `into`. Its
    /// length, when it is known and at most `bytes_max`.
    pub(super) fn replace(&mut self, sent: Sent<'_>, bytes_max: usize, into: &mut DeltaBuffer) -> Option<usize> {
        if self.misses >= MISSES_MAX && !sent.index.is_multiple_of(RARELY) {
            return None;
        }
        let Some(place) = self.places.get(&sent.index).copied() else {
            self.keep(sent);
            return None;
        };
        let base = self.chunks.get_mut(place / CHUNK_PAGES)?.get_mut(place % CHUNK_PAGES)?;
        let slot = self.slots.get_mut(place)?;
        let mut length = None;
        if slot.hash == sent.before {
            length = encode(base, sent.bytes, bytes_max.min(DELTA_BYTES_MAX), into);
            self.misses = if length.is_some() { 0 } else { self.misses.saturating_add(1) };
            slot.pays = length.is_some();
        }
        *base = *sent.bytes;
        (slot.hash, slot.round) = (sent.hash, self.round);
        length
    }

    /// What was sent last in the round is sent.
    pub(super) const fn round_over(&mut self) {
        self.round = self.round.wrapping_add(1);
    }

    fn keep(&mut self, sent: Sent<'_>) {
        let slot = Slot { page: sent.index, hash: sent.hash, round: self.round, pays: true };
        let used = self.slots.len();
        if used < self.slots_max
            && let Some(chunk) = self.chunk_for(used)
        {
            chunk.push(*sent.bytes);
            self.slots.push(slot);
            self.places.insert(sent.index, used);
        } else if let Some(place) = self.replaceable()
            && let Some(base) =
                self.chunks.get_mut(place / CHUNK_PAGES).and_then(|chunk| chunk.get_mut(place % CHUNK_PAGES))
        {
            *base = *sent.bytes;
            self.places.remove(&self.slots[place].page);
            self.slots[place] = slot;
            self.places.insert(sent.index, place);
        }
    }

    /// A slot whose version can go.
    fn replaceable(&mut self) -> Option<usize> {
        let used = self.slots.len();
        for _ in 0..LOOKS.min(used) {
            self.hand = (self.hand + 1) % used;
            let Slot { round, pays, .. } = self.slots[self.hand];
            if !pays || self.round.wrapping_sub(round) >= ROUNDS_UNUSED {
                return Some(self.hand);
            }
        }
        None
    }

    /// The memory that slot number `place`, the next one, belongs to. A host that has none left is no reason to stop.
    fn chunk_for(&mut self, place: usize) -> Option<&mut Vec<Page>> {
        if place / CHUNK_PAGES == self.chunks.len() {
            let mut chunk = Vec::new();
            chunk.try_reserve_exact(CHUNK_PAGES.min(self.slots_max - place)).ok()?;
            self.chunks.push(chunk);
        }
        self.chunks.last_mut()
    }

    /// Memory in use, in bytes.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> u64 {
        let pages: usize = self.chunks.iter().map(Vec::capacity).sum();
        let slots = self.slots.capacity() * size_of::<Slot>();
        // The map keeps one of eight places free, and a byte for each.
        let places = self.places.capacity() * 8 / 7 * (size_of::<(u64, usize)>() + 1);
        (pages * PAGE_BYTES + slots + places) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BUDGET: u64 = 100 * VERSION_BYTES;

    fn buffer() -> DeltaBuffer {
        [0; size_of::<DeltaBuffer>()]
    }

    /// A flow's versions, and what its target holds.
    struct Flow {
        versions: SentVersions,
        held: Vec<u64>,
    }

    impl Flow {
        fn within(budget: u64, pages: usize) -> Self {
            Self { versions: SentVersions::within(budget), held: vec![0; pages] }
        }

        /// Sends version `version` of page `index`: all of it is different, or only one byte. Is there a delta?
        fn send(&mut self, index: usize, version: u8, whole: bool) -> bool {
            let mut bytes = [if whole { version } else { 0 }; PAGE_BYTES];
            bytes[77] = version;
            let hash = (index as u64) << 16 | u64::from(whole) << 8 | u64::from(version);
            let before = std::mem::replace(&mut self.held[index], hash);
            let sent = Sent { index: index as u64, bytes: &bytes, hash, before };
            self.versions.replace(sent, DELTA_BYTES_MAX, &mut buffer()).is_some()
        }

        /// A round of `pages`; how many deltas there are.
        fn round(&mut self, pages: std::ops::Range<usize>, version: u8, whole: impl Fn(usize) -> bool) -> usize {
            let deltas = pages.filter(|index| self.send(*index, version, whole(*index))).count();
            self.versions.round_over();
            deltas
        }
    }

    const LITTLE: fn(usize) -> bool = |_| false;

    #[test]
    fn a_page_has_a_delta_from_the_second_time_on() {
        let mut flow = Flow::within(BUDGET, 6);
        assert!(!flow.send(5, 1, false));
        assert!(flow.send(5, 2, false));
        assert!(flow.send(5, 3, false));
    }

    #[test]
    fn a_version_that_the_target_does_not_hold_is_no_base() {
        let mut flow = Flow::within(BUDGET, 6);
        flow.send(5, 1, false);
        flow.held[5] = 999;
        assert!(!flow.send(5, 2, false), "something else was sent meanwhile");
        assert!(flow.send(5, 3, false));
    }

    #[test]
    fn without_a_budget_nothing_is_kept() {
        let mut flow = Flow::within(VERSION_BYTES - 1, 6);
        flow.send(5, 1, false);
        assert!(!flow.send(5, 2, false));
        assert_eq!(flow.versions.bytes(), 0);
    }

    #[test]
    fn pages_that_keep_being_sent_stay_and_others_make_room() {
        let mut flow = Flow::within(BUDGET, 300);
        assert_eq!(flow.round(0..300, 0, LITTLE), 0);
        for round in 1..3 {
            assert_eq!(flow.round(0..100, round, LITTLE), 100, "round {round}");
            // The versions of the first hundred are in the way of these.
            assert_eq!(flow.round(100..300, round, LITTLE), 0, "round {round}");
        }
        // The guest turns to other pages.
        let deltas: Vec<usize> = (3..8).map(|round| flow.round(200..300, round, LITTLE)).collect();
        assert_eq!(deltas, [0, 100, 100, 100, 100]);
    }

    #[test]
    fn pages_written_as_a_whole_make_room_for_others() {
        let mut flow = Flow::within(BUDGET, 132);
        let deltas: Vec<usize> = (1..4).map(|round| flow.round(0..132, round, |page| page < 32)).collect();
        // Room is looked for in a few places at a time.
        assert!(deltas[..2] == [0, 68] && deltas[2] > 90, "{deltas:?}");
    }

    #[test]
    fn a_guest_that_writes_whole_pages_is_looked_at_rarely_until_it_does_not() {
        let mut flow = Flow::within(BUDGET * 100, 4096);
        let whole = |_| true;
        flow.round(0..4096, 1, whole);
        assert_eq!(flow.round(0..4096, 2, whole), 0);
        let looked_at = flow.versions.slots.iter().filter(|slot| slot.round == 1).count() as u64;
        let misses = u64::from(MISSES_MAX);
        assert_eq!(looked_at, misses + (4096 - misses) / RARELY);
        // The sample comes round to it with the second version that differs little.
        flow.round(0..4096, 3, LITTLE);
        flow.round(0..4096, 4, LITTLE);
        assert_eq!(flow.round(0..4096, 5, LITTLE), 4096);
    }

    proptest! {
        #[test]
        fn the_budget_is_kept_and_every_delta_is_against_what_the_target_holds(
            budget in 0u64..2_000_000,
            pages in prop::collection::vec((0u64..800, any::<u8>(), any::<bool>(), any::<bool>()), 0..3000),
        ) {
            let mut versions = SentVersions::within(budget);
            let mut target: HashMap<u64, Box<Page>> = HashMap::new();
            for (number, (index, version, whole, forget)) in pages.into_iter().enumerate() {
                let mut bytes = [if whole { version } else { 0 }; PAGE_BYTES];
                bytes[77] = version;
                let (before, held) = match target.get(&index) {
                    Some(page) if !forget => (u64::from(page[77]) << 8 | u64::from(page[0]) | 1 << 16, Some(page)),
                    _ => (0, None),
                };
                let hash = u64::from(bytes[77]) << 8 | u64::from(bytes[0]) | 1 << 16;
                let mut delta = buffer();
                if let Some(length) = versions.replace(Sent { index, bytes: &bytes, hash, before }, 2000, &mut delta) {
                    let mut made = **held.unwrap();
                    if made != bytes {
                        super::super::delta::apply(&delta[..length], &mut made).unwrap();
                    }
                    prop_assert!(made == bytes);
                }
                target.insert(index, Box::new(bytes));
                prop_assert!(versions.bytes() <= budget.max(1), "{} of {budget}", versions.bytes());
                if number % 300 == 299 {
                    versions.round_over();
                }
            }
        }
    }
}
