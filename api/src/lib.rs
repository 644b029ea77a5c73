//! What do controller, agents and operators say to each other over HTTP?
//!
//! Messages (JSON), one typed client for each service, and the mutually authenticated TLS server under both. It holds no
//! decisions: handlers live in `controller` and `agent`.

#![forbid(unsafe_code)]

mod agent;
mod audit;
mod client;
mod controller;
mod policy;
mod problem;
mod server;
mod span;
mod trace;

pub use agent::{
    AgentClient, ConsoleQuery, Heartbeat, HostReport, IncomingReady, IncomingRequest, MoveReport, OutgoingRequest,
    SnapshotRequest, StartRequest,
};
pub use audit::{AUDIT_BEGINS, AuditEntry, AuditEvent, AuditPage, Broken, Chain, Seal};
pub use client::{ClientError, ConsoleChunk, HttpClient, LEADER_HEADER};
pub use controller::{CasRequest, ControllerClient, CreateRequest, MachineView, MoveCommand, Operation};
pub use policy::{
    Applied, ApplyRequest, DrainRequest, HostUse, LeftAlone, MachineUse, Missing, PlanGoal, PlanId, PlanState,
    PlanView, PolicyChange, PolicyView, RebalanceRequest, SiteView, StepState, UndoRequest,
};
pub use problem::{Json, Problem};
pub use server::{Caller, TlsListener, serve};
pub use span::{
    ClaimRequest, Claimed, MemberView, PartAddress, PartAnswer, PartMember, PartOrder, PartReady, PartRequest,
    PartState, ShapeChange, ShapePlan, ShapeRequest, SpanView,
};
pub use trace::{TRACE_HEADER, TraceId, TraceIdError, adopt_trace, current_trace, spawn_traced, within};
pub use vmotion_model::{Judgement, Placement, Verdict};
