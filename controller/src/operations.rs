//! A move as the controller sees it: one state machine, pure, in this file.
//!
//! ```text
//! Preparing ──TargetReady──▶ Launching ──Launched──▶ Copying ──Summary──▶ Finished
//!     │ TargetRefused, Cancelled   │ SourceRefused       │ SourceForgot
//!     ▼                            ▼                     ▼
//!  Finished                     Settling ◀───────────────┘      Settling ──TargetLetGo──▶ Finished
//!
//! Reshaping ──last step──▶ Finished         where the pieces of a machine over several hosts are: steps of their own, in [`shape`]
//! ```
//! The controller never decides who owns a machine: the owner record does. Before a move is called anything but moved
//! without the source's own word, the target has let go (`Settling`) and the record has been read again after that; a
//! record that names the target ends the move as moved in every phase.

pub(crate) mod shape;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use vmotion_api::Operation;
use vmotion_model::{MachineSpec, MoveOutcome, MovePhase, MoveProgress, MoveSummary, OwnerRecord, PageCounts};
use vmotion_transport::session::MoveTicket;

/// Where a move is. Persisted at every change, so that a restarted controller goes on from here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "phase")]
pub(crate) enum Phase {
    /// The target is asked to be ready; the source knows nothing yet.
    Preparing,
    /// The target waits at `address`; the source is asked to move.
    Launching {
        /// UDP address of the target process.
        address: SocketAddr,
    },
    /// The source moves, and is asked how it goes.
    Copying,
    /// It ends as `outcome` once the target has let go.
    Settling {
        /// How it will have ended, unless the record says otherwise.
        outcome: MoveOutcome,
    },
    /// Pieces of a machine move, step by step.
    Reshaping {
        /// No further piece moves, and it ends like this once empty hosts have left.
        ending: Option<MoveOutcome>,
    },
    /// Over.
    Finished,
}

/// What a question to the hosts or to the record brought.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Event {
    /// The operator wants it to end, and the source has not been asked to move.
    Cancelled,
    /// The target is prepared.
    TargetReady(SocketAddr),
    /// The target cannot, in its own words.
    TargetRefused(String),
    /// The target does not answer.
    TargetSilent {
        /// As the network put it.
        reason: String,
        /// Is it worth asking again?
        patience_left: bool,
    },
    /// The target will not take the machine any more.
    TargetLetGo,
    /// The target says it is too late to cancel.
    TargetCommitting(String),
    /// The source has begun, earlier or now.
    Launched,
    /// The source cannot, in its own words.
    SourceRefused(String),
    /// The source goes on.
    GoingOn,
    /// The source is done.
    Summary(Box<MoveSummary>),
    /// The source knows no such move, and the record names the source.
    SourceForgot {
        /// Does the machine's process live there?
        alive: bool,
        /// What is known.
        reason: String,
    },
    /// The source does not answer, and the record does not name the target.
    SourceSilent(String),
    /// The record names the target, and the source has nothing more to say.
    RecordNamesTarget,
    /// The record names the target, and what it has of the machine cannot run: memory was still to follow.
    Stranded(String),
}

/// What follows from an event.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Next {
    /// Persist this phase and go on.
    Go(Phase),
    /// Ask again soon; `Some` says what is waited for.
    Again(Option<String>),
    /// Persist the end.
    Finish(MoveOutcome, Option<Box<MoveSummary>>),
}

