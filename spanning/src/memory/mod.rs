//! One host's part of a spanning machine's memory: what carries out what the [directory](crate::directory) decides.
//!
//! ```text
//!   vCPUs touch A ─▶ userfaultfd ─▶ ┌──────────────── MemoryNode ────────────────┐
//!                                   │ Holder of each touched page ─▶ system calls │─▶ A: map, protect, unmap;  B: write, read
//!   other threads ─▶ NodeControl ─▶ │    ▲ │ messages of this host to itself: a queue
//!                                   │    │ ▼                                      │
//!   peers ─▶ mesh ─▶ Link (lanes) ─▶│ Homes of this host's shards                 │─▶ Link (lanes) ─▶ mesh ─▶ peers
//!                                   └─────────────────────────────────────────────┘
//! ```
//! **All state of a page lives on one thread**, the mesh's: there are no locks, and whatever wakes the thread is dealt with to its end in
//! one pass. Home and holder of the same host talk through a queue that the same pass empties, never by recursion.
//!
//! Messages go in four lanes, orders and answers before replies, those before requests, and shards that move last. Each lane is
//! numbered and replayed, so a connection that is lost loses nothing.
//!
//! What must never happen: this thread touching the guest's mapping (it would wait for itself), reading a page before its revocation has
//! returned, or saying `Done` before the installing call has.
//!
//! A copy whose bytes are not those of its version would be a bug that no message shows: [`NodeConfig::audit`] looks for it.

mod audit;
mod bytes;
mod control;
mod effects;
mod error;
mod hears;
mod hosts;
mod hot;
mod link;
mod moving;
mod node;
mod pass;
mod pull;
mod recent;
mod spot;
mod stats;
#[cfg(test)]
mod tests;
mod window;
mod wire;

pub use bytes::PageBytes;
use control::Command;
pub use control::{Gone, NodeControl, RelocationError, ShardRegistry};
pub use error::{NodeError, PeerError};
pub use hosts::{Loss, Mention, Staying};
pub use hot::HotPages;
pub use link::Traffic;
pub use node::{MemoryNode, NodeConfig};
pub use pull::{PullError, Pulled};
pub use recent::{Recent, Visits};
pub use stats::{Cost, Costs, Counts, Faults, NodeStats, PeerStats};
pub use window::HoldWindow;
pub use wire::WireError;
