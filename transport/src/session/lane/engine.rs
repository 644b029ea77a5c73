//! Connections without a runtime: quinn's protocol core, fed with what the socket has and with the time, by one thread.
//!
//! At the source there is one connection. At the target there may be several until one has shown that it is this move's; after that
//! whoever else comes is refused.

use super::door::{Door, Knock, Verdict};
use crate::{
    direct::{Sent, Wire},
    session::SessionError,
};
use bytes::Bytes;
use quinn_proto::{
    ClientConfig, Connection, ConnectionError, ConnectionHandle, ConnectionStats, Dir, Event, Incoming, ReadError,
    StreamEvent, StreamId, WriteError,
};
use rustix::fd::{AsFd, BorrowedFd};
use std::{collections::VecDeque, io, net::SocketAddr, time::Instant};

/// Connections at once that have not shown whose they are; more are refused until one has ended.
const PENDING_MAX: usize = 16;
/// With so many, whoever is new has to show first that he is where he says. An address that was made up cannot, and takes no place.
const PENDING_UNSEEN_MAX: usize = 4;

struct Peer {
    handle: ConnectionHandle,
    connection: Connection,
    stage: Stage,
}

/// How far a connection is.
enum Stage {
    /// Ours; the message that opens the lane goes out when there is a connection.
    Dialling(Vec<u8>),
    /// Has to show whose it is.
    Knocking(Knock),
    /// The lane.
    Open { stream: StreamId, readable: bool },
    /// Refused, closed or lost.
    Over,
}

/// What became of the lane.
pub(super) enum News {
    Opened,
    /// It never opened, or is over.
    Lost(SessionError),
}

/// What the stream has after what was taken.
pub(super) enum Left {
    More,
    Nothing,
    /// The peer has ended it in good order.
    End,
}

pub(super) struct Engine {
    wire: Wire,
    peers: Vec<Peer>,
    door: Option<Door>,
    strangers: Vec<Incoming>,
    news: VecDeque<News>,
}

impl Engine {
    /// An end that waits for whoever shows what `door` wants to see.
    pub(super) const fn listening(wire: Wire, door: Door) -> Self {
        Self::new(wire, Some(door))
    }

    /// An end that calls `address`, and says `opening` first.
    pub(super) fn dialling(
        mut wire: Wire,
        config: ClientConfig,
        address: SocketAddr,
        opening: Vec<u8>,
    ) -> Result<Self, SessionError> {
        let (handle, connection) = wire.dial(config, address, Instant::now())?;
        let mut engine = Self::new(wire, None);
        engine.peers.push(Peer { handle, connection, stage: Stage::Dialling(opening) });
        Ok(engine)
    }

    const fn new(wire: Wire, door: Option<Door>) -> Self {
        Self { wire, peers: Vec::new(), door, strangers: Vec::new(), news: VecDeque::new() }
    }

    /// Takes datagrams that wait; whether there may be more.
    pub(super) fn receive(&mut self, now: Instant) -> io::Result<bool> {
        let Self { wire, peers, strangers, .. } = self;
        let more = wire.receive(now, strangers, |handle, event| {
            if let Some(peer) = peers.iter_mut().find(|peer| peer.handle == handle) {
                peer.connection.handle_event(event);
            }
        })?;
        for stranger in std::mem::take(strangers) {
            self.meet(stranger, now);
        }
        Ok(more)
    }

    fn meet(&mut self, stranger: Incoming, now: Instant) {
        let crowded = self.peers.len() >= PENDING_UNSEEN_MAX && !self.is_open();
        let seen = if crowded { self.wire.retry(stranger) } else { Some(stranger) };
        let Some(stranger) = seen else { return };
        let welcome = !self.is_open() && self.peers.len() < PENDING_MAX;
        let Some(door) = self.door.as_ref().filter(|_| welcome) else { return self.wire.refuse(stranger) };
        let knock = door.knock(stranger.remote_address(), now);
        if let Some((handle, connection)) = self.wire.accept(stranger, None, now) {
            self.peers.push(Peer { handle, connection, stage: Stage::Knocking(knock) });
        }
    }

    /// Lets time pass, and every connection act on what has come.
    pub(super) fn advance(&mut self, now: Instant) {
        let mut open = self.is_open();
        let Self { wire, peers, door, news, .. } = self;
        peers.retain_mut(|peer| {
            let drained = wire.advance(peer.handle, &mut peer.connection, now);
            while let Some(event) = peer.connection.poll() {
                peer.hear(event, door.as_ref(), now, news);
            }
            if let (Stage::Knocking(knock), Some(door)) = (&mut peer.stage, door.as_ref()) {
                match knock.judge(door, &mut peer.connection, now) {
                    Some(Verdict::Welcome(stream)) if !open => {
                        open = true;
                        peer.stage = Stage::Open { stream, readable: true };
                        news.push_back(News::Opened);
                    }
                    Some(Verdict::Welcome(_)) => peer.turn_away("the lane is taken", now),
                    Some(Verdict::Refused(reason)) => {
                        tracing::warn!(from = %knock.from(), %reason, "turned a connection away");
                        peer.turn_away(reason, now);
                    }
                    None => {}
                }
            }
            !drained
        });
    }

    pub(super) fn news(&mut self) -> Option<News> {
        self.news.pop_front()
    }

    pub(super) fn is_open(&self) -> bool {
        self.peers.iter().any(|peer| matches!(peer.stage, Stage::Open { .. }))
    }

    /// Nothing is left to be said to anybody.
    pub(super) fn is_quiet(&self) -> bool {
        self.peers.is_empty()
    }

