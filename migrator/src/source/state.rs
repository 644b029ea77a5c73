//! The source's state machine: every transition of a leaving machine, and nothing else.
//!
//! ```text
//! Idle ─opened─▶ Negotiated ─▶ Copying{round} ─paused─▶ Paused(guard) ─last sent─▶ Offered(frozen) ─▶ Released
//!   │                │             │  ▲ next round          │  ▲                        │
//!   └────────────────┴─────────────┴──┴──── any failure ────┘  └─ pause too long ─▶     └─ record won back ─▶ Reclaimed
//!                        Aborted: the guest runs on here           Copying
//! ```
//! The point of no return is `Paused → Offered`: it consumes the guard whose drop would resume the guest. From `Offered`
//! there are two exits only, and the owner record names which.

use crate::{
    convergence::{Convergence, Decision, RoundReport},
    guest::PausedGuest,
};
use std::time::Duration;

/// Pauses taken back because they would have been too long, before the move is given up.
const TAKE_BACKS_MAX: u8 = 3;

/// Where a leaving machine is.
#[derive(Debug, Clone, PartialEq)]
pub enum Source<G: PausedGuest> {
    /// Nothing happened yet; the session is being opened.
    Idle {
        /// When to pause.
        rule: Convergence,
    },
    /// Both ends agree; tracking is being started.
    Negotiated {
        /// When to pause.
        rule: Convergence,
    },
    /// The guest runs and is copied.
    Copying {
        /// From 1.
        round: u32,
        /// When to pause.
        rule: Convergence,
        /// Pauses taken back so far.
        take_backs: u8,
    },
    /// The guest stands still and still is ours without asking: dropping the guard resumes it.
    Paused {
        /// Resumes the guest when dropped.
        guard: G,
        /// Rounds copied.
        round: u32,
        /// When to pause, should this pause be taken back.
        rule: Convergence,
        /// Pauses taken back so far.
        take_backs: u8,
    },
    /// The target may take the machine at any moment. Nothing here can resume it but the record.
    Offered {
        /// Cannot resume by being dropped.
        frozen: G::Frozen,
        /// The record has been asked to give the machine back, because of this.
        reclaiming: Option<String>,
    },
    /// The target owns the machine. What is here is to be destroyed.
    Released,
    /// The record gave the machine back; it runs here with the next epoch.
    Reclaimed {
        /// Why the move failed.
        reason: String,
    },
    /// The move ended before the offer; the guest runs on here and never noticed.
    Aborted {
        /// Why.
        reason: Abort,
    },
}

/// Why a move ended early.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Abort {
    /// The operator asked.
    Cancelled,
    /// Something failed.
    Failed(String),
}

/// What happens to a leaving machine.
#[derive(Debug, Clone, PartialEq)]
pub enum Event<G> {
    /// The session is open and negotiated.
    Opened,
    /// Dirty tracking runs.
    Tracking,
    /// A round arrived in the target's memory.
    RoundArrived(RoundReport),
    /// Every vCPU and device stands still.
    GuestPaused {
        /// Resumes the guest when dropped.
        guard: G,
        /// Time it took to stop, in ms.
        spent_ms: f64,
        /// What really remains to be sent.
        remaining_pages: u64,
        /// Round-trip time of the path.
        rtt: Duration,
    },
    /// The last pages and the state were handed to the transport. The offer may go out.
    LastSent,
    /// The target says that it won the record.
    Committed,
    /// The target says that it gave up and will not ask for the record.
    Refused(String),
    /// Session lost, pause too long, a step failed: whatever ends an attempt.
    Failed(String),
    /// The operator cancels.
    Cancel,
    /// The record, asked to give the machine back, names us.
    RecordOurs,
    /// The record names the target.
    RecordTheirs,
}

/// What the driver must do.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect<G: PausedGuest> {
    /// Start dirty tracking.
    StartTracking,
    /// Copy a round while the guest runs. Round 1 is all memory.
    CopyRound(u32),
    /// Pause the guest.
    Pause {
        /// The pause foreseen, in ms.
        predicted_ms: f64,
    },
    /// Copy what remains and save the state.
    SendLast,
    /// Tell the target that the machine is its own if it wins the record.
    SendOffer,
    /// Let the guest go on: drop the guard.
    Resume(G),
    /// Ask the record to give the machine back, until it answers.
    Reclaim,
    /// The record gave the machine back: let the guest go on.
    Thaw(G::Frozen),
    /// Destroy the machine here: it runs elsewhere.
    Destroy(G::Frozen),
    /// Stop tracking, tell the target, close the session.
    CleanUp,
}

type Step<G> = (Source<G>, Vec<Effect<G>>);

impl<G: PausedGuest> Source<G> {
    /// A machine about to leave under `rule`.
    #[must_use]
    pub const fn new(rule: Convergence) -> Self {
        Self::Idle { rule }
    }

    /// Has the move ended?
    #[must_use]
    pub const fn is_final(&self) -> bool {
        matches!(self, Self::Released | Self::Reclaimed { .. } | Self::Aborted { .. })
    }

