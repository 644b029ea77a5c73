//! The target's state machine: every transition of an arriving machine, and nothing else.
//!
//! ```text
//! Empty ─built─▶ Prepared ─opened─▶ Filling ─offer and last page─▶ Complete ─loaded─▶ Armed ─record won─▶ Running
//!   └──────────────┴───────────────────┴──── failure ───────────────┴─────────────────┴─ record lost ─▶ Discarded
//! ```
//! Nothing that leaves the host happens before `Running`. In `Armed` a lost session changes nothing: the source can no
//! longer be asked, the record can.

/// Where an arriving machine is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Target {
    /// Memory, vCPUs and device models are being made.
    Empty,
    /// Made; waiting for the source.
    Prepared,
    /// Pages arrive.
    Filling,
    /// Every page and the state are here, and the source has offered the machine.
    Complete,
    /// vCPUs and devices are loaded; the record is being asked, until it answers.
    Armed,
    /// The record names us. The guest runs here.
    Running,
    /// What was received is destroyed; it never ran.
    Discarded {
        /// Why.
        reason: String,
    },
}

/// What happens to an arriving machine.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Event {
    /// Memory, vCPUs and device models exist.
    Built,
    /// A session with the right source is open.
    Opened,
    /// The offer came, every flow passed its final mark, the state is here, and digests (when asked) agree.
    AllArrived,
    /// vCPUs and devices took the state.
    Loaded,
    /// The record names us.
    RecordOurs,
    /// The record names somebody else.
    RecordTheirs,
    /// A step failed, the session was lost, the stream was malformed, or the source called it off.
    Failed(String),
}

/// What the driver must do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Wait for the source.
    Listen,
    /// Take pages until the offer is complete.
    Fill,
    /// Load vCPUs and devices.
    Load,
    /// Ask the record for the machine, until it answers.
    Take,
    /// Let the vCPUs go, then tell the source.
    Run,
    /// Destroy what was received, and tell the source why.
    Destroy,
}

impl Target {
    /// Has the move ended?
    #[must_use]
    pub const fn is_final(&self) -> bool {
        matches!(self, Self::Running | Self::Discarded { .. })
    }

    /// The state's name, for events and logs.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::Prepared => "prepared",
            Self::Filling => "filling",
            Self::Complete => "complete",
            Self::Armed => "armed",
            Self::Running => "running",
            Self::Discarded { .. } => "discarded",
        }
    }

    /// The transition table. An event that does not fit a state changes nothing: it is late, or a repetition.
    #[must_use]
    pub fn step(self, event: Event) -> (Self, Option<Effect>) {
        match (self, event) {
            (Self::Empty, Event::Built) => (Self::Prepared, Some(Effect::Listen)),
            (Self::Prepared, Event::Opened) => (Self::Filling, Some(Effect::Fill)),
            (Self::Filling, Event::AllArrived) => (Self::Complete, Some(Effect::Load)),
            (Self::Complete, Event::Loaded) => (Self::Armed, Some(Effect::Take)),
            (Self::Armed, Event::RecordOurs) => (Self::Running, Some(Effect::Run)),
            (Self::Armed, Event::RecordTheirs) => {
                let reason = "the owner record went to another host".to_owned();
                (Self::Discarded { reason }, Some(Effect::Destroy))
            }
            // Until the record is asked, anything that goes wrong ends the attempt.
            (Self::Empty | Self::Prepared | Self::Filling | Self::Complete, Event::Failed(reason)) => {
                (Self::Discarded { reason }, Some(Effect::Destroy))
            }
            // From then on only its answer counts: it may have been given already.
            (state, _) => (state, None),
        }
    }
}
