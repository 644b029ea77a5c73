//! Hosts that come to a running machine, and leave it.
//!
//! ```text
//!  who leaves                                          each other host
//!    gives up its pages: Put ───────────────────────▶  their homes
//!    Gone: who has the shards that it had ──────────▶  learns it: from now on nothing new is asked of who leaves
//!    Leaving ───────────────────────────────────────▶
//!    ◀──────────── Farewell, after all requests ─────
//!    has answered them all (Redirect), and all of it
//!    is acknowledged: it has left
//!    Left ──────────────────────────────────────────▶  forgets it: its number is free
//! ```
//! So when a host has left, no home names it, no table does, and nobody waits for a word of it. What is still on its way to or from it is
//! acknowledgements, and redirections that are older than what their hearers know.

use super::control::Gone;
use super::error::{NodeError, Outcome, PeerError, Trouble};
use super::link::Link;
use super::node::{Life, MemoryNode};
use super::wire::Packet;
use super::{Command, NodeControl};
use crate::directory::{HostId, HostSet, Rights, Route, ShardNumber};
use std::fmt;
use std::thread;
use std::time::{Duration, Instant};
use vmotion_model::PageNumber;
use vmotion_transport::mesh::Outgoing;

/// Shards that are looked through in one pass, so that no fault waits long for it.
const SHARDS_A_LOOK: usize = 16;
/// How long until something is looked for again that usually goes away.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// What keeps a host that wants to leave in the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Staying {
    /// Shards whose homes are here.
    pub homes: usize,
    /// Shards whose homes are on their way, from here or to here.
    pub moving: usize,
    /// Pages that are held, asked for, or given up and not taken over yet.
    pub pages: usize,
    /// Hosts that may still ask for something here.
    pub silent: HostSet,
    /// Messages that were not acknowledged.
    pub unacknowledged: usize,
}

impl Staying {
    /// Nothing does.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

/// How a host's memory still has to do with another host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mention {
    /// The other one has the shard, as far as is known.
    Home(ShardNumber),
    /// The shard's home is on its way between the two.
    Moving(ShardNumber),
    /// The other one has the page, or waits for it, and its home is here.
    Page(PageNumber),
    /// The other one is there, and has not said that it has nothing any more.
    Present,
}

impl fmt::Display for Mention {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Home(shard) => write!(f, "it has the home of {shard}"),
            Self::Moving(shard) => write!(f, "the home of {shard} is on its way to or from it"),
            Self::Page(page) => write!(f, "it has, or wants, {page}"),
            Self::Present => f.write_str("it has not left"),
        }
    }
}

/// An attempt to leave.
#[derive(Debug)]
pub(super) struct Leaving {
    attempt: u64,
    /// Who has not said farewell.
    awaited: HostSet,
}

impl NodeControl {
    /// From now on there is this host too. Nothing happens if there was already.
    ///
    /// # Errors
    /// [`Gone`].
    pub fn admit(&self, host: HostId) -> Result<(), Gone> {
        self.ask(|reply| Command::Admit(host, reply))
    }

    /// Gives up every page, and sees to it that nobody asks for anything here any more; what is still to be done. To be asked again until
    /// that is nothing: then, if `commit` is set, the host has left. Nobody who touches memory here goes on from there, others are still
    /// sent to where homes are.
    ///
    /// # Errors
    /// [`Gone`].
    pub fn leave(&self, commit: bool) -> Result<Staying, Gone> {
        self.ask(|reply| Command::Leave { commit, reply })
    }

    /// Takes [`Self::leave`] back, unless it is done.
    ///
    /// # Errors
    /// [`Gone`].
    pub fn stay(&self) -> Result<(), Gone> {
        self.ask(Command::Stay)
    }

    /// Forgets a host that has left, as soon as nothing names it any more; what does after `patience`, and then nothing is forgotten.
    ///
    /// # Errors
    /// [`Gone`].
    pub fn dismiss(&self, host: HostId, patience: Duration) -> Result<Option<Mention>, Gone> {
        let until = Instant::now() + patience;
        loop {
            let mention = match self.find(host)? {
                Some(page) => Some(Mention::Page(page)),
                None => self.ask(|reply| Command::Dismiss(host, reply))?,
            };
            if mention.is_none() || Instant::now() > until {
                return Ok(mention);
            }
            thread::sleep(LOOK_AGAIN);
        }
    }

    /// A page with its home here that concerns `host`.
    fn find(&self, host: HostId) -> Result<Option<PageNumber>, Gone> {
        let mut from = Some(ShardNumber(0));
        while let Some(next) = from {
            let found = self.ask(|reply| Command::Find { host, from: next, reply })?;
            if found.0.is_some() {
                return Ok(found.0);
            }
            from = found.1;
        }
        Ok(None)
    }
}

/// What of a machine's memory goes with a host, as far as another one knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loss {
    /// Shards whose homes are there: what is known of all their pages.
    pub homes: usize,
    /// Pages with their home here of which only that host has the bytes.
    pub pages: usize,
}

impl MemoryNode {
    /// What is lost with `host`.
    #[must_use]
    pub fn loss_with(&self, host: HostId) -> Loss {
        Loss { homes: self.table.homes_at(host), pages: self.homes.only_at(host) }
    }

