//! The target's state machine: every transition of an arriving machine, and nothing else.
//!
//! ```text
//! Empty ─built─▶ Prepared ─opened─▶ Filling ─offer and last page─▶ Complete ─loaded─▶ Armed ─record won─▶ Running
//!   └──────────────┴───────────────────┴──── failure ───────────────┴─────────────────┤    └─▶ Pulling ─────▲
//!                                                                                     │           └─ lost ─▶ Stranded
//!                                                                                     └─ record lost ─▶ Discarded
//! ```
//! *Pulling*: the guest runs here while pages of it are still missing; they are fetched from the source, which alone has them.
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
    /// Every page that comes before the offer and the state are here, and the source has offered the machine.
    Complete {
        /// Pages are missing that will follow.
        owed: bool,
    },
    /// vCPUs and devices are loaded; the record is being asked, until it answers.
    Armed {
        /// Pages are missing that will follow.
        owed: bool,
    },
    /// The record names us. The guest runs here, and waits for what it touches and misses.
    Pulling,
    /// The record names us. The guest runs here, all of it.
    Running,
    /// The record names us, and pages are missing that nobody can send any more.
    Stranded {
        /// Why.
        reason: String,
    },
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
    AllArrived {
        /// Pages are missing that will follow.
        owed: bool,
    },
    /// vCPUs and devices took the state.
    Loaded,
    /// The record names us.
    RecordOurs,
    /// The record names somebody else.
    RecordTheirs,
    /// No page is missing any more.
    AllHere,
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
    /// Load vCPUs and devices; before that, see to it that touching a missing page waits for it.
    Load {
        /// Pages are missing that will follow.
        owed: bool,
    },
    /// Ask the record for the machine, until it answers.
    Take,
    /// Let the vCPUs go, then tell the source.
    Run,
    /// Let the vCPUs go, tell the source, and fetch what is missing until nothing is.
    Pull,
    /// Stop the guest: it waits for pages that will not come.
    Abandon,
    /// Destroy what was received, and tell the source why.
    Destroy,
}

impl Target {
    /// Has the move ended?
    #[must_use]
    pub const fn is_final(&self) -> bool {
        matches!(self, Self::Running | Self::Discarded { .. } | Self::Stranded { .. })
    }

    /// The state's name, for events and logs.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::Prepared => "prepared",
            Self::Filling => "filling",
            Self::Complete { .. } => "complete",
            Self::Armed { .. } => "armed",
            Self::Pulling => "pulling",
            Self::Running => "running",
            Self::Stranded { .. } => "stranded",
            Self::Discarded { .. } => "discarded",
        }
    }

    /// The transition table. An event that does not fit a state changes nothing: it is late, or a repetition.
    #[must_use]
    pub fn step(self, event: Event) -> (Self, Option<Effect>) {
        match (self, event) {
            (Self::Empty, Event::Built) => (Self::Prepared, Some(Effect::Listen)),
            (Self::Prepared, Event::Opened) => (Self::Filling, Some(Effect::Fill)),
            (Self::Filling, Event::AllArrived { owed }) => (Self::Complete { owed }, Some(Effect::Load { owed })),
            (Self::Complete { owed }, Event::Loaded) => (Self::Armed { owed }, Some(Effect::Take)),
            (Self::Armed { owed: false }, Event::RecordOurs) => (Self::Running, Some(Effect::Run)),
            (Self::Armed { owed: true }, Event::RecordOurs) => (Self::Pulling, Some(Effect::Pull)),
            (Self::Armed { .. }, Event::RecordTheirs) => {
                let reason =
                    "the owner record went back to the source, which had waited longer than allowed".to_owned();
                (Self::Discarded { reason }, Some(Effect::Destroy))
            }
            // Until the record is asked, anything that goes wrong ends the attempt.
            (Self::Empty | Self::Prepared | Self::Filling | Self::Complete { .. }, Event::Failed(reason)) => {
                (Self::Discarded { reason }, Some(Effect::Destroy))
            }
            (Self::Pulling, Event::AllHere) => (Self::Running, None),
            (Self::Pulling, Event::Failed(reason)) => (Self::Stranded { reason }, Some(Effect::Abandon)),
            // From then on only its answer counts: it may have been given already.
            (state, _) => (state, None),
        }
    }
}
