//! The receiving side of a move.

mod driver;
pub mod state;

pub use driver::{TargetMove, TargetOptions, TargetOutcome};
