//! The slowest hop: one packet on the line, others waiting in a queue that drops what does not fit.

use super::{Packet, serial_clock::SerialClock};
use crate::{counters::Count, units::BitRate};
use std::{collections::VecDeque, time::Duration};

#[derive(Debug)]
pub(super) struct Bottleneck<T> {
    rate: Option<BitRate>,
    queue_bytes: u64,
    clock: SerialClock,
    sending: Option<Packet<T>>,
    waiting: VecDeque<Packet<T>>,
    waiting_bytes: u64,
}

impl<T> Bottleneck<T> {
    pub(super) fn new(rate: Option<BitRate>, queue_bytes: u64) -> Self {
        Self {
            rate,
            queue_bytes,
            clock: SerialClock::default(),
            sending: None,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
        }
    }

    /// False when the queue has no room. [`Self::take`] must have been called for `now` until nothing was left.
    pub(super) fn offer(&mut self, now: Duration, packet: Packet<T>) -> bool {
        if self.sending.is_none() {
            self.clock.start(now, packet.bytes, self.rate);
            self.sending = Some(packet);
            return true;
        }
        let bytes = self.waiting_bytes + u64::from(packet.bytes);
        if bytes > self.queue_bytes {
            return false;
        }
        self.waiting_bytes = bytes;
        self.waiting.push_back(packet);
        true
    }

    /// The next packet whose last bit is sent by `now`, and when it was.
    pub(super) fn take(&mut self, now: Duration) -> Option<(Packet<T>, Duration)> {
        let end = self.end().filter(|end| *end <= now)?;
        let sent = self.sending.take()?;
        self.sending = self.waiting.pop_front();
        if let Some(next) = &self.sending {
            self.waiting_bytes -= u64::from(next.bytes);
            self.clock.follow(next.bytes, self.rate);
        }
        Some((sent, end))
    }

    /// When the packet on the line is sent.
    pub(super) fn end(&self) -> Option<Duration> {
        self.sending.is_some().then(|| self.clock.end())
    }

    /// Bytes that wait, without the packet on the line.
    pub(super) fn waiting_bytes(&self) -> u64 {
        self.waiting_bytes
    }

    /// Packets that wait stay, also where the new queue is shorter.
    pub(super) fn set(&mut self, now: Duration, rate: Option<BitRate>, queue_bytes: u64) {
        if rate != self.rate {
            self.clock.change(now, self.rate, rate);
        }
        (self.rate, self.queue_bytes) = (rate, queue_bytes);
    }

    /// Throws everything away; what it was.
    pub(super) fn clear(&mut self) -> Count {
        self.waiting_bytes = 0;
        let packets = self.sending.take().into_iter().chain(self.waiting.drain(..));
        packets.map(|packet| packet.count()).sum()
    }
}
