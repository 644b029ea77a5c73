//! The homes on one host, shard by shard, and how a shard moves to another host while the machine runs.
//!
//! ```text
//!   at the old home   Serving ──freeze──▶ Draining ──hand over──▶ Waiting ──settle──▶ Elsewhere        or Serving again
//!   at the new home   Elsewhere ─────────────── take over ──────▶ Waiting ──settle──▶ Serving          or Elsewhere again
//! ```
//! Between the hand-over and the store's word both hosts have the entries, requests wait at both, and neither begins anything: that is the one
//! state `Waiting`. The word is a compare-and-set of `shard → (home, epoch)`; whoever it does not name answers `Redirect` to all that
//! waited, and forgets. So there is one home per shard and epoch, and who is asked in vain says where to ask. A home that is
//! moved back to where it was is the same in the next epoch: the old one wins the competing compare-and-set.
//!
//! A shard without its entries is never served, except a machine's first: pages that somebody wrote must not become zero.

use super::{
    HostId, HostSet, Message, Misfit, Outgoing, PAGES_PER_SHARD, ProtocolError, Reply, Route, ShardNumber,
    home::{Entry, Home, Place},
};
use std::collections::BTreeMap;
use thiserror::Error;
use vmotion_model::{Epoch, PageNumber};

#[cfg(test)]
mod tests;

/// A shard's pages on their way to another home.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Handover<C> {
    /// Which shard.
    pub shard: ShardNumber,
    /// The epoch that the new home is to win.
    pub epoch: Epoch,
    /// At most [`PAGES_PER_SHARD`]; pages that are missing were never touched.
    pub entries: Vec<(PageNumber, Entry<C>)>,
}

/// Why a shard cannot be moved, taken over or settled as asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Error)]
pub enum ShardError {
    /// Its home is not here.
    #[error("{0} has its home elsewhere")]
    Elsewhere(ShardNumber),
    /// It is on its way already, or was handed over twice.
    #[error("{0} is being moved already")]
    Moving(ShardNumber),
    /// Entries of a shard that is served here.
    #[error("{0} is served here, and its entries come from elsewhere")]
    ServedHere(ShardNumber),
    /// A page that is not in the shard, twice there, or too many.
    #[error("The entries of {0} are not of pages in it")]
    ForeignPages(ShardNumber),
    /// The store names this host, and it does not have what the pages hold.
    #[error("{0} was given to this host without its entries")]
    WithoutEntries(ShardNumber),
}

/// How many shards have their home here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Here {
    /// Served here.
    pub served: usize,
    /// On their way from or to here.
    pub waiting: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Phase {
    Serving,
    Draining,
    /// The store decides who has it in the shard's epoch.
    Waiting,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Shard<C> {
    Here { phase: Phase, epoch: Epoch, pages: BTreeMap<PageNumber, Home<C>> },
    Elsewhere(Route),
}

/// All homes on one host.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Homes<C> {
    host: HostId,
    shards: BTreeMap<ShardNumber, Shard<C>>,
    fenced: HostSet,
}

impl<C: Clone + Eq> Homes<C> {
    /// None yet: shards come by [`settle`](Self::settle).
    #[must_use]
    pub const fn new(host: HostId) -> Self {
        Self { host, shards: BTreeMap::new(), fenced: HostSet::EMPTY }
    }

    /// A request or an answer arrives from `from`. What is to be sent is added to `out`.
    ///
    /// # Errors
    /// It fits no rule, and nothing has changed.
    pub fn receive(
        &mut self,
        from: HostId,
        page: PageNumber,
        message: Message<C>,
        out: &mut Vec<Outgoing<C>>,
    ) -> Result<(), Misfit> {
        self.try_receive(from, page, message, out).map_err(|error| Misfit { from, page, error })
    }

    fn try_receive(
        &mut self,
        from: HostId,
        page: PageNumber,
        message: Message<C>,
        out: &mut Vec<Outgoing<C>>,
    ) -> Result<(), ProtocolError> {
        if self.fenced.contains(from) {
            return Err(ProtocolError::Fenced);
        }
        let shard = self.shards.get_mut(&ShardNumber::of(page)).ok_or(ProtocolError::UnknownShard)?;
        match (shard, message) {
            (Shard::Elsewhere(route), Message::Request { epoch: of, .. }) => {
                // Sent away only to where it does not come from, so that nobody asks in a circle.
                if of >= route.epoch {
                    return Err(ProtocolError::Superseded(of));
                }
                let message = Message::Reply(Reply::Redirect { of, home: route.home, epoch: route.epoch });
                out.push(Outgoing { to: HostSet::only(from), page, message });
                Ok(())
            }
            // All transactions ended before the shard left, so this one is late.
            (Shard::Elsewhere(_), Message::Answer { .. }) => Ok(()),
            (Shard::Here { phase, epoch, pages }, Message::Request { epoch: sent, request }) => {
                if sent > *epoch {
                    return Err(ProtocolError::Superseded(sent));
                }
                let place = Place { page, epoch: *epoch, open: *phase == Phase::Serving };
                pages.entry(page).or_default().request(place, from, sent, request, out)
            }
            (Shard::Here { phase, epoch, pages }, Message::Answer { txn, answer }) => {
                let place = Place { page, epoch: *epoch, open: *phase == Phase::Serving };
                let home = pages.get_mut(&page).ok_or(ProtocolError::AnswerFromFuture(txn))?;
                home.answer(place, from, txn, answer, out)
            }
            (_, Message::Order { .. } | Message::Reply(_)) => Err(ProtocolError::Unasked),
        }
    }

