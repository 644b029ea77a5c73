//! What a machine is built from.

use crate::Part;
use std::path::PathBuf;
use vmotion_model::MachineSpec;

/// Everything [`crate::Machine::boot`] and [`crate::Machine::prepare`] need.
#[derive(Debug, Clone)]
pub struct MachineConfig {
    /// The machine as its operator asked for it.
    pub spec: MachineSpec,
    /// Where its console goes.
    pub console: ConsoleConfig,
    /// Which part of it is to be here; `None`: all of it.
    pub part: Option<Part>,
}

/// Where console output goes besides memory.
#[derive(Debug, Clone, Default)]
pub struct ConsoleConfig {
    /// File that output is appended to; created when missing.
    pub log: Option<PathBuf>,
    /// Bytes written before this machine process existed: where its byte offsets begin. A restore replaces it by the saved one.
    pub start_offset: u64,
}
