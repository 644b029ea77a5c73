//! Connections without a runtime: quinn's protocol core, fed with what the socket has and with the time, by one thread.
//!
//! At the source there is one connection. At the target there may be several until one has shown that it is this move's; after that
//! whoever else comes is refused.

use super::{
    door::{Door, Knock, Verdict},
    socket::LaneSocket,
};
use crate::session::SessionError;
use bytes::Bytes;
use quinn_proto::{
    Connection, ConnectionError, ConnectionHandle, ConnectionStats, DatagramEvent, Dir, Endpoint, Event, Incoming,
    ReadError, StreamEvent, StreamId, Transmit, WriteError,
};
use rustix::fd::{AsFd, BorrowedFd};
use std::{collections::VecDeque, io, net::SocketAddr, time::Instant};

/// Connections at once that have not shown whose they are; more are refused until one has ended.
const PENDING_MAX: usize = 16;
/// With so many, whoever is new has to show first that he is where he says. An address that was made up cannot, and takes no place.
const PENDING_UNSEEN_MAX: usize = 4;
/// Datagrams sent before others are taken: acknowledgements among them.
const DATAGRAMS_MAX: usize = 40;

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
    endpoint: Endpoint,
    socket: LaneSocket,
    peers: Vec<Peer>,
    door: Option<Door>,
    /// Made by the protocol, and not taken by the kernel.
    blocked: Option<Transmit>,
    buffer: Vec<u8>,
    news: VecDeque<News>,
}

impl Engine {
    /// An end that waits for whoever shows what `door` wants to see.
    pub(super) fn listening(endpoint: Endpoint, socket: LaneSocket, door: Door) -> Self {
        Self::new(endpoint, socket, Some(door))
    }

    /// An end that calls `address`, and says `opening` first.
    pub(super) fn dialling(
        mut endpoint: Endpoint,
        socket: LaneSocket,
        config: quinn_proto::ClientConfig,
        address: SocketAddr,
        opening: Vec<u8>,
    ) -> Result<Self, SessionError> {
        // The name is not used: the peer is known by its principal. SNI must hold something that looks like a host name.
        let dialled = endpoint.connect(Instant::now(), config, address, "vmotion");
        let (handle, connection) =
            dialled.map_err(|error| SessionError::Connect { address, reason: error.to_string() })?;
        let mut engine = Self::new(endpoint, socket, None);
        engine.peers.push(Peer { handle, connection, stage: Stage::Dialling(opening) });
        Ok(engine)
    }

    fn new(endpoint: Endpoint, socket: LaneSocket, door: Option<Door>) -> Self {
        let (peers, buffer, news) = (Vec::new(), Vec::new(), VecDeque::new());
        Self { endpoint, socket, peers, door, blocked: None, buffer, news }
    }

    /// Takes datagrams that wait; whether there may be more.
    pub(super) fn receive(&mut self, now: Instant) -> io::Result<bool> {
        let Self { endpoint, socket, peers, buffer, .. } = self;
        let (mut new, mut responses) = (Vec::new(), Vec::new());
        let more = socket.receive(|arrived| {
            buffer.clear();
            match endpoint.handle(now, arrived.from, arrived.to, arrived.ecn, arrived.bytes, buffer) {
                Some(DatagramEvent::ConnectionEvent(handle, event)) => {
                    if let Some(peer) = peers.iter_mut().find(|peer| peer.handle == handle) {
                        peer.connection.handle_event(event);
                    }
                }
                Some(DatagramEvent::NewConnection(incoming)) => new.push(incoming),
                Some(DatagramEvent::Response(transmit)) => responses.push((transmit, buffer.clone())),
                None => {}
            }
        })?;
        for (transmit, bytes) in responses {
            self.respond(&transmit, &bytes);
        }
        for incoming in new {
            self.meet(incoming, now);
        }
        Ok(more)
    }

    /// Without room in the socket an answer to a stranger is lost; he asks again.
    fn respond(&self, transmit: &Transmit, bytes: &[u8]) {
        let _ = self.socket.send(transmit, &bytes[..transmit.size.min(bytes.len())]);
    }

    fn meet(&mut self, incoming: Incoming, now: Instant) {
        let mut bytes = Vec::new();
        let crowded = self.peers.len() >= PENDING_UNSEEN_MAX && !self.is_open();
        let incoming = if crowded && incoming.may_retry() {
            match self.endpoint.retry(incoming, &mut bytes) {
                Ok(retry) => return self.respond(&retry, &bytes),
                Err(error) => error.into_incoming(),
            }
        } else {
            incoming
        };
        let welcome = !self.is_open() && self.peers.len() < PENDING_MAX;
        let Some(door) = self.door.as_ref().filter(|_| welcome) else {
            let refusal = self.endpoint.refuse(incoming, &mut bytes);
            return self.respond(&refusal, &bytes);
        };
        let knock = door.knock(incoming.remote_address(), now);
        match self.endpoint.accept(incoming, now, &mut bytes, None) {
            Ok((handle, connection)) => {
                self.peers.push(Peer { handle, connection, stage: Stage::Knocking(knock) });
            }
            Err(error) => {
                if let Some(transmit) = error.response {
                    self.respond(&transmit, &bytes);
                }
            }
        }
    }

    /// Lets time pass, and every connection act on what has come.
    pub(super) fn advance(&mut self, now: Instant) {
        let mut open = self.is_open();
        let Self { endpoint, peers, door, news, .. } = self;
        peers.retain_mut(|peer| {
            if peer.connection.poll_timeout().is_some_and(|due| due <= now) {
                peer.connection.handle_timeout(now);
            }
            let mut drained = false;
            while let Some(event) = peer.connection.poll_endpoint_events() {
                drained |= event.is_drained();
                if let Some(event) = endpoint.handle_event(peer.handle, event) {
                    peer.connection.handle_event(event);
                }
            }
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
        let Self { socket, peers, blocked, buffer, .. } = self;
        if let Some(transmit) = blocked.take()
            && !socket.send(&transmit, &buffer[..transmit.size])
        {
            *blocked = Some(transmit);
            return true;
        }
        let mut sent = 0;
        for peer in peers {
            let train = socket.train(peer.connection.current_mtu());
            loop {
                buffer.clear();
                let Some(transmit) = peer.connection.poll_transmit(now, train, buffer) else { break };
                if !socket.send(&transmit, &buffer[..transmit.size]) {
                    *blocked = Some(transmit);
                    return true;
                }
                sent += transmit.segment_size.map_or(1, |segment| transmit.size.div_ceil(segment.max(1)));
                if sent >= DATAGRAMS_MAX {
                    return false;
                }
            }
        }
        true
    }

    /// Whether the socket is waited for to take more.
    pub(super) const fn is_blocked(&self) -> bool {
        self.blocked.is_some()
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
        self.socket.as_fd()
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
