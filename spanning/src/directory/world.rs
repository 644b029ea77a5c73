//! A spanning machine without its network: hosts with memory, mappings and vCPUs that touch pages, around the functions that are
//! being checked. The model checker and the simulator bring the network.
//!
//! Memory is modelled as what was written: a page holds the number of its last write. A mapped page that does not hold the newest
//! write is what the protocol must never let a guest see, so nobody needs to read for it to be found.

use super::mutations::Mutation;
use super::*;
use std::collections::VecDeque;
use vmotion_model::{Epoch, PageNumber};

mod check;
mod driver;
mod network;

/// How many writes a page had seen when these bytes were written.
pub(super) type Stamp = u32;

/// What travels between hosts.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Packet {
    Page(PageNumber, Message<Stamp>),
    Handover(Handover<Stamp>),
    /// The store's word about a shard.
    Word(ShardNumber, Route),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Flying {
    pub(super) from: HostId,
    pub(super) to: HostId,
    pub(super) packet: Packet,
}

impl Flying {
    /// Packets of one lane between two hosts arrive in order.
    pub(super) fn lane(&self) -> (HostId, HostId, usize) {
        let lane = match &self.packet {
            Packet::Page(_, message) => match message.class() {
                Class::Request => 0,
                Class::Coherence => 1,
                Class::Reply => 2,
            },
            Packet::Handover(_) => 3,
            Packet::Word(..) => 4,
        };
        (self.from, self.to, lane)
    }
}

