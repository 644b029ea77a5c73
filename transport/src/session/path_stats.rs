//! What a session's connections have counted, whoever drives them.

use super::lane::LaneControl;
use crate::congestion::LONG;
use quinn_proto::ConnectionStats;
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// What of a packet is neither stream nor datagram, in bytes: flags, connection id, packet number, tag, the head of a frame.
const PACKET_HEAD_BYTES: u64 = 32;

/// Reads the counters of a session's connections, and closes them.
#[derive(Debug, Clone)]
pub struct PathStats {
    connections: Vec<Counted>,
    least_rtt_ns: Arc<AtomicU64>,
}

impl PathStats {
    pub(super) fn new(connections: Vec<Counted>) -> Self {
        Self { connections, least_rtt_ns: Arc::new(AtomicU64::new(u64::MAX)) }
    }

    fn figures(&self) -> impl Iterator<Item = ConnectionFigures> {
        self.connections.iter().map(Counted::figures)
    }

    /// Bytes in UDP datagrams sent, by all connections.
    #[must_use]
    pub fn udp_bytes_sent(&self) -> u64 {
        self.figures().map(|figures| figures.sent_bytes).sum()
    }

    /// Those that were not lost on the way, as far as QUIC knows by now.
    #[must_use]
    pub fn udp_bytes_delivered(&self) -> u64 {
        self.figures().map(|figures| figures.sent_bytes.saturating_sub(figures.lost_bytes)).sum()
    }

    /// Does the path stay on this machine?
    #[must_use]
    pub fn is_local(&self) -> bool {
        self.figures().all(|figures| figures.is_local)
    }

    /// Is every connection still open, as far as is known here?
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.figures().all(|figures| figures.is_open)
    }

    /// Packets QUIC declared lost.
    #[must_use]
    pub fn packets_lost(&self) -> u64 {
        self.figures().map(|figures| figures.lost_packets).sum()
    }

    /// Times QUIC met congestion: the path, not this host, set the pace.
    #[must_use]
    pub fn congestion_events(&self) -> u64 {
        self.figures().map(|figures| figures.congestion_events).sum()
    }

    /// Least round-trip time of any connection seen by this and earlier calls: that of a path without a queue, as it is
    /// once the guest stands and bulk data has drained. The control connection alone is too quiet to know: its estimate is
    /// still that of the handshake.
    #[must_use]
    pub fn least_rtt(&self) -> Duration {
        let now = self.figures().map(|figures| figures.rtt).min().unwrap_or_default();
        let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        let before = self.least_rtt_ns.fetch_min(now, Ordering::Relaxed);
        Duration::from_nanos(before.min(now))
    }

    /// Does a round trip cost more than hosts take to wake up, so that nobody should wait for one who can do without?
    #[must_use]
    pub fn is_long(&self) -> bool {
        (LONG..Duration::MAX).contains(&self.least_rtt())
    }

    /// Bytes of streams and datagrams that have left this host and were not lost, about: never much less than it is.
    #[must_use]
    pub fn payload_bytes_delivered(&self) -> u64 {
        let mtu = u64::from(self.mtu()).max(PACKET_HEAD_BYTES + 1);
        self.udp_bytes_delivered() / mtu * (mtu - PACKET_HEAD_BYTES)
    }

    /// Largest UDP payload in use, in bytes.
    #[must_use]
    pub fn mtu(&self) -> u16 {
        self.figures().map(|figures| figures.mtu).max().unwrap_or(0)
    }

    /// Closes every connection now; the peer hears `reason`.
    pub fn close(&self, reason: &str) {
        for connection in &self.connections {
            match connection {
                Counted::Quinn(connection) => connection.close(0u32.into(), reason.as_bytes()),
                Counted::Lane(lane) => lane.close(reason),
            }
        }
    }
}

/// A connection whose counters are read.
#[derive(Debug, Clone)]
pub(super) enum Counted {
    /// Driven by quinn.
    Quinn(quinn::Connection),
    /// Driven by a thread of its own.
    Lane(LaneControl),
}

impl Counted {
    fn figures(&self) -> ConnectionFigures {
        match self {
            Self::Quinn(connection) => {
                let is_open = connection.close_reason().is_none();
                ConnectionFigures::of(&connection.stats(), connection.remote_address(), is_open)
            }
            Self::Lane(lane) => lane.figures(),
        }
    }
}

/// Counters of one connection.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct ConnectionFigures {
    pub(super) sent_bytes: u64,
    lost_bytes: u64,
    pub(super) lost_packets: u64,
    congestion_events: u64,
    rtt: Duration,
    mtu: u16,
    is_local: bool,
    pub(super) is_open: bool,
}

impl ConnectionFigures {
    pub(super) fn of(stats: &ConnectionStats, remote: SocketAddr, is_open: bool) -> Self {
        Self {
            sent_bytes: stats.udp_tx.bytes,
            lost_bytes: stats.path.lost_bytes,
            lost_packets: stats.path.lost_packets,
            congestion_events: stats.path.congestion_events,
            rtt: stats.path.rtt,
            mtu: stats.path.current_mtu,
            is_local: remote.ip().is_loopback(),
            is_open,
        }
    }
}
