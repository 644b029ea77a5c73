//! What do the parts call things?
//!
//! Plain serde types that every crate shares: names, sizes, machine specs, ownership records, operations and the
//! numbers of a move. No I/O, no async, no clock; a type here must mean the same on every host.

mod error;
mod host;
mod memory;
mod moves;
mod name;
mod outlook;
mod owner;
mod piece;
mod placement;
mod plan;
mod policy;
mod report;
mod request;
mod rule;
mod shape;
mod site;
mod size;
mod spec;
mod telemetry;
mod timeline;
mod what_if;

pub use error::{ApiError, ErrorCode, error_chain};
pub use host::{CpuModel, Host, HostCapacity, HostState, MachineState, MachineStatus};
pub use memory::{GuestAddress, LayoutError, MemoryLayout, MemoryRegion, PAGE_SIZE, PageNumber};
pub use moves::{MoveId, MoveOutcome, MovePhase, MoveProgress, PageCounts, Strategy};
pub use name::{DatacenterName, HostName, MachineName, NameError};
pub use outlook::{Accuracy, Deviation, Expected, Forecast, Outlook, Survey};
pub use owner::{Epoch, OwnerRecord, OwnerState};
pub use piece::{Piece, PieceName, PieceNameError, SPAN_HOSTS_MAX, first_pieces, slice_of_shards, spread_over};
pub use placement::{Judgement, Placement, Verdict};
pub use plan::{
    Blocked, Contradiction, Explanation, Motive, PlaceNote, Plan, PlannedStep, Rejected, RuleNote, Standing, Subject,
};
pub use policy::{PolicyMode, PolicySpec};
pub use report::{DigestReport, DowntimeReport, FollowReport, MoveSummary, Prediction};
pub use request::{MoveLimit, MoveRequest};
pub use rule::{Demand, Domain, Rule, Selector, SelectorError};
pub use shape::{
    Advice, HotPage, PageFaults, PartFigures, PeerFigures, Sharing, Step, StepDone, StepReport, VcpuFigures, VcpuPause,
};
pub use site::{ChangeKind, HostSpec, LinkSpec, MachineDeclaration, SiteChange, SiteSpec};
pub use size::{Bandwidth, BandwidthError, ByteSize, SizeError};
pub use spec::{Backing, DirtySource, DiskSpec, InterruptController, MachineSpec, SpecError};
pub use telemetry::{HostTelemetry, MachineTelemetry, MemoryTelemetry, Pressure, VcpuTelemetry};
pub use timeline::{RoundRecord, Timeline, TimelineEvent, TimelineSample};
pub use what_if::{AddedHost, Growth, MoreHosts, Supposed, WhatIf};
