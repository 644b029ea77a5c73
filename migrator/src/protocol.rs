//! The control messages of a move.

use serde::{Deserialize, Serialize};
use vmotion_model::{FollowReport, OwnerRecord};
use vmotion_transport::session::WireError;

/// Mark on every flow after the last page of the first pause; those of later pauses, when one was taken back, count on from here.
/// Rounds count from 1 and stay far below.
pub(crate) const FINAL_MARKS: u64 = 1 << 48;
/// Bytes before a saved state: the final mark of the pause it belongs to, little-endian.
pub(crate) const STATE_PREFIX_BYTES: usize = 8;

/// Source to target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ToTarget {
    /// The guest will be paused at once: be ready.
    PauseSoon,
    /// The machine is yours if you win the record. All pages precede the final mark on every flow; the state has its own
    /// stream.
    Offer {
        /// The record to replace.
        expected: OwnerRecord,
        /// Digest of all guest memory, when the move verifies.
        digest: Option<[u8; 16]>,
        /// Final mark of the pause that this offer ends: its pages and its state count, those of a pause taken back do not.
        mark: u64,
        /// Pages were declared missing; they follow.
        owes: bool,
    },
    /// The move is off.
    Abort(WireError),
    /// The offer before this is off: the source has won the record back. The move goes on, and this is the record that its next
    /// offer is about. Since wire version 2.
    Renew {
        /// The record as the source has it now.
        expected: OwnerRecord,
    },
}

/// Target to source.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum ToSource {
    /// All pages before mark `round` of every flow are in memory.
    RoundArrived {
        /// The mark.
        round: u64,
    },
    /// All pages that were pushed on a flow before a mark are in memory.
    Pushed {
        /// The flow.
        flow: u8,
        /// The mark.
        mark: u64,
    },
    /// The record is ours and the guest runs here.
    Committed(TargetReport),
    /// The guest misses no page any more.
    AllHere(FollowReport),
    /// The target gave up before it asked for the record, and never will.
    Refused(WireError),
}

/// The target's numbers of a finished move.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub(crate) struct TargetReport {
    /// From the offer's arrival until the last page and the state were there, ms.
    pub(crate) fill_ms: f64,
    /// Checking the digest, ms; 0 without verification.
    pub(crate) digest_ms: f64,
    /// Loading vCPUs and devices, ms.
    pub(crate) load_ms: f64,
    /// Compare-and-set of the record, ms.
    pub(crate) commit_ms: f64,
    /// Letting vCPUs go, ms.
    pub(crate) resume_ms: f64,
    /// From the pause notice until vCPUs were let go, ms.
    pub(crate) since_pause_ms: f64,
    /// CPU seconds of the target process since its session began.
    pub(crate) cpu_s: f64,
    /// Digest of all guest memory, when the move verifies.
    pub(crate) digest: Option<[u8; 16]>,
}
