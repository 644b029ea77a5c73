//! The hosts that a mesh knows, and how far each is.

use super::{Peer, backoff::Backoff};
use crate::ExpectedPeer;
use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

/// A host of the machine.
pub(super) struct Known {
    pub(super) address: SocketAddr,
    pub(super) expected: ExpectedPeer,
    /// As it was at first contact.
    pub(super) incarnation: Option<u64>,
    pub(super) path: Path,
    /// Of the connection, if there is one.
    pub(super) since: Option<Instant>,
    pub(super) backoff: Backoff,
}

/// How far the connection with a host is. Connections are named by their place among the engine's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Path {
    /// The host has to call.
    Awaited,
    /// It is called then.
    Due(Instant),
    /// It is being called.
    Dialling(usize),
    /// There is a connection.
    Open(usize),
}

impl Path {
    /// To a host with which there is no connection, and whose turn it is to be called now, if it is called from here at all.
    pub(super) fn none(me: Peer, other: Peer, due: Instant) -> Self {
        if calls(me, other) { Self::Due(due) } else { Self::Awaited }
    }
}

impl Known {
    pub(super) fn new(address: SocketAddr, expected: ExpectedPeer, path: Path) -> Self {
        Self { address, expected, incarnation: None, path, since: None, backoff: Backoff::default() }
    }

    /// The connection that is there, or is being made.
    pub(super) const fn connection(&self) -> Option<usize> {
        match self.path {
            Path::Dialling(slot) | Path::Open(slot) => Some(slot),
            Path::Awaited | Path::Due(_) => None,
        }
    }

    pub(super) const fn open(&self) -> Option<usize> {
        if let Path::Open(slot) = self.path { Some(slot) } else { None }
    }
}

/// Of two hosts the one with the lower number calls.
fn calls(me: Peer, other: Peer) -> bool {
    me < other
}

/// Longest that one call takes; then another is made.
pub(super) const CALL_MAX: Duration = Duration::from_secs(2);