impl Phase {
    /// The transition table. Pure: no clock, no I/O.
    pub(crate) fn step(self, event: Event) -> Next {
        let rolled_back = |reason: String| MoveOutcome::RolledBack { reason };
        match (self, event) {
            (Self::Finished, _) => Next::Again(None),
            (_, Event::RecordNamesTarget) => Next::Finish(MoveOutcome::Moved, None),
            (_, Event::Stranded(reason)) => Next::Finish(MoveOutcome::Stranded { reason }, None),
            (_, Event::Summary(summary)) => Next::Finish(summary.outcome.clone(), Some(summary)),

            (Self::Preparing, Event::Cancelled) => Next::Finish(MoveOutcome::Cancelled, None),
            (Self::Preparing, Event::TargetReady(address)) => Next::Go(Self::Launching { address }),
            (Self::Preparing, Event::TargetRefused(reason)) => Next::Finish(rolled_back(reason), None),
            (Self::Preparing, Event::TargetSilent { reason, patience_left: false }) => {
                Next::Finish(rolled_back(reason), None)
            }

            // The source has never heard of it: the target is let go first, it waits for a source that will not come.
            (Self::Launching { .. }, Event::Cancelled) => Next::Go(Self::Settling { outcome: MoveOutcome::Cancelled }),
            (Self::Launching { .. }, Event::Launched) => Next::Go(Self::Copying),
            (Self::Launching { .. } | Self::Copying, Event::SourceRefused(reason)) => {
                Next::Go(Self::Settling { outcome: rolled_back(reason) })
            }
            (Self::Launching { .. } | Self::Copying, Event::SourceForgot { alive, reason }) => {
                let outcome = if alive { rolled_back(reason) } else { MoveOutcome::SourceLost { reason } };
                Next::Go(Self::Settling { outcome })
            }

            (Self::Settling { outcome }, Event::TargetLetGo) => Next::Finish(outcome, None),
            // With its source dead, a target that cannot be asked may hold the only complete copy: wait for its word.
            (Self::Settling { outcome }, Event::TargetSilent { patience_left: false, .. })
                if !matches!(outcome, MoveOutcome::SourceLost { .. }) =>
            {
                Next::Finish(outcome, None)
            }

            (_, Event::TargetSilent { reason, .. } | Event::SourceSilent(reason) | Event::TargetCommitting(reason)) => {
                Next::Again(Some(reason))
            }
            (
                _,
                Event::Cancelled
                | Event::TargetReady(_)
                | Event::TargetRefused(_)
                | Event::TargetLetGo
                | Event::Launched
                | Event::SourceRefused(_)
                | Event::GoingOn
                | Event::SourceForgot { .. },
            ) => Next::Again(None),
        }
    }
}

/// A move in the store. `operation` is what the API shows; the rest stays here.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct MoveRecord {
    pub(crate) operation: Operation,
    #[serde(flatten)]
    pub(crate) phase: Phase,
    /// As it was when the move was asked for.
    pub(crate) spec: MachineSpec,
    /// The owner record as it must be at switch-over.
    pub(crate) record: OwnerRecord,
    /// The move's secret; never shown.
    pub(crate) ticket: MoveTicket,
    /// The operator wants it to end.
    #[serde(default)]
    pub(crate) cancel: bool,
}

impl MoveRecord {
    /// Does `owner` say that this move has succeeded?
    pub(crate) fn decided_by(&self, owner: &OwnerRecord) -> bool {
        owner.epoch > self.record.epoch && owner.owner == self.operation.target
    }

    /// The same, ended.
    pub(crate) fn finished(mut self, outcome: MoveOutcome, summary: Option<MoveSummary>) -> Self {
        let mut progress = self.operation.progress.take().unwrap_or_else(|| progress_before_copying(0));
        progress.phase = MovePhase::Finished;
        progress.eta_ms = None;
        self.operation.progress = Some(progress);
        self.operation.outcome = Some(outcome);
        self.operation.summary = summary;
        self.operation.note = None;
        self.phase = Phase::Finished;
        self
    }
}

/// What there is to tell before the source has anything to tell.
pub(crate) fn progress_before_copying(elapsed_ms: u64) -> MoveProgress {
    MoveProgress {
        phase: MovePhase::Preparing,
        round: 0,
        pages: PageCounts::default(),
        wire_bytes: 0,
        remaining_pages: 0,
        rate_bytes_per_s: 0,
        dirty_pages_per_s: 0,
        eta_ms: None,
        elapsed_ms,
    }
}
