//! What a mesh has counted.

use super::{
    Peer,
    outbox::Outbox,
    slot::{Slot, Stage},
};
use quinn_proto::ConnectionStats;
use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

/// Of a whole mesh.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MeshFigures {
    /// By host.
    pub peers: BTreeMap<Peer, PeerFigures>,
    /// Callers that were turned away.
    pub refused: u64,
    /// Why the last of them was.
    pub refused_why: Option<String>,
    /// Times the mesh's thread woke up.
    pub passes: u64,
}

/// Of one host, over all connections with it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PeerFigures {
    /// There is a connection now.
    pub is_connected: bool,
    /// Connections there have been.
    pub connections: u64,
    /// Of the path now.
    pub rtt: Duration,
    /// Largest UDP payload in use, in bytes.
    pub mtu: u16,
    /// Packets QUIC declared lost.
    pub lost_packets: u64,
    /// In UDP datagrams.
    pub sent_bytes: u64,
    /// In UDP datagrams.
    pub received_bytes: u64,
    /// UDP datagrams.
    pub sent_datagrams: u64,
    /// UDP datagrams.
    pub received_datagrams: u64,
    /// Messages of the user.
    pub sent_messages: u64,
    /// Messages of the user.
    pub received_messages: u64,
    /// What went wrong last, in words.
    pub trouble: Option<String>,
}

impl MeshFigures {
    /// Something is wrong with a host; said aloud when it is new.
    pub(super) fn trouble(&mut self, peer: Peer, what: &str, reason: String) {
        let host = peer.0;
        let Some(figures) = self.peers.get_mut(&peer) else { return };
        if figures.trouble.as_ref() == Some(&reason) {
            tracing::debug!(host, %reason, "{what}");
        } else {
            tracing::warn!(host, %reason, "{what}");
            figures.trouble = Some(reason);
        }
    }

    /// Adds what an open connection has counted.
    pub(super) fn count(&mut self, slot: &mut Slot, outbox: Option<&mut Outbox>) {
        let Stage::Open(link) = &mut slot.stage else { return };
        let Some(figures) = self.peers.get_mut(&link.peer) else { return };
        let sent = outbox.and_then(|outbox| outbox.link(link.peer)).map_or(0, |out| out.messages());
        link.counted.add(figures, &slot.connection.stats(), (sent, link.received_messages));
    }

    /// A caller was turned away; said aloud when the reason is new.
    pub(super) fn refuse(&mut self, from: SocketAddr, reason: String) {
        self.refused += 1;
        if self.refused_why.as_ref() == Some(&reason) {
            tracing::debug!(%from, %reason, "turned a connection away");
        } else {
            tracing::warn!(%from, %reason, "turned a connection away");
            self.refused_why = Some(reason);
        }
    }
}

/// What one connection has counted, as far as it is in the figures already.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counted {
    sent_bytes: u64,
    received_bytes: u64,
    sent_datagrams: u64,
    received_datagrams: u64,
    lost_packets: u64,
    sent_messages: u64,
    received_messages: u64,
}

impl Counted {
    /// Adds what has been counted since the last time; of messages, those sent and those received.
    pub(super) fn add(&mut self, to: &mut PeerFigures, stats: &ConnectionStats, messages: (u64, u64)) {
        let now = Self {
            sent_bytes: stats.udp_tx.bytes,
            received_bytes: stats.udp_rx.bytes,
            sent_datagrams: stats.udp_tx.datagrams,
            received_datagrams: stats.udp_rx.datagrams,
            lost_packets: stats.path.lost_packets,
            sent_messages: messages.0.max(self.sent_messages),
            received_messages: messages.1,
        };
        to.sent_bytes += now.sent_bytes - self.sent_bytes;
        to.received_bytes += now.received_bytes - self.received_bytes;
        to.sent_datagrams += now.sent_datagrams - self.sent_datagrams;
        to.received_datagrams += now.received_datagrams - self.received_datagrams;
        to.lost_packets += now.lost_packets.saturating_sub(self.lost_packets);
        to.sent_messages += now.sent_messages.saturating_sub(self.sent_messages);
        to.received_messages += now.received_messages.saturating_sub(self.received_messages);
        to.rtt = stats.path.rtt;
        to.mtu = stats.path.current_mtu;
        *self = now;
    }
}
