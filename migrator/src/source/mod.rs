//! The leaving side of a move.

mod driver;
mod pace;
pub mod state;
mod timeline;

pub(crate) use driver::ask_until_answered;
pub use driver::{SourceMove, SourceOptions};
pub(crate) use timeline::{ms_between, process_cpu_s};
