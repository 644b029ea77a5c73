//! The hosts of a running machine: they come, and they leave.
//!
//! ```text
//!  all that are there      connect(new) ─────────────────────────────┐
//!  the new one             start ── connect(each) ── stand by, resume ┴─ is given vCPUs and homes
//!  one that has none left  leave ── ends, when all others have dismissed it
//!  each other              dismiss ── the number is free for another host
//! ```
//! What passes between the hosts meanwhile is in [`crate::memory`] and [`crate::vcpus`].

use super::{LOOK_AGAIN, OtherHost, SpanningPart, users::Order};
use crate::{
    directory::{HostId, HostSet},
    memory::{Gone, Mention, Staying},
    peer_of,
};
use std::{
    collections::BTreeMap,
    fmt,
    net::SocketAddr,
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};
use thiserror::Error;
use vmotion_transport::{ExpectedPeer, Principal};

/// Where other hosts are, and who they must be.
pub(super) type Addresses = Mutex<BTreeMap<HostId, (SocketAddr, ExpectedPeer)>>;

/// A host that has left its machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Left {
    /// Pages that it held at the beginning and gave up.
    pub pages: usize,
    /// How long that took.
    pub took: Duration,
}

/// What was not done when the patience was over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StillHere {
    /// Shards on their way from or to here.
    Moving(usize),
    /// Pages held here.
    Pages(usize),
    /// A host that has not said that it asks for nothing here any more.
    Silent(HostId),
    /// Messages that nobody has acknowledged.
    Messages(usize),
}

impl fmt::Display for StillHere {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Moving(shards) => write!(f, "the homes of {shards} shards are still on their way"),
            Self::Pages(pages) => write!(f, "{pages} pages are still held"),
            Self::Silent(host) => write!(f, "{host} has still not said farewell"),
            Self::Messages(messages) => write!(f, "{messages} messages are still not acknowledged"),
        }
    }
}

/// Why a host stays in its machine. It is as it was, but for pages that it gave up, which come again when they are touched.
#[derive(Debug, Error)]
pub enum LeaveError {
    /// The devices are here.
    #[error("{0} cannot leave the machine: it has its devices")]
    Hub(HostId),
    /// A vCPU is here, or comes.
    #[error("{host} cannot leave the machine: vCPU {vcpu} is here, give it to another host first")]
    Vcpu {
        /// This host.
        host: HostId,
        /// Which.
        vcpu: u8,
    },
    /// Homes are here.
    #[error("{host} cannot leave the machine: the homes of {shards} shards are here, give them to another host first")]
    Homes {
        /// This host.
        host: HostId,
        /// How many.
        shards: usize,
    },
    /// It takes too long.
    #[error("{host} has not left the machine: {what} after {patience:?}; it can be tried again")]
    Late {
        /// This host.
        host: HostId,
        /// What is not done.
        what: StillHere,
        /// How long was waited.
        patience: Duration,
    },
    /// The part has ended.
    #[error("{host} cannot leave the machine")]
    Gone {
        /// This host.
        host: HostId,
        /// Why.
        source: Gone,
    },
}

/// Why a host is not forgotten. Nothing has changed.
#[derive(Debug, Error)]
pub enum DismissError {
    /// This host, or the one with the devices.
    #[error("{0} cannot be dismissed: the machine is not without it here")]
    Stays(HostId),
    /// A vCPU is there.
    #[error("{host} cannot be dismissed: after {patience:?}, vCPU {vcpu} is still there; it must leave first")]
    Vcpu {
        /// The other host.
        host: HostId,
        /// Which.
        vcpu: u8,
        /// How long was waited.
        patience: Duration,
    },
    /// The memory here names it.
    #[error("{host} cannot be dismissed: after {patience:?}, {mention}; it must leave first")]
    Memory {
        /// The other host.
        host: HostId,
        /// How.
        mention: Mention,
        /// How long was waited.
        patience: Duration,
    },
    /// The part has ended.
    #[error("{host} cannot be dismissed")]
    Gone {
        /// The other host.
        host: HostId,
        /// Why.
        source: Gone,
    },
}

