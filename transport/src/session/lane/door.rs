//! Who may have the lane: whoever has the certificate of this move's source, and shows the move's ticket in good time.

use crate::{
    ExpectedPeer,
    direct::FirstMessage,
    session::{LaneKind, MoveTicket, Opening},
};
use quinn_proto::{Connection, Dir, StreamId};
use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

/// Longest opening, in bytes: a ticket and a lane.
const OPENING_BYTES_MAX: usize = 64;

/// What it takes to come in.
#[derive(Debug)]
pub(in crate::session) struct Door {
    pub(in crate::session) expected: ExpectedPeer,
    pub(in crate::session) ticket: MoveTicket,
    /// From a connection's first packet to its opening.
    pub(in crate::session) patience: Duration,
}

/// Somebody who wants to come in.
pub(super) struct Knock {
    from: SocketAddr,
    by: Instant,
    connected: bool,
    refused: Option<&'static str>,
    stream: Option<StreamId>,
    opening: FirstMessage,
}

pub(super) enum Verdict {
    Welcome(StreamId),
    Refused(&'static str),
}

impl Door {
    pub(super) fn knock(&self, from: SocketAddr, now: Instant) -> Knock {
        let by = now + self.patience;
        Knock { from, by, connected: false, refused: None, stream: None, opening: FirstMessage::default() }
    }
}

impl Knock {
    pub(super) const fn from(&self) -> SocketAddr {
        self.from
    }

    /// When it is turned away if it has not opened.
    pub(super) const fn by(&self) -> Instant {
        self.by
    }

    /// The handshake is over: TLS has shown that the certificate is its own.
    pub(super) fn connected(&mut self, door: &Door, connection: &Connection) {
        self.connected = true;
        if !door.expected.is_shown(connection.crypto_session().peer_identity()) {
            self.refused = Some("the certificate is not that of this move's source");
        }
    }

    /// Whether it may come in; `None` while it has not said enough.
    pub(super) fn judge(&mut self, door: &Door, connection: &mut Connection, now: Instant) -> Option<Verdict> {
        if let Some(reason) = self.refused {
            return Some(Verdict::Refused(reason));
        }
        if self.by <= now {
            return Some(Verdict::Refused("it did not open in time"));
        }
        if !self.connected {
            return None;
        }
        // The source speaks first, on exactly one stream.
        if connection.streams().accept(Dir::Uni).is_some() {
            return Some(Verdict::Refused("the opening does not fit its stream"));
        }
        self.stream = self.stream.or_else(|| connection.streams().accept(Dir::Bi));
        let stream = self.stream?;
        let opening = match self.opening.read(connection, stream, OPENING_BYTES_MAX)? {
            Ok(opening) => opening,
            Err(reason) => return Some(Verdict::Refused(reason)),
        };
        Some(match opening {
            Opening { ticket, .. } if !MoveTicket::from_bytes(ticket).matches(&door.ticket) => {
                Verdict::Refused("the ticket is not that of this move")
            }
            Opening { lane: LaneKind::Demand, .. } => Verdict::Welcome(stream),
            Opening { .. } => Verdict::Refused("the opening does not fit its stream"),
        })
    }
}
