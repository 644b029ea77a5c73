//! Which of several controllers leads? One state machine, pure, in this file.
//!
//! ```text
//!              nobody leads            granted                    it is ours
//! Standby ────────────────▶ Applying ──────────▶ Campaigning ─────────────────▶ Leading
//!    ▲  ▲                      │ no answer            │ another's, too late        │ lease gone or too old, fenced, stop
//!    │  └──────────────────────┘                      │                            │
//!    └────────────────────────────────────────────────┴────────────────────────────┘
//! ```
//! Whoever leads has a key in the store that ends with its lease. The one invariant has two halves. *By time*: a controller
//! that could not renew its lease stops before the cluster can give the key to another, judged by its own monotonic clock from the moment it
//! asked. *By the store*: the key's revision is a token that every commit compares ([`Fenced`]), so a controller whose clock is wrong or
//! that stood still changes nothing after another has been elected.

mod campaign;
mod fenced;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

pub(crate) use campaign::Campaign;
pub(crate) use fenced::{Fenced, Lost};

use crate::store::{Revision, StoreError};
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The key of whoever leads.
pub(crate) const LEADER_KEY: &str = "leader";
/// A lease lives so long after it was renewed.
pub(crate) const TTL: Duration = Duration::from_secs(5);
/// A leader stops so long before its lease ends: for clocks that run differently, and to end what it does.
pub(crate) const MARGIN: Duration = Duration::from_secs(1);
/// A leader renews its lease this often.
const RENEW_EVERY: Duration = Duration::from_secs(1);
/// Others look this often whether somebody leads; they also watch.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A question without an answer is asked again after this.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(250);

/// A controller, as others find it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Leader {
    /// Its name.
    pub(crate) name: String,
    /// Where it is reached.
    pub(crate) url: String,
}

/// A lease of the cluster's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct LeaseId(pub(crate) u64);

/// The key as it is: who leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seat {
    pub(crate) leader: Leader,
    /// It ends with this lease.
    pub(crate) lease: LeaseId,
    /// The commit that made it: a number that no other leader has, and that grows.
    pub(crate) token: Revision,
}

/// What a cluster does for elections. Every call is bounded in time, and may be repeated.
pub(crate) trait Elections: Send + Sync + 'static {
    /// Who leads.
    fn seat(&self) -> BoxFuture<'_, Result<Option<Seat>, StoreError>>;
    /// A lease that lives for `ttl`.
    fn grant(&self, ttl: Duration) -> BoxFuture<'_, Result<LeaseId, StoreError>>;
    /// Makes the key, if there is none; the key as it is afterwards.
    fn take<'a>(&'a self, lease: LeaseId, leader: &'a Leader) -> BoxFuture<'a, Result<Option<Seat>, StoreError>>;
    /// Gives the lease its whole time again; false when there is no such lease any more.
    fn renew(&self, lease: LeaseId) -> BoxFuture<'_, Result<bool, StoreError>>;
    /// Ends the lease, and the key with it.
    fn revoke(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), StoreError>>;
}

/// A moment of this process's monotonic clock.
pub(crate) type Moment = Duration;

/// A lease as its holder sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lease {
    id: LeaseId,
    /// Until then nobody else can lead.
    until: Moment,
}

impl Lease {
    /// Counted from the question: the cluster counts from when it heard it, which is later.
    fn counted_from(id: LeaseId, asked: Moment) -> Self {
        Self { id, until: asked + TTL - MARGIN }
    }
}

/// Where a controller stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum State {
    /// Another leads, as far as known, or it is not known who.
    Standby {
        /// Who.
        leader: Option<Leader>,
    },
    /// Nobody leads: a lease is asked for.
    Applying,
    /// With a lease, the key is asked for.
    Campaigning {
        /// The lease.
        lease: Lease,
    },
    /// It leads.
    Leading {
        /// The lease, which is renewed.
        lease: Lease,
        /// What every commit must compare.
        token: Revision,
    },
}

