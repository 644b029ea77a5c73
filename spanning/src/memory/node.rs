//! A node, and what a mesh asks of it.

use super::audit::Auditor;
use super::bytes::{PAGE_BYTES, PageBytes};
use super::control::{Mailbox, NodeControl, ShardRegistry};
use super::error::{NodeError, Outcome, PeerError, Trouble};
use super::hosts::Leaving;
use super::link::Link;
use super::moving::Moving;
use super::pull::Pulls;
use super::spot::Spots;
use super::stats::Counters;
use super::wire::Known;
use crate::directory::{
    Homes, HostId, HostSet, Message, Moment, Outgoing as Letter, PAGES_PER_SHARD, Route, ShardNumber, Table, shards,
};
use rustix::fd::{AsFd, BorrowedFd};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashSet, VecDeque};
use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};
use vmotion_model::{MemoryLayout, PageNumber};
use vmotion_pager::{CoherentMemory, GuestRegion};
use vmotion_transport::mesh::{MeshUser, Outgoing, Peer, STREAMS_MAX, StreamNumber};
use vmotion_transport::session::SessionError;

/// What a node is made of.
pub struct NodeConfig<'a> {
    /// This host.
    pub host: HostId,
    /// The hosts that routes and entries may name, this one too; more are [admitted](NodeControl::admit).
    pub hosts: HostSet,
    /// The machine's memory.
    pub layout: MemoryLayout,
    /// The memfd that holds it on this host, 4 KiB pages.
    pub memfd: &'a File,
    /// Where the guest's mapping of each of the layout's regions is.
    pub regions: &'a [GuestRegion],
    /// Who has each shard, as the store says, or [whom to ask](Route::ask). A machine's first routes have [`Epoch::FIRST`](vmotion_model::Epoch::FIRST).
    pub routes: &'a mut dyn Iterator<Item = (ShardNumber, Route)>,
    /// The first of four streams of the mesh; the lower ones are for what is more urgent than memory.
    pub first_stream: u8,
    /// What a relocation asks.
    pub registry: Box<dyn ShardRegistry>,
    /// Called once by the node's thread when it cannot go on: the machine must be stopped on this host.
    pub on_failure: Box<dyn FnOnce(Arc<NodeError>) + Send>,
    /// Take the time of every step ([`Costs`](super::Costs)): about 0.5 µs a fault.
    pub measures: bool,
    /// Compare the bytes of copies with those of their versions: about 2 µs and a small message a copy. On all hosts, or on none.
    pub audit: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Life {
    Serving,
    /// It holds nothing and serves nothing, and only tells others where homes are.
    Left,
    /// No page is here, and nobody who touches one goes on.
    Fenced,
    Stopped,
}

/// All state of a machine's memory on one host; see [`super`]. Given to a mesh, which calls it.
pub struct MemoryNode {
    pub(super) host: HostId,
    pub(super) known: Known,
    pub(super) memory: CoherentMemory,
    pub(super) table: Table,
    pub(super) homes: Homes<PageBytes>,
    pub(super) spots: Spots,
    /// By the host's number, up to the highest; none for this host.
    pub(super) links: Vec<Option<Link>>,
    /// What this host says to itself, in order.
    pub(super) local: VecDeque<(PageNumber, Message<PageBytes>)>,
    /// What homes want said; empty between calls.
    pub(super) letters: Vec<Letter<PageBytes>>,
    /// When orders that were put off are due, and who gave them.
    pub(super) timers: BinaryHeap<Reverse<(Moment, PageNumber, HostId)>>,
    pub(super) first_stream: u8,
    pub(super) moving: Moving,
    pub(super) leaving: Option<Leaving>,
    /// Hosts that were dismissed: what still comes of them is nothing.
    pub(super) former: HostSet,
    /// How often this host wanted to leave.
    pub(super) attempts: u64,
    pub(super) registry: Box<dyn ShardRegistry>,
    /// Pages to be given up, and those that are being given up.
    pub(super) evictions: VecDeque<PageNumber>,
    pub(super) putting: HashSet<PageNumber>,
    pub(super) pulls: Pulls,
    pub(super) counters: Counters,
    pub(super) measures: bool,
    pub(super) auditor: Option<Auditor>,
    /// A page that is being read.
    pub(super) buffer: Box<[u8; PAGE_BYTES]>,
    pub(super) life: Life,
    start: Instant,
    random: u64,
    pub(super) mailbox: Arc<Mailbox>,
    on_failure: Option<Box<dyn FnOnce(Arc<NodeError>) + Send>>,
}

