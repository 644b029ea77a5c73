//! One connection of the mesh, whatever it is for.

use super::{Peer, door::Knock, figures::Counted, inbound::Inbound, roster::CALL_MAX};
use crate::{congestion::Farewell, direct::FirstMessage};
use bytes::Bytes;
use quinn_proto::{Connection, ConnectionHandle, StreamId};
use std::time::Instant;

/// The peer breaks the protocol, or is not whom it should be.
pub(super) const CODE_REFUSED: u32 = 1;
/// In good order.
pub(super) const CODE_DONE: u32 = 0;

pub(super) struct Slot {
    pub(super) handle: ConnectionHandle,
    pub(super) connection: Connection,
    pub(super) stage: Stage,
    farewell: Farewell,
    /// Something has happened to it in this pass, or it has more to send.
    pub(super) touched: bool,
    /// When there is something to do even if nothing comes; as it was when it was touched last.
    pub(super) due: Option<Instant>,
}

/// How far a connection is.
pub(super) enum Stage {
    /// Called by us.
    Calling(Call),
    /// Has called us, and has to show who it is.
    Knocking(Knock),
    /// Both have shown who they are.
    Open(Box<Link>),
    /// Refused, closed or lost.
    Over,
}

/// A call that was not answered yet.
pub(super) struct Call {
    pub(super) peer: Peer,
    pub(super) by: Instant,
    /// Once there is a connection.
    pub(super) stream: Option<StreamId>,
    pub(super) answer: FirstMessage,
}

/// A connection that is in use.
pub(super) struct Link {
    pub(super) peer: Peer,
    pub(super) inbound: Inbound,
    pub(super) received_messages: u64,
    pub(super) counted: Counted,
}

impl Slot {
    pub(super) const fn new(
        handle: ConnectionHandle,
        connection: Connection,
        stage: Stage,
        farewell: Farewell,
    ) -> Self {
        Self { handle, connection, stage, farewell, touched: true, due: None }
    }

    /// Whether there is something to do for it.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.touched || self.due.is_some_and(|due| due <= now)
    }

    /// Notes when it is due next.
    pub(super) fn rest(&mut self) {
        let by = match &self.stage {
            Stage::Calling(call) => Some(call.by),
            Stage::Knocking(knock) => Some(knock.by),
            Stage::Open(_) | Stage::Over => None,
        };
        self.due = self.connection.poll_timeout().into_iter().chain(by).min();
    }

    /// Ends it; the peer hears `reason`.
    pub(super) fn close(&mut self, code: u32, reason: &str, now: Instant) {
        if !matches!(self.stage, Stage::Over) {
            self.farewell.say();
            self.connection.close(now, code.into(), Bytes::copy_from_slice(reason.as_bytes()));
            self.stage = Stage::Over;
            self.touched = true;
        }
    }
}

impl Call {
    pub(super) fn new(peer: Peer, now: Instant) -> Self {
        Self { peer, by: now + CALL_MAX, stream: None, answer: FirstMessage::default() }
    }
}

impl Link {
    pub(super) fn new(peer: Peer) -> Self {
        let (inbound, counted) = (Inbound::default(), Counted::default());
        Self { peer, inbound, received_messages: 0, counted }
    }
}
