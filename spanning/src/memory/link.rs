//! One peer: numbered lanes in both directions, which survive lost connections.
//!
//! What a lane has accepted is acknowledged with every message that goes the other way, the lane that is owed most first; when
//! nothing goes the other way, after some messages or some time. A lane that is full keeps what is to be sent until the peer has
//! acknowledged more, and stops no other lane. What can wait there is bounded by the protocol: one request a page and host, and one
//! transaction a page; evictions, which could be many, are begun a few at a time.

use super::error::PeerError;
use super::wire::{self, Known, Lane, Packet};
use crate::directory::replay::{Inbox, Numbered, Outbox};
use crate::directory::{HostId, Moment};
use crate::peer_of;
use std::collections::VecDeque;
use vmotion_transport::mesh::{Outgoing, StreamNumber};

#[cfg(test)]
mod tests;

/// Messages of a lane that wait for their acknowledgement.
const UNACKNOWLEDGED_MAX: usize = 4096;
/// So many messages are acknowledged at once.
const OWED_MAX: u32 = 32;
/// A message is acknowledged after so long, in microseconds.
const OWED_US_MAX: u64 = 5_000;

/// What went between this host and one peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    /// Messages sent, those that were sent again included.
    pub messages_sent: u64,
    /// Their bytes.
    pub bytes_sent: u64,
    /// Those of them that carried a page.
    pub pages_sent: u64,
    /// Messages that were sent again after a new connection.
    pub messages_repeated: u64,
    /// Messages received.
    pub messages_received: u64,
    /// Their bytes.
    pub bytes_received: u64,
    /// Those of them that carried a page.
    pub pages_received: u64,
    /// Messages received that had come before.
    pub messages_known: u64,
    /// Connections made.
    pub connections: u64,
}

#[derive(Debug)]
struct LaneState {
    outbox: Outbox<Packet>,
    /// What does not fit into it.
    waiting: VecDeque<Packet>,
    inbox: Inbox,
    /// Messages accepted and not acknowledged.
    owed: u32,
}

/// Everything that goes to and comes from one peer.
#[derive(Debug)]
pub(super) struct Link {
    host: HostId,
    /// The number of the first stream; lanes have streams of their own from there on.
    first_stream: u8,
    connected: bool,
    /// The peer has said that it has nothing of the machine any more.
    pub(super) has_left: bool,
    lanes: [LaneState; 4],
    /// The oldest message that is not acknowledged, perhaps.
    owed_since: Option<Moment>,
    pub(super) traffic: Traffic,
}

impl Link {
    pub(super) fn new(host: HostId, first_stream: u8) -> Self {
        let lane = || LaneState {
            outbox: Outbox::new(UNACKNOWLEDGED_MAX),
            waiting: VecDeque::new(),
            inbox: Inbox::default(),
            owed: 0,
        };
        let lanes = std::array::from_fn(|_| lane());
        Self {
            host,
            first_stream,
            connected: false,
            has_left: false,
            lanes,
            owed_since: None,
            traffic: Traffic::default(),
        }
    }

    pub(super) const fn host(&self) -> HostId {
        self.host
    }

    pub(super) const fn is_connected(&self) -> bool {
        self.connected
    }

    /// Messages that were sent and not acknowledged, or wait to be sent.
    pub(super) fn unacknowledged(&self) -> usize {
        self.lanes.iter().map(|lane| lane.outbox.len() + lane.waiting.len()).sum()
    }

    /// Sends a packet, now or as soon as the lane has room for it and the peer is connected.
    pub(super) fn send(&mut self, packet: Packet, out: &mut dyn Outgoing) {
        let lane = packet.lane();
        self.lanes[lane.index()].waiting.push_back(packet);
        self.go_on(lane, out);
    }

    /// Sends what its lane has room for.
    fn go_on(&mut self, lane: Lane, out: &mut dyn Outgoing) {
        loop {
            let state = &mut self.lanes[lane.index()];
            if state.outbox.is_full() {
                return;
            }
            let Some(packet) = state.waiting.pop_front() else { return };
            let numbered = state.outbox.push(packet).expect("a lane that is not full takes one more");
            self.write(lane, Some(&numbered), out);
        }
    }

