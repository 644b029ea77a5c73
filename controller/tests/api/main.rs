//! A whole controller over TLS, against agents that do as they are told.

mod access;
mod agent;
mod faults;
mod machines;
mod moves;
mod world;
