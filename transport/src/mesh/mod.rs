//! The mesh: the hosts of one spanning machine talk to each other, each with each.
//!
//! ```text
//!   poll ──┬─ the mesh's socket: datagrams ─▶ QUIC, a connection for each peer ─▶ MeshUser::received ─┐
//!          ├─ what the user waits for (faults, other threads) ─────────────────▶ MeshUser::woken ────┼─▶ Outgoing ─▶ QUIC ─▶ socket
//!          └─ the user's deadline ─────────────────────────────────────────────▶ MeshUser::woken ────┘
//! ```
//! One thread drives one mesh: whatever wakes it is dealt with to its end in one pass, so between a fault and the packet that asks for its
//! page no other thread has to be woken, and what comes together is sent together. Who has more work than a processor can do runs several
//! meshes, and divides the pages among them.
//!
//! Between two hosts there are numbered ordered streams in each direction, which never wait for each other; of what waits to be sent
//! the lower number goes first. A connection that is lost is made again until its peer is taken away, and streams begin anew then: what
//! was sent and not acknowledged by the user's own means is the user's to send again.
//!
//! Of two hosts the one with the lower number calls. A host is who its certificate says, has the machine's [`MeshTicket`], and stays the
//! incarnation that it was at first contact until it is named anew ([`Mesh::add_peer`]).

mod backoff;
mod config;
mod door;
mod engine;
mod figures;
mod framing;
mod handle;
mod inbound;
mod opening;
mod outbox;
mod roster;
mod slot;
mod thread;
mod traffic;
mod tuning;

#[cfg(test)]
mod tests;

pub use figures::{MeshFigures, PeerFigures};
pub use framing::MessageReader;
pub use handle::{Mesh, MeshOptions};
pub use opening::MeshTicket;
pub use tuning::MeshTuning;

use crate::session::SessionError;
use rustix::fd::BorrowedFd;
use std::time::Instant;

/// A host of the machine, by its place in the machine's list of hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Peer(pub u8);

/// An ordered stream between two hosts. The lower the number the more urgent, below [`STREAMS_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamNumber(pub u8);

/// Streams between two hosts, in each direction.
pub const STREAMS_MAX: u8 = 16;

/// Longest message, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 64 << 10;

/// Where a user puts what is to be sent; implemented by the mesh, and by tests.
pub trait Outgoing {
    /// Sends the message that `write` appends, of at most [`MESSAGE_BYTES_MAX`] bytes. To a peer that is not connected nothing is sent, and
    /// `write` is not called.
    ///
    /// # Panics
    /// When the message is longer, or the stream's number is not below [`STREAMS_MAX`]: faults in this program.
    fn send(&mut self, to: Peer, stream: StreamNumber, write: &mut dyn FnMut(&mut Vec<u8>));
    /// Bytes that wait to be sent to this peer on this stream, for want of a path or of an acknowledgement: who sees it grow makes less.
    fn waiting(&self, to: Peer, stream: StreamNumber) -> usize;
}

/// Whoever uses a mesh, called by its thread. Must not block: nothing else of the mesh goes on meanwhile.
pub trait MeshUser: Send {
    /// Appends what becomes readable when [`Self::woken`] is to be called.
    fn wakes<'a>(&'a self, into: &mut Vec<BorrowedFd<'a>>);
    /// When to call [`Self::woken`] at the latest.
    fn deadline(&self) -> Option<Instant>;
    /// Whether somebody stands still until the next message comes. Then the mesh's thread looks for it a while before it sleeps, which is on the
    /// processor of whoever waits: see [`MeshTuning::linger`].
    fn awaits(&self) -> bool {
        false
    }
    /// Something is readable, or the deadline is over.
    fn woken(&mut self, out: &mut dyn Outgoing);
    /// There is a connection with this peer, and nothing was sent on it yet.
    fn connected(&mut self, peer: Peer, out: &mut dyn Outgoing);
    /// There is none any more. What was sent last may or may not have come through.
    fn lost(&mut self, peer: Peer, why: &SessionError, out: &mut dyn Outgoing);
    /// The next message of a stream. An error closes the connection with the peer, who breaks the protocol; it is made again.
    ///
    /// # Errors
    /// What is wrong with it.
    fn received(
        &mut self,
        from: Peer,
        stream: StreamNumber,
        message: &[u8],
        out: &mut dyn Outgoing,
    ) -> Result<(), SessionError>;
}
