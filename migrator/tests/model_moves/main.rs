//! Both drivers of a move over real QUIC sessions, with guests, store and network made of parts that fail on schedule.
//!
//! After every schedule: never did two copies run; the one that the record names runs, unless its process was killed, or its
//! memory was to follow and the other process or the path was lost, and then that is said; the other copy does not run; an
//! attempt that ended leaves no dirty tracking; both ends say what is true; and every page that the guest read, and every page
//! it has in the end, is what it wrote.
//!
//! `VMOTION_SCHEDULE_SEED` repeats a run of the random schedules, `VMOTION_SCHEDULES` sets how many there are, and
//! `VMOTION_SCHEDULE` runs one of them.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::cast_possible_truncation,
    reason = "a test's panic is its report"
)]

mod arriving;
mod directed;
mod following;
mod guest;
mod leaving;
mod memory;
mod outcome;
mod path;
mod random;
mod renewing;
mod schedule;
mod store;
mod witness;
mod world;