    /// No transaction of the shard begins any more.
    ///
    /// # Errors
    /// It is not served here.
    pub fn freeze(&mut self, shard: ShardNumber) -> Result<(), ShardError> {
        match self.shards.get_mut(&shard) {
            Some(Shard::Here { phase: phase @ Phase::Serving, .. }) => *phase = Phase::Draining,
            Some(Shard::Here { .. }) => return Err(ShardError::Moving(shard)),
            Some(Shard::Elsewhere(_)) | None => return Err(ShardError::Elsewhere(shard)),
        }
        Ok(())
    }

    /// The entries of a frozen shard, once, when the last transaction has ended. From then on only the store's word counts.
    pub fn hand_over(&mut self, shard: ShardNumber) -> Option<Handover<C>> {
        let Some(Shard::Here { phase: phase @ Phase::Draining, epoch, pages }) = self.shards.get_mut(&shard) else {
            return None;
        };
        if !pages.values().all(Home::is_idle) {
            return None;
        }
        *phase = Phase::Waiting;
        *epoch = epoch.next();
        let entries = pages.iter().map(|(page, home)| (*page, home.entry().clone())).collect();
        Some(Handover { shard, epoch: *epoch, entries })
    }

    /// Another host hands a shard over to this one, which may then ask the store for it. The pages that are lost, for a host that
    /// is fenced here had their only copy.
    ///
    /// # Errors
    /// It is here already, or the entries are not the shard's.
    pub fn take_over(&mut self, handover: Handover<C>) -> Result<Vec<PageNumber>, ShardError> {
        let Handover { shard, epoch, entries } = handover;
        match self.shards.get(&shard) {
            Some(Shard::Here { .. }) => return Err(ShardError::ServedHere(shard)),
            Some(Shard::Elsewhere(route)) if route.epoch >= epoch => return Err(ShardError::Elsewhere(shard)),
            Some(Shard::Elsewhere(_)) | None => {}
        }
        let foreign = entries.iter().any(|(page, _)| ShardNumber::of(*page) != shard);
        if foreign || entries.len() as u64 > PAGES_PER_SHARD {
            return Err(ShardError::ForeignPages(shard));
        }
        let mut pages: BTreeMap<PageNumber, Home<C>> =
            entries.into_iter().map(|(page, entry)| (page, entry.into())).collect();
        let mut lost = Vec::new();
        for (page, home) in &mut pages {
            let place = Place { page: *page, epoch, open: false };
            // Nothing is under way, so there is nothing to say.
            if self.fenced.iter().filter(|host| home.fence(place, *host, &mut Vec::new())).count() > 0 {
                lost.push(*page);
            }
        }
        self.shards.insert(shard, Shard::Here { phase: Phase::Waiting, epoch, pages });
        Ok(lost)
    }

    /// The store's word: who has the shard, and since when. What is to be sent is added to `out`.
    ///
    /// # Errors
    /// It names this host, which does not have the entries; or it names another while this one serves and has handed nothing over. Then
    /// this host must stop.
    pub fn settle(&mut self, shard: ShardNumber, route: Route, out: &mut Vec<Outgoing<C>>) -> Result<(), ShardError> {
        let mine = route.home == self.host;
        match self.shards.get_mut(&shard) {
            None if mine && route.epoch == Epoch::FIRST => {
                let first = Shard::Here { phase: Phase::Serving, epoch: route.epoch, pages: BTreeMap::new() };
                self.shards.insert(shard, first);
            }
            None if mine => return Err(ShardError::WithoutEntries(shard)),
            None => _ = self.shards.insert(shard, Shard::Elsewhere(route)),
            Some(Shard::Elsewhere(known)) if route.epoch <= known.epoch => {}
            Some(Shard::Elsewhere(_)) if mine => return Err(ShardError::WithoutEntries(shard)),
            Some(Shard::Elsewhere(known)) => *known = route,
            // Known, or older.
            Some(Shard::Here { phase: Phase::Serving | Phase::Draining, epoch, .. }) if route.epoch <= *epoch => {}
            Some(Shard::Here { epoch, .. }) if route.epoch < *epoch => {}
            Some(Shard::Here { phase: phase @ Phase::Waiting, epoch, pages }) if mine && route.epoch == *epoch => {
                *phase = Phase::Serving;
                for (page, home) in pages {
                    home.open(Place { page: *page, epoch: *epoch, open: true }, out);
                }
            }
            Some(Shard::Here { .. }) if mine => return Err(ShardError::WithoutEntries(shard)),
            Some(Shard::Here { phase: Phase::Serving | Phase::Draining, .. }) => {
                return Err(ShardError::ServedHere(shard));
            }
            Some(Shard::Here { phase: Phase::Waiting, .. }) => {
                if let Some(Shard::Here { pages, .. }) = self.shards.insert(shard, Shard::Elsewhere(route)) {
                    for (page, home) in pages {
                        home.redirect(page, route.home, route.epoch, out);
                    }
                }
            }
        }
        Ok(())
    }

