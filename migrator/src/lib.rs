//! How does a running machine get from here to there?
//!
//! Two state machines decide ([`source::state`], [`target::state`]): pure, one file each. Two drivers perform what they
//! decide over a transport session. Machines are known only through the traits of [`guest`], the owner record only
//! through [`ownership::OwnerStore`], so the same engine runs against KVM and against a model.
//!
//! The one invariant: a machine runs where its owner record says, and nowhere else. Until the source has offered the
//! machine, every failure leaves it running where it was; from then on the record alone decides.

#![forbid(unsafe_code)]

mod convergence;
mod copy;
mod digest;
mod dirty_curve;
mod forecast;
pub mod guest;
mod host_load;
mod kvm;
mod limit;
mod owed;
pub mod ownership;
mod plan;
mod predict;
mod protocol;
mod push_pace;
pub mod source;
pub mod target;

#[cfg(test)]
mod model_check;
#[cfg(test)]
mod model_guest;

pub use convergence::{Convergence, RoundReport};
pub use digest::memory_digest;
pub use kvm::{KvmSource, KvmTarget};
pub use limit::BandwidthLimit;
pub use plan::{Decision, Plan};
pub use predict::{GuestProfile, PathProfile, predict};
