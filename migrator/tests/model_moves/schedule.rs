//! What happens in one world.

use super::{
    guest::{GuestFaults, Writing},
    path::Climate,
    store::Answer,
    witness::Side,
};
use std::time::Duration;
use vmotion_model::MoveRequest;
use vmotion_transport::session::WIRE_VERSION_MAX;

/// What is done to a world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Harm {
    /// `kill -9` of one end.
    Kill(Side),
    /// The operator cancels at one end.
    Cancel(Side),
    /// The operator cancels a little later.
    CancelSoon(Side),
    /// The network is cut.
    Cut,
    /// The network is cut for this time.
    Outage(Duration),
    /// The same, every time the state is entered.
    Outages(Duration),
    /// The path of the demand lane, which is a connection of its own, is cut.
    CutDemand,
}

impl Harm {
    /// May memory that follows a guest be lost by it?
    pub(crate) const fn may_strand(self) -> bool {
        matches!(self, Self::Kill(_) | Self::Cut | Self::Outage(_) | Self::Outages(_) | Self::CutDemand)
    }
}

/// When something is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    /// As a side enters a state for the first time.
    Enters(Side, &'static str),
    /// So long after the beginning.
    After(Duration),
}

/// Everything that happens in one world.
#[derive(Debug, Clone)]
pub(crate) struct Schedule {
    pub(crate) pages: u64,
    pub(crate) writing: Writing,
    pub(crate) request: MoveRequest,
    /// Both ends can run a guest before its memory is there.
    pub(crate) follows: bool,
    /// Do they know deltas, by side?
    pub(crate) deltas: [bool; 2],
    /// Newest wire version that the source speaks.
    pub(crate) wire_version: u16,
    pub(crate) silence: Duration,
    pub(crate) climate: Climate,
    pub(crate) source: GuestFaults,
    pub(crate) target: GuestFaults,
    pub(crate) source_answers: Vec<Answer>,
    pub(crate) target_answers: Vec<Answer>,
    pub(crate) warm_up: Duration,
    pub(crate) harm: Vec<(When, Harm)>,
    /// Of the weather's dice.
    pub(crate) seed: u32,
}

impl Default for Schedule {
    fn default() -> Self {
        Self {
            pages: 1024,
            writing: Writing { pages: 256, burst: 16, every: Duration::from_millis(2) },
            request: MoveRequest::default(),
            follows: true,
            deltas: [true; 2],
            wire_version: WIRE_VERSION_MAX,
            silence: Duration::from_secs(5),
            climate: Climate::default(),
            source: GuestFaults::default(),
            target: GuestFaults::default(),
            source_answers: Vec::new(),
            target_answers: Vec::new(),
            warm_up: Duration::ZERO,
            harm: Vec::new(),
            seed: 1,
        }
    }
}

impl Schedule {
    /// The default, with one harm; lost peers are noticed soon.
    pub(crate) fn harmed(side: Side, state: &'static str, harm: Harm) -> Self {
        let harm = vec![(When::Enters(side, state), harm)];
        Self { silence: Duration::from_millis(400), harm, ..Self::default() }
    }

    /// May a guest whose memory follows be lost?
    pub(crate) fn may_strand(&self) -> bool {
        self.harm.iter().any(|(_, harm)| harm.may_strand())
    }
}
