//! Accepting a session: the target's side.

use super::{
    ALPN, ControlReceiver, ControlSender, DemandLane, DemandSender, FEATURE_POST_COPY, FlowReceiver, Hello, Lane,
    MoveTicket, OPENING_TIMEOUT, Opening, SessionError, TargetFacts, Urgent, Welcome, WireError, control, copies,
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
    config: quinn::ServerConfig,
    tuning: Tuning,
    demand: Option<DemandDoor>,
    expected: ExpectedPeer,
    ticket: MoveTicket,
}

/// Where the demand lane arrives: a socket and a thread of its own.
#[derive(Debug)]
struct DemandDoor {
    endpoint: quinn::Endpoint,
    port: u16,
    urgent: Urgent,
}

/// An open session at the target.
#[derive(Debug)]
pub struct TargetSession {
    /// Messages to the source.
    pub sender: ControlSender,
    receiver: Option<ControlReceiver>,
    /// Bulk flows.
    pub flows: Vec<FlowReceiver>,
    /// Pages on demand, where both ends can.
    pub demand: Option<DemandLane>,
    /// What the source said of itself.
    pub hello: Hello,
    connections: Vec<quinn::Connection>,
    // Kept so that their sockets live as long as the session.
    endpoints: Vec<quinn::Endpoint>,
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
        for endpoint in &self.endpoints {
            endpoint.close(0u32.into(), reason.as_bytes());
        }
    }
}

/// A connection that has shown the ticket.
enum Opened {
    Control { connection: quinn::Connection, send: quinn::SendStream, receive: quinn::RecvStream },
    Flow { flow: u8, connection: quinn::Connection, receiver: FlowReceiver },
    Demand { connection: quinn::Connection, send: quinn::SendStream, receive: quinn::RecvStream },
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
            Some(config.clone()),
            socket::wrap(socket)?,
            Arc::new(quinn::TokioRuntime),
        )?;
        Ok(Self { endpoint, config, tuning, demand: None, expected, ticket })
    }

    /// Takes demanded pages on `socket`. Without this, memory cannot follow a guest here.
    ///
    /// # Errors
    /// [`SessionError::Socket`] when socket or thread cannot be had.
    pub fn with_demand_lane(mut self, socket: UdpSocket) -> Result<Self, SessionError> {
        let port = socket.local_addr()?.port();
        let urgent = Urgent::start()?;
        let endpoint = {
            // The endpoint's work is spawned where it is made.
            let _on_its_thread = urgent.handle().enter();
            quinn::Endpoint::new_with_abstract_socket(
                self.tuning.endpoint(),
                Some(self.config.clone()),
                socket::wrap(socket)?,
                Arc::new(quinn::TokioRuntime),
            )?
        };
        self.demand = Some(DemandDoor { endpoint, port, urgent });
        Ok(self)
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
        let Self { endpoint, demand, expected, ticket, tuning, .. } = self;
        let (opened_sender, mut opened) = mpsc::channel(PENDING_MAX);
        // The path may be gone for a while between a peer's first packet and the one that says who it is.
        let opening = OPENING_TIMEOUT.max(tuning.silence_max);
        let keep = |endpoint: &quinn::Endpoint| {
            keep_door(endpoint.clone(), expected.clone(), ticket.clone(), opened_sender.clone(), opening)
        };
        let mut doors = vec![tokio::spawn(keep(&endpoint))];
        doors.extend(demand.as_ref().map(|door| door.urgent.handle().spawn(keep(&door.endpoint))));
        drop(opened_sender);
        let port = demand.as_ref().map(|door| door.port);
        let result = tokio::time::timeout(patience, gather(&mut opened, facts, port, opening)).await;
        doors.iter().for_each(tokio::task::JoinHandle::abort);
        let Gathered { connection, send, receive, hello, flows, demand: lane, mut connections } =
            result.unwrap_or(Err(SessionError::Timeout(patience)))?;
        let mut demand_endpoint = None;
        let demand = lane.zip(demand).map(|((sender, receiver), DemandDoor { endpoint, urgent, .. })| {
            demand_endpoint = Some(endpoint);
            DemandLane { sender, receiver, urgent }
        });
        connections.push(connection.clone());
        let (sender, receiver) = control::pair(&connection, send, receive);
        let endpoints = std::iter::once(endpoint).chain(demand_endpoint).collect();
        let receiver = Some(receiver);
        Ok(TargetSession { sender, receiver, flows, demand, hello, connections, endpoints })
    }
}

