//! Shards whose home moves to another host, while the machine runs.
//!
//! ```text
//!   old home                                     new home                                  store
//!    relocate: freeze, drain
//!    hand over ── the entries, in parts ───────▶ take over ── claim (new home, epoch + 1) ──▶ compare and set
//!    settle ◀────────────────── Word ─────────── settle ◀──────────── word ───────────────────┘
//!    sends who asks to the new home
//! ```
//! Between hand-over and word both have the entries and neither begins anything. If the new home does not claim it, the old one does
//! ([`NodeControl::take_back`](super::NodeControl::take_back)); whoever the store names has it.

use super::bytes::PageBytes;
use super::control::RelocationError;
use super::error::{NodeError, Outcome, PeerError};
use super::node::{Life, MemoryNode};
use super::wire::{PART_ENTRIES_MAX, Packet, Part};
use crate::directory::{Entry, Handover, HostId, Message, PAGES_PER_SHARD, Route, ShardNumber};
use std::collections::{BTreeMap, BTreeSet};
use vmotion_model::{Epoch, PageNumber};
use vmotion_transport::mesh::Outgoing;

/// Requests that wait for the store's word, at most.
const PARKED_MAX: usize = 4096;

/// A shard whose entries are coming.
#[derive(Debug)]
struct Arriving {
    shard: ShardNumber,
    epoch: Epoch,
    entries: Vec<(PageNumber, Entry<PageBytes>)>,
}

/// What is on its way.
#[derive(Debug, Default)]
pub(super) struct Moving {
    /// Frozen here, to go there.
    leaving: BTreeMap<ShardNumber, HostId>,
    /// Handed over, and the store has not spoken.
    handed_over: BTreeMap<ShardNumber, HostId>,
    /// All that ever went from here.
    given: BTreeSet<ShardNumber>,
    /// One a peer: the parts of a shard follow each other.
    arriving: BTreeMap<HostId, Arriving>,
    /// Requests of hosts that know more than this one: that a shard is here.
    parked: Vec<(HostId, PageNumber, Message<PageBytes>)>,
}

impl Moving {
    /// Shards whose home was here.
    pub(super) fn given(&self) -> impl Iterator<Item = ShardNumber> {
        self.given.iter().copied()
    }

    /// What is on its way beside the homes that wait for the store.
    pub(super) fn under_way(&self) -> usize {
        self.arriving.len()
    }

    /// A shard that is on its way to or from `host`.
    pub(super) fn with(&self, host: HostId) -> Option<ShardNumber> {
        let leaving = self.leaving.iter().chain(&self.handed_over).find(|(_, to)| **to == host);
        leaving.map(|(shard, _)| *shard).or_else(|| self.arriving.get(&host).map(|arriving| arriving.shard))
    }

    /// The host has no part in anything any more.
    pub(super) fn forget(&mut self, host: HostId) {
        self.arriving.remove(&host);
        self.parked.retain(|(from, _, _)| *from != host);
    }
}

impl MemoryNode {
    /// Begins to move a shard's home away from here.
    pub(super) fn relocate(
        &mut self,
        shard: ShardNumber,
        to: HostId,
        out: &mut dyn Outgoing,
    ) -> Result<(), RelocationError> {
        if self.link(to).is_none() {
            return Err(RelocationError::Target(to));
        }
        self.homes.freeze(shard)?;
        self.moving.leaving.insert(shard, to);
        self.hand_over(shard, out);
        Ok(())
    }

    /// Sends the entries of a frozen shard as soon as its last transaction has ended.
    pub(super) fn hand_over(&mut self, shard: ShardNumber, out: &mut dyn Outgoing) {
        let Some(to) = self.moving.leaving.get(&shard).copied() else { return };
        let Some(Handover { shard, epoch, entries }) = self.homes.hand_over(shard) else { return };
        self.moving.leaving.remove(&shard);
        self.moving.handed_over.insert(shard, to);
        self.moving.given.insert(shard);
        let Some(link) = self.link(to) else {
            // It was fenced meanwhile.
            return self.take_back(shard);
        };
        let mut entries = entries.into_iter().peekable();
        loop {
            let part = Part {
                shard,
                epoch,
                entries: entries.by_ref().take(PART_ENTRIES_MAX).collect(),
                last: entries.peek().is_none(),
            };
            let last = part.last;
            link.send(Packet::Part(part), out);
            if last {
                break;
            }
        }
    }

