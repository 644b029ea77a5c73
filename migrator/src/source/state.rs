//! The source's state machine: every transition of a leaving machine, and nothing else.
//!
//! ```text
//! Idle ─opened─▶ Negotiated ─▶ Copying{round} ─paused─▶ Paused(guard) ─last sent─▶ Offered(frozen) ───────▶ Released
//!   │                │             │  ▲ next round          │  ▲                        │  │ ─owes─▶ Serving ─▲
//!   └────────────────┴─────────────┴──┴──── any failure ────┘  └─ pause too long ─▶     │  └ lost ────┴─▶ Stranded
//!                        Aborted: the guest runs on here           Copying              └─ record won back ─▶ Copying
//!                                                                                          and the path is lost ─▶ Reclaimed
//! ```
//! A source that *owes* has handed the guest over before all memory was there: it serves what is missing until nothing is.
//! The point of no return is `Paused → Offered`: it consumes the guard whose drop would resume the guest. From `Offered`
//! only the owner record leads on. An offer that is not heard, because the path is gone for a while, is *renewed*: the source wins
//! the record back, which ends that offer for good, and goes on copying with the epoch it has won.

use crate::{
    convergence::RoundReport,
    guest::PausedGuest,
    plan::{Decision, Plan},
};
use std::time::Duration;
use vmotion_model::Strategy;

/// Pauses taken back because they would have been too long, and offers taken back because nobody heard them, before the move is
/// given up.
const TAKE_BACKS_MAX: u8 = 3;

/// Where a leaving machine is.
#[derive(Debug, Clone, PartialEq)]
pub enum Source<G: PausedGuest> {
    /// Nothing happened yet; the session is being opened.
    Idle {
        /// What to do next.
        plan: Plan,
    },
    /// Both ends agree; tracking is being started.
    Negotiated {
        /// What to do next.
        plan: Plan,
    },
    /// The guest runs and is copied.
    Copying {
        /// From 1.
        round: u32,
        /// What to do next.
        plan: Plan,
        /// Pauses taken back so far.
        take_backs: u8,
    },
    /// The guest stands still and still is ours without asking: dropping the guard resumes it.
    Paused {
        /// Resumes the guest when dropped.
        guard: G,
        /// Rounds copied.
        round: u32,
        /// What to do next, should this pause be taken back.
        plan: Plan,
        /// Pauses taken back so far.
        take_backs: u8,
    },
    /// The target may take the machine at any moment. Nothing here can resume it but the record.
    Offered {
        /// Cannot resume by being dropped.
        frozen: G::Frozen,
        /// The record has been asked to give the machine back, because of this.
        reclaiming: Option<String>,
        /// The target can be served no more, because of this.
        lost: Option<String>,
        /// Pages are missing at the target.
        owes: bool,
        /// Rounds copied.
        round: u32,
        /// What to do next, should this offer be taken back.
        plan: Plan,
        /// Pauses and offers taken back so far.
        take_backs: u8,
    },
    /// The guest runs at the target; what it misses is here, and only here.
    Serving {
        /// Holds the memory. Never resumes.
        frozen: G::Frozen,
    },
    /// The target owns the machine. What is here is to be destroyed.
    Released,
    /// The record gave the machine back; it runs here with the next epoch.
    Reclaimed {
        /// Why the move failed.
        reason: String,
    },
    /// The guest was handed over, and the rest of its memory cannot follow.
    Stranded {
        /// Why.
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
    /// Nothing more was asked than a survey.
    Surveyed,
}

/// What follows from a survey.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Copying leads there, on the way by this strategy.
    GoOn(Strategy),
    /// Copying leads nowhere, or takes too long: the guest is handed over now, by this strategy.
    HandOver(Strategy),
    /// It ends here: what was asked cannot be had, or was the survey itself.
    End(Abort),
}