    /// The state's name, for events and logs.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Idle { .. } => "idle",
            Self::Negotiated { .. } => "negotiated",
            Self::Copying { .. } => "copying",
            Self::Paused { .. } => "paused",
            Self::Offered { .. } => "offered",
            Self::Released => "released",
            Self::Reclaimed { .. } => "reclaimed",
            Self::Aborted { .. } => "aborted",
        }
    }

    /// The transition table. An event that does not fit a state changes nothing: it is late, or a repetition.
    #[must_use]
    pub fn step(self, event: Event<G>) -> Step<G> {
        match (self, event) {
            (Self::Idle { rule }, Event::Opened) => (Self::Negotiated { rule }, vec![Effect::StartTracking]),
            (Self::Negotiated { rule }, Event::Tracking) => {
                (Self::Copying { round: 1, rule, take_backs: 0 }, vec![Effect::CopyRound(1)])
            }
            (Self::Copying { round, rule, take_backs }, Event::RoundArrived(report)) => {
                after_round(round, rule, take_backs, &report)
            }
            (
                Self::Copying { round, rule, take_backs },
                Event::GuestPaused { guard, spent_ms, remaining_pages, rtt },
            ) => {
                let expected_ms = spent_ms + rule.predict_pause_ms(remaining_pages, rtt);
                after_pause(round, rule, take_backs, guard, expected_ms)
            }
            // The point of no return.
            (Self::Paused { guard, .. }, Event::LastSent) => {
                (Self::Offered { frozen: guard.freeze(), reclaiming: None }, vec![Effect::SendOffer])
            }

            // Before the offer every failure, refusal and cancellation leaves the guest running here.
            (Self::Paused { guard, .. }, Event::Failed(reason) | Event::Refused(reason)) => {
                (Self::aborted(Abort::Failed(reason)), vec![Effect::Resume(guard), Effect::CleanUp])
            }
            (Self::Paused { guard, .. }, Event::Cancel) => {
                (Self::aborted(Abort::Cancelled), vec![Effect::Resume(guard), Effect::CleanUp])
            }
            (
                Self::Idle { .. } | Self::Negotiated { .. } | Self::Copying { .. },
                Event::Failed(reason) | Event::Refused(reason),
            ) => (Self::aborted(Abort::Failed(reason)), vec![Effect::CleanUp]),
            (Self::Idle { .. } | Self::Negotiated { .. } | Self::Copying { .. }, Event::Cancel) => {
                (Self::aborted(Abort::Cancelled), vec![Effect::CleanUp])
            }

            // After the offer only the record decides. A commit is the target's word that it has been decided.
            (Self::Offered { frozen, .. }, Event::Committed | Event::RecordTheirs) => {
                (Self::Released, vec![Effect::Destroy(frozen), Effect::CleanUp])
            }
            (Self::Offered { frozen, reclaiming: None }, Event::Failed(reason) | Event::Refused(reason)) => {
                (Self::Offered { frozen, reclaiming: Some(reason) }, vec![Effect::Reclaim])
            }
            (Self::Offered { frozen, reclaiming: Some(reason) }, Event::RecordOurs) => {
                (Self::Reclaimed { reason }, vec![Effect::Thaw(frozen), Effect::CleanUp])
            }

            // A guest that was paused for a move that has ended meanwhile goes on.
            (state, Event::GuestPaused { guard, .. }) => (state, vec![Effect::Resume(guard)]),
            (state, _) => (state, Vec::new()),
        }
    }

    const fn aborted(reason: Abort) -> Self {
        Self::Aborted { reason }
    }
}

fn after_round<G: PausedGuest>(round: u32, mut rule: Convergence, take_backs: u8, report: &RoundReport) -> Step<G> {
    match rule.after_round(report) {
        Decision::NextRound => {
            let round = round + 1;
            (Source::Copying { round, rule, take_backs }, vec![Effect::CopyRound(round)])
        }
        Decision::SwitchOver { predicted_ms } => {
            (Source::Copying { round, rule, take_backs }, vec![Effect::Pause { predicted_ms }])
        }
        Decision::GiveUp(reason) => {
            (Source::aborted(Abort::Failed(format!("The move does not converge: {reason}"))), vec![Effect::CleanUp])
        }
    }
}

/// The guest stands still. It wrote on while it was being stopped; when what really remains makes the pause too long, the
/// pause is taken back before anything was sent.
fn after_pause<G: PausedGuest>(round: u32, rule: Convergence, take_backs: u8, guard: G, expected_ms: f64) -> Step<G> {
    let allowed_ms = rule.downtime_ms_max();
    if expected_ms <= allowed_ms {
        return (Source::Paused { guard, round, rule, take_backs }, vec![Effect::SendLast]);
    }
    if take_backs >= TAKE_BACKS_MAX {
        let reason = format!("The pause would take {expected_ms:.0} ms where {allowed_ms:.0} ms are allowed");
        return (Source::aborted(Abort::Failed(reason)), vec![Effect::Resume(guard), Effect::CleanUp]);
    }
    let round = round + 1;
    let next = Source::Copying { round, rule, take_backs: take_backs + 1 };
    (next, vec![Effect::Resume(guard), Effect::CopyRound(round)])
}
