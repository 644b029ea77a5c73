//! The bytes of a flow that come twice: on its stream, and again in datagrams. Pure.
//!
//! On a long path a lost packet costs a round trip and more, in which nothing behind it on its stream is of use. What must not wait so
//! long is sent again in datagrams, each with the place of its bytes in the stream. **Whatever comes when, every byte is given on
//! once, in the order of the stream**: so nothing above knows of copies, and an old copy can never undo what came after it. A copy that
//! does not fit any more, or not yet by far, is dropped: the stream will bring its bytes.

use bytes::{Buf as _, Bytes};
use std::collections::{BTreeMap, btree_map::Entry};

/// Bytes of copies that wait for what is before them, at most. More is never sent in the time of a round trip.
const HELD_BYTES_MAX: usize = 16 << 20;
/// And pieces.
const HELD_PIECES_MAX: usize = 16 << 10;
/// Bytes before the copy in a datagram: flow, and place in its stream, little-endian.
pub(super) const COPY_HEAD_BYTES: usize = 1 + 8;

/// Bytes of a flow in a datagram.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Copy {
    /// Where in the stream they begin.
    pub(super) at: u64,
    pub(super) bytes: Bytes,
}

impl Copy {
    /// As a datagram for `flow`.
    pub(super) fn encode(&self, flow: u8) -> Bytes {
        let mut datagram = Vec::with_capacity(COPY_HEAD_BYTES + self.bytes.len());
        datagram.push(flow);
        datagram.extend_from_slice(&self.at.to_le_bytes());
        datagram.extend_from_slice(&self.bytes);
        datagram.into()
    }

    /// Flow and copy in a datagram; `None` when it has neither.
    pub(super) fn decode(mut datagram: Bytes) -> Option<(u8, Self)> {
        if datagram.len() <= COPY_HEAD_BYTES {
            return None;
        }
        let flow = datagram.get_u8();
        let at = datagram.get_u64_le();
        Some((flow, Self { at, bytes: datagram }))
    }
}

/// Puts a stream together from itself and from copies of its parts.
#[derive(Debug)]
pub(super) struct Mender {
    /// All before has been given on.
    position: u64,
    /// Copies of what comes later, by place.
    held: BTreeMap<u64, Bytes>,
    held_bytes: usize,
}

impl Mender {
    /// Begins at `position` of the stream.
    pub(super) const fn new(position: u64) -> Self {
        Self { position, held: BTreeMap::new(), held_bytes: 0 }
    }

    /// All before has been given on.
    pub(super) const fn position(&self) -> u64 {
        self.position
    }

    /// Takes bytes of the stream, wherever they come from; what can be given on now goes behind what is in `ready`.
    pub(super) fn take(&mut self, Copy { at, bytes }: Copy, ready: &mut Vec<Bytes>) {
        if at > self.position {
            self.hold(at, bytes);
            return;
        }
        self.give(at, bytes, ready);
        while let Some(first) = self.held.first_entry().filter(|first| *first.key() <= self.position) {
            let (at, bytes) = first.remove_entry();
            self.held_bytes -= bytes.len();
            self.give(at, bytes, ready);
        }
    }

    /// What of `bytes` was not given on before.
    fn give(&mut self, at: u64, mut bytes: Bytes, ready: &mut Vec<Bytes>) {
        let known = usize::try_from(self.position - at).unwrap_or(usize::MAX);
        if known < bytes.len() {
            bytes.advance(known);
            self.position += bytes.len() as u64;
            ready.push(bytes);
        }
    }