/// What happens to a leaving machine.
#[derive(Debug, Clone, PartialEq)]
pub enum Event<G> {
    /// The session is open and negotiated.
    Opened {
        /// The target can run the guest before all its memory is there.
        follows: bool,
        /// The target understands that an offer is taken back and the move goes on.
        renews: bool,
    },
    /// Dirty tracking runs.
    Tracking,
    /// Enough was measured in the first round to foresee the move.
    Surveyed(Verdict),
    /// A round arrived in the target's memory.
    RoundArrived {
        /// What it did.
        report: RoundReport,
        /// It was cut short: the guest writes as fast as the path carries.
        hopeless: bool,
    },
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
    /// The last pages, or the state, do not get through within the pause.
    Overran,
    /// The target says that it won the record.
    Committed,
    /// The target says that it misses no page any more.
    AllServed,
    /// The target says that it gave up and will not ask for the record.
    Refused(String),
    /// Session lost, a step failed: whatever ends an attempt.
    Failed(String),
    /// The target has not answered the offer in time. It may be slow, or the store may be; nothing is known to be lost.
    Overdue,
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
    /// Get ready to copy, with dirty tracking unless nothing is copied before the pause.
    StartTracking {
        /// Track dirty pages.
        track: bool,
    },
    /// Copy a round while the guest runs. Round 1 is all memory.
    CopyRound(u32),
    /// End the round at work where it is.
    CutShort,
    /// Pause the guest.
    Pause {
        /// The pause foreseen, in ms.
        predicted_ms: f64,
        /// Not before the target has said that everything sent so far has arrived: it forgets what is declared missing when a round
        /// arrives, so nothing may be on its way when something is declared.
        quiet: bool,
    },
    /// Copy what remains and save the state.
    SendLast,
    /// Say which pages are missing and save the state.
    HandOver,
    /// Answer demands for missing pages from now on.
    Serve,
    /// Send all that is missing, what was asked for last first.
    PushRest,
    /// Tell the target that the machine is its own if it wins the record.
    SendOffer,
    /// Let the guest go on: drop the guard.
    Resume(G),
    /// Ask the record to give the machine back, until it answers.
    Reclaim,
    /// The record gave the machine back: let the guest go on.
    Thaw(G::Frozen),
    /// The offer is off and the move goes on, from the record that was won: tell the target.
    Renew,
    /// Destroy the machine here: it runs elsewhere.
    Destroy(G::Frozen),
    /// Stop tracking, tell the target, close the session.
    CleanUp,
}

type Step<G> = (Source<G>, Vec<Effect<G>>);

impl<G: PausedGuest> Source<G> {
    /// A machine about to leave by `plan`.
    #[must_use]
    pub const fn new(plan: Plan) -> Self {
        Self::Idle { plan }
    }

    /// Has the move ended?
    #[must_use]
    pub const fn is_final(&self) -> bool {
        matches!(self, Self::Released | Self::Reclaimed { .. } | Self::Aborted { .. } | Self::Stranded { .. })
    }

