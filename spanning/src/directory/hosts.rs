//! The hosts of a spanning machine: small numbers, and sets of them in one word.

use std::fmt;

/// Hosts a machine can span: a set of them is one word.
pub const HOSTS_MAX: u8 = 64;

/// A host of the machine, by its place in the machine's list of hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostId(u8);

impl HostId {
    /// The host with this number; `None` from [`HOSTS_MAX`] on.
    #[must_use]
    pub const fn new(number: u8) -> Option<Self> {
        if number < HOSTS_MAX { Some(Self(number)) } else { None }
    }

    /// As [`Self::new`] takes it.
    #[must_use]
    pub const fn number(self) -> u8 {
        self.0
    }

    /// Its place in the machine's list of hosts.
    #[must_use]
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

impl fmt::Display for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "host {}", self.0)
    }
}

/// A set of hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct HostSet(u64);

impl HostSet {
    /// No host.
    pub const EMPTY: Self = Self(0);

    /// Just this one.
    #[must_use]
    pub const fn only(host: HostId) -> Self {
        Self(1 << host.0)
    }

    /// The set whose members' bits are one.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// A bit for each host.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Is it in the set?
    #[must_use]
    pub const fn contains(self, host: HostId) -> bool {
        self.0 & Self::only(host).0 != 0
    }

    /// The set and this one.
    #[must_use]
    pub const fn with(self, host: HostId) -> Self {
        Self(self.0 | Self::only(host).0)
    }

    /// The set but this one.
    #[must_use]
    pub const fn without(self, host: HostId) -> Self {
        Self(self.0 & !Self::only(host).0)
    }

    /// Nobody is left.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// From the lowest number on.
    pub fn iter(self) -> impl Iterator<Item = HostId> {
        (0..HOSTS_MAX).map(HostId).filter(move |host| self.contains(*host))
    }
}