    fn write(&mut self, lane: Lane, numbered: Option<&Numbered<Packet>>, out: &mut dyn Outgoing) {
        if !self.connected {
            return;
        }
        let acknowledges = self.acknowledge();
        let Traffic { messages_sent, bytes_sent, pages_sent, .. } = &mut self.traffic;
        let mut bytes = 0;
        let stream = StreamNumber(self.first_stream.saturating_add(lane as u8));
        out.send(peer_of(self.host), stream, &mut |into| {
            let before = into.len();
            wire::encode(into, acknowledges, numbered.map(|numbered| (numbered.number, &numbered.message)));
            bytes = (into.len() - before) as u64;
        });
        *messages_sent += 1;
        *bytes_sent += bytes;
        *pages_sent += u64::from(numbered.is_some_and(|numbered| numbered.message.has_bytes()));
    }

    /// What the next message acknowledges: the lane that is owed most.
    fn acknowledge(&mut self) -> (Lane, u64) {
        let most = Lane::ALL.into_iter().max_by_key(|lane| self.lanes[lane.index()].owed).unwrap_or(Lane::Coherence);
        self.lanes[most.index()].owed = 0;
        if self.lanes.iter().all(|lane| lane.owed == 0) {
            self.owed_since = None;
        }
        (most, self.lanes[most.index()].inbox.next())
    }

    /// A message arrives in the stream `stream`; the packet, if it is news.
    pub(super) fn receive(
        &mut self,
        now: Moment,
        stream: StreamNumber,
        bytes: &[u8],
        known: &Known,
        out: &mut dyn Outgoing,
    ) -> Result<Option<Packet>, PeerError> {
        self.traffic.messages_received += 1;
        self.traffic.bytes_received += bytes.len() as u64;
        let lane = stream.0.checked_sub(self.first_stream).and_then(|lane| Lane::ALL.get(usize::from(lane)));
        let lane = *lane.ok_or(PeerError::Stream { stream: stream.0 })?;
        let frame = wire::decode(bytes, known)?;
        let (acknowledged, next) = frame.acknowledges;
        self.lanes[acknowledged.index()].outbox.acknowledged(next)?;
        self.go_on(acknowledged, out);
        let Some((number, packet)) = frame.packet else { return Ok(None) };
        if packet.lane() != lane {
            return Err(PeerError::Stream { stream: stream.0 });
        }
        self.traffic.pages_received += u64::from(packet.has_bytes());
        let state = &mut self.lanes[lane.index()];
        let news = state.inbox.accept(Numbered { number, message: packet })?;
        state.owed += 1;
        let is_much = state.owed >= OWED_MAX;
        self.owed_since = self.owed_since.or(Some(now));
        if is_much {
            self.write(Lane::Coherence, None, out);
        }
        self.traffic.messages_known += u64::from(news.is_none());
        Ok(news)
    }

    /// When [`Self::tick`] has something to do.
    pub(super) fn deadline(&self) -> Option<Moment> {
        self.owed_since.filter(|_| self.connected).map(|since| Moment(since.0.saturating_add(OWED_US_MAX)))
    }

    /// Acknowledges what has waited long enough for something to ride on.
    pub(super) fn tick(&mut self, now: Moment, out: &mut dyn Outgoing) {
        while self.deadline().is_some_and(|deadline| now >= deadline) {
            self.write(Lane::Coherence, None, out);
        }
    }

    /// A new connection: all that was not acknowledged is sent again, before anything new.
    pub(super) fn connect(&mut self, out: &mut dyn Outgoing) {
        self.connected = true;
        self.traffic.connections += 1;
        for lane in Lane::ALL {
            let again: Vec<_> = self.lanes[lane.index()].outbox.replay().collect();
            self.traffic.messages_repeated += again.len() as u64;
            for numbered in again {
                self.write(lane, Some(&numbered), out);
            }
        }
    }

    /// The connection is gone.
    pub(super) const fn disconnect(&mut self) {
        self.connected = false;
    }
}
