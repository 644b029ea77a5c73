//! The way behind the bottleneck: packets that arrive at a known time.

use super::Packet;
use crate::counters::Count;
use std::{
    cmp::{Ordering, Reverse},
    collections::{BinaryHeap, VecDeque},
    time::Duration,
};

/// Arrives at `at`; of those that arrive together, the one that left first is first.
#[derive(Debug)]
pub(super) struct Arrival<T> {
    pub(super) at: Duration,
    departure: u64,
    pub(super) packet: Packet<T>,
}

impl<T> Arrival<T> {
    fn key(&self) -> (Duration, u64) {
        (self.at, self.departure)
    }
}

impl<T> PartialEq for Arrival<T> {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl<T> Eq for Arrival<T> {}

impl<T> PartialOrd for Arrival<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Arrival<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key().cmp(&other.key())
    }
}

/// Two lanes, because nearly every packet keeps its place: those need no heap.
#[derive(Debug)]
pub(super) struct Wire<T> {
    in_order: VecDeque<Arrival<T>>,
    /// Those that others may overtake, or that may overtake.
    strays: BinaryHeap<Reverse<Arrival<T>>>,
    /// The arrival nothing in order comes before.
    last: Duration,
    departures: u64,
}

impl<T> Wire<T> {
    pub(super) const fn new() -> Self {
        Self { in_order: VecDeque::new(), strays: BinaryHeap::new(), last: Duration::ZERO, departures: 0 }
    }

    /// Not before any other that was sent in order.
    pub(super) fn send_in_order(&mut self, at: Duration, packet: Packet<T>) {
        self.last = self.last.max(at);
        let arrival = self.depart(self.last, packet);
        self.in_order.push_back(arrival);
    }

    /// Whatever else is on the way.
    pub(super) fn send_astray(&mut self, at: Duration, packet: Packet<T>) {
        let arrival = self.depart(at, packet);
        self.strays.push(Reverse(arrival));
    }

    fn depart(&mut self, at: Duration, packet: Packet<T>) -> Arrival<T> {
        self.departures += 1;
        Arrival { at, departure: self.departures, packet }
    }

    /// When the next one arrives.
    pub(super) fn due(&self) -> Option<Duration> {
        let stray = self.strays.peek().map(|Reverse(arrival)| arrival.at);
        self.in_order.front().map(|arrival| arrival.at).into_iter().chain(stray).min()
    }

    /// The next one that has arrived by `now`.
    pub(super) fn take(&mut self, now: Duration) -> Option<Arrival<T>> {
        let stray = self.strays.peek().map(|Reverse(arrival)| arrival);
        let stray_first = match (self.in_order.front(), stray) {
            (Some(in_order), Some(stray)) => stray < in_order,
            (in_order, _) => in_order.is_none(),
        };
        if stray_first {
            stray.filter(|arrival| arrival.at <= now)?;
            self.strays.pop().map(|Reverse(arrival)| arrival)
        } else {
            self.in_order.front().filter(|arrival| arrival.at <= now)?;
            self.in_order.pop_front()
        }
    }

    /// Throws everything away; what it was.
    pub(super) fn clear(&mut self) -> Count {
        let strays = self.strays.drain().map(|Reverse(arrival)| arrival);
        self.in_order.drain(..).chain(strays).map(|arrival| arrival.packet.count()).sum()
    }
}
