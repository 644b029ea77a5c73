//! How do two hosts talk safely and fast?
//!
//! QUIC sessions between machine processes: mutual TLS, a one-time ticket, negotiation, one control stream, bulk flows on
//! connections of their own, and the page codec; and the [`mesh`] in which the hosts of a spanning machine talk. The only crate that
//! names quinn; those above see [`session`] and frames. It knows nothing of strategies, rounds or ownership.

#![forbid(unsafe_code)]

mod congestion;
mod direct;
pub mod identity;
pub mod mesh;
pub mod pages;
pub mod pki;
mod principal;
pub mod session;
mod socket;
mod tuning;

pub use identity::{ExpectedPeer, Identity, IdentityError};
pub use principal::{Principal, PrincipalError, Role};
pub use tuning::Tuning;
