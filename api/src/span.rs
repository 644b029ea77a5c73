//! Machines that span several hosts: what a controller asks of their hosts, what they ask of it, and what operators ask for.

use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use vmotion_model::{
    Advice, Epoch, HostName, HotPage, MachineName, MachineSpec, PartFigures, PieceName, Sharing, Step, VcpuPause,
};
use vmotion_transport::mesh::MeshTicket;

/// A host of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PartMember {
    /// Its number in the machine, which is nobody else's meanwhile. Number 0 has the devices.
    pub number: u8,
    /// Which host.
    pub host: HostName,
}

/// `PUT /v1/machines/{name}/part`: be ready to have a part of this machine. The same request again changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PartRequest {
    /// The whole machine.
    pub spec: MachineSpec,
    /// The epoch of its owner record.
    pub epoch: Epoch,
    /// All its hosts.
    pub members: Vec<PartMember>,
    /// Slices its memory is divided into.
    pub slices: u8,
    /// The secret of its hosts.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub ticket: MeshTicket,
    /// Compare the bytes of copies of pages with those of their versions.
    #[serde(default)]
    pub audit: bool,
    /// Where each vCPU is, for a host that joins a machine that runs; without it the machine begins: all vCPUs are built where the devices
    /// are, and each slice has its home on the host of its place in `members`.
    #[serde(default)]
    pub vcpus: Option<Vec<Claimed>>,
}

/// The part's process is prepared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PartReady {
    /// UDP address by which the other hosts reach it.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub address: SocketAddr,
}

/// `GET /v1/machines/{name}/part`: the part of a machine that is on this host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PartState {
    /// UDP address by which the other hosts reach it.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub address: SocketAddr,
    /// What it did lately.
    pub figures: PartFigures,
}

/// Where another host's part is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PartAddress {
    /// Its number in the machine.
    pub number: u8,
    /// The host.
    pub host: HostName,
    /// Its UDP address.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub address: SocketAddr,
}

/// `POST /v1/machines/{name}/part/orders`: what a part is to do next. Each may be given again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum PartOrder {
    /// Talk to these hosts too. The first time, the host with the devices loads the kernel, unless the machine runs already.
    Join(Vec<PartAddress>),
    /// Run.
    Run,
    /// Give a piece that is here to another host.
    Give {
        /// Which.
        piece: PieceName,
        /// To whom.
        to: HostName,
    },
    /// Fetch the pages of a slice, whose homes are here, that a host has left behind.
    Pull {
        /// Which slice.
        slice: u8,
        /// From whom.
        from: HostName,
    },
    /// Give back every page: this host has no piece of the machine any more.
    Leave,
    /// That host has left: forget it.
    Dismiss {
        /// Which.
        host: HostName,
    },
}

/// What came of an order.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PartAnswer {
    /// How long a vCPU that was given stood still, in ms.
    #[serde(default)]
    pub pause_ms: f64,
    /// What of.
    #[serde(default)]
    pub pause: Option<VcpuPause>,
    /// From the order until it was done, in ms.
    #[serde(default)]
    pub total_ms: f64,
    /// Pages that were fetched or given back.
    #[serde(default)]
    pub pages: u64,
    /// It is not all done yet: ask again.
    #[serde(default)]
    pub more: bool,
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

/// `POST /v1/machines/{name}/shape`: change where the pieces of a machine are. Answered with an [`Operation`](crate::Operation) that has begun,
/// or with a [`ShapePlan`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ShapeRequest {
    /// How.
    pub change: ShapeChange,
    /// Only say what would be done.
    #[serde(default)]
    pub dry_run: bool,
}

/// Where pieces of a machine are to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum ShapeChange {
    /// One piece goes elsewhere.
    Piece {
        /// Which.
        piece: PieceName,
        /// Host or datacenter.
        to: String,
    },
    /// All pieces come together.
    Gather {
        /// Host or datacenter.
        to: String,
    },
    /// Pieces are spread over these hosts in equal shares.
    Spread {
        /// Over which, in order.
        over: Vec<HostName>,
    },
    /// Pieces go where [`SpanView::advice`] says.
    Advised,
}

/// What a change would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ShapePlan {
    /// The machine.
    pub machine: MachineName,
    /// In order; none when all is as it should be.
    pub steps: Vec<Step>,
}

/// `GET /v1/machines/{name}/shape`: how a machine gets on over its hosts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SpanView {
    /// The machine.
    pub machine: MachineName,
    /// Its hosts; the first has the devices.
    pub members: Vec<MemberView>,
    /// Waits for pages of other hosts, each second, over all vCPUs.
    pub remote_faults_per_s: f64,
    /// The pages that are waited for most, most often first.
    pub hottest: Vec<HotPage>,
    /// Which vCPUs on different hosts wait for the same pages, most often first.
    pub sharing: Vec<Sharing>,
    /// Which pieces should be elsewhere, the most useful first.
    pub advice: Vec<Advice>,
}

/// A host of a machine, and its part.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MemberView {
    /// Which host.
    pub host: HostName,
    /// The devices, the I/O APIC and the console are here.
    pub devices: bool,
    /// The pieces that are here.
    pub pieces: Vec<PieceName>,
    /// What it did lately; `None` when it does not say.
    #[serde(default)]
    pub figures: Option<PartFigures>,
    /// Why not.
    #[serde(default)]
    pub reason: Option<String>,
}

/// Path of a machine's part at its host.
pub(crate) fn part_path(name: &MachineName) -> String {
    format!("/v1/machines/{name}/part")
}

/// Path of a machine's shape at the controller.
pub(crate) fn shape_path(name: &MachineName) -> String {
    format!("/v1/machines/{name}/shape")
}
