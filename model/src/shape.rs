//! Changing where the pieces of a machine are, step by step; and what is known of how they get on there.

use crate::{HostName, PieceName};
use serde::{Deserialize, Serialize};
use std::fmt;

/// One step of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "step", rename_all = "kebab-case")]
pub enum Step {
    /// A host that had no part of the machine gets an empty one.
    Join {
        /// Which.
        host: HostName,
    },
    /// A piece goes from host to host.
    Move {
        /// Which.
        piece: PieceName,
        /// Where it is.
        from: HostName,
        /// Where it goes.
        to: HostName,
    },
    /// A host without pieces gives back the pages that it still has, and its part ends.
    Leave {
        /// Which.
        host: HostName,
    },
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Join { host } => write!(f, "{host} joins"),
            Self::Move { piece, from, to } => write!(f, "{piece} goes from {from} to {to}"),
            Self::Leave { host } => write!(f, "{host} leaves"),
        }
    }
}

/// A step, and what came of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct StepReport {
    /// What is done.
    #[serde(flatten)]
    pub step: Step,
    /// When it began, in ms after the operation did; `None` before that.
    #[serde(default)]
    pub began_ms: Option<f64>,
    /// `None` until it is done.
    #[serde(default)]
    pub done: Option<StepDone>,
    /// Why it was not done.
    #[serde(default)]
    pub failed: Option<String>,
}

impl StepReport {
    /// Nothing has come of it yet.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        self.done.is_none() && self.failed.is_none()
    }

    /// One that has not begun.
    #[must_use]
    pub const fn new(step: Step) -> Self {
        Self { step, began_ms: None, done: None, failed: None }
    }
}

/// How a step went.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct StepDone {
    /// From its order until it was done, in ms.
    pub total_ms: f64,
    /// How long a vCPU stood still, in ms; 0 for everything else, which never makes the guest stand still.
    pub pause_ms: f64,
    /// What of.
    #[serde(default)]
    pub pause: Option<VcpuPause>,
    /// Pages that went along with a slice of memory, or that were given back.
    pub pages: u64,
}

/// What the pause of a vCPU that moves is made of.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VcpuPause {
    /// From the order until it had left the guest, in ms.
    pub stop_ms: f64,
    /// Reading all of it, in ms.
    pub save_ms: f64,
    /// What is not in the others: its state's way to its new host, and the answer's back, in ms.
    pub transfer_ms: f64,
    /// Setting all of it on the new host, in ms.
    pub restore_ms: f64,
    /// Until the store had said that the new host has it, in ms.
    pub claim_ms: f64,
}

/// What a host's part of a machine did lately.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PartFigures {
    /// The time that the counts are of, in ms.
    pub window_ms: f64,
    /// Waits for pages, by vCPU.
    pub vcpus: Vec<VcpuFigures>,
    /// Half of the waits for pages from other hosts were not longer, in µs; since the part began.
    pub wait_p50_us: f64,
    /// 99 of 100 were not longer, in µs; since the part began.
    pub wait_p99_us: f64,
    /// Pages that this host knows something about.
    pub pages_known: u64,
    /// Pages taken away a moment after they had come, since the part began.
    pub bounced: u64,
    /// Pages lost with a host, since the part began.
    pub lost: u64,
    /// Copies whose bytes were compared with those of their versions, since the part began; one that differs ends the machine.
    pub audited: u64,
    /// The other hosts of the machine.
    pub peers: Vec<PeerFigures>,
}

/// What a vCPU waited for.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VcpuFigures {
    /// Which.
    pub vcpu: u8,
    /// Pages that it had to wait for.
    pub faults: u64,
    /// How long it waited, in ms.
    pub waited_ms: f64,
    /// The pages it waited for most.
    pub pages: Vec<PageFaults>,
}

/// A page, and how often a vCPU waited for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PageFaults {
    /// Guest-physical page number.
    pub page: u64,
    /// How often: at most, for a page that has only just come into the list.
    pub faults: u64,
}

/// Another host, as a part sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PeerFigures {
    /// Which.
    pub host: HostName,
    /// Is there a connection?
    pub connected: bool,
    /// Bytes of page traffic sent to it, since the part began.
    pub sent_bytes: u64,
    /// Bytes of page traffic received from it, since the part began.
    pub received_bytes: u64,
    /// How well the machine's time there is known here: it is off by this at most, in µs.
    #[serde(default)]
    pub clock_bound_us: Option<f64>,
}

/// Two vCPUs on different hosts that wait for the same pages.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Sharing {
    /// The lower number.
    pub one: PieceName,
    /// The higher.
    pub other: PieceName,
    /// How often a second the one waits for what the other has used, or the other way round.
    pub faults_per_s: f64,
}

/// A page that vCPUs wait for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct HotPage {
    /// Guest-physical page number.
    pub page: u64,
    /// The slice of memory it is in.
    pub slice: PieceName,
    /// How often a second somebody waits for it.
    pub faults_per_s: f64,
    /// Who does.
    pub vcpus: Vec<u8>,
}

/// A piece that should be elsewhere.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Advice {
    /// Which.
    pub piece: PieceName,
    /// Where it is.
    pub from: HostName,
    /// Where it should be.
    pub to: HostName,
    /// Waits a second that this saves, or makes shorter in the case of memory.
    pub saves_per_s: f64,
    /// The numbers behind it.
    pub why: String,
}