/// Takes connections, checks peer and ticket of each in a task of its own.
async fn keep_door(
    endpoint: quinn::Endpoint,
    expected: ExpectedPeer,
    ticket: MoveTicket,
    opened: mpsc::Sender<Opened>,
    patience: Duration,
) {
    while let Some(incoming) = endpoint.accept().await {
        let (expected, ticket, opened) = (expected.clone(), ticket.clone(), opened.clone());
        tokio::spawn(async move {
            let from = incoming.remote_address();
            match tokio::time::timeout(patience, open(incoming, &expected, &ticket)).await {
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
        Some((Lane::Flow(flow), position)) => {
            let receiver = FlowReceiver::new(stream, position);
            Ok(Some(Opened::Flow { flow, connection: connection.clone(), receiver }))
        }
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
    // The source speaks first on exactly one stream: bidirectional for control and demands, unidirectional for flows.
    let (lane, opened) = tokio::select! {
        stream = connection.accept_bi() => {
            let (send, mut receive) = stream?;
            let lane = read_opening(&mut receive, ticket).await?.map(|(lane, _)| lane);
            let connection = connection.clone();
            let opened = if lane == Some(Lane::Demand) {
                Opened::Demand { connection, send, receive }
            } else {
                Opened::Control { connection, send, receive }
            };
            (lane, opened)
        }
        stream = connection.accept_uni() => {
            let mut stream = stream?;
            let (lane, position) = read_opening(&mut stream, ticket).await?.unzip();
            let flow = if let Some(Lane::Flow(flow)) = lane { flow } else { u8::MAX };
            let receiver = FlowReceiver::new(stream, position.unwrap_or_default());
            (lane, Opened::Flow { flow, connection: connection.clone(), receiver })
        }
    };
    match (lane, &opened) {
        (Some(Lane::Control), Opened::Control { .. })
        | (Some(Lane::Flow(_)), Opened::Flow { .. })
        | (Some(Lane::Demand), Opened::Demand { .. }) => Ok(opened),
        (None, _) => refuse("the ticket is not that of this move"),
        _ => refuse("the opening does not fit its stream"),
    }
}

/// The lane an opening asks for, and the bytes it took of its stream; `None` when its ticket is wrong.
async fn read_opening(
    stream: &mut quinn::RecvStream,
    ticket: &MoveTicket,
) -> Result<Option<(Lane, u64)>, SessionError> {
    let opening: Option<(Opening, u64)> = control::read_counted(stream).await?;
    let ours = opening.filter(|(opening, _)| MoveTicket::from_bytes(opening.ticket).matches(ticket));
    Ok(ours.map(|(opening, taken)| (opening.lane, taken)))
}

struct Gathered {
    connection: quinn::Connection,
    send: quinn::SendStream,
    receive: quinn::RecvStream,
    hello: Hello,
    flows: Vec<FlowReceiver>,
    demand: Option<(DemandSender, FlowReceiver)>,
    connections: Vec<quinn::Connection>,
}

/// First the control connection with a hello we accept, then every flow that was agreed, and the demand lane.
async fn gather(
    opened: &mut mpsc::Receiver<Opened>,
    facts: &TargetFacts,
    demand_port: Option<u16>,
    patience: Duration,
) -> Result<Gathered, SessionError> {
    let gone = || SessionError::Lost("the listening socket closed".to_owned());
    let mut early: Vec<Opened> = Vec::new();
    let (connection, send, receive, hello, welcome) = loop {
        match opened.recv().await.ok_or_else(gone)? {
            bulk @ (Opened::Flow { .. } | Opened::Demand { .. }) => early.push(bulk),
            Opened::Control { connection, mut send, mut receive } => {
                let Some((hello, answer)) = greet(&mut receive, facts, demand_port, patience).await else { continue };
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
    let mut slots: Vec<Option<FlowReceiver>> = (0..welcome.flows).map(|_| None).collect();
    let on_demand = welcome.features.contains(FEATURE_POST_COPY);
    let (mut demand, mut bulk, mut connections) = (None, Vec::<quinn::Connection>::new(), Vec::new());
    loop {
        for lane in early.drain(..) {
            match lane {
                Opened::Flow { flow, connection, receiver } => {
                    if let Some(slot) = slots.get_mut(usize::from(flow)).filter(|slot| slot.is_none()) {
                        *slot = Some(receiver);
                        bulk.push(connection);
                    }
                }
                Opened::Demand { connection, send, receive } if on_demand && demand.is_none() => {
                    demand = Some((DemandSender { stream: send }, FlowReceiver::new(receive, 0)));
                    connections.push(connection);
                }
                Opened::Demand { .. } | Opened::Control { .. } => {}
            }
        }
        if slots.iter().all(Option::is_some) && demand.is_some() == on_demand {
            break;
        }
        early.push(opened.recv().await.ok_or_else(gone)?);
    }
    // One reader for each connection, however many flows it carries.
    bulk.sort_by_key(quinn::Connection::stable_id);
    bulk.dedup_by_key(|connection| connection.stable_id());
    let (ways, copies) = copies::ways(welcome.flows);
    for connection in &bulk {
        tokio::spawn(copies::hand_out(connection.clone(), ways.clone()));
    }
    connections.extend(bulk);
    let flows = slots.into_iter().flatten().zip(copies).map(|(flow, copies)| flow.with_copies(copies)).collect();
    Ok(Gathered { connection, send, receive, hello, flows, demand, connections })
}

/// Reads a hello and answers it; `None` when the peer is not worth an answer.
async fn greet(
    receive: &mut quinn::RecvStream,
    facts: &TargetFacts,
    demand_port: Option<u16>,
    patience: Duration,
) -> Option<(Hello, Result<Welcome, WireError>)> {
    let hello: Hello = match tokio::time::timeout(patience, control::read_message(receive)).await {
        Ok(Ok(Some(hello))) => hello,
        _ => return None,
    };
    let answer = facts.negotiate(&hello).map(|mut welcome| {
        if demand_port.is_none() {
            welcome.features.remove(FEATURE_POST_COPY);
        }
        let demand_port = demand_port.filter(|_| welcome.features.contains(FEATURE_POST_COPY));
        Welcome { demand_port, ..welcome }
    });
    Some((hello, answer))
}