impl SpanningPart {
    /// Talks to another host of the machine from now on, whether it was known from the beginning or comes to the running machine. When this
    /// has returned, the other may be given pieces. Asked again, only its address is looked at.
    pub fn connect(&self, OtherHost { id, address, expected }: OtherHost) {
        let mut addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        let name = match &expected {
            ExpectedPeer::Exactly(Principal::Host(name)) => name.to_string(),
            _ => id.number().to_string(),
        };
        // Both fail only when the part has ended.
        let _: Result<(), Gone> = self.memory.admit(id);
        let _: Option<()> = self.orders.ask(|reply| Order::Admit(id, name, reply));
        match addresses.insert(id, (address, expected.clone())) {
            Some(known) if known == (address, expected.clone()) => {}
            Some((_, known)) if known == expected => self.mesh.move_peer(peer_of(id), address),
            _ => self.mesh.add_peer(peer_of(id), address, expected),
        }
    }

    /// Leaves the machine, in which this host has neither a vCPU nor a home: gives up all pages, and has nothing more to say. The others
    /// then [`dismiss`](Self::dismiss) this host, and its process ends. Nobody who touches the machine's memory here goes on after this.
    ///
    /// # Errors
    /// [`LeaveError`] says what is here, or not done within `patience`.
    pub fn leave(&self, patience: Duration) -> Result<Left, LeaveError> {
        let host = self.me;
        if host == self.hub {
            return Err(LeaveError::Hub(host));
        }
        let begun = Instant::now();
        let gone = |source| LeaveError::Gone { host, source };
        let mut pages = 0;
        let failed = loop {
            let (silent, letters) = match self.orders.ask(Order::Leave) {
                Some(Ok(unsaid)) => unsaid,
                Some(Err(vcpu)) => break LeaveError::Vcpu { host, vcpu },
                None => break gone(Gone),
            };
            let quiet = silent.is_empty() && letters == 0;
            let staying = match self.memory.leave(quiet) {
                Ok(staying) => staying,
                Err(source) => break gone(source),
            };
            pages = pages.max(staying.pages);
            if staying.homes > 0 {
                break LeaveError::Homes { host, shards: staying.homes };
            }
            if quiet && staying.is_nothing() {
                let _: Option<()> = self.orders.ask(Order::Left);
                self.vcpus.left();
                return Ok(Left { pages, took: begun.elapsed() });
            }
            if begun.elapsed() > patience {
                break LeaveError::Late { host, what: still_here(staying, silent, letters), patience };
            }
            thread::sleep(LOOK_AGAIN);
        };
        self.vcpus.stay();
        // Fails when the part has ended.
        let _: Result<(), Gone> = self.memory.stay();
        Err(failed)
    }

    /// Forgets a host that has [left](Self::leave): its number may be another host's from now on, and its silence is no loss.
    ///
    /// # Errors
    /// [`DismissError`] says what it still has to do with the machine after `patience`, as far as is known here.
    pub fn dismiss(&self, host: HostId, patience: Duration) -> Result<(), DismissError> {
        if host == self.me || host == self.hub {
            return Err(DismissError::Stays(host));
        }
        let until = Instant::now() + patience;
        while let Some((vcpu, _)) = (0u8..).zip(self.vcpus()).find(|(_, at)| at.host == host) {
            if Instant::now() > until {
                return Err(DismissError::Vcpu { host, vcpu, patience });
            }
            thread::sleep(LOOK_AGAIN);
        }
        let named = self.memory.dismiss(host, until.saturating_duration_since(Instant::now()));
        if let Some(mention) = named.map_err(|source| DismissError::Gone { host, source })? {
            return Err(DismissError::Memory { host, mention, patience });
        }
        let mut addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        let _: Option<()> = self.orders.ask(|reply| Order::Dismiss(host, reply));
        addresses.remove(&host);
        self.mesh.remove_peer(peer_of(host));
        // Who comes with its number must not be blamed for the end of this connection.
        while self.mesh.figures().peers.contains_key(&peer_of(host)) && Instant::now() < until + patience {
            thread::sleep(LOOK_AGAIN);
        }
        Ok(())
    }
}

fn still_here(staying: Staying, silent: HostSet, letters: usize) -> StillHere {
    let Staying { moving, pages, silent: asks, unacknowledged, .. } = staying;
    let silent = HostSet::from_bits(silent.bits() | asks.bits()).iter().next();
    match (moving, pages, silent) {
        (0, 0, None) => StillHere::Messages(unacknowledged + letters),
        (0, 0, Some(host)) => StillHere::Silent(host),
        (0, pages, _) => StillHere::Pages(pages),
        (shards, ..) => StillHere::Moving(shards),
    }
}
