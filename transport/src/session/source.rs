//! Opening a session: the source's side.

use super::{
    ALPN, ControlReceiver, ControlSender, DemandServer, ESTABLISH_TIMEOUT, FEATURE_POST_COPY, FlowSender, Hello, Lane,
    MoveTicket, Opening, SessionError, Urgent, WIRE_VERSION_COPIES, Welcome, WireError, control,
    copies::{Copies, CopySender},
};
use crate::{ExpectedPeer, Identity, congestion::LONG, pages::WireCost, socket, tuning::Tuning};
use quinn::crypto::rustls::QuicClientConfig;
use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
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

/// What of a packet is neither stream nor datagram, in bytes: flags, connection id, packet number, tag, the head of a frame.
const PACKET_HEAD_BYTES: u64 = 32;

/// Reads the counters of a session's connections, and closes them.
#[derive(Debug, Clone)]
pub struct PathStats {
    connections: Vec<quinn::Connection>,
    least_rtt_ns: Arc<AtomicU64>,
}

impl PathStats {
    /// Bytes in UDP datagrams sent, by all connections.
    #[must_use]
    pub fn udp_bytes_sent(&self) -> u64 {
        self.connections.iter().map(|connection| connection.stats().udp_tx.bytes).sum()
    }

    /// Those that were not lost on the way, as far as QUIC knows by now.
    #[must_use]
    pub fn udp_bytes_delivered(&self) -> u64 {
        let delivered = |stats: quinn::ConnectionStats| stats.udp_tx.bytes.saturating_sub(stats.path.lost_bytes);
        self.connections.iter().map(|connection| delivered(connection.stats())).sum()
    }

    /// Does the path stay on this machine?
    #[must_use]
    pub fn is_local(&self) -> bool {
        self.connections.iter().all(|connection| connection.remote_address().ip().is_loopback())
    }

    /// Is every connection still open, as far as is known here?
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.connections.iter().all(|connection| connection.close_reason().is_none())
    }

    /// Packets QUIC declared lost.
    #[must_use]
    pub fn packets_lost(&self) -> u64 {
        self.connections.iter().map(|connection| connection.stats().path.lost_packets).sum()
    }

    /// Times QUIC met congestion: the path, not this host, set the pace.
    #[must_use]
    pub fn congestion_events(&self) -> u64 {
        self.connections.iter().map(|connection| connection.stats().path.congestion_events).sum()
    }

    /// Least round-trip time of any connection seen by this and earlier calls: that of a path without a queue, as it is
    /// once the guest stands and bulk data has drained. The control connection alone is too quiet to know: its estimate is
    /// still that of the handshake.
    #[must_use]
    pub fn least_rtt(&self) -> Duration {
        let now = self.connections.iter().map(quinn::Connection::rtt).min().unwrap_or_default();
        let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        let before = self.least_rtt_ns.fetch_min(now, Ordering::Relaxed);
        Duration::from_nanos(before.min(now))
    }

    /// Does a round trip cost more than hosts take to wake up, so that nobody should wait for one who can do without?
    #[must_use]
    pub fn is_long(&self) -> bool {
        (LONG..Duration::MAX).contains(&self.least_rtt())
    }

    /// Bytes of streams and datagrams that have left this host and were not lost, about: never much less than it is.
    #[must_use]
    pub fn payload_bytes_delivered(&self) -> u64 {
        let mtu = u64::from(self.mtu()).max(PACKET_HEAD_BYTES + 1);
        self.udp_bytes_delivered() / mtu * (mtu - PACKET_HEAD_BYTES)
    }

    /// Largest UDP payload in use, in bytes.
    #[must_use]
    pub fn mtu(&self) -> u16 {
        self.connections.iter().map(|connection| connection.stats().path.current_mtu).max().unwrap_or(0)
    }

    /// Closes every connection now; the peer hears `reason`.
    pub fn close(&self, reason: &str) {
        for connection in &self.connections {
            connection.close(0u32.into(), reason.as_bytes());
        }
    }
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
        control::write_message(&mut send, &opening(Lane::Control)).await?;
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
            let position = control::write_message(&mut stream, &opening(Lane::Flow(flow))).await?;
            let connection = (welcome.version >= WIRE_VERSION_COPIES).then(|| bulk[lane].clone());
            let copies = CopySender { connection, flow, position, copies: copies.clone() };
            flows.push(FlowSender::start(stream, Arc::clone(&wire), copies));
        }
        let mut connections = vec![control_connection.clone()];
        connections.extend(bulk);
        let mut demand = None;
        if let Some(port) = welcome.demand_port.filter(|_| welcome.features.contains(FEATURE_POST_COPY)) {
            let dialling = Dialling { address: SocketAddr::new(options.address.ip(), port), ..dialling };
            let (connection, server) = open_demand_lane(dialling, config, opening(Lane::Demand)).await?;
            demand = Some(server);
            connections.push(connection);
        }
        let (sender, receiver) = control::pair(&control_connection, send, receive);
        Ok(Self {
            sender,
            receiver,
            flows,
            demand,
            welcome,
            wire,
            copies,
            stats: PathStats { connections, least_rtt_ns: Arc::new(AtomicU64::new(u64::MAX)) },
        })
    }
}

/// The demand lane lives on a thread of its own from its first packet on.
async fn open_demand_lane(
    dialling: Dialling,
    config: quinn::ClientConfig,
    opening: Opening,
) -> Result<(quinn::Connection, DemandServer), SessionError> {
    let urgent = Urgent::start()?;
    let opened = urgent.handle().spawn(async move {
        let connection = dial(dialling, &config).await?;
        let (mut send, receive) = connection.open_bi().await?;
        control::write_message(&mut send, &opening).await?;
        Ok::<_, SessionError>((connection, send, receive))
    });
    let (connection, send, receive) = opened.await.map_err(|error| SessionError::Lost(error.to_string()))??;
    Ok((connection, DemandServer::new(send, receive, urgent)))
}

/// Where to connect to and from.
#[derive(Debug, Clone, Copy)]
struct Dialling {
    address: SocketAddr,
    local: Option<IpAddr>,
    tuning: Tuning,
}

/// One connection on a socket of its own, so that flows do not share an endpoint's lock and send queue.
async fn dial(dialling: Dialling, config: &quinn::ClientConfig) -> Result<quinn::Connection, SessionError> {
    let Dialling { address, local, tuning } = dialling;
    let any = match address {
        SocketAddr::V4(_) => IpAddr::from([0; 4]),
        SocketAddr::V6(_) => IpAddr::from([0; 16]),
    };
    let socket = UdpSocket::bind((local.unwrap_or(any), 0))?;
    let mut endpoint = quinn::Endpoint::new_with_abstract_socket(
        tuning.toward(address.ip()).endpoint(),
        None,
        socket::wrap(socket)?,
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