    fn hold(&mut self, at: u64, bytes: Bytes) {
        let room = HELD_BYTES_MAX - self.held_bytes;
        // A place beyond what can be counted is not one.
        if bytes.len() > room || self.held.len() >= HELD_PIECES_MAX || at.checked_add(bytes.len() as u64).is_none() {
            return;
        }
        match self.held.entry(at) {
            Entry::Vacant(place) => {
                self.held_bytes += bytes.len();
                place.insert(bytes);
            }
            Entry::Occupied(mut place) if place.get().len() < bytes.len() => {
                self.held_bytes += bytes.len() - place.get().len();
                place.insert(bytes);
            }
            Entry::Occupied(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stream(length: usize) -> Bytes {
        (0..251u8).cycle().step_by(31).take(length).collect::<Vec<_>>().into()
    }

    #[test]
    fn a_datagram_is_read_as_it_was_written() {
        let copy = Copy { at: 1 << 40, bytes: stream(5) };
        assert_eq!(Copy::decode(copy.encode(3)), Some((3, copy)));
        assert_eq!(Copy::decode(Bytes::from_static(&[0; COPY_HEAD_BYTES])), None);
    }

    #[test]
    fn what_is_held_is_bounded_and_far_places_do_no_harm() {
        let (mut mender, mut ready) = (Mender::new(0), Vec::new());
        let piece = stream(1 << 10);
        for place in 1..=2 * HELD_PIECES_MAX as u64 {
            mender.take(Copy { at: place << 20, bytes: piece.clone() }, &mut ready);
        }
        mender.take(Copy { at: u64::MAX, bytes: piece.clone() }, &mut ready);
        assert!(mender.held.len() <= HELD_PIECES_MAX && mender.held_bytes <= HELD_BYTES_MAX, "{}", mender.held_bytes);
        for place in 0..64 {
            mender.take(Copy { at: place << 30, bytes: stream(1 << 20) }, &mut ready);
        }
        assert!(mender.held_bytes <= HELD_BYTES_MAX, "{}", mender.held_bytes);
    }

    proptest! {
        /// Copies come anywhere in time, in any order, twice or not at all; the stream comes in order, late.
        #[test]
        fn every_byte_is_given_on_once_and_in_order(
            begin in 0usize..100,
            cuts in prop::collection::vec(1usize..200, 1..20),
            copies in prop::collection::vec((0usize..2000, 1usize..400, 0usize..20), 0..60),
        ) {
            let length = begin + cuts.iter().sum::<usize>();
            let all = stream(length);
            let (mut mender, mut ready) = (Mender::new(begin as u64), Vec::new());
            let mut sent = begin;
            for (step, cut) in cuts.iter().enumerate() {
                for (at, size, _) in copies.iter().filter(|(.., when)| *when == step) {
                    let at = at % length;
                    let bytes = all.slice(at..(at + size).min(length));
                    mender.take(Copy { at: at as u64, bytes }, &mut ready);
                    prop_assert!(mender.position() >= sent as u64);
                }
                mender.take(Copy { at: sent as u64, bytes: all.slice(sent..sent + cut) }, &mut ready);
                sent += cut;
                prop_assert!(mender.position() >= sent as u64);
            }
            prop_assert_eq!(mender.position(), length as u64);
            let given: Vec<u8> = ready.concat();
            prop_assert_eq!(&given[..], &all[begin..]);
            prop_assert_eq!(mender.held_bytes, 0);
            prop_assert!(mender.held.is_empty());
        }

        /// What copies bring together is there before the stream brings any of it.
        #[test]
        fn copies_alone_are_enough(sizes in prop::collection::vec(1usize..300, 1..40), seed in any::<u64>()) {
            let all = stream(sizes.iter().sum());
            let mut at = 0;
            let mut pieces: Vec<Copy> = Vec::new();
            for size in sizes {
                pieces.push(Copy { at: at as u64, bytes: all.slice(at..at + size) });
                at += size;
            }
            pieces.sort_by_key(|piece| (piece.at ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let (mut mender, mut ready) = (Mender::new(0), Vec::new());
            pieces.into_iter().for_each(|piece| mender.take(piece, &mut ready));
            prop_assert_eq!(&ready.concat()[..], &all[..]);
        }
    }
}
