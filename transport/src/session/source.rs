//! Opening a session: the source's side.

use super::{
    ALPN, ControlReceiver, ControlSender, DemandServer, ESTABLISH_TIMEOUT, FEATURE_POST_COPY, FlowSender, Hello,
    LaneKind, MoveTicket, Opening, SessionError, WIRE_VERSION_COPIES, Welcome, WireError, control,
    copies::{Copies, CopySender},
    lane::Lane,
    path_stats::{Counted, PathStats},
};
use crate::{ExpectedPeer, Identity, pages::WireCost, socket, tuning::Tuning};
use quinn::crypto::rustls::QuicClientConfig;
use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::Arc,
};

/// Whom to reach, as whom, and how.
#[derive(Debug)]
pub struct ConnectOptions<'a> {
    /// The target's UDP address.
    pub address: SocketAddr,
    /// Local address to send from; `None` lets the kernel choose.
    pub local: Option<IpAddr>,
    /// Our certificate.
    pub identity: &'a Identity,
    /// The host that must answer.
    pub expected: ExpectedPeer,
    /// Of this move.
    pub ticket: &'a MoveTicket,
    /// How to use the path.
    pub tuning: Tuning,
}

/// An open session at the source.
#[derive(Debug)]
pub struct SourceSession {
    /// Messages to the target.
    pub sender: ControlSender,
    /// Messages from the target.
    pub receiver: ControlReceiver,
    /// Bulk flows.
    pub flows: Vec<FlowSender>,
    /// Pages on demand, where both ends can.
    pub demand: Option<DemandServer>,
    /// What was agreed.
    pub welcome: Welcome,
    /// What a byte costs on the wire, as all flows measure it.
    pub wire: Arc<WireCost>,
    /// Whether what flows send is sent again at once.
    pub copies: Copies,
    /// Counters of all connections.
    pub stats: PathStats,
}

impl SourceSession {
    /// Connects, negotiates, and opens the flows that were agreed.
    ///
    /// # Errors
    /// [`SessionError::Refused`] carries the target's reason; the others say what failed on the way.
    pub async fn connect(options: ConnectOptions<'_>, hello: &Hello) -> Result<Self, SessionError> {
        // A path that is gone for a while is as bearable now as it is later.
        let patience = ESTABLISH_TIMEOUT.max(options.tuning.silence_max);
        tokio::time::timeout(patience, Self::establish(&options, hello))
            .await
            .unwrap_or(Err(SessionError::Timeout(patience)))
    }

