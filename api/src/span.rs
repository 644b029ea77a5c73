//! Machines that span several hosts: what a controller asks of their hosts, and they of it.

use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use vmotion_model::{Epoch, HostName, MachineName, MachineSpec, PieceName};
use vmotion_transport::mesh::MeshTicket;

/// `PUT /v1/machines/{name}/part`: be ready to have a part of this machine. The same request again changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PartRequest {
    /// The whole machine.
    pub spec: MachineSpec,
    /// The epoch of its owner record.
    pub epoch: Epoch,
    /// All its hosts. The first has the devices; their places are their numbers.
    pub hosts: Vec<HostName>,
    /// Slices its memory is divided into.
    pub slices: u8,
    /// The secret of its hosts.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub ticket: MeshTicket,
}

/// The part's process is prepared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PartReady {
    /// UDP address by which the other hosts reach it.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub address: SocketAddr,
}

/// Where another host's part is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PartAddress {
    /// The host.
    pub host: HostName,
    /// Its UDP address.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub address: SocketAddr,
}

/// `POST /v1/machines/{name}/part/orders`: what a part is to do next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum PartOrder {
    /// Talk to these hosts; the first host loads the kernel. Again: nothing.
    Join(Vec<PartAddress>),
    /// Run. Again: nothing.
    Run,
    /// Give a piece that is here to another host.
    Give {
        /// Which.
        piece: PieceName,
        /// To whom.
        to: HostName,
    },
}

/// What came of an order.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PartAnswer {
    /// How long a vCPU that was given stood still, in ms.
    #[serde(default)]
    pub pause_ms: f64,
    /// From the order until it was done, in ms.
    #[serde(default)]
    pub total_ms: f64,
}

/// `POST /v1/machines/{name}/claims`: a host claims a piece of a machine it has a part of. Answered with who has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ClaimRequest {
    /// `vcpuN`, or `shardN` for the homes of 2 MiB of memory.
    pub piece: String,
    /// The epoch it is to have it in.
    pub epoch: Epoch,
}

/// Who has a piece.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Claimed {
    /// The host.
    pub host: HostName,
    /// Since when.
    pub epoch: Epoch,
}

/// `POST /v1/machines/{name}/pieces`: move a piece of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MovePiece {
    /// Which.
    pub piece: PieceName,
    /// To which of the machine's hosts.
    pub to: HostName,
}

/// `PUT /v1/machines/{name}/pieces`: spread a machine over these of its hosts, in equal shares; one gathers it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SpreadRequest {
    /// Over which, in order.
    pub over: Vec<HostName>,
}

/// Path of a machine's part at its host.
pub(crate) fn part_path(name: &MachineName) -> String {
    format!("/v1/machines/{name}/part")
}
