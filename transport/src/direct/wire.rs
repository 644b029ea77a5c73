//! One socket and the connections on it, as far as it does not matter what they are for.

use super::socket::DirectSocket;
use crate::session::SessionError;
use quinn_proto::{
    ClientConfig, Connection, ConnectionEvent, ConnectionHandle, DatagramEvent, Endpoint, EndpointConfig, Incoming,
    ServerConfig, Transmit,
};
use rustix::fd::{AsFd, BorrowedFd};
use std::{
    io,
    net::{SocketAddr, UdpSocket},
    sync::Arc,
    time::Instant,
};

/// Datagrams sent before others are taken: acknowledgements among them.
const DATAGRAMS_MAX: usize = 40;

/// A socket, and the protocol on it.
pub(crate) struct Wire {
    endpoint: Endpoint,
    socket: DirectSocket,
    /// Made by the protocol, and not taken by the kernel.
    blocked: Option<Transmit>,
    buffer: Vec<u8>,
}

/// How far sending has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sent {
    /// All there is, for now.
    All,
    /// As much as is sent at a time.
    Enough,
    /// What the kernel took; the rest when it takes more.
    Blocked,
}

impl Wire {
    /// Without `server` nobody can connect.
    pub(crate) fn new(socket: UdpSocket, config: EndpointConfig, server: Option<ServerConfig>) -> io::Result<Self> {
        let socket = DirectSocket::new(socket)?;
        let endpoint = Endpoint::new(Arc::new(config), server.map(Arc::new), !socket.may_fragment(), None);
        Ok(Self { endpoint, socket, blocked: None, buffer: Vec::new() })
    }

    /// Begins a connection to `address`.
    pub(crate) fn dial(
        &mut self,
        config: ClientConfig,
        address: SocketAddr,
        now: Instant,
    ) -> Result<(ConnectionHandle, Connection), SessionError> {
        // The name is not used: the peer is known by its principal. SNI must hold something that looks like a host name.
        let dialled = self.endpoint.connect(now, config, address, "vmotion");
        dialled.map_err(|error| SessionError::Connect { address, reason: error.to_string() })
    }

    /// Takes datagrams that wait, and hands them on; whether there may be more. Who is new is put into `strangers`.
    pub(crate) fn receive(
        &mut self,
        now: Instant,
        strangers: &mut Vec<Incoming>,
        mut deliver: impl FnMut(ConnectionHandle, ConnectionEvent),
    ) -> io::Result<bool> {
        let Self { endpoint, socket, .. } = self;
        // Not the buffer of what is blocked.
        let (mut answer, mut answers) = (Vec::new(), Vec::new());
        let more = socket.receive(|arrived| {
            answer.clear();
            match endpoint.handle(now, arrived.from, arrived.to, arrived.ecn, arrived.bytes, &mut answer) {
                Some(DatagramEvent::ConnectionEvent(handle, event)) => deliver(handle, event),
                Some(DatagramEvent::NewConnection(incoming)) => strangers.push(incoming),
                Some(DatagramEvent::Response(transmit)) => answers.push((transmit, answer.clone())),
                None => {}
            }
        })?;
        for (transmit, bytes) in answers {
            self.respond(&transmit, &bytes);
        }
        Ok(more)
    }

    /// Without room in the socket an answer to a stranger is lost; he asks again.
    fn respond(&self, transmit: &Transmit, bytes: &[u8]) {
        let _ = self.socket.send(transmit, &bytes[..transmit.size.min(bytes.len())]);
    }

    /// Has a stranger show first that he is where he says; gives him back if he has.
    pub(crate) fn retry(&mut self, stranger: Incoming) -> Option<Incoming> {
        if !stranger.may_retry() {
            return Some(stranger);
        }
        let mut bytes = Vec::new();
        match self.endpoint.retry(stranger, &mut bytes) {
            Ok(retry) => {
                self.respond(&retry, &bytes);
                None
            }
            Err(error) => Some(error.into_incoming()),
        }
    }

    /// Tells a stranger that he is not wanted.
    pub(crate) fn refuse(&mut self, stranger: Incoming) {
        let mut bytes = Vec::new();
        let refusal = self.endpoint.refuse(stranger, &mut bytes);
        self.respond(&refusal, &bytes);
    }

    /// Begins a connection with a stranger, by `config` where it is not the endpoint's own; `None` when what he sent is no beginning.
    pub(crate) fn accept(
        &mut self,
        stranger: Incoming,
        config: Option<Arc<ServerConfig>>,
        now: Instant,
    ) -> Option<(ConnectionHandle, Connection)> {
        let mut bytes = Vec::new();
        match self.endpoint.accept(stranger, now, &mut bytes, config) {
            Ok(accepted) => Some(accepted),
            Err(error) => {
                if let Some(transmit) = error.response {
                    self.respond(&transmit, &bytes);
                }
                None
            }
        }
    }

    /// Lets time pass for a connection, and has it talk with the endpoint; whether it is over and forgotten.
    pub(crate) fn advance(&mut self, handle: ConnectionHandle, connection: &mut Connection, now: Instant) -> bool {
        if connection.poll_timeout().is_some_and(|due| due <= now) {
            connection.handle_timeout(now);
        }
        let mut drained = false;
        while let Some(event) = connection.poll_endpoint_events() {
            drained |= event.is_drained();
            if let Some(event) = self.endpoint.handle_event(handle, event) {
                connection.handle_event(event);
            }
        }
        drained
    }

    /// Sends what the kernel did not take before. Only when all of it is taken may more be sent.
    pub(crate) fn flush(&mut self) -> Sent {
        if let Some(transmit) = self.blocked.take()
            && !self.socket.send(&transmit, &self.buffer[..transmit.size])
        {
            self.blocked = Some(transmit);
            return Sent::Blocked;
        }
        Sent::All
    }

    /// Sends what `connection` has to send, as long as `datagrams`, the number of those that were sent, is below its limit.
    pub(crate) fn send_from(&mut self, connection: &mut Connection, datagrams: &mut usize, now: Instant) -> Sent {
        let Self { socket, blocked, buffer, .. } = self;
        let train = socket.train(connection.current_mtu());
        loop {
            if *datagrams >= DATAGRAMS_MAX {
                return Sent::Enough;
            }
            buffer.clear();
            let Some(transmit) = connection.poll_transmit(now, train, buffer) else { return Sent::All };
            if !socket.send(&transmit, &buffer[..transmit.size]) {
                *blocked = Some(transmit);
                return Sent::Blocked;
            }
            *datagrams += transmit.segment_size.map_or(1, |segment| transmit.size.div_ceil(segment.max(1)));
        }
    }

    /// Whether the socket is waited for to take more.
    pub(crate) const fn is_blocked(&self) -> bool {
        self.blocked.is_some()
    }
}

impl AsFd for Wire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
