//! How can one machine live on several hosts?
//!
//! Every host of a spanning machine maps all of its memory, and the [`directory`] decides which host may touch which page: transition functions
//! without I/O, without a clock and without threads, so that what the model checker explores is what runs. [`memory`] runs them: it
//! carries out on one host's memory what they decide, and carries their messages between hosts. [`vcpus`] carries interrupts, accesses to
//! devices and whole vCPUs, and [`clock`] sees to it that all of them have one time. Who has which piece the [`registry`] decides. A [`part`] is one host's share of all that, put together.

#![forbid(unsafe_code)]

pub mod clock;
pub mod directory;
pub mod memory;
pub mod part;
pub mod registry;
pub mod vcpus;

use directory::HostId;
use vmotion_transport::{mesh::Peer, session::SessionError};

/// What the mesh calls a host.
const fn peer_of(host: HostId) -> Peer {
    Peer(host.number())
}

/// The host that the mesh calls so.
fn host_of(peer: Peer) -> Result<HostId, SessionError> {
    HostId::new(peer.0).ok_or_else(|| SessionError::Protocol(format!("there is no host {}", peer.0)))
}
