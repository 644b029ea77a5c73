//! What can go wrong with namespaces and devices.

use crate::direction::Direction;
use std::{io, net::IpAddr};

/// Why an emulator could not be started, or stopped working.
#[derive(Debug, thiserror::Error)]
pub enum WanError {
    /// An option that cannot be.
    #[error("{field} {value}: {allowed}")]
    Option {
        /// Which one.
        field: &'static str,
        /// Its value.
        value: String,
        /// What is allowed.
        allowed: &'static str,
    },
    /// Two addresses that cannot reach each other.
    #[error("addresses {a} and {b}: write two different ones, both IPv4 or both IPv6")]
    Addresses {
        /// Of end a.
        a: IpAddr,
        /// Of end b.
        b: IpAddr,
    },
    /// Both ends in the same namespace would find each other without the link.
    #[error("namespace {name} cannot be both ends: give two")]
    SameNamespace {
        /// Which.
        name: String,
    },
    /// A namespace that cannot be entered.
    #[error("network namespace {name} cannot be entered; `ip netns list` shows those there are")]
    Namespace {
        /// Which.
        name: String,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// `ip` cannot be run.
    #[error("`ip` cannot be run; it comes with iproute2")]
    IpMissing(#[source] io::Error),
    /// `ip` refused.
    #[error("`ip {arguments}` failed: {said}")]
    Ip {
        /// How it was called.
        arguments: String,
        /// Its complaint.
        said: String,
    },
    /// No TUN device.
    #[error("/dev/net/tun cannot be opened; it needs root and the kernel's tun module")]
    OpenTun(#[source] io::Error),
    /// No TUN device of this name.
    #[error("TUN device {device} cannot be made in namespace {namespace}")]
    MakeTun {
        /// Its name.
        device: String,
        /// Where.
        namespace: String,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// The host refused something small.
    #[error("{what} is not to be had")]
    Host {
        /// What.
        what: &'static str,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// A direction carries nothing any more.
    #[error("{direction} stopped: its TUN device is gone")]
    Stopped {
        /// Which.
        direction: Direction,
        /// What the device said.
        #[source]
        error: io::Error,
    },
}

impl WanError {
    pub(crate) fn host(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::Host { what, error }
    }
}
