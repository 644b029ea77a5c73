//! One move's session between two machine processes.
//!
//! ```text
//! source                                                     target
//!   │ control connection: Opening{ticket}, Hello ────────────▶ │ ticket? peer? compatible?
//!   │ ◀──────────────────────────────── Welcome or WireError   │
//!   │ flow connection 0..n: Opening{ticket, flow} ───────────▶ │
//!   │ control: messages of the layer above, both ways ◀──────▶ │
//!   │ control: state blobs, each a stream of its own ────────▶ │
//!   │ flow k: page frames and marks ─────────────────────────▶ │ (parts of it again in datagrams, where a lost packet would cost much)
//!   │ demand connection: page indices ◀── page frames ───────▶ │ (to a port of its own; only where memory can follow the guest)
//! ```
//! Control and each flow are connections of their own, so bulk loss and bulk backlog never delay control. A connection
//! that does not show the ticket of this move within seconds is closed and forgotten; it cannot end the session.

mod control;
mod copies;
mod demand;
mod flow;
mod hello;
mod lane;
mod mend;
mod path_stats;
mod source;
mod target;

#[cfg(test)]
mod tests;

pub(crate) use control::framed;
pub use control::{ControlReceiver, ControlSender, STATE_BYTES_MAX, StateReceiver};
pub use copies::Copies;
pub use demand::{DemandLane, DemandQueue, DemandSender, DemandServer, DemandSource, demand_queue};
pub use flow::{FlowReceiver, FlowSender, FrameParts};
pub use hello::{
    FEATURE_DELTA, FEATURE_POST_COPY, Hello, TargetFacts, WIRE_VERSION_COPIES, WIRE_VERSION_MAX, WIRE_VERSION_MIN,
    WIRE_VERSION_RENEWAL, Welcome, WireError, WireErrorCode,
};
pub use path_stats::PathStats;
pub use source::{ConnectOptions, SourceSession};
pub use target::{TargetListener, TargetSession};

use serde::{Deserialize, Serialize};
use std::{fmt, net::SocketAddr, time::Duration};

/// Application protocol of the TLS handshake.
pub(crate) const ALPN: &[u8] = b"vmotion-move/1";
/// A peer that has not said who it is by then is dropped; later where a longer silence is borne.
const OPENING_TIMEOUT: Duration = Duration::from_secs(5);
/// From first packet to a session with all its flows; longer where a longer silence is borne.
const ESTABLISH_TIMEOUT: Duration = Duration::from_secs(15);

/// The secret of one move, given to both ends by the controller. A valid host certificate alone opens no session.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MoveTicket([u8; 32]);

impl MoveTicket {
    /// A ticket of these bytes, which must come from a cryptographic generator.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// A fresh ticket.
    #[must_use]
    pub fn random() -> Self {
        let mut bytes = [0; 32];
        // aws-lc's generator does not fail on Linux after start-up; an all-zero ticket would never match a peer's.
        let _ = rustls::crypto::aws_lc_rs::default_provider().secure_random.fill(&mut bytes);
        Self(bytes)
    }

    pub(crate) const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Compares without telling by its duration where the first difference is.
    pub(crate) fn matches(&self, other: &Self) -> bool {
        self.0.iter().zip(&other.0).fold(0, |different, (a, b)| different | (a ^ b)) == 0
    }
}

impl TryFrom<String> for MoveTicket {
    type Error = &'static str;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        const WRONG: &str = "A ticket is 64 hexadecimal digits";
        if text.len() != 64 || !text.is_ascii() {
            return Err(WRONG);
        }
        let mut bytes = [0; 32];
        for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
            let digits = std::str::from_utf8(digits).map_err(|_| WRONG)?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| WRONG)?;
        }
        Ok(Self(bytes))
    }
}

impl From<MoveTicket> for String {
    fn from(ticket: MoveTicket) -> Self {
        use fmt::Write as _;
        ticket.0.iter().fold(Self::with_capacity(64), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
    }
}

impl fmt::Debug for MoveTicket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MoveTicket(…)")
    }
}

/// The first message of every connection.
#[derive(Debug, Serialize, Deserialize)]
struct Opening {
    /// Of the move this connection belongs to.
    ticket: [u8; 32],
    lane: LaneKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum LaneKind {
    Control,
    Flow(u8),
    Demand,
}

/// Why a session could not be made or ended.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// A socket or endpoint could not be made.
    #[error("Cannot use the UDP socket")]
    Socket(#[from] std::io::Error),
    /// Our certificate cannot be used.
    #[error("Cannot use this host's identity")]
    Identity(#[from] crate::IdentityError),
    /// TLS material that quinn does not take.
    #[error("Cannot set up QUIC: {0}")]
    Setup(String),
    /// The peer does not answer, or its certificate was refused.
    #[error("Cannot connect to {address}: {reason}")]
    Connect {
        /// Who was dialled.
        address: SocketAddr,
        /// As QUIC or TLS put it.
        reason: String,
    },
    /// The connection ended.
    #[error("Connection to the peer is lost: {0}")]
    Lost(String),
    /// The peer broke the protocol.
    #[error("Peer breaks the protocol: {0}")]
    Protocol(String),
    /// The peer refused, and said why.
    #[error("Peer refuses: {0}")]
    Refused(WireError),
    /// No complete session in time.
    #[error("No session within {0:?}")]
    Timeout(Duration),
    /// A page frame was refused.
    #[error("Page stream is refused")]
    Frame(#[from] crate::pages::FrameError),
}

impl From<quinn::ConnectionError> for SessionError {
    fn from(error: quinn::ConnectionError) -> Self {
        Self::Lost(error.to_string())
    }
}

impl From<quinn::WriteError> for SessionError {
    fn from(error: quinn::WriteError) -> Self {
        Self::of(&error)
    }
}

impl From<quinn::ReadError> for SessionError {
    fn from(error: quinn::ReadError) -> Self {
        Self::of(&error)
    }
}

impl From<quinn::ReadExactError> for SessionError {
    fn from(error: quinn::ReadExactError) -> Self {
        Self::of(&error)
    }
}

impl SessionError {
    /// What a stream says of a lost connection is only that it is lost: why is the error behind it.
    fn of(error: &dyn std::error::Error) -> Self {
        Self::Lost(vmotion_model::error_chain(error))
    }
}
