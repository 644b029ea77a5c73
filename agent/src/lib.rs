//! What runs on this host?
//!
//! Two programs share this crate. The *agent* serves the host's API, starts one process per machine and tells the
//! controller that it lives. A *machine process* runs one machine and its moves, in a session of its own: agents can crash
//! or be upgraded while machines and moves go on. The two meet in a directory per machine and its control socket; the
//! agent keeps nothing in memory that it could not read there again.

#![forbid(unsafe_code)]

mod console;
mod directory;
pub mod doctor;
mod heartbeat;
mod host;
mod http;
pub mod process;
mod service;
mod supervisor;
mod telemetry;

pub use service::{AgentError, AgentOptions, run};
