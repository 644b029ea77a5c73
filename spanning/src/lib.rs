//! How can one machine live on several hosts?
//!
//! Every host of a spanning machine maps all of its memory, and the [`directory`] decides which host may touch which page. So far that is all
//! there is here: transition functions without I/O, without a clock and without threads, so that what the model checker explores is
//! what runs.

#![forbid(unsafe_code)]

pub mod directory;