    async fn establish(options: &ConnectOptions<'_>, hello: &Hello) -> Result<Self, SessionError> {
        let mut tls = options.identity.client_config(options.expected.clone())?;
        tls.alpn_protocols = vec![ALPN.to_vec()];
        let crypto = QuicClientConfig::try_from(tls).map_err(|error| SessionError::Setup(error.to_string()))?;
        let mut config = quinn::ClientConfig::new(Arc::new(crypto));
        config.transport_config(options.tuning.toward(options.address.ip()).transport());

        let dialling = Dialling { address: options.address, local: options.local, tuning: options.tuning };
        // Beside the control connection: on a long path each handshake takes round trips.
        let mut dialled = tokio::task::JoinSet::new();
        for _ in 0..options.tuning.connections.min(hello.flows).max(1) {
            let config = config.clone();
            dialled.spawn(async move { dial(dialling, &config).await });
        }
        let control_connection = dial(dialling, &config).await?;
        let (mut send, mut receive) = control_connection.open_bi().await?;
        let opening = |lane| Opening { ticket: *options.ticket.as_bytes(), lane };
        control::write_message(&mut send, &opening(LaneKind::Control)).await?;
        control::write_message(&mut send, hello).await?;
        let answer: Option<Result<Welcome, WireError>> = control::read_message(&mut receive).await?;
        let welcome = answer
            .ok_or_else(|| SessionError::Protocol("the target ended the stream without an answer".to_owned()))?
            .map_err(SessionError::Refused)?;
        if welcome.flows == 0 || welcome.flows > hello.flows {
            return Err(SessionError::Protocol(format!("the target asks for {} flows", welcome.flows)));
        }

        let wire = Arc::new(WireCost::default());
        let copies = Copies::default();
        let mut flows = Vec::new();
        let mut bulk = Vec::new();
        for flow in 0..welcome.flows {
            let lane = usize::from(flow % options.tuning.connections.max(1));
            if lane == bulk.len() {
                let connection = dialled.join_next().await;
                let ended = || SessionError::Setup("a connection's task ended".to_owned());
                let connection = connection.ok_or_else(ended)?.map_err(|_| ended())??;
                connection.set_send_window(options.tuning.send_window(connection.rtt()));
                bulk.push(connection);
            }
            let mut stream = bulk[lane].open_uni().await?;
            let position = control::write_message(&mut stream, &opening(LaneKind::Flow(flow))).await?;
            let connection = (welcome.version >= WIRE_VERSION_COPIES).then(|| bulk[lane].clone());
            let copies = CopySender { connection, flow, position, copies: copies.clone() };
            flows.push(FlowSender::start(stream, Arc::clone(&wire), copies));
        }
        let mut connections = vec![Counted::Quinn(control_connection.clone())];
        connections.extend(bulk.into_iter().map(Counted::Quinn));
        let mut demand = None;
        if let Some(port) = welcome.demand_port.filter(|_| welcome.features.contains(FEATURE_POST_COPY)) {
            let dialling = Dialling { address: SocketAddr::new(options.address.ip(), port), ..dialling };
            let lane = open_demand_lane(dialling, config, &opening(LaneKind::Demand)).await?;
            connections.push(Counted::Lane(lane.control()));
            demand = Some(DemandServer::new(lane));
        }
        let (sender, receiver) = control::pair(&control_connection, send, receive);
        Ok(Self { sender, receiver, flows, demand, welcome, wire, copies, stats: PathStats::new(connections) })
    }
}

/// The demand lane lives on a thread of its own from its first packet on.
async fn open_demand_lane(
    dialling: Dialling,
    config: quinn::ClientConfig,
    opening: &Opening,
) -> Result<Lane, SessionError> {
    let Dialling { address, tuning, .. } = dialling;
    let endpoint = tuning.toward(address.ip()).endpoint();
    let (lane, opened) = Lane::dial(dialling.socket()?, endpoint, config, address, control::framed(opening)?)?;
    opened.await.unwrap_or_else(|_| Err(SessionError::Lost("the demand lane's thread ended".to_owned())))?;
    Ok(lane)
}

/// Where to connect to and from.
#[derive(Debug, Clone, Copy)]
struct Dialling {
    address: SocketAddr,
    local: Option<IpAddr>,
    tuning: Tuning,
}

impl Dialling {
    fn socket(self) -> std::io::Result<UdpSocket> {
        let any = match self.address {
            SocketAddr::V4(_) => IpAddr::from([0; 4]),
            SocketAddr::V6(_) => IpAddr::from([0; 16]),
        };
        UdpSocket::bind((self.local.unwrap_or(any), 0))
    }
}

/// One connection on a socket of its own, so that flows do not share an endpoint's lock and send queue.
async fn dial(dialling: Dialling, config: &quinn::ClientConfig) -> Result<quinn::Connection, SessionError> {
    let Dialling { address, tuning, .. } = dialling;
    let mut endpoint = quinn::Endpoint::new_with_abstract_socket(
        tuning.toward(address.ip()).endpoint(),
        None,
        socket::wrap(dialling.socket()?)?,
        Arc::new(quinn::TokioRuntime),
    )?;
    endpoint.set_default_client_config(config.clone());
    let failed = |reason: String| SessionError::Connect { address, reason };
    // The name is not used: the peer is known by its principal. SNI must hold something that looks like a host name.
    endpoint
        .connect(address, "vmotion")
        .map_err(|error| failed(error.to_string()))?
        .await
        .map_err(|error| failed(error.to_string()))
}
