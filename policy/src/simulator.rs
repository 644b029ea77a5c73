//! What would have come of it? The same engine over recorded or generated demand, against doing nothing and against the usual rule of
//! thumb.
//!
//! The one invariant: every policy sees the same demand, the same arrivals and departures, and pays the same for its moves.

mod drain;
mod generate;
mod replay;

pub use drain::{DrainOutcome, drain};
pub use generate::{Fleet, PlanetLabError, Trace, generate, planetlab, site};
pub use replay::{Outcome, Policy, Replay, replay};

/// How often demand is measured, in s.
pub const INTERVAL_S: u64 = 300;
/// The hold of the policies that are compared, in s: that of a policy that nobody has set otherwise.
const HOLD_S: u32 = 300;
/// Intervals in a day.
pub const DAY: usize = 288;
