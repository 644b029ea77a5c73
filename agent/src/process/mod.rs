//! The machine process: one machine, its console, and its moves.
//!
//! ```text
//! agent ── launch.json, UDP socket as stdin ──▶ process ── control.sock ◀── agent (any agent, also a restarted one)
//!                                                 │  ├── QUIC ──▶ the other machine process of a move
//!                                                 │  └── HTTPS ─▶ controller: the owner record, nothing else
//!                                                 └── state.json, console.log, moves/ID.json
//! ```

mod attach;
mod checkpoint;
mod control;
mod life;
mod memory_use;
mod outgoing;
mod owner;
mod part;
mod snapshot;

pub use control::{Command, ControlClient};
pub use part::Share;
pub(crate) use snapshot::read_head as read_snapshot_head;

use crate::directory::MachineDirectory;
use serde::{Deserialize, Serialize};
use std::{
    path::{Path, PathBuf},
    time::Duration,
};
use vmotion_model::{Epoch, HostName, MachineSpec, MachineState, MoveId, OwnerRecord};
use vmotion_transport::{Tuning, session::MoveTicket};

/// Why a machine process exists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Purpose {
    /// To run a machine from its kernel, or from a snapshot.
    Start {
        /// A snapshot directory.
        from: Option<PathBuf>,
    },
    /// To receive one.
    Receive {
        /// The move.
        move_id: MoveId,
        /// Its secret.
        ticket: MoveTicket,
        /// The owner record as it must be at switch-over.
        record: OwnerRecord,
    },
    /// To have a part of one that spans several hosts.
    Part(Share),
}

/// Everything a machine process is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launch {
    /// Start, receive, or have a part.
    pub purpose: Purpose,
    /// The machine.
    pub spec: MachineSpec,
    /// The epoch it runs with; a received machine runs with the next one.
    pub epoch: Epoch,
    /// This host.
    pub host: HostName,
    /// Directory of this host's certificate.
    pub identity: PathBuf,
    /// The controller, where owner records live.
    pub controller: String,
    /// Silence after which the other end of a move counts as lost, in ms.
    pub peer_timeout_ms: u64,
    /// The same for the arrival alone, where the operator asked for another.
    #[serde(default)]
    pub arrival_timeout_ms: Option<u64>,
    /// What logs name the arrival by.
    #[serde(default)]
    pub trace: Option<vmotion_api::TraceId>,
    /// UDP ports for arrivals, first and last.
    pub move_ports: (u16, u16),
}

impl Launch {
    /// How moves of this process use the network.
    fn tuning(&self) -> Tuning {
        Tuning { silence_max: Duration::from_millis(self.peer_timeout_ms), ..Tuning::default() }
    }
}

/// What a machine process says of itself, on request and in `state.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessState {
    /// The machine.
    pub spec: MachineSpec,
    /// The epoch it runs with.
    pub epoch: Epoch,
    /// What it does.
    pub state: MachineState,
    /// Its process identifier.
    pub pid: u32,
    /// Why it stopped or failed.
    #[serde(default)]
    pub reason: Option<String>,
    /// Console bytes before this stay: what the first byte of `console.log` is the offset of.
    pub console_base: u64,
    /// Console bytes so far.
    pub console_bytes: u64,
    /// The move it is part of.
    #[serde(default)]
    pub move_id: Option<MoveId>,
    /// It moved away: the machine is no longer this host's.
    #[serde(default)]
    pub left: bool,
}

/// Runs the machine process of `directory` to its end. The UDP socket for an arrival, or for the other hosts of its machine, is its standard input.
///
/// # Errors
/// What went wrong, in one line; `state.json` has it too.
pub fn run(directory: &Path) -> Result<(), String> {
    // A session of its own: signals to the agent's group are not for the machine.
    if let Err(error) = rustix::process::setsid() {
        tracing::debug!(%error, "already a session leader");
    }
    let directory = MachineDirectory::at(directory.to_owned());
    let launch = directory.read_launch().map_err(|error| format!("Cannot read launch.json: {error}"))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(std::thread::available_parallelism().map_or(2, |count| count.get().clamp(2, 8)))
        .enable_all()
        .build()
        .map_err(|error| format!("Cannot start the runtime: {error}"))?;
    let lived = runtime.block_on(life::live(directory, launch));
    if lived.is_err() {
        // Threads of a machine that failed may wait for ever; they end with the process.
        runtime.shutdown_background();
    }
    lived
}
