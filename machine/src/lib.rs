//! What is a virtual machine? It does not know that migration exists.
//!
//! vCPUs, guest memory, interrupt controllers, devices, boot, and saved state, on KVM. One [`Machine`] per process is the
//! usual, but nothing here is global.
//!
//! ```text
//!   boot ──────────► ready ── resume ──► running ── pause ──► PauseGuard ── freeze ──► Frozen
//!   prepare ► fill ► restore ─┘             ▲                  │ save, drop             │ thaw
//!                                           └──────────────────┴────────────────────────┘
//! ```
//!
//! Everything is synchronous and may be called from any thread. Nothing here decides who owns the machine.

mod boot;
mod bus;
mod clock;
mod config;
mod console;
mod devices;
mod error;
mod host;
pub mod interrupts;
mod machine;
mod memory;
mod part;
mod state;
mod vcpu;
mod vm;

pub use config::{ConsoleConfig, MachineConfig};
pub use console::{ConsoleHandle, ConsoleNotify};
pub use error::MachineError;
pub use host::{HostFacts, probe_host};
pub use machine::{Arrived, ExitReason, Frozen, Machine, PauseGuard, Released};
pub use memory::{Filling, GuestRam, OutsideRam};
pub use part::{Elsewhere, Part, Space, VcpuSet};
pub use state::{STATE_VERSION, StateError, StateSummary, inspect_state};
pub use vcpu::Throttle;