    /// Hands over what the stream has, in order, at most `bytes_max`.
    pub(super) fn take(&mut self, into: &mut Vec<Bytes>, bytes_max: usize) -> Result<Left, SessionError> {
        let open = self.peers.iter_mut().find_map(|peer| match &mut peer.stage {
            Stage::Open { stream, readable } => Some((&mut peer.connection, *stream, readable)),
            _ => None,
        });
        let Some((connection, stream, readable)) = open.filter(|(_, _, readable)| **readable) else {
            return Ok(Left::Nothing);
        };
        let lost = |error: &dyn std::fmt::Display| SessionError::Lost(error.to_string());
        let mut stream = connection.recv_stream(stream);
        let mut chunks = stream.read(true).map_err(|error| lost(&error))?;
        let mut room = bytes_max;
        let taken = loop {
            if room == 0 {
                break Ok(Left::More);
            }
            match chunks.next(room) {
                Ok(Some(chunk)) => {
                    room -= chunk.bytes.len();
                    into.push(chunk.bytes);
                }
                Ok(None) => {
                    *readable = false;
                    break Ok(Left::End);
                }
                Err(ReadError::Blocked) => {
                    *readable = false;
                    break Ok(Left::Nothing);
                }
                Err(error) => break Err(lost(&error)),
            }
        };
        // Room for more is told with the next packet.
        let _ = chunks.finalize();
        taken
    }

    /// Hands what it can of `out` to the connection.
    pub(super) fn give(&mut self, out: &mut VecDeque<Bytes>) -> Result<(), SessionError> {
        let open = self.peers.iter_mut().find_map(|peer| match peer.stage {
            Stage::Open { stream, .. } => Some((&mut peer.connection, stream)),
            _ => None,
        });
        let Some((connection, stream)) = open else {
            out.clear();
            return Ok(());
        };
        while !out.is_empty() {
            match connection.send_stream(stream).write_chunks(out.make_contiguous()) {
                Ok(written) => drop(out.drain(..written.chunks)),
                Err(WriteError::Blocked) => break,
                Err(error) => return Err(SessionError::Lost(error.to_string())),
            }
        }
        Ok(())
    }

    /// Sends what there is to send; false when there is more, now.
    pub(super) fn transmit(&mut self, now: Instant) -> bool {
        let Self { wire, peers, .. } = self;
        let (mut sent, mut datagrams) = (wire.flush(), 0);
        for peer in peers {
            if sent != Sent::All {
                break;
            }
            sent = wire.send_from(&mut peer.connection, &mut datagrams, now);
        }
        sent != Sent::Enough
    }

    /// Whether the socket is waited for to take more.
    pub(super) const fn is_blocked(&self) -> bool {
        self.wire.is_blocked()
    }

    /// When there is something to do even if nothing comes.
    pub(super) fn due(&mut self) -> Option<Instant> {
        let timers = self.peers.iter_mut().filter_map(|peer| {
            let by = if let Stage::Knocking(knock) = &peer.stage { Some(knock.by()) } else { None };
            peer.connection.poll_timeout().into_iter().chain(by).min()
        });
        timers.min()
    }

    /// Ends every connection; the peers hear `reason`.
    pub(super) fn close(&mut self, code: u32, reason: &Bytes, now: Instant) {
        for peer in &mut self.peers {
            if matches!(peer.stage, Stage::Open { .. } | Stage::Dialling(_)) {
                self.news.push_back(News::Lost(ConnectionError::LocallyClosed.into()));
            }
            if !matches!(peer.stage, Stage::Over) {
                peer.connection.close(now, code.into(), reason.clone());
                peer.stage = Stage::Over;
            }
        }
    }

    /// Counters of the lane's connection, or of the one that is to be it.
    pub(super) fn stats(&self) -> Option<(ConnectionStats, SocketAddr)> {
        let lane = self.peers.iter().find(|peer| !matches!(peer.stage, Stage::Knocking(_) | Stage::Over));
        lane.map(|peer| (peer.connection.stats(), peer.connection.remote_address()))
    }
}

impl AsFd for Engine {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wire.as_fd()
    }
}

impl Peer {
    fn hear(&mut self, event: Event, door: Option<&Door>, now: Instant, news: &mut VecDeque<News>) {
        match (event, &mut self.stage) {
            (Event::Connected, Stage::Dialling(opening)) => {
                let opening = std::mem::take(opening);
                let opened = self.connection.streams().open(Dir::Bi);
                let written = opened.map(|stream| (stream, self.connection.send_stream(stream).write(&opening)));
                // The first stream and its first bytes are within what any peer of ours allows.
                if let Some((stream, Ok(count))) = written
                    && count == opening.len()
                {
                    self.stage = Stage::Open { stream, readable: false };
                    news.push_back(News::Opened);
                } else {
                    self.turn_away("no stream for a lane", now);
                    news.push_back(News::Lost(SessionError::Protocol("the target allows no stream".to_owned())));
                }
            }
            (Event::Connected, Stage::Knocking(knock)) => {
                if let Some(door) = door {
                    knock.connected(door, &self.connection);
                }
            }
            (Event::Stream(StreamEvent::Readable { id }), Stage::Open { stream, readable }) if id == *stream => {
                *readable = true;
            }
            (Event::ConnectionLost { reason }, stage) => {
                if let Stage::Dialling(_) | Stage::Open { .. } = stage {
                    let address = self.connection.remote_address();
                    news.push_back(News::Lost(match stage {
                        Stage::Dialling(_) => SessionError::Connect { address, reason: reason.to_string() },
                        _ => reason.into(),
                    }));
                }
                self.stage = Stage::Over;
            }
            _ => {}
        }
    }

    fn turn_away(&mut self, reason: &'static str, now: Instant) {
        self.connection.close(now, 1u32.into(), Bytes::from_static(reason.as_bytes()));
        self.stage = Stage::Over;
    }
}
