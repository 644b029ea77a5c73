//! A whole controller over TLS, against agents that do as they are told.

#![expect(clippy::unwrap_used, reason = "a panic in a helper is the report of the test that called it")]

mod access;
mod agent;
mod audit;
#[path = "../../../tests/harness/etcd.rs"]
mod etcd;
mod faults;
mod machines;
mod metrics;
mod moves;
mod several;
mod world;