    /// What a page took so far, in ms; `None` while nothing is copied, or was.
    #[must_use]
    pub fn page_ms(&self) -> Option<f64> {
        if let Self::Copying { plan, .. } = self { plan.rule().page_ms() } else { None }
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
            Self::Serving { .. } => "serving",
            Self::Stranded { .. } => "stranded",
            Self::Released => "released",
            Self::Reclaimed { .. } => "reclaimed",
            Self::Aborted { .. } => "aborted",
        }
    }

    /// The transition table. An event that does not fit a state changes nothing: it is late, or a repetition.
    #[must_use]
    pub fn step(self, event: Event<G>) -> Step<G> {
        match (self, event) {
            (Self::Idle { plan }, Event::Opened { follows, renews }) => {
                let plan = if follows { plan } else { plan.without_following() }.with_renewal(renews);
                let track = plan.copies_first();
                (Self::Negotiated { plan }, vec![Effect::StartTracking { track }])
            }
            (Self::Negotiated { plan }, Event::Tracking) => begin(plan),
            (Self::Copying { round, plan, take_backs }, Event::Surveyed(verdict)) => match verdict {
                Verdict::GoOn(strategy) => (Self::Copying { round, plan: plan.by(strategy), take_backs }, Vec::new()),
                Verdict::HandOver(strategy) => {
                    (Self::Copying { round, plan: plan.by(strategy), take_backs }, vec![Effect::CutShort])
                }
                Verdict::End(reason) => (Self::aborted(reason), vec![Effect::CleanUp]),
            },
            (Self::Copying { round, plan, take_backs }, Event::RoundArrived { report, hopeless }) => {
                after_round(round, plan, take_backs, &report, hopeless)
            }
            (
                Self::Copying { round, plan, take_backs },
                Event::GuestPaused { guard, spent_ms, remaining_pages, rtt },
            ) => {
                let expected_ms = spent_ms + plan.predict_pause_ms(remaining_pages, rtt);
                after_pause(round, plan, take_backs, guard, expected_ms)
            }
            // The point of no return.
            (Self::Paused { guard, round, plan, take_backs }, Event::LastSent) => {
                let owes = plan.hands_over();
                // Whoever hears the offer may ask at once.
                let serve = owes.then_some(Effect::Serve);
                let effects = serve.into_iter().chain([Effect::SendOffer]).collect();
                let frozen = guard.freeze();
                (Self::Offered { frozen, reclaiming: None, lost: None, owes, round, plan, take_backs }, effects)
            }

            // A path that is gone for a moment: the guest goes on, and a round waits for the path.
            (Self::Paused { guard, round, plan, take_backs }, Event::Overran) => take_back(
                round,
                plan,
                take_backs,
                guard,
                "The last pages and the state took longer than the pause allows",
            ),

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
            (Self::Offered { frozen, owes: false, .. }, Event::Committed | Event::RecordTheirs) => {
                (Self::Released, vec![Effect::Destroy(frozen), Effect::CleanUp])
            }
            // The record may say so before a target that is slow: what it misses is still here, and there is a way to it.
            (Self::Offered { frozen, lost: None, owes: true, .. }, Event::Committed | Event::RecordTheirs) => {
                (Self::Serving { frozen }, vec![Effect::PushRest])
            }
            (Self::Offered { frozen, lost: Some(reason), owes: true, .. }, Event::Committed | Event::RecordTheirs) => {
                (Self::Stranded { reason }, vec![Effect::Destroy(frozen), Effect::CleanUp])
            }
            (
                Self::Offered { frozen, reclaiming, lost, owes, round, plan, take_backs },
                Event::Failed(reason) | Event::Refused(reason),
            ) => {
                let effects = if reclaiming.is_none() { vec![Effect::Reclaim] } else { Vec::new() };
                let reclaiming = Some(reclaiming.unwrap_or_else(|| reason.clone()));
                let lost = Some(lost.unwrap_or(reason));
                (Self::Offered { frozen, reclaiming, lost, owes, round, plan, take_backs }, effects)
            }
            (Self::Offered { frozen, reclaiming: None, lost, owes, round, plan, take_backs }, Event::Overdue) => {
                let reclaiming = Some("the pause took longer than allowed".to_owned());
                (Self::Offered { frozen, reclaiming, lost, owes, round, plan, take_backs }, vec![Effect::Reclaim])
            }
            // The target is still there and does not have the machine: the path is slow, or gone for a while. What has arrived
            // is worth going on from.
            (
                Self::Offered { frozen, reclaiming: Some(_), lost: None, round, plan, take_backs, .. },
                Event::RecordOurs,
            ) if plan.renews() && take_backs < TAKE_BACKS_MAX => {
                let round = round + 1;
                let next = Self::Copying { round, plan, take_backs: take_backs + 1 };
                (next, vec![Effect::Thaw(frozen), Effect::Renew, Effect::CopyRound(round)])
            }
            (Self::Offered { frozen, reclaiming: Some(reason), .. }, Event::RecordOurs) => {
                (Self::Reclaimed { reason }, vec![Effect::Thaw(frozen), Effect::CleanUp])
            }

            // What the target misses is here until it misses nothing.
            (Self::Serving { frozen }, Event::AllServed) => {
                (Self::Released, vec![Effect::Destroy(frozen), Effect::CleanUp])
            }
            (Self::Serving { frozen }, Event::Failed(reason) | Event::Refused(reason)) => {
                (Self::Stranded { reason }, vec![Effect::Destroy(frozen), Effect::CleanUp])
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

/// Everything is ready: the first round, or the pause where nothing is copied before it.
fn begin<G: PausedGuest>(plan: Plan) -> Step<G> {
    if plan.copies_first() {
        return (Source::Copying { round: 1, plan, take_backs: 0 }, vec![Effect::CopyRound(1)]);
    }
    let predicted_ms = plan.predict_pause_ms(0, Duration::ZERO);
    (Source::Copying { round: 0, plan, take_backs: 0 }, vec![Effect::Pause { predicted_ms, quiet: true }])
}

fn after_round<G: PausedGuest>(
    round: u32,
    mut plan: Plan,
    take_backs: u8,
    report: &RoundReport,
    hopeless: bool,
) -> Step<G> {
    match plan.after_round(report, hopeless) {
        Decision::NextRound => {
            let round = round + 1;
            (Source::Copying { round, plan, take_backs }, vec![Effect::CopyRound(round)])
        }
        Decision::SwitchOver { predicted_ms } | Decision::HandOver { predicted_ms } => {
            let quiet = plan.hands_over();
            (Source::Copying { round, plan, take_backs }, vec![Effect::Pause { predicted_ms, quiet }])
        }
        Decision::GiveUp(reason) => {
            (Source::aborted(Abort::Failed(format!("The move does not converge: {reason}"))), vec![Effect::CleanUp])
        }
    }
}

/// The guest stands still. It wrote on while it was being stopped; when what really remains makes the pause too long, the
/// pause is taken back before anything was sent. What follows the guest does not make the pause longer.
fn after_pause<G: PausedGuest>(round: u32, plan: Plan, take_backs: u8, guard: G, expected_ms: f64) -> Step<G> {
    if plan.hands_over() {
        return (Source::Paused { guard, round, plan, take_backs }, vec![Effect::HandOver]);
    }
    let allowed_ms = plan.rule().downtime_ms_max();
    if expected_ms <= allowed_ms {
        return (Source::Paused { guard, round, plan, take_backs }, vec![Effect::SendLast]);
    }
    let reason = format!("The pause would take {expected_ms:.0} ms where {allowed_ms:.0} ms are allowed");
    take_back(round, plan, take_backs, guard, &reason)
}

/// The guest goes on, and another round is copied; not for ever.
fn take_back<G: PausedGuest>(round: u32, plan: Plan, take_backs: u8, guard: G, reason: &str) -> Step<G> {
    if take_backs >= TAKE_BACKS_MAX {
        let reason = Abort::Failed(reason.to_owned());
        return (Source::aborted(reason), vec![Effect::Resume(guard), Effect::CleanUp]);
    }
    let round = round + 1;
    let next = Source::Copying { round, plan, take_backs: take_backs + 1 };
    (next, vec![Effect::Resume(guard), Effect::CopyRound(round)])
}
