//! Both drivers of a move over real QUIC sessions, with guests, store and network made of parts that fail on schedule.
//!
//! After every schedule: never did two copies run; the one that the record names runs, unless its process was killed;
//! the other does not; an attempt that ended leaves no dirty tracking; and what runs at the target is, byte for byte,
//! what stood still at the source. `VMOTION_SCHEDULE_SEED` repeats a run of the random schedules.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::cast_possible_truncation,
    reason = "a test's panic is its report"
)]

mod directed;
mod guest;
mod path;
mod random;
mod store;
mod world;