impl MemoryNode {
    /// Streams of the mesh that a node needs, in a row.
    pub const STREAMS: u8 = 4;

    /// From here on every touch of the machine's memory on this host waits for a grant, and somebody must drive the node.
    ///
    /// # Errors
    /// [`NodeError`] says what the host or the configuration lacks.
    pub fn new(config: NodeConfig<'_>) -> Result<(Self, NodeControl), NodeError> {
        let NodeConfig {
            host,
            hosts,
            layout,
            memfd,
            regions,
            routes,
            first_stream,
            registry,
            on_failure,
            measures,
            audit,
        } = config;
        let problem = |problem| NodeError::Setup { problem };
        if !hosts.contains(host) {
            return Err(problem("this host is not among its hosts"));
        }
        if first_stream > STREAMS_MAX - Self::STREAMS {
            return Err(problem("there are not four streams left"));
        }
        let memory = CoherentMemory::new(memfd, regions).map_err(NodeError::Memory)?;
        if memory.pages() != layout.total_pages() {
            return Err(problem("the layout and the mappings are not of one size"));
        }
        let (mut table, mut homes, mut letters) = (Table::default(), Homes::new(host), Vec::new());
        for (shard, route) in routes {
            table.learn(shard, route);
            homes.settle(shard, route, &mut letters).map_err(NodeError::Store)?;
        }
        let first_page = |shard: ShardNumber| PageNumber(shard.0 * PAGES_PER_SHARD);
        if shards(&layout).any(|shard| table.route(first_page(shard)).is_none_or(|route| !hosts.contains(route.home))) {
            return Err(problem("a part of its memory has no home, or one that is not among its hosts"));
        }
        let last_host = hosts.iter().last().map_or(0, HostId::number);
        let new_link = |number| {
            let peer = HostId::new(number).filter(|peer| *peer != host && hosts.contains(*peer))?;
            Some(Link::new(peer, first_stream))
        };
        let mailbox = Arc::new(Mailbox::new()?);
        let node = Self {
            host,
            known: Known { layout, hosts },
            memory,
            table,
            homes,
            spots: Spots::default(),
            links: (0..=last_host).map(new_link).collect(),
            local: VecDeque::new(),
            letters,
            timers: BinaryHeap::new(),
            first_stream,
            moving: Moving::default(),
            leaving: None,
            former: HostSet::EMPTY,
            attempts: 0,
            registry,
            evictions: VecDeque::new(),
            putting: HashSet::new(),
            pulls: Pulls::default(),
            counters: Counters::default(),
            measures,
            auditor: audit.then(Auditor::default),
            buffer: Box::new([0; PAGE_BYTES]),
            life: Life::Serving,
            start: Instant::now(),
            random: 0x9e37_79b9_7f4a_7c15 ^ (u64::from(host.number()) << 32),
            mailbox: Arc::clone(&mailbox),
            on_failure: Some(on_failure),
        };
        Ok((node, NodeControl { mailbox }))
    }

