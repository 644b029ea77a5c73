//! Accepting a session: the target's side.

use super::{
    ALPN, ControlReceiver, ControlSender, DemandLane, FEATURE_POST_COPY, FlowReceiver, Hello, LaneKind, MoveTicket,
    OPENING_TIMEOUT, Opening, SessionError, TargetFacts, Welcome, WireError, control, copies,
    lane::{Door, Lane, LaneControl},
};
use crate::{ExpectedPeer, Identity, socket, tuning::Tuning};
use quinn::crypto::rustls::QuicServerConfig;
use std::{
    net::{SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};
use tokio::sync::{mpsc, oneshot};

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
    lane: Lane,
    port: u16,
    opened: oneshot::Receiver<Result<(), SessionError>>,
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
    lane: Option<LaneControl>,
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
        if let Some(lane) = &self.lane {
            lane.close(reason);
        }
        self.endpoint.close(0u32.into(), reason.as_bytes());
    }
}

/// A connection that has shown the ticket.
enum Opened {
    Control {
        connection: quinn::Connection,
        send: quinn::SendStream,
        receive: quinn::RecvStream,
    },
    Flow {
        flow: u8,
        connection: quinn::Connection,
        receiver: FlowReceiver,
    },
    /// Shown to the lane's own thread.
    Demand,
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
        let door =
            Door { expected: self.expected.clone(), ticket: self.ticket.clone(), patience: self.opening_timeout() };
        let (lane, opened) = Lane::listen(socket, self.tuning.endpoint(), self.config.clone(), door)?;
        self.demand = Some(DemandDoor { lane, port, opened });
        Ok(self)
    }

    /// The path may be gone for a while between a peer's first packet and the one that says who it is.
    fn opening_timeout(&self) -> Duration {
        OPENING_TIMEOUT.max(self.tuning.silence_max)
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
        let opening = self.opening_timeout();
        let Self { endpoint, demand, expected, ticket, .. } = self;
        let (opened_sender, mut opened) = mpsc::channel(PENDING_MAX);
        let door = keep_door(endpoint.clone(), expected, ticket, opened_sender.clone(), opening);
        let mut doors = vec![tokio::spawn(door)];
        let port = demand.as_ref().map(|door| door.port);
        let lane = demand.map(|DemandDoor { lane, opened, .. }| {
            doors.push(tokio::spawn(async move {
                if let Ok(Ok(())) = opened.await {
                    let _ = opened_sender.send(Opened::Demand).await;
                }
            }));
            lane
        });
        let result = tokio::time::timeout(patience, gather(&mut opened, facts, port, opening)).await;
        doors.iter().for_each(tokio::task::JoinHandle::abort);
        let Gathered { connection, send, receive, hello, flows, on_demand, mut connections } =
            result.unwrap_or(Err(SessionError::Timeout(patience)))?;
        let demand = lane.filter(|_| on_demand).map(DemandLane::new);
        connections.push(connection.clone());
        let (sender, receiver) = control::pair(&connection, send, receive);
        let (lane, receiver) = (demand.as_ref().map(DemandLane::control), Some(receiver));
        Ok(TargetSession { sender, receiver, flows, demand, hello, connections, lane, endpoint })
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
        Some((LaneKind::Flow(flow), position)) => {
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
    if !expected.is_shown(connection.peer_identity()) {
        return refuse("the certificate is not that of this move's source");
    }
    // The source speaks first on exactly one stream: bidirectional for control, unidirectional for flows.
    let (lane, opened) = tokio::select! {
        stream = connection.accept_bi() => {
            let (send, mut receive) = stream?;
            let lane = read_opening(&mut receive, ticket).await?.map(|(lane, _)| lane);
            (lane, Opened::Control { connection: connection.clone(), send, receive })
        }
        stream = connection.accept_uni() => {
            let mut stream = stream?;
            let (lane, position) = read_opening(&mut stream, ticket).await?.unzip();
            let flow = if let Some(LaneKind::Flow(flow)) = lane { flow } else { u8::MAX };
            let receiver = FlowReceiver::new(stream, position.unwrap_or_default());
            (lane, Opened::Flow { flow, connection: connection.clone(), receiver })
        }
    };
    match (lane, &opened) {
        (Some(LaneKind::Control), Opened::Control { .. }) | (Some(LaneKind::Flow(_)), Opened::Flow { .. }) => {
            Ok(opened)
        }
        (None, _) => refuse("the ticket is not that of this move"),
        _ => refuse("the opening does not fit its stream"),
    }
}

/// The lane an opening asks for, and the bytes it took of its stream; `None` when its ticket is wrong.
async fn read_opening(
    stream: &mut quinn::RecvStream,
    ticket: &MoveTicket,
) -> Result<Option<(LaneKind, u64)>, SessionError> {
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
    /// The demand lane was agreed, and is there.
    on_demand: bool,
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
            bulk @ (Opened::Flow { .. } | Opened::Demand) => early.push(bulk),
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
    let (mut demand, mut bulk) = (false, Vec::<quinn::Connection>::new());
    loop {
        for lane in early.drain(..) {
            match lane {
                Opened::Flow { flow, connection, receiver } => {
                    if let Some(slot) = slots.get_mut(usize::from(flow)).filter(|slot| slot.is_none()) {
                        *slot = Some(receiver);
                        bulk.push(connection);
                    }
                }
                Opened::Demand => demand = true,
                Opened::Control { .. } => {}
            }
        }
        if slots.iter().all(Option::is_some) && (demand || !on_demand) {
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
    let flows = slots.into_iter().flatten().zip(copies).map(|(flow, copies)| flow.with_copies(copies)).collect();
    Ok(Gathered { connection, send, receive, hello, flows, on_demand, connections: bulk })
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
