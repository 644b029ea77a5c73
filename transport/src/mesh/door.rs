//! Callers that have not shown yet who they are.

use super::opening::{OPENING_BYTES_MAX, Opening};
use crate::{Principal, direct::FirstMessage, identity::principal_shown};
use quinn_proto::{Connection, Dir, StreamId};
use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

/// Callers at once; more are refused until one has shown who it is. Every host of a machine may call at the same moment.
pub(super) const CALLERS_MAX: usize = 96;
/// With so many, whoever is new has to show first that he is where he says. An address that was made up cannot, and takes no place.
pub(super) const CALLERS_UNSEEN_MAX: usize = 16;
/// From a caller's first packet to its opening.
const PATIENCE: Duration = Duration::from_secs(5);

/// Somebody who calls.
pub(super) struct Knock {
    pub(super) from: SocketAddr,
    /// When it is turned away if it has not opened.
    pub(super) by: Instant,
    connected: bool,
    principal: Option<Principal>,
    stream: Option<StreamId>,
    opening: FirstMessage,
}

/// What a caller has shown.
pub(super) struct Shown {
    /// As its certificate says, which TLS has shown to be its own.
    pub(super) principal: Option<Principal>,
    pub(super) opening: Opening,
    /// On which it is answered.
    pub(super) stream: StreamId,
}

impl Knock {
    pub(super) fn new(from: SocketAddr, now: Instant) -> Self {
        let opening = FirstMessage::default();
        Self { from, by: now + PATIENCE, connected: false, principal: None, stream: None, opening }
    }

    /// The handshake is over.
    pub(super) fn connected(&mut self, connection: &Connection) {
        self.connected = true;
        self.principal = principal_shown(connection.crypto_session().peer_identity());
    }

    /// What it shows; `None` while that is not all.
    pub(super) fn read(&mut self, connection: &mut Connection, now: Instant) -> Option<Result<Shown, &'static str>> {
        if self.by <= now {
            return Some(Err("it did not open in time"));
        }
        if !self.connected {
            return None;
        }
        // The caller speaks first, on exactly one stream, and waits for the answer.
        if connection.streams().accept(Dir::Uni).is_some() {
            return Some(Err("the opening does not fit its stream"));
        }
        self.stream = self.stream.or_else(|| connection.streams().accept(Dir::Bi));
        let stream = self.stream?;
        let opening = self.opening.read(connection, stream, OPENING_BYTES_MAX)?;
        Some(opening.map(|opening| Shown { principal: self.principal.take(), opening, stream }))
    }
}