/// One page on one host: the holder, and the memory and the vCPU around it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(super) struct Spot {
    pub(super) holder: Holder,
    mapped: Option<Access>,
    frame: Stamp,
    /// Effects that wait to be carried out.
    todo: VecDeque<Effect<Stamp>>,
    /// Effects that are carried out whenever it pleases them; only of an installation that is not waited for.
    slow: VecDeque<Effect<Stamp>>,
    /// A vCPU waits to do this.
    waits: Option<Access>,
    pub(super) poisoned: bool,
    pub(super) timer: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Host {
    pub(super) homes: Homes<Stamp>,
    pub(super) table: Table,
    pub(super) spots: Vec<Spot>,
    pub(super) fenced: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct World {
    pub(super) hosts: Vec<Host>,
    pub(super) store: Vec<Route>,
    /// The newest write of each page.
    latest: Vec<Stamp>,
    /// Who was granted each page and has not said `Done`.
    granted: Vec<Option<(HostId, Txn)>>,
    pub(super) now: Moment,
    /// The hold window.
    pub(super) hold: u64,
    /// What was sent and is not in the network yet.
    pub(super) sent: Vec<Flying>,
    /// The first thing that went wrong.
    pub(super) wrong: Option<String>,
    pub(super) mutation: Option<Mutation>,
    /// Where each shard that is being moved goes.
    targets: Vec<HostId>,
    /// Pages of a shard that are used.
    width: usize,
}

pub(super) fn host(index: usize) -> HostId {
    HostId::new(u8::try_from(index).unwrap()).unwrap()
}

impl World {
    /// `shards` shards of which `width` pages are used; shard n has its home on host n at first. The last `newcomers` hosts know nothing, and ask
    /// host 0.
    pub(super) fn new(hosts: usize, newcomers: usize, shards: usize, width: usize, mutation: Option<Mutation>) -> Self {
        let store: Vec<_> = (0..shards).map(|shard| Route { home: host(shard % hosts), epoch: Epoch::FIRST }).collect();
        let new_host = |index| {
            let (mut homes, mut table) = (Homes::new(host(index)), Table::default());
            for (shard, route) in (0..).map(ShardNumber).zip(&store) {
                let route = if index + newcomers < hosts { *route } else { Route::ask(host(0)) };
                homes.settle(shard, route, &mut Vec::new()).unwrap();
                table.learn(shard, route);
            }
            Host { homes, table, spots: vec![Spot::default(); shards * width], fenced: false }
        };
        Self {
            hosts: (0..hosts).map(new_host).collect(),
            latest: vec![0; shards * width],
            granted: vec![None; shards * width],
            now: Moment(0),
            hold: 0,
            sent: Vec::new(),
            wrong: None,
            mutation,
            targets: store.iter().map(|route| route.home).collect(),
            width,
            store,
        }
    }

    pub(super) fn pages(&self) -> usize {
        self.latest.len()
    }

    fn number(&self, page: usize) -> PageNumber {
        PageNumber((page / self.width) as u64 * PAGES_PER_SHARD + (page % self.width) as u64)
    }

    pub(super) fn index(&self, page: PageNumber) -> usize {
        let shard = usize::try_from(ShardNumber::of(page).0).unwrap();
        shard * self.width + usize::try_from(page.0 % PAGES_PER_SHARD).unwrap()
    }

    pub(super) fn mutated(&self, mutation: Mutation) -> bool {
        self.mutation == Some(mutation)
    }

    pub(super) fn fail(&mut self, what: impl FnOnce() -> String) {
        if self.wrong.is_none() {
            self.wrong = Some(what());
        }
    }

    // The guest and the operator

    /// A vCPU touches a page. Not while it waits for the page already, and not while the pager is at it.
    pub(super) fn touch(&mut self, at: usize, page: usize, access: Access) -> bool {
        let Host { spots, fenced, .. } = &mut self.hosts[at];
        let spot = &mut spots[page];
        if spot.waits.is_some() || spot.poisoned || *fenced {
            return false;
        }
        if spot.mapped >= Some(access) {
            if access == Access::Write {
                self.latest[page] += 1;
                spot.frame = self.latest[page];
            }
            self.check(page);
            return access == Access::Write;
        }
        if !spot.todo.is_empty() {
            return false;
        }
        spot.waits = Some(access);
        self.step(at, page, Event::Fault(access));
        true
    }

    /// No page was ever touched.
    pub(super) fn is_untouched(&self) -> bool {
        self.hosts.iter().all(|host| host.spots.iter().all(|spot| *spot == Spot::default()))
    }

    pub(super) fn evict(&mut self, at: usize, page: usize) -> bool {
        let spot = &self.hosts[at].spots[page];
        if !spot.todo.is_empty() || spot.holder.rights() == Rights::Invalid || !spot.holder.is_settled() {
            return false;
        }
        self.step(at, page, Event::Evict);
        true
    }

    /// Begins to move a shard's home.
    pub(super) fn relocate(&mut self, shard: usize, to: usize) -> bool {
        let (number, from) = (ShardNumber(shard as u64), self.store[shard].home);
        if from == host(to) || self.hosts[from.index()].homes.freeze(number).is_err() {
            return false;
        }
        self.targets[shard] = host(to);
        self.hand_over(from.index(), number);
        true
    }

    /// The old home wins the shard back while it is on its way.
    pub(super) fn take_back(&mut self, shard: usize) -> bool {
        let (number, Route { home, epoch }) = (ShardNumber(shard as u64), self.store[shard]);
        if self.targets[shard] == home || self.hosts[home.index()].homes.serves(number).is_some() {
            return false;
        }
        self.targets[shard] = home;
        self.word(shard, Route { home, epoch: epoch.next() }, &[home]);
        true
    }

    /// The lease of a host is over; it has stopped before anybody acts on it.
    pub(super) fn fence(&mut self, at: usize) {
        self.hosts[at].fenced = true;
        for page in 0..self.pages() {
            let (now, epoch) = (self.now, self.store[0].epoch);
            let spot = &mut self.hosts[at].spots[page];
            let (holder, _) = spot.holder.step::<Stamp>(At { now, epoch }, Event::Fenced).unwrap();
            *spot = Spot { holder, poisoned: true, ..Spot::default() };
            self.granted[page] = self.granted[page].filter(|(granted, _)| *granted != host(at));
        }
        for other in (0..self.hosts.len()).filter(|other| *other != at) {
            let mut out = Vec::new();
            let lost = self.hosts[other].homes.fence(host(at), &mut out);
            if self.mutated(Mutation::LostPageServed) {
                for page in lost {
                    let home = self.hosts[other].homes.home_mut(page).unwrap();
                    home.entry.copies = Copies::Shared { sharers: HostSet::EMPTY, content: Content::Zero };
                }
            }
            self.send_all(other, out);
        }
    }

    fn hand_over(&mut self, from: usize, shard: ShardNumber) {
        let Some(mut handover) = self.hosts[from].homes.hand_over(shard) else { return };
        if self.mutated(Mutation::SharersLostInRelocation) {
            for (_, entry) in &mut handover.entries {
                if let Copies::Shared { sharers, .. } = &mut entry.copies {
                    *sharers = HostSet::EMPTY;
                }
            }
        }
        if self.mutated(Mutation::EntriesLostInRelocation) {
            handover.entries.clear();
        }
        let to = self.targets[usize::try_from(shard.0).unwrap()];
        self.sent.push(Flying { from: host(from), to, packet: Packet::Handover(handover) });
    }

    /// The store has decided; those who asked hear it, others by redirection.
    fn word(&mut self, shard: usize, route: Route, to: &[HostId]) {
        if route.epoch == self.store[shard].epoch.next() {
            self.store[shard] = route;
        }
        let word = Packet::Word(ShardNumber(shard as u64), self.store[shard]);
        let flying = |to: &HostId| Flying { from: *to, to: *to, packet: word.clone() };
        self.sent.extend(to.iter().map(flying));
    }
}
