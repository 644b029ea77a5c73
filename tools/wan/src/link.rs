//! One direction of a link, as a state machine without clock or I/O.
//!
//! ```text
//! offer ─▶ cut? ─▶ queue ─▶ line (rate) ─▶ lost? ─▶ wire (delay, jitter, held back, copied) ─▶ deliver
//!          └──────── bottleneck ───────┘
//! ```
//! The same packets offered at the same times with the same seed have the same fate. Time is whatever the caller says, as
//! long as it does not run backwards; packets are whatever the caller says, too: only their length matters here.

mod bottleneck;
mod dice;
mod serial_clock;
#[cfg(test)]
mod tests;
mod wire;

use crate::{
    counters::{Count, LinkCounters},
    impairments::Impairments,
};
use bottleneck::Bottleneck;
use dice::{Dice, Lost};
use std::time::Duration;
use wire::Wire;

/// What a link holds at most, in bytes: an unlimited rate with a long delay would hold whatever it is offered.
const HELD_BYTES_MAX: u64 = 1 << 30;
/// And in packets.
const HELD_PACKETS_MAX: u64 = 1 << 22;

/// What became of a packet that was offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Fate {
    /// It is on its way. It may still be lost on the wire.
    Accepted,
    /// The queue was full.
    DroppedByQueue,
    /// The link is cut.
    DroppedByCut,
}

/// A packet that has arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery<T> {
    /// What was offered.
    pub packet: T,
    /// Its length in bytes.
    pub bytes: u32,
    /// When it was due.
    pub due: Duration,
}

#[derive(Debug, Clone)]
struct Packet<T> {
    /// Which of those offered.
    sequence: u64,
    bytes: u32,
    load: T,
}

impl<T> Packet<T> {
    fn count(&self) -> Count {
        Count { packets: 1, bytes: u64::from(self.bytes) }
    }
}

/// One direction of a link. `T` is a packet.
#[derive(Debug)]
pub struct Link<T> {
    impairments: Impairments,
    now: Duration,
    bottleneck: Bottleneck<T>,
    wire: Wire<T>,
    dice: Dice,
    counters: LinkCounters,
    /// Of the packets delivered, the one that was sent last.
    newest_delivered: u64,
}

impl<T: Clone> Link<T> {
    /// An empty link at time zero.
    #[must_use]
    pub fn new(impairments: Impairments, seed: u64) -> Self {
        Self {
            impairments,
            now: Duration::ZERO,
            bottleneck: Bottleneck::new(impairments.rate, impairments.queue_bytes()),
            wire: Wire::new(),
            dice: Dice::new(seed),
            counters: LinkCounters::default(),
            newest_delivered: 0,
        }
    }

    /// What it does to packets now.
    #[must_use]
    pub const fn impairments(&self) -> &Impairments {
        &self.impairments
    }

    /// Changes what it does, from `now` on. What is on the wire arrives as it would have; what waits for the bottleneck
    /// and the rest of the packet being sent go at the new rate; a cut takes all of it.
    pub fn set(&mut self, now: Duration, impairments: Impairments) {
        let now = self.advance(now);
        self.impairments = impairments;
        self.bottleneck.set(now, impairments.rate, impairments.queue_bytes());
        if impairments.cut {
            self.counters.dropped.cut += self.bottleneck.clear();
            self.counters.dropped.cut += self.wire.clear();
            self.counters.held = Count::default();
        }
    }

    /// A packet of `bytes` bytes is sent at `now`.
    pub fn offer(&mut self, now: Duration, bytes: u32, packet: T) -> Fate {
        let now = self.advance(now);
        self.counters.offered.add(bytes);
        if self.impairments.cut {
            self.counters.dropped.cut.add(bytes);
            return Fate::DroppedByCut;
        }
        let packet = Packet { sequence: self.counters.offered.packets, bytes, load: packet };
        if !self.has_room(bytes) || !self.bottleneck.offer(now, packet) {
            self.counters.dropped.queue.add(bytes);
            return Fate::DroppedByQueue;
        }
        self.counters.held.add(bytes);
        self.counters.queue_max = self.counters.queue_max.max(self.bottleneck.waiting_bytes());
        Fate::Accepted
    }

    /// The next packet that has arrived by `now`. To be called until nothing is left.
    pub fn deliver(&mut self, now: Duration) -> Option<Delivery<T>> {
        let now = self.advance(now);
        let arrival = self.wire.take(now)?;
        let Packet { sequence, bytes, load } = arrival.packet;
        self.counters.held.remove(bytes);
        self.counters.delivered.add(bytes);
        self.counters.reordered += u64::from(sequence < self.newest_delivered);
        self.newest_delivered = self.newest_delivered.max(sequence);
        Some(Delivery { packet: load, bytes, due: arrival.at })
    }

    /// No packet arrives before this time unless more are offered; `None` when nothing is on the way. With jitter or loss
    /// there may be nothing to deliver then: ask again.
    #[must_use]
    pub fn next_due(&self) -> Option<Duration> {
        let behind_line = self.bottleneck.end().map(|end| end + self.impairments.delay_min());
        self.wire.due().into_iter().chain(behind_line).min()
    }

    /// What happened so far.
    #[must_use]
    pub const fn counters(&self) -> &LinkCounters {
        &self.counters
    }

    fn has_room(&self, bytes: u32) -> bool {
        let held = self.counters.held;
        held.packets < HELD_PACKETS_MAX && held.bytes + u64::from(bytes) <= HELD_BYTES_MAX
    }

    /// Puts on the wire what the bottleneck has sent by `now`. Returns the time, which never runs backwards.
    fn advance(&mut self, now: Duration) -> Duration {
        self.now = self.now.max(now);
        while let Some((packet, sent)) = self.bottleneck.take(self.now) {
            self.enter_wire(packet, sent);
        }
        self.now
    }

    fn enter_wire(&mut self, packet: Packet<T>, at: Duration) {
        let (bytes, dropped) = (packet.bytes, &mut self.counters.dropped);
        let cause = self.dice.lost(&self.impairments).map(|lost| match lost {
            Lost::Alone => &mut dropped.loss,
            Lost::InBurst => &mut dropped.burst_loss,
        });
        if let Some(cause) = cause {
            cause.add(bytes);
            self.counters.held.remove(bytes);
            return;
        }
        let due = at + self.dice.delay(&self.impairments);
        let copy = (self.dice.duplicated(&self.impairments) && self.has_room(bytes)).then(|| packet.clone());
        let held_back = self.dice.held_back(&self.impairments);
        self.send(due, held_back, packet);
        if let Some(copy) = copy {
            self.counters.duplicated.add(bytes);
            self.counters.held.add(bytes);
            self.send(due, held_back, copy);
        }
    }

    fn send(&mut self, due: Duration, held_back: Option<Duration>, packet: Packet<T>) {
        if held_back.is_some() || self.impairments.jitter_reorder {
            self.wire.send_astray(due + held_back.unwrap_or_default(), packet);
        } else {
            self.wire.send_in_order(due, packet);
        }
    }
}
