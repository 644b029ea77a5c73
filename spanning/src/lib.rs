//! How can one machine live on several hosts?
//!
//! Every host of a spanning machine maps all of its memory, and the [`directory`] decides which host may touch which page: transition functions
//! without I/O, without a clock and without threads, so that what the model checker explores is what runs. [`memory`] runs them: it
//! carries out on one host's memory what they decide, and carries their messages between hosts. [`vcpus`] carries interrupts, accesses to
//! devices and whole vCPUs, and [`clock`] sees to it that all of them have one time. Who has which piece the [`registry`] decides. A [`part`] is one host's share of all that, put together.

#![forbid(unsafe_code)]

pub mod clock;
pub mod directory;
pub mod memory;
pub mod part;
pub mod registry;
pub mod vcpus;
