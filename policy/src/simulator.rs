//! What would have come of it? The same engine over recorded or generated demand, against doing nothing and against the usual rule of
//! thumb.
//!
//! The one invariant: every policy sees the same demand, the same arrivals and departures, and pays the same for its moves.

mod drain;
mod fleet;
mod generate;
mod planetlab;
mod recorded;
mod replay;
mod report;
mod table;

pub use drain::{DrainOutcome, drain};
pub use fleet::{Fleet, Trace, site};
pub use generate::generate;
pub use planetlab::{PlanetLabError, planetlab};
pub use recorded::{FleetError, HostsWanted, Recording, settle};
pub use replay::{Outcome, Policy, Replay, replay, replay_watched};
pub use report::{Compared, Simulation};
pub use table::{TableError, read_table};

/// How often demand is measured, in s.
pub const INTERVAL_S: u64 = 300;
/// The hold of the policies that are compared, in s: that of a policy that nobody has set otherwise.
const HOLD_S: u32 = 300;
/// Intervals in a day.
pub const DAY: usize = 288;
/// Hosts that are simulated at most: as many as a site is planned for.
pub const HOSTS_MAX: usize = 10_000;
/// Machines that are simulated at most.
pub const MACHINES_MAX: usize = 250_000;
/// Days that are simulated at most, history and all.
pub const DAYS_MAX: usize = 400;
/// Figures of all machines and intervals at most: some 400 MB of memory.
pub const FIGURES_MAX: usize = 100_000_000;
