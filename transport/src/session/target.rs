//! Accepting a session: the target's side.

use super::{
    ALPN, ControlReceiver, ControlSender, FlowReceiver, Hello, Lane, MoveTicket, OPENING_TIMEOUT, Opening,
    SessionError, TargetFacts, Welcome, WireError, control,
};
use crate::{ExpectedPeer, Identity, Principal, socket, tuning::Tuning};
use quinn::crypto::rustls::QuicServerConfig;
use rustls_pki_types::CertificateDer;
use std::{
    net::{SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};
use tokio::sync::mpsc;

/// Handshakes and openings in progress at once; more are refused until one is done.
const PENDING_MAX: usize = 16;

/// Waits for the one source that shows the move's ticket.
#[derive(Debug)]
pub struct TargetListener {
    endpoint: quinn::Endpoint,
    expected: ExpectedPeer,
    ticket: MoveTicket,
}

/// An open session at the target.
#[derive(Debug)]
pub struct TargetSession {
    /// Messages to the source.
    pub sender: ControlSender,
    receiver: Option<ControlReceiver>,
    /// Bulk flows.
    pub flows: Vec<FlowReceiver>,
    /// What the source said of itself.
    pub hello: Hello,
    connections: Vec<quinn::Connection>,
    // Kept so that its socket lives as long as the session.
    endpoint: quinn::Endpoint,
}

impl TargetSession {
    /// Messages from the source; once.
    pub const fn take_receiver(&mut self) -> Option<ControlReceiver> {
        self.receiver.take()
    }

    /// Closes every connection now; the peer hears `reason`.
    pub fn close(&self, reason: &str) {
        for connection in &self.connections {
            connection.close(0u32.into(), reason.as_bytes());
        }
        self.endpoint.close(0u32.into(), reason.as_bytes());
    }
}

/// A connection that has shown the ticket.
enum Opened {
    Control { connection: quinn::Connection, send: quinn::SendStream, receive: quinn::RecvStream },
    Flow { flow: u8, connection: quinn::Connection, stream: quinn::RecvStream },
}

impl TargetListener {
    /// Listens on `socket` for `expected`, who must show `ticket`. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// [`SessionError`] when socket or identity cannot be used.
    pub fn new(
        socket: UdpSocket,
        identity: &Identity,
        expected: ExpectedPeer,
        ticket: MoveTicket,
        tuning: Tuning,
    ) -> Result<Self, SessionError> {
        let tuning = tuning.toward(socket.local_addr()?.ip());
        let mut tls = identity.server_config()?;
        tls.alpn_protocols = vec![ALPN.to_vec()];
        let crypto = QuicServerConfig::try_from(tls).map_err(|error| SessionError::Setup(error.to_string()))?;
        let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
        config.transport_config(tuning.transport());
        config.max_incoming(PENDING_MAX);
        let endpoint = quinn::Endpoint::new_with_abstract_socket(
            tuning.endpoint(),
            Some(config),
            socket::wrap(socket)?,
            Arc::new(quinn::TokioRuntime),
        )?;
        Ok(Self { endpoint, expected, ticket })
    }

    /// The address it listens on.
    ///
    /// # Errors
    /// [`SessionError::Socket`] when the socket does not know.
    pub fn local_address(&self) -> Result<SocketAddr, SessionError> {
        Ok(self.endpoint.local_addr()?)
    }

    /// Waits up to `patience` for the source, negotiates with `facts`, and gathers its flows. Strangers are turned away
    /// without ending the wait; a source that is refused is told why, and the wait goes on.
    ///
    /// # Errors
    /// [`SessionError::Timeout`]; or [`SessionError::Refused`] with the reason the last source was given.
    pub async fn accept(self, facts: &TargetFacts, patience: Duration) -> Result<TargetSession, SessionError> {
        let (opened_sender, mut opened) = mpsc::channel(PENDING_MAX);
        let door =
            tokio::spawn(keep_door(self.endpoint.clone(), self.expected.clone(), self.ticket.clone(), opened_sender));
        let result = tokio::time::timeout(patience, gather(&mut opened, facts)).await;
        door.abort();
        let Gathered { connection, send, receive, hello, flows, mut connections } =
            result.unwrap_or(Err(SessionError::Timeout(patience)))?;
        connections.push(connection.clone());
        let (sender, receiver) = control::pair(&connection, send, receive);
        Ok(TargetSession { sender, receiver: Some(receiver), flows, hello, connections, endpoint: self.endpoint })
    }
}

/// Takes connections, checks peer and ticket of each in a task of its own.
async fn keep_door(
    endpoint: quinn::Endpoint,
    expected: ExpectedPeer,
    ticket: MoveTicket,
    opened: mpsc::Sender<Opened>,
) {
    while let Some(incoming) = endpoint.accept().await {
        let (expected, ticket, opened) = (expected.clone(), ticket.clone(), opened.clone());
        tokio::spawn(async move {
            let from = incoming.remote_address();
            match tokio::time::timeout(OPENING_TIMEOUT, open(incoming, &expected, &ticket)).await {
                Ok(Ok(first)) => admit(first, &ticket, &opened).await,
                Ok(Err(reason)) => tracing::warn!(%from, %reason, "turned a connection away"),
                Err(_) => tracing::warn!(%from, "turned a connection away: it did not open in time"),
            }
        });
    }
}

/// Passes on what was opened, and further flows of the same connection until the session is complete.
async fn admit(first: Opened, ticket: &MoveTicket, opened: &mpsc::Sender<Opened>) {
    let bulk = if let Opened::Flow { connection, .. } = &first { Some(connection.clone()) } else { None };
    // The receiver is gone once the session is complete.
    if opened.send(first).await.is_err() {
        return;
    }
    let Some(connection) = bulk else { return };
    loop {
        let more = tokio::select! {
            more = open_flow(&connection, ticket) => more,
            () = opened.closed() => return,
        };
        let Ok(Some(flow)) = more else { return };
        if opened.send(flow).await.is_err() {
            return;
        }
    }
}

/// The next flow on a connection whose peer is known; `None` when what it opens is something else.
async fn open_flow(connection: &quinn::Connection, ticket: &MoveTicket) -> Result<Option<Opened>, SessionError> {
    let mut stream = connection.accept_uni().await?;
    match read_opening(&mut stream, ticket).await? {
        Some(Lane::Flow(flow)) => Ok(Some(Opened::Flow { flow, connection: connection.clone(), stream })),
        _ => {
            connection.close(1u32.into(), b"the opening is not that of a flow");
            Ok(None)
        }
    }
}

async fn open(incoming: quinn::Incoming, expected: &ExpectedPeer, ticket: &MoveTicket) -> Result<Opened, SessionError> {
    let connection = incoming.await?;
    let refuse = |reason: &str| {
        connection.close(1u32.into(), reason.as_bytes());
        Err(SessionError::Protocol(reason.to_owned()))
    };
    let principal = connection
        .peer_identity()
        .and_then(|identity| identity.downcast::<Vec<CertificateDer<'static>>>().ok())
        .and_then(|chain| chain.first().and_then(|leaf| Principal::of_certificate(leaf).ok()));
    if !principal.as_ref().is_some_and(|principal| expected.accepts(principal)) {
        return refuse("the certificate is not that of this move's source");
    }
    // The source speaks first on exactly one stream: bidirectional for control, unidirectional for a flow.
    let (lane, opened) = tokio::select! {
        stream = connection.accept_bi() => {
            let (send, mut receive) = stream?;
            let lane = read_opening(&mut receive, ticket).await?;
            (lane, Opened::Control { connection: connection.clone(), send, receive })
        }
        stream = connection.accept_uni() => {
            let mut stream = stream?;
            let lane = read_opening(&mut stream, ticket).await?;
            let flow = if let Some(Lane::Flow(flow)) = lane { flow } else { u8::MAX };
            (lane, Opened::Flow { flow, connection: connection.clone(), stream })
        }
    };
    match (lane, &opened) {
        (Some(Lane::Control), Opened::Control { .. }) | (Some(Lane::Flow(_)), Opened::Flow { .. }) => Ok(opened),
        (None, _) => refuse("the ticket is not that of this move"),
        _ => refuse("the opening does not fit its stream"),
    }
}

/// The lane an opening asks for; `None` when its ticket is wrong.
async fn read_opening(stream: &mut quinn::RecvStream, ticket: &MoveTicket) -> Result<Option<Lane>, SessionError> {
    let opening: Option<Opening> = control::read_message(stream).await?;
    Ok(opening.filter(|opening| MoveTicket::from_bytes(opening.ticket).matches(ticket)).map(|opening| opening.lane))
}

struct Gathered {
    connection: quinn::Connection,
    send: quinn::SendStream,
    receive: quinn::RecvStream,
    hello: Hello,
    flows: Vec<FlowReceiver>,
    connections: Vec<quinn::Connection>,
}

/// First the control connection with a hello we accept, then every flow that was agreed.
async fn gather(opened: &mut mpsc::Receiver<Opened>, facts: &TargetFacts) -> Result<Gathered, SessionError> {
    let gone = || SessionError::Lost("the listening socket closed".to_owned());
    let mut early: Vec<(u8, quinn::Connection, quinn::RecvStream)> = Vec::new();
    let (connection, send, receive, hello, welcome) = loop {
        match opened.recv().await.ok_or_else(gone)? {
            Opened::Flow { flow, connection, stream } => early.push((flow, connection, stream)),
            Opened::Control { connection, mut send, mut receive } => {
                let Some((hello, answer)) = greet(&mut receive, facts).await else { continue };
                if control::write_message(&mut send, &answer).await.is_err() {
                    continue;
                }
                match answer {
                    Ok(welcome) => break (connection, send, receive, hello, welcome),
                    Err(refusal) => {
                        let _ = send.finish();
                        let _ = tokio::time::timeout(OPENING_TIMEOUT, send.stopped()).await;
                        return Err(SessionError::Refused(refusal));
                    }
                }
            }
        }
    };
    let mut slots: Vec<Option<(quinn::Connection, quinn::RecvStream)>> = (0..welcome.flows).map(|_| None).collect();
    loop {
        for (flow, connection, stream) in early.drain(..) {
            if let Some(slot) = slots.get_mut(usize::from(flow)).filter(|slot| slot.is_none()) {
                *slot = Some((connection, stream));
            }
        }
        if slots.iter().all(Option::is_some) {
            break;
        }
        if let Opened::Flow { flow, connection, stream } = opened.recv().await.ok_or_else(gone)? {
            early.push((flow, connection, stream));
        }
    }
    let (connections, flows) =
        slots.into_iter().flatten().map(|(connection, stream)| (connection, FlowReceiver { stream })).unzip();
    Ok(Gathered { connection, send, receive, hello, flows, connections })
}

/// Reads a hello and answers it; `None` when the peer is not worth an answer.
async fn greet(receive: &mut quinn::RecvStream, facts: &TargetFacts) -> Option<(Hello, Result<Welcome, WireError>)> {
    let hello: Hello = match tokio::time::timeout(OPENING_TIMEOUT, control::read_message(receive)).await {
        Ok(Ok(Some(hello))) => hello,
        _ => return None,
    };
    let answer = facts.negotiate(&hello);
    Some((hello, answer))
}
