//! The connections of a mesh: who calls whom, who may come in, and which connection is the one with a host.
//!
//! ```text
//!   lower number                     higher number
//!     Due ── call ─▶ Calling           Knocking ── opening fits ─▶ Open
//!      ▲               │ ◀── answer ──── (its own opening)           │
//!      │               ▼                                            lost, replaced, broken off
//!      └── later ──  Open                                            ▼
//!                                                                  Awaited
//! ```
//! There is one connection with a host at most. What becomes of it is told in order, so a user hears `connected` and `lost` by turns.

use super::{
    Peer,
    config::Configs,
    door::{CALLERS_MAX, CALLERS_UNSEEN_MAX, Knock, Shown},
    figures::MeshFigures,
    opening::{Facts, OPENING_BYTES_MAX, Opening, unexpected},
    outbox::Outbox,
    roster::{Known, Path},
    slot::{CODE_DONE, CODE_REFUSED, Call, Link, Slot, Stage},
};
use crate::{
    ExpectedPeer,
    congestion::Farewell,
    direct::Wire,
    session::{SessionError, WireError, WireErrorCode, framed},
};
use quinn_proto::{ConnectionError, Dir, Event, Incoming, StreamEvent, StreamId};
use rustix::fd::{AsFd, BorrowedFd};
use std::{
    collections::{BTreeMap, VecDeque},
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

/// What became of a host.
pub(super) enum News {
    Connected(Peer),
    Lost(Peer, SessionError),
}

pub(super) struct Engine {
    pub(super) wire: Wire,
    facts: Facts,
    configs: Configs,
    pub(super) figures: Arc<Mutex<MeshFigures>>,
    /// By their handles.
    pub(super) slots: Vec<Option<Box<Slot>>>,
    pub(super) roster: BTreeMap<Peer, Known>,
    strangers: Vec<Incoming>,
    news: VecDeque<News>,
    /// The connection that is read from, and sent from, first.
    pub(super) first: usize,
}

impl Engine {
    pub(super) fn new(wire: Wire, facts: Facts, configs: Configs, figures: Arc<Mutex<MeshFigures>>) -> Self {
        let (slots, roster, strangers, news) = (Vec::new(), BTreeMap::new(), Vec::new(), VecDeque::new());
        Self { wire, facts, configs, figures, slots, roster, strangers, news, first: 0 }
    }

    fn figures(&self) -> MutexGuard<'_, MeshFigures> {
        self.figures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on there is this host.
    pub(super) fn add(&mut self, peer: Peer, address: SocketAddr, expected: ExpectedPeer, now: Instant) {
        self.remove(peer, "the host is there anew", now);
        let path = Path::none(self.facts.me, peer, now);
        self.roster.insert(peer, Known::new(address, expected, path));
        self.figures().peers.entry(peer).or_default();
    }

    /// The host is elsewhere now.
    pub(super) fn relocate(&mut self, peer: Peer, address: SocketAddr, now: Instant) {
        let Some(known) = self.roster.get_mut(&peer).filter(|known| known.address != address) else { return };
        known.address = address;
        self.hang_up(peer, CODE_DONE, SessionError::Lost("the host has moved".to_owned()), now);
        if let Some(known) = self.roster.get_mut(&peer) {
            known.path = Path::none(self.facts.me, peer, now);
        }
    }

    /// The host is no part of the machine any more.
    pub(super) fn remove(&mut self, peer: Peer, why: &str, now: Instant) {
        self.hang_up(peer, CODE_DONE, SessionError::Lost(why.to_owned()), now);
        self.roster.remove(&peer);
        self.figures().peers.remove(&peer);
    }

    /// Ends every connection; the peers hear `reason`. Nobody is called any more, nor let in.
    pub(super) fn end(&mut self, reason: &str, now: Instant) {
        self.roster.clear();
        self.slots.iter_mut().flatten().for_each(|slot| slot.close(CODE_DONE, reason, now));
    }

    /// The socket has failed: every connection is lost, and none is made any more.
    pub(super) fn give_up(&mut self, error: &io::Error, now: Instant) {
        for peer in self.roster.keys().copied().collect::<Vec<_>>() {
            self.hang_up(peer, CODE_DONE, SessionError::Lost(error.to_string()), now);
        }
        self.roster.clear();
    }

    /// Takes datagrams that wait; whether there may be more.
    pub(super) fn receive(&mut self, now: Instant) -> io::Result<bool> {
        let Self { wire, slots, strangers, .. } = self;
        let more = wire.receive(now, strangers, |handle, event| {
            if let Some(slot) = slots.get_mut(handle.0).and_then(Option::as_mut) {
                slot.connection.handle_event(event);
                slot.touched = true;
            }
        })?;
        for stranger in std::mem::take(&mut self.strangers) {
            self.meet(stranger, now);
        }
        Ok(more)
    }

    fn meet(&mut self, stranger: Incoming, now: Instant) {
        let ours = |slot: &Slot| matches!(slot.stage, Stage::Open(_) | Stage::Calling(_));
        let knocking = self.slots.iter().flatten().filter(|slot| !ours(slot)).count();
        let seen = if knocking >= CALLERS_UNSEEN_MAX { self.wire.retry(stranger) } else { Some(stranger) };
        let Some(stranger) = seen else { return };
        if knocking >= CALLERS_MAX || self.roster.is_empty() {
            return self.wire.refuse(stranger);
        }
        let from = stranger.remote_address();
        let farewell = Farewell::default();
        let config = self.configs.server(from.ip(), &farewell);
        if let Some((handle, connection)) = self.wire.accept(stranger, Some(config), now) {
            self.keep(Slot::new(handle, connection, Stage::Knocking(Knock::new(from, now)), farewell));
        }
    }

    fn keep(&mut self, slot: Slot) -> usize {
        let index = slot.handle.0;
        if self.slots.len() <= index {
            self.slots.resize_with(index + 1, || None);
        }
        self.slots[index] = Some(Box::new(slot));
        index
    }

    /// Lets time pass, and every connection act on what has come.
    pub(super) fn advance(&mut self, outbox: &mut Outbox, now: Instant) {
        self.call(now);
        for index in 0..self.slots.len() {
            let is_due = self.slots[index].as_ref().is_some_and(|slot| slot.is_due(now));
            let Some(mut slot) = self.slots[index].take_if(|_| is_due) else { continue };
            slot.touched = true;
            let drained = self.wire.advance(slot.handle, &mut slot.connection, now);
            while let Some(event) = slot.connection.poll() {
                self.hear(&mut slot, event, outbox, now);
            }
            self.judge(&mut slot, now);
            if !drained {
                self.slots[index] = Some(slot);
            }
        }
    }

    /// Calls whose turn it is.
    fn call(&mut self, now: Instant) {
        let due = |known: &Known| matches!(known.path, Path::Due(due) if due <= now);
        let Self { wire, configs, roster, .. } = self;
        let mut called = Vec::new();
        for (peer, known) in roster.iter_mut().filter(|(_, known)| due(known)) {
            let farewell = Farewell::default();
            let config = configs.client(&known.expected, known.address.ip(), &farewell);
            match config.and_then(|config| wire.dial(config, known.address, now)) {
                Ok((handle, connection)) => {
                    known.path = Path::Dialling(handle.0);
                    called.push(Slot::new(handle, connection, Stage::Calling(Call::new(*peer, now)), farewell));
                }
                Err(error) => {
                    known.path = Path::Due(known.backoff.next(now));
                    self.figures.lock().unwrap_or_else(PoisonError::into_inner).trouble(
                        *peer,
                        "cannot call a host",
                        vmotion_model::error_chain(&error),
                    );
                }
            }
        }
        for slot in called {
            self.keep(slot);
        }
    }

    fn hear(&mut self, slot: &mut Slot, event: Event, outbox: &mut Outbox, now: Instant) {
        match (event, &mut slot.stage) {
            (Event::Connected, Stage::Calling(call)) => {
                let opening = framed(&self.facts.opening(call.peer));
                call.stream = slot.connection.streams().open(Dir::Bi);
                // The first stream and its first bytes are within what any peer of ours allows; else it is never answered.
                if let (Some(stream), Ok(opening)) = (call.stream, opening) {
                    let _ = slot.connection.send_stream(stream).write(&opening);
                }
            }
            (Event::Connected, Stage::Knocking(knock)) => knock.connected(&slot.connection),
            (Event::Stream(StreamEvent::Opened { dir: Dir::Uni }), Stage::Open(link)) => {
                link.inbound.accept(&mut slot.connection);
            }
            (Event::Stream(StreamEvent::Readable { id }), Stage::Open(link)) => link.inbound.readable(id),
            (Event::Stream(StreamEvent::Writable { id }), Stage::Open(link)) => {
                if let Some(out) = outbox.link(link.peer) {
                    out.unblock(id);
                }
            }
            (Event::Stream(StreamEvent::Stopped { .. }), Stage::Open(link)) => {
                let peer = link.peer;
                slot.close(CODE_REFUSED, "a stream is stopped", now);
                self.gone(peer, SessionError::Protocol("the peer stops a stream".to_owned()), now);
            }
            (Event::ConnectionLost { reason }, stage) => {
                let stage = std::mem::replace(stage, Stage::Over);
                self.lost(&stage, slot.connection.remote_address(), reason, now);
            }
            _ => {}
        }
    }

    fn lost(&mut self, stage: &Stage, address: SocketAddr, reason: ConnectionError, now: Instant) {
        match (stage, reason) {
            (Stage::Calling(call), ConnectionError::ApplicationClosed(close)) => {
                let detail = String::from_utf8_lossy(&close.reason).into_owned();
                let refusal = WireError::new(WireErrorCode::Unexpected, detail);
                self.gone(call.peer, SessionError::Refused(refusal), now);
            }
            (Stage::Calling(call), reason) => {
                self.gone(call.peer, SessionError::Connect { address, reason: reason.to_string() }, now);
            }
            (Stage::Open(link), reason) => self.gone(link.peer, reason.into(), now),
            (Stage::Knocking(knock), reason) => {
                tracing::debug!(from = %knock.from, %reason, "a caller went away");
            }
            (Stage::Over, _) => {}
        }
    }

    /// Looks at what callers and called have said of themselves.
    fn judge(&mut self, slot: &mut Slot, now: Instant) {
        match &mut slot.stage {
            Stage::Knocking(knock) => {
                let from = knock.from;
                let Some(read) = knock.read(&mut slot.connection, now) else { return };
                let refusal = match read {
                    Ok(shown) => match self.admit(&shown) {
                        Ok(peer) => return self.welcome(slot, peer, shown.stream, now),
                        Err(refusal) => refusal.detail,
                    },
                    Err(refusal) => refusal.to_owned(),
                };
                slot.close(CODE_REFUSED, &refusal, now);
                self.figures().refuse(from, refusal);
            }
            Stage::Calling(call) => {
                let (peer, by) = (call.peer, call.by);
                let answer = call
                    .stream
                    .and_then(|stream| call.answer.read::<Opening>(&mut slot.connection, stream, OPENING_BYTES_MAX));
                let problem = match answer {
                    Some(Ok(opening)) => match self.recognise(&opening, peer) {
                        Ok(()) => return self.open(slot, peer, now),
                        Err(problem) => problem.detail,
                    },
                    Some(Err(problem)) => problem.to_owned(),
                    None if by <= now => "no answer in time".to_owned(),
                    None => return,
                };
                slot.close(CODE_REFUSED, &problem, now);
                self.gone(peer, SessionError::Protocol(problem), now);
            }
            Stage::Open(_) | Stage::Over => {}
        }
    }

    /// Whether a caller is a host of this machine that may call.
    fn admit(&mut self, shown: &Shown) -> Result<Peer, WireError> {
        let peer = self.facts.check(&shown.opening)?;
        let (me, number) = (self.facts.me.0, peer.0);
        if number >= me {
            return Err(unexpected(format!("from: host {number} does not call host {me}")));
        }
        let known = self.roster.get_mut(&peer);
        let known = known.ok_or_else(|| unexpected(format!("from: host {number} is not known here")))?;
        match &shown.principal {
            Some(principal) if known.expected.accepts(principal) => {}
            Some(principal) => {
                let detail = format!("certificate: {principal} is not host {number} of this machine");
                return Err(unexpected(detail));
            }
            None => return Err(unexpected("certificate: it names nobody".to_owned())),
        }
        shown.opening.settle(&mut known.incarnation)?;
        Ok(peer)
    }

    /// Whether whom we called is whom we meant. TLS has compared its certificate.
    fn recognise(&mut self, opening: &Opening, peer: Peer) -> Result<(), WireError> {
        let from = self.facts.check(opening)?;
        if from != peer {
            return Err(unexpected(format!("from: host {} answers instead of {}", from.0, peer.0)));
        }
        let known = self.roster.get_mut(&peer);
        let known = known.ok_or_else(|| unexpected(format!("from: host {} is not known here", from.0)))?;
        opening.settle(&mut known.incarnation)
    }

    /// Answers a caller who is who he says. The connection that was with him is none any more: he would not call.
    fn welcome(&mut self, slot: &mut Slot, peer: Peer, stream: StreamId, now: Instant) {
        if let Ok(answer) = framed(&self.facts.opening(peer)) {
            // Far below what the first packets may carry; without an answer the caller gives up and calls again.
            let _ = slot.connection.send_stream(stream).write(&answer);
        }
        self.hang_up(peer, CODE_DONE, SessionError::Lost("a newer connection takes its place".to_owned()), now);
        self.open(slot, peer, now);
    }

    fn open(&mut self, slot: &mut Slot, peer: Peer, now: Instant) {
        let Some(known) = self.roster.get_mut(&peer) else { return };
        (known.path, known.since) = (Path::Open(slot.handle.0), Some(now));
        let mut link = Link::new(peer);
        // What came before the answer waits there.
        link.inbound.accept(&mut slot.connection);
        slot.stage = Stage::Open(Box::new(link));
        tracing::info!(host = peer.0, address = %slot.connection.remote_address(), "connected with a host");
        if let Some(figures) = self.figures().peers.get_mut(&peer) {
            figures.is_connected = true;
            figures.connections += 1;
        }
        self.news.push_back(News::Connected(peer));
    }

    /// Ends the connection with a host, or the call, if there is one.
    pub(super) fn hang_up(&mut self, peer: Peer, code: u32, why: SessionError, now: Instant) {
        let Some(index) = self.roster.get(&peer).and_then(Known::connection) else { return };
        if let Some(slot) = self.slots.get_mut(index).and_then(Option::as_mut) {
            self.figures.lock().unwrap_or_else(PoisonError::into_inner).count(slot, None);
            slot.close(code, &why.to_string(), now);
        }
        self.gone(peer, why, now);
    }

    /// There is no connection with a host any more, nor a call.
    fn gone(&mut self, peer: Peer, why: SessionError, now: Instant) {
        let Some(known) = self.roster.get_mut(&peer) else { return };
        let was_open = known.open().is_some();
        let since = known.since.take();
        known.path = match Path::none(self.facts.me, peer, now) {
            Path::Due(_) => Path::Due(known.backoff.after(since, now)),
            path => path,
        };
        let what = if was_open { "lost the connection with a host" } else { "cannot connect with a host" };
        let mut figures = self.figures();
        figures.trouble(peer, what, vmotion_model::error_chain(&why));
        if let Some(figures) = figures.peers.get_mut(&peer) {
            figures.is_connected = false;
        }
        drop(figures);
        if was_open {
            self.news.push_back(News::Lost(peer, why));
        }
    }

    pub(super) fn news(&mut self) -> Option<News> {
        self.news.pop_front()
    }

    /// Whether the socket is waited for to take more.
    pub(super) const fn is_blocked(&self) -> bool {
        self.wire.is_blocked()
    }

    /// Nothing is left to be said to anybody.
    pub(super) fn is_quiet(&self) -> bool {
        self.slots.iter().all(Option::is_none)
    }

    /// When there is something to do even if nothing comes.
    pub(super) fn due(&self) -> Option<Instant> {
        let timers = self.slots.iter().flatten().filter_map(|slot| slot.due);
        let calls = self.roster.values().filter_map(|known| match known.path {
            Path::Due(due) => Some(due),
            _ => None,
        });
        timers.chain(calls).min()
    }
}

impl AsFd for Engine {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wire.as_fd()
    }
}
