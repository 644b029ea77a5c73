//! The leaving side of a move.

mod driver;
mod follow;
mod foresight;
mod on_the_way;
mod pace;
mod round;
mod sample;
pub mod state;
mod survey;
mod tasks;
mod timeline;

pub use driver::{SourceMove, SourceOptions};
pub(crate) use tasks::ask_until_answered;
pub(crate) use timeline::{ms_between, process_cpu_s};
