//! What became of a move, with its numbers.

use crate::{Epoch, HostName, MachineName, MoveOutcome, Outlook, PageCounts, Timeline};
use serde::{Deserialize, Serialize};

/// What the engine foresaw of the way that was taken.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Prediction {
    /// Whole move, in ms, as foreseen by the survey, or after the first round where that came first.
    pub total_ms: f64,
    /// Page payload bytes on the wire, as foreseen at the same time.
    #[serde(default)]
    pub wire_bytes: f64,
    /// Pause, in ms, as foreseen just before it.
    pub downtime_ms: f64,
    /// What of that is neither pages nor round trips, in ms.
    #[serde(default)]
    pub pause_fixed_ms: f64,
}

/// The pause, as each end measured it, in ms. The parts add up to the whole.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DowntimeReport {
    /// Source clock: from the pause request until the target said it runs.
    pub source_ms: f64,
    /// Target clock: from the notice of the pause until vCPUs were let go.
    pub target_ms: f64,
    /// Stopping all vCPUs and devices.
    pub pause_ms: f64,
    /// Last dirty scan and last pages handed to the transport.
    pub last_pages_ms: f64,
    /// Saving device and vCPU state.
    pub save_ms: f64,
    /// On the way: from the offer until everything had arrived (source clock less the target's parts).
    pub transfer_ms: f64,
    /// Comparing digests of all memory at the target; 0 without `verify`.
    pub digest_ms: f64,
    /// Loading device and vCPU state.
    pub load_ms: f64,
    /// The compare-and-set of the owner record.
    pub commit_ms: f64,
    /// Letting vCPUs go.
    pub resume_ms: f64,
}

/// What happened between the hand-over and the last page, when memory followed the guest.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FollowReport {
    /// Pages missing at the target when the guest was let go.
    pub missing_pages: u64,
    /// Those of them that a vCPU or device waited for.
    pub demanded_pages: u64,
    /// Time from the guest's going on until the last page was there, in ms.
    pub duration_ms: f64,
    /// Median wait for a demanded page, from the fault's arrival in user space until the page was mapped, in µs.
    pub stall_p50_us: f64,
    /// 99 of 100 waits were shorter, in µs.
    pub stall_p99_us: f64,
    /// 999 of 1000 waits were shorter, in µs.
    pub stall_p999_us: f64,
    /// The longest wait, in µs.
    pub stall_max_us: f64,
    /// All waits together, in ms.
    #[serde(default)]
    pub stall_total_ms: f64,
}

/// Digests of all guest memory during the pause.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DigestReport {
    /// xxh3-128 of all RAM, source, in hexadecimal.
    pub source: String,
    /// The same at the target.
    pub target: String,
}

impl DigestReport {
    /// Do both ends hold the same bytes?
    #[must_use]
    pub fn equal(&self) -> bool {
        self.source == self.target
    }
}

/// The report of a finished move.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MoveSummary {
    /// The machine.
    pub machine: MachineName,
    /// Where it was.
    pub source: HostName,
    /// Where it was to go.
    pub target: HostName,
    /// How it ended.
    pub outcome: MoveOutcome,
    /// Epoch the machine runs with now.
    pub epoch: Epoch,
    /// From request to end, in ms, by the source's clock.
    pub total_ms: f64,
    /// The pause and its parts.
    pub downtime: DowntimeReport,
    /// What was foreseen.
    pub predicted: Prediction,
    /// Copy rounds while the guest ran.
    pub rounds: u32,
    /// Pages by kind.
    pub pages: PageCounts,
    /// Page payload and state bytes handed to the transport.
    pub wire_bytes: u64,
    /// Bytes in all UDP datagrams of the source, as QUIC counted them, retransmissions and acknowledgements included.
    pub udp_bytes: u64,
    /// CPU seconds the source process spent during the move.
    pub source_cpu_s: f64,
    /// CPU seconds the target process spent during the move.
    pub target_cpu_s: f64,
    /// With `verify`.
    #[serde(default)]
    pub digests: Option<DigestReport>,
    /// When memory followed the guest.
    #[serde(default)]
    pub follow: Option<FollowReport>,
    /// What was measured and foreseen while the first pages were copied.
    #[serde(default)]
    pub outlook: Option<Outlook>,
    /// Part of its speed that the guest lost while it was moved, by throttling or by waiting for pages, in percent.
    #[serde(default)]
    pub slowdown_percent: f64,
    /// What happened when.
    #[serde(default)]
    pub timeline: Timeline,
}