/// What a controller asks the cluster next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Question {
    /// Who leads?
    Seat,
    /// A lease, please.
    Grant,
    /// The key, please.
    Take(LeaseId),
    /// More time, please.
    Renew(LeaseId),
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// Only time passed, or a question has no answer.
    Nothing,
    /// Who leads.
    Seat(Option<Seat>),
    /// A lease was granted.
    Granted(LeaseId),
    /// The lease has its whole time again.
    Renewed,
    /// There is no such lease any more.
    LeaseGone,
    /// A commit was refused because of its token.
    Fenced,
}

/// What follows besides the new state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Effects {
    /// A lease of which nothing more is wanted: to be ended when nothing is done under it any more.
    pub(crate) revoke: Option<LeaseId>,
}

impl State {
    /// Before anything is known.
    pub(crate) const fn new() -> Self {
        Self::Standby { leader: None }
    }

    /// The next question.
    pub(crate) const fn question(&self) -> Question {
        match self {
            Self::Standby { .. } => Question::Seat,
            Self::Applying => Question::Grant,
            Self::Campaigning { lease } => Question::Take(lease.id),
            Self::Leading { lease, .. } => Question::Renew(lease.id),
        }
    }

    /// How long to wait before the next question, after one that was `answered` or was not.
    pub(crate) const fn pause(&self, answered: bool) -> Duration {
        match self {
            _ if !answered => ASK_AGAIN_AFTER,
            Self::Standby { leader: Some(_) } => LOOK_EVERY,
            Self::Standby { leader: None } | Self::Applying | Self::Campaigning { .. } => Duration::ZERO,
            Self::Leading { .. } => RENEW_EVERY,
        }
    }

    /// When something must happen though nothing else does.
    pub(crate) const fn deadline(&self) -> Option<Moment> {
        match self {
            Self::Standby { .. } | Self::Applying => None,
            Self::Campaigning { lease } | Self::Leading { lease, .. } => Some(lease.until),
        }
    }

    /// The token, while it leads.
    pub(crate) const fn token(&self) -> Option<Revision> {
        match self {
            Self::Leading { token, .. } => Some(*token),
            Self::Standby { .. } | Self::Applying | Self::Campaigning { .. } => None,
        }
    }

    /// The transition table. `asked` is when the question was asked that `event` answers, `now` is now.
    pub(crate) fn step(self, event: Event, asked: Moment, now: Moment) -> (Self, Effects) {
        let leaves = |lease: Lease, leader| (Self::Standby { leader }, Effects { revoke: Some(lease.id) });
        let stays = |state| (state, Effects::default());
        match (self, event) {
            // Too late for whatever was said: another may have been elected by now.
            (Self::Campaigning { lease } | Self::Leading { lease, .. }, _) if now >= lease.until => leaves(lease, None),

            (Self::Standby { .. }, Event::Seat(None)) => stays(Self::Applying),
            (Self::Standby { .. }, Event::Seat(Some(seat))) => stays(Self::Standby { leader: Some(seat.leader) }),

            (Self::Applying, Event::Granted(id)) => stays(Self::Campaigning { lease: Lease::counted_from(id, asked) }),
            // A lease that was granted unheard ends by itself.
            (Self::Applying, _) => stays(Self::Standby { leader: None }),

            // The lease is ours alone: a key with it is ours, though the answer that said so was lost.
            (Self::Campaigning { lease }, Event::Seat(Some(seat))) if seat.lease == lease.id => {
                stays(Self::Leading { lease, token: seat.token })
            }
            (Self::Campaigning { lease }, Event::Seat(Some(seat))) => leaves(lease, Some(seat.leader)),
            (Self::Campaigning { lease }, Event::LeaseGone) => leaves(lease, None),

            (Self::Leading { lease, token }, Event::Renewed) => {
                stays(Self::Leading { lease: Lease::counted_from(lease.id, asked), token })
            }
            (Self::Leading { lease, .. }, Event::LeaseGone | Event::Fenced) => leaves(lease, None),

            // Nothing new; or an answer to a question of another state.
            (state, _) => stays(state),
        }
    }
}