    /// [`Self::hand_over`] of whatever can be by now.
    pub(super) fn hand_over_all(&mut self, out: &mut dyn Outgoing) {
        let leaving: Vec<_> = self.moving.leaving.keys().copied().collect();
        for shard in leaving {
            self.hand_over(shard, out);
        }
    }

    /// Asks the store to have back a shard that was handed over.
    pub(super) fn take_back(&mut self, shard: ShardNumber) {
        let route = self.table.route(PageNumber(shard.0 * PAGES_PER_SHARD));
        if let Some(route) = route.filter(|_| self.moving.handed_over.contains_key(&shard)) {
            self.registry.claim(shard, Route { home: self.host, epoch: route.epoch.next() });
        }
    }

    /// Entries of a shard that is to have its home here.
    pub(super) fn hear_part(&mut self, from: HostId, part: Part) -> Outcome {
        let Part { shard, epoch, last, entries } = part;
        let arriving =
            self.moving.arriving.entry(from).or_insert_with(|| Arriving { shard, epoch, entries: Vec::new() });
        let fits = (arriving.entries.len() + entries.len()) as u64 <= PAGES_PER_SHARD;
        if arriving.shard != shard || arriving.epoch != epoch || !fits {
            self.moving.arriving.remove(&from);
            return Err(PeerError::Parts(shard).into());
        }
        arriving.entries.extend(entries);
        if !last {
            return Ok(());
        }
        let Some(Arriving { shard, epoch, entries }) = self.moving.arriving.remove(&from) else { return Ok(()) };
        if self.life == Life::Left {
            // Its giver has it back when it asks for that.
            tracing::warn!(%shard, %from, "a shard comes to a host that has left the machine, and is not taken");
            return Ok(());
        }
        let lost = self.homes.take_over(Handover { shard, epoch, entries })?;
        if !lost.is_empty() {
            tracing::error!(%shard, pages = lost.len(), "a shard came with pages that are lost with their host");
        }
        self.registry.claim(shard, Route { home: self.host, epoch });
        Ok(())
    }

    /// The store has decided, and this host hears it first.
    pub(super) fn hear_store(&mut self, shard: ShardNumber, route: Route, out: &mut dyn Outgoing) -> Outcome {
        self.homes.settle(shard, route, &mut self.letters).map_err(NodeError::Store)?;
        if route.home == self.host {
            for link in self.links.iter_mut().flatten() {
                link.send(Packet::Word(shard, route), out);
            }
        }
        self.settled(shard, route, out)
    }

    /// A peer says that the store gave it a shard.
    pub(super) fn hear_word(
        &mut self,
        from: HostId,
        shard: ShardNumber,
        route: Route,
        out: &mut dyn Outgoing,
    ) -> Outcome {
        if route.home != from {
            return Err(PeerError::Word(shard).into());
        }
        self.homes.settle(shard, route, &mut self.letters)?;
        self.settled(shard, route, out)
    }

    pub(super) fn settled(&mut self, shard: ShardNumber, route: Route, out: &mut dyn Outgoing) -> Outcome {
        // An old word decides nothing.
        if self.homes.elsewhere(shard).is_some() || self.homes.serves(shard).is_some() {
            self.moving.handed_over.remove(&shard);
        }
        self.table.learn(shard, route);
        self.post(out);
        let of_shard = |(_, page, _): &(HostId, PageNumber, Message<PageBytes>)| ShardNumber::of(*page) == shard;
        let parked: Vec<_> = self.moving.parked.extract_if(.., |parked| of_shard(parked)).collect();
        for (from, page, request) in parked {
            self.home_hears(from, page, request, out)?;
        }
        Ok(())
    }

    /// A request for a page that this host does not know to be here yet: the store's word is on its way.
    pub(super) fn park(&mut self, from: HostId, page: PageNumber, request: Message<PageBytes>) -> Outcome {
        if self.moving.parked.len() >= PARKED_MAX {
            return Err(PeerError::Parked(ShardNumber::of(page)).into());
        }
        self.moving.parked.push((from, page, request));
        Ok(())
    }
}