    /// The lease of `host` is over and it runs nothing any more: it has no page, and says nothing that counts. The pages whose
    /// only copy it had, which are lost. Shards whose home it was are not among them: their directory is lost as a whole.
    pub fn fence(&mut self, host: HostId, out: &mut Vec<Outgoing<C>>) -> Vec<PageNumber> {
        self.fenced = self.fenced.with(host);
        let mut lost = Vec::new();
        for shard in self.shards.values_mut() {
            let Shard::Here { phase, epoch, pages } = shard else { continue };
            for (page, home) in pages {
                let place = Place { page: *page, epoch: *epoch, open: *phase == Phase::Serving };
                if home.fence(place, host, out) {
                    lost.push(*page);
                }
            }
        }
        lost
    }

    /// A host of this number comes to the machine, whoever had it before.
    pub const fn admit(&mut self, host: HostId) {
        self.fenced = self.fenced.without(host);
    }

    /// Shards that are served here, and those whose entries are here while the store has not spoken.
    #[must_use]
    pub fn here(&self) -> Here {
        let mut here = Here::default();
        for shard in self.shards.values() {
            match shard {
                Shard::Here { phase: Phase::Waiting, .. } => here.waiting += 1,
                Shard::Here { .. } => here.served += 1,
                Shard::Elsewhere(_) => {}
            }
        }
        here
    }

    /// Who has `shard`, if that is another host and was said here.
    #[must_use]
    pub fn elsewhere(&self, shard: ShardNumber) -> Option<Route> {
        match self.shards.get(&shard) {
            Some(Shard::Elsewhere(route)) => Some(*route),
            Some(Shard::Here { .. }) | None => None,
        }
    }

    /// Looks for `host` in the homes of `shards` shards from `from` on: a page that it has, wants or is told of; and where to look on.
    #[must_use]
    pub fn find(&self, host: HostId, from: ShardNumber, shards: usize) -> (Option<PageNumber>, Option<ShardNumber>) {
        let mut rest = self.shards.range(from..);
        for (_, shard) in rest.by_ref().take(shards) {
            let Shard::Here { pages, .. } = shard else { continue };
            if let Some((page, _)) = pages.iter().find(|(_, home)| home.concerns(host)) {
                return (Some(*page), None);
            }
        }
        (None, rest.next().map(|(shard, _)| *shard))
    }

    /// Pages with their home here that are lost if `host` is: nobody else has what was last written there.
    #[must_use]
    pub fn only_at(&self, host: HostId) -> usize {
        let pages = self.shards.values().filter_map(|shard| match shard {
            Shard::Here { pages, .. } => Some(pages.values()),
            Shard::Elsewhere(_) => None,
        });
        pages.flatten().filter(|home| home.writes(host)).count()
    }

    #[cfg(test)]
    pub(super) fn home_mut(&mut self, page: PageNumber) -> Option<&mut Home<C>> {
        match self.shards.get_mut(&ShardNumber::of(page)) {
            Some(Shard::Here { pages, .. }) => pages.get_mut(&page),
            Some(Shard::Elsewhere(_)) | None => None,
        }
    }

    /// The epoch in which this host serves the shard; `None` when it does not.
    #[must_use]
    pub fn serves(&self, shard: ShardNumber) -> Option<Epoch> {
        match self.shards.get(&shard) {
            Some(Shard::Here { phase: Phase::Serving | Phase::Draining, epoch, .. }) => Some(*epoch),
            Some(_) | None => None,
        }
    }

    /// A page whose home is here, if it was ever touched.
    #[must_use]
    pub fn home(&self, page: PageNumber) -> Option<&Home<C>> {
        match self.shards.get(&ShardNumber::of(page)) {
            Some(Shard::Here { pages, .. }) => pages.get(&page),
            Some(Shard::Elsewhere(_)) | None => None,
        }
    }
}