    pub(super) fn admit(&mut self, host: HostId, out: &mut dyn Outgoing) {
        if host == self.host || self.link(host).is_some() || matches!(self.life, Life::Fenced | Life::Stopped) {
            return;
        }
        self.known.hosts = self.known.hosts.with(host);
        self.former = self.former.without(host);
        self.homes.admit(host);
        if self.links.len() <= host.index() {
            self.links.resize_with(host.index() + 1, || None);
        }
        self.links[host.index()] = Some(Link::new(host, self.first_stream));
        if let Some(leaving) = &mut self.leaving {
            leaving.awaited = leaving.awaited.with(host);
            self.take_leave_of(host, out);
        }
    }

    pub(super) fn leave(&mut self, commit: bool, out: &mut dyn Outgoing) -> Result<Staying, Trouble> {
        if self.life == Life::Left {
            return Ok(Staying::default());
        }
        let here = self.homes.here();
        let (homes, moving) = (here.served, here.waiting + self.moving.under_way());
        if homes + moving > 0 {
            // What was said of shards that were here is not all that is to be said.
            self.leaving = None;
            return Ok(Staying { homes, moving, ..Staying::default() });
        }
        if self.leaving.is_none() {
            self.attempts += 1;
            let others =
                self.known.hosts.iter().filter(|host| self.link(*host).is_some()).fold(HostSet::EMPTY, HostSet::with);
            self.leaving = Some(Leaving { attempt: self.attempts, awaited: others });
            others.iter().for_each(|host| self.take_leave_of(host, out));
        }
        let held = self.spots.held();
        let pages = held.len();
        if self.evictions.is_empty() && self.putting.is_empty() {
            self.evictions.extend(held);
            self.give_up(out)?;
        }
        let silent = self.leaving.as_ref().map_or(HostSet::EMPTY, |leaving| leaving.awaited);
        let unacknowledged = self.links.iter().flatten().map(Link::unacknowledged).sum();
        let staying = Staying { homes, moving, pages, silent, unacknowledged };
        if staying.is_nothing() && commit {
            self.life = Life::Left;
            self.memory.unmap_all().map_err(NodeError::Memory)?;
            self.links.iter_mut().flatten().for_each(|link| link.send(Packet::Left, out));
        }
        Ok(staying)
    }

    fn take_leave_of(&mut self, host: HostId, out: &mut dyn Outgoing) {
        let Some(attempt) = self.leaving.as_ref().map(|leaving| leaving.attempt) else { return };
        let gone = self.moving.given().filter_map(|shard| Some((shard, self.homes.elsewhere(shard)?)));
        let gone: Vec<_> = gone.filter(|(_, route)| route.home != host).collect();
        let Some(link) = self.link(host) else { return };
        gone.into_iter().for_each(|(shard, route)| link.send(Packet::Gone(shard, route), out));
        link.send(Packet::Leaving(attempt), out);
    }

    /// A peer that leaves says who has a shard that it had.
    pub(super) fn hear_gone(&mut self, shard: ShardNumber, route: Route, out: &mut dyn Outgoing) -> Outcome {
        // Who has it knows best.
        if route.home == self.host || !self.is_there(shard, route)? {
            return Ok(());
        }
        self.homes.settle(shard, route, &mut self.letters)?;
        self.settled(shard, route, out)
    }

    /// Is this news, and of a host that is there? One that has left since is named by old news only.
    pub(super) fn is_there(&self, shard: ShardNumber, route: Route) -> Result<bool, PeerError> {
        let page = PageNumber(shard.0 * crate::directory::PAGES_PER_SHARD);
        let news = self.table.route(page).is_none_or(|known| route.epoch > known.epoch);
        if news && !self.known.hosts.contains(route.home) {
            return Err(PeerError::Absent { shard, home: route.home });
        }
        Ok(news)
    }

    pub(super) fn hear_leaving(&mut self, from: HostId, attempt: u64, out: &mut dyn Outgoing) {
        if let Some(link) = self.link(from) {
            link.send(Packet::Farewell(attempt), out);
        }
    }

    pub(super) fn hear_farewell(&mut self, from: HostId, attempt: u64) {
        if let Some(leaving) = self.leaving.as_mut().filter(|leaving| leaving.attempt == attempt) {
            leaving.awaited = leaving.awaited.without(from);
        }
    }

    /// Forgets `host`, unless something here still names it.
    pub(super) fn dismiss(&mut self, host: HostId) -> Option<Mention> {
        let named = self.table.names(host).map(Mention::Home);
        let named = named.or_else(|| self.moving.with(host).map(Mention::Moving));
        // What it was given a moment ago may not be known here. Who is not there was never given anything, or is lost.
        let present = self.link(host).is_some_and(|link| link.is_connected() && !link.has_left);
        let named = named.or_else(|| present.then_some(Mention::Present));
        if named.is_none() && host != self.host {
            self.known.hosts = self.known.hosts.without(host);
            self.former = self.former.with(host);
            self.moving.forget(host);
            if let Some(link) = self.links.get_mut(host.index()) {
                *link = None;
            }
        }
        named
    }

    pub(super) fn find(&self, host: HostId, from: ShardNumber) -> (Option<PageNumber>, Option<ShardNumber>) {
        self.homes.find(host, from, SHARDS_A_LOOK)
    }
}

/// Is anything of a page here, or on its way?
pub(super) const fn is_held(holder: &crate::directory::Holder) -> bool {
    !matches!(holder.rights(), Rights::Invalid) || !holder.is_settled()
}
