//! What can go wrong: with a peer, which ends the connection with it, and with this host, which ends the machine's life on it.

use super::wire::WireError;
use crate::directory::replay::Gap;
use crate::directory::{HostId, Misfit, ShardError, ShardNumber, Version};
use thiserror::Error;
use vmotion_model::PageNumber;
use vmotion_pager::PagerError;

/// Why a node cannot go on: its vCPUs must be stopped before it is dropped, for they would see whatever the memfd holds.
#[derive(Debug, Error)]
pub enum NodeError {
    /// The layout, the mappings and the hosts do not fit each other.
    #[error("Machine cannot be served: {problem}")]
    Setup {
        /// What does not fit.
        problem: &'static str,
    },
    /// The memory cannot be served at all.
    #[error("Memory of the machine cannot be served")]
    Memory(#[source] PagerError),
    /// A system call for a page failed.
    #[error("Could not {action} at {page}")]
    Page {
        /// What was to be done.
        action: &'static str,
        /// With which page.
        page: PageNumber,
        /// What the pager said.
        #[source]
        source: PagerError,
    },
    /// Page faults cannot be read.
    #[error("Page faults of the machine cannot be read")]
    Faults(#[source] PagerError),
    /// The descriptor by which other threads wake the node cannot be made.
    #[error("A descriptor for waking up could not be made")]
    Mailbox(#[source] std::io::Error),
    /// What this host tells itself fits no rule: a bug.
    #[error("This host broke the page protocol itself")]
    Protocol(#[source] Misfit),
    /// The store's word about a shard cannot be obeyed: another host has what this one serves.
    #[error("What the store says cannot be carried out")]
    Store(#[source] ShardError),
    /// The auditor has found bytes that are not those of their version: a bug, here or at whoever has sent them, or broken memory.
    #[error("Bytes of {page} changed that nobody may write: of version {}, their hash was {was:016x} and is {is:016x}", version.0)]
    Audit {
        /// Which page.
        page: PageNumber,
        /// Which version of it.
        version: Version,
        /// The hash when the version's bytes came.
        was: u64,
        /// The hash that was found.
        is: u64,
    },
    /// A page that is in no shard anybody spoke of: a bug in how the table was made.
    #[error("Nobody has {0}")]
    Homeless(PageNumber),
}

/// How a peer broke the protocol. The connection with it is closed.
#[derive(Debug, Error)]
pub enum PeerError {
    /// Bytes that are no message.
    #[error("Message cannot be read")]
    Wire(#[from] WireError),
    /// A message in a stream that is not its own.
    #[error("Message is in stream {stream}, where it does not belong")]
    Stream {
        /// The stream's number.
        stream: u8,
    },
    /// Messages are missing, or were never sent.
    #[error("Messages are missing")]
    Gap(#[from] Gap),
    /// A message that fits no rule.
    #[error("Message fits no rule")]
    Misfit(#[from] Misfit),
    /// A shard that cannot be taken over, or a word about it that is not true.
    #[error("Shard cannot move so")]
    Shard(#[from] ShardError),
    /// A word about a shard by somebody who does not have it.
    #[error("Word about {0} does not come from its home")]
    Word(ShardNumber),
    /// Parts of shards in disorder.
    #[error("Entries of {0} are not the ones that were to follow")]
    Parts(ShardNumber),
    /// An order or a grant by a host that is not the page's home.
    #[error("Order or grant of {0} does not come from its home")]
    NotHome(PageNumber),
    /// A peer that the machine does not have, or not any more.
    #[error("Peer {0} has no part in the machine")]
    Stranger(u8),
    /// A home that nobody here knows.
    #[error("Home of {shard} is said to be on {home}, which has no part in the machine")]
    Absent {
        /// Of which 2 MiB.
        shard: ShardNumber,
        /// Where it is said to be.
        home: HostId,
    },
    /// More requests than can be kept until the store has spoken.
    #[error("Too many requests wait for the store's word about {0}")]
    Parked(ShardNumber),
}

/// Who is to blame decides what ends.
#[derive(Debug)]
pub(super) enum Trouble {
    Peer(PeerError),
    Node(NodeError),
}

impl<E: Into<PeerError>> From<E> for Trouble {
    fn from(error: E) -> Self {
        Self::Peer(error.into())
    }
}

impl From<NodeError> for Trouble {
    fn from(error: NodeError) -> Self {
        Self::Node(error)
    }
}

pub(super) type Outcome = Result<(), Trouble>;

pub(super) fn at_page(action: &'static str, page: PageNumber) -> impl FnOnce(PagerError) -> NodeError {
    move |source| NodeError::Page { action, page, source }
}