    /// The time, for the directory.
    pub(super) fn now(&self) -> Moment {
        Moment(u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX))
    }

    /// Numbers that look random (xorshift64).
    pub(super) const fn next_random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    /// The beginning of something whose time is taken, if it is.
    pub(super) fn clock(&self) -> Option<Instant> {
        self.measures.then(Instant::now)
    }

    pub(super) fn link(&mut self, host: HostId) -> Option<&mut Link> {
        self.links.get_mut(host.index())?.as_mut()
    }

    /// Carries `act` out, and all that this host then has to say to itself.
    fn pass(&mut self, out: &mut dyn Outgoing, act: impl FnOnce(&mut Self, &mut dyn Outgoing) -> Outcome) -> Outcome {
        let start = self.clock();
        self.counters.counts.passes += 1;
        let acted = act(self, out);
        // What a peer does wrong does not keep this host from listening to itself.
        let listened = self.listen(out).and_then(|()| self.go_on(out));
        self.counters.costs.passes.since(start);
        match (acted, listened) {
            (Err(Trouble::Node(error)), _) | (Ok(()), Err(Trouble::Node(error))) => Err(Trouble::Node(error)),
            (Err(Trouble::Peer(_)), Err(Trouble::Node(error))) => Err(Trouble::Node(error)),
            (acted, listened) => acted.and(listened),
        }
    }

    /// What this host cannot go on after. Returns what the peer did wrong, if that is all.
    pub(super) fn judge(&mut self, peer: Option<Peer>, outcome: Outcome) -> Result<(), PeerError> {
        match outcome {
            Ok(()) => Ok(()),
            Err(Trouble::Peer(error)) => {
                self.counters.counts.misfits += 1;
                let error_chain = vmotion_model::error_chain(&error);
                tracing::warn!(peer = ?peer, error = error_chain, "a peer breaks the page protocol");
                Err(error)
            }
            Err(Trouble::Node(error)) => {
                tracing::error!(
                    error = vmotion_model::error_chain(&error),
                    "the machine's memory cannot be served any more"
                );
                self.life = Life::Stopped;
                let error = self.mailbox.fail(error);
                if let Some(on_failure) = self.on_failure.take() {
                    on_failure(error);
                }
                Ok(())
            }
        }
    }
}

// Nothing is awaited in the mesh's sense, though threads wait for pages: the looking thread would be on a processor that vCPUs use. Measured
// with two of them on two processors: a fault takes 155 µs instead of 55.
impl MeshUser for MemoryNode {
    fn wakes<'a>(&'a self, into: &mut Vec<BorrowedFd<'a>>) {
        into.push(self.mailbox.as_fd());
        // Who is not served any more would make it readable for ever.
        if self.life == Life::Serving {
            into.push(self.memory.as_fd());
        }
    }

    fn deadline(&self) -> Option<Instant> {
        if self.life == Life::Stopped {
            return None;
        }
        let timer = self.timers.peek().map(|Reverse((due, ..))| *due);
        let links = self.links.iter().flatten().filter_map(Link::deadline).min();
        let due = timer.into_iter().chain(links).min()?;
        Some(self.start + Duration::from_micros(due.0))
    }

    fn woken(&mut self, out: &mut dyn Outgoing) {
        let outcome = self.pass(out, Self::wake_up);
        // Orders that were put off are somebody's messages too: the connection is not at hand, the log is.
        let _ = self.judge(None, outcome);
    }

    fn connected(&mut self, peer: Peer, out: &mut dyn Outgoing) {
        let fenced = self.life == Life::Stopped;
        if let Some(link) = HostId::new(peer.0).and_then(|host| self.link(host)).filter(|_| !fenced) {
            link.connect(out);
        }
    }

    fn lost(&mut self, peer: Peer, why: &SessionError, _: &mut dyn Outgoing) {
        tracing::info!(peer = peer.0, why = vmotion_model::error_chain(why), "the connection with a host is lost");
        if let Some(link) = HostId::new(peer.0).and_then(|host| self.link(host)) {
            link.disconnect();
        }
    }

    fn received(
        &mut self,
        from: Peer,
        stream: StreamNumber,
        message: &[u8],
        out: &mut dyn Outgoing,
    ) -> Result<(), SessionError> {
        if self.life == Life::Stopped {
            return Ok(());
        }
        let outcome = self.pass(out, |node, out| node.hear_peer(from, stream, message, out));
        let judged = self.judge(Some(from), outcome);
        judged.map_err(|error| SessionError::Protocol(vmotion_model::error_chain(&error)))
    }
}

impl Drop for MemoryNode {
    fn drop(&mut self) {
        self.mailbox.close();
    }
}
