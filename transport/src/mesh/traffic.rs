//! What passes over the connections: messages in, messages out, datagrams out. No host can keep the others from having their turn.

use super::{
    MeshUser,
    engine::Engine,
    outbox::Outbox,
    roster::Known,
    slot::{CODE_REFUSED, Link, Stage},
};
use crate::direct::Sent;
use std::{sync::PoisonError, time::Instant};

/// Taken in one pass, in bytes of streams: then what else there is to do has its turn.
const PASS_BYTES: usize = 256 << 10;

impl Engine {
    /// Hands what has come to `user`, up to a limit; whether there is more.
    pub(super) fn read(&mut self, user: &mut dyn MeshUser, outbox: &mut Outbox, now: Instant) -> bool {
        let (first, count, mut room, mut more) = (self.first, self.slots.len(), PASS_BYTES, false);
        for index in (0..count).map(|offset| (first + offset) % count) {
            let Some(slot) = self.slots[index].as_mut() else { continue };
            let touched = &mut slot.touched;
            let Stage::Open(link) = &mut slot.stage else { continue };
            let Link { peer, inbound, received_messages, .. } = &mut **link;
            if !inbound.is_readable() {
                continue;
            }
            if room == 0 {
                return true;
            }
            *touched = true;
            let peer = *peer;
            let read = inbound.read(&mut slot.connection, &mut room, &mut |stream, message| {
                *received_messages += 1;
                user.received(peer, stream, message, outbox)
            });
            if inbound.is_readable() {
                (self.first, more) = (index + 1, true);
            }
            if let Err(error) = read {
                self.hang_up(peer, CODE_REFUSED, error, now);
                more = true;
            }
        }
        more
    }

    /// Hands what the user sends to the connections; whether that ended one.
    pub(super) fn hand_over(&mut self, outbox: &mut Outbox, now: Instant) -> bool {
        let mut broken = Vec::new();
        for (peer, out) in outbox.ready() {
            let index = self.roster.get(&peer).and_then(Known::open);
            let slot = index.and_then(|index| self.slots.get_mut(index)).and_then(Option::as_mut);
            let Some(slot) = slot else { continue };
            slot.touched = true;
            if let Err(error) = out.hand_over(&mut slot.connection) {
                broken.push((peer, error));
            }
        }
        let any = !broken.is_empty();
        for (peer, error) in broken {
            self.hang_up(peer, CODE_REFUSED, error, now);
        }
        any
    }

    /// Sends what there is to send, and counts it; false when there is more, now.
    pub(super) fn transmit(&mut self, outbox: &mut Outbox, now: Instant) -> bool {
        let (mut sent, mut datagrams) = (self.wire.flush(), 0);
        let (first, count) = (self.first, self.slots.len());
        let Self { wire, slots, figures, .. } = self;
        let mut figures = figures.lock().unwrap_or_else(PoisonError::into_inner);
        figures.passes += 1;
        for index in (0..count).map(|offset| (first + offset) % count) {
            let Some(slot) = slots[index].as_mut().filter(|slot| slot.touched) else { continue };
            if sent == Sent::All {
                sent = wire.send_from(&mut slot.connection, &mut datagrams, now);
                slot.touched = sent != Sent::All;
                if sent == Sent::Enough {
                    self.first = index + 1;
                }
            }
            slot.rest();
            figures.count(slot, Some(outbox));
        }
        sent != Sent::Enough
    }
}
