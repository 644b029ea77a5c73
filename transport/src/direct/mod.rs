//! Connections that one thread drives without a runtime, for what somebody waits for: what the demand lane and the mesh are built on.
//!
//! quinn's protocol core is fed with what the socket has and with the time. Whatever wakes the thread is dealt with to its end in one pass,
//! so between an event and the packet that it causes no other thread has to be woken.

mod first_message;
#[cfg(test)]
mod relay;
mod socket;
mod wait;
mod wire;

pub(crate) use first_message::FirstMessage;
#[cfg(test)]
pub(crate) use relay::Relay;
pub(crate) use wait::{Ready, Wait, be_urgent, slept, wake};
pub(crate) use wire::{Sent, Wire};
