//! Who may be a host of the mesh: both ends show the same first message, and each compares.

use super::Peer;
use crate::session::{MoveTicket, WireError, WireErrorCode};
use serde::{Deserialize, Serialize};
use vmotion_model::MachineName;

/// What the hosts of a mesh say to each other. Both must speak the same: the hosts of one machine run one build.
pub(super) const MESH_VERSION: u16 = 1;
/// Longest opening, in bytes: the ticket, a name and numbers.
pub(super) const OPENING_BYTES_MAX: usize = 256;

/// The secret of a machine's mesh, given to its hosts by the controller. A valid host certificate alone opens no connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MeshTicket(MoveTicket);

impl MeshTicket {
    /// A ticket of these bytes, which must come from a cryptographic generator.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(MoveTicket::from_bytes(bytes))
    }

    /// A fresh ticket.
    #[must_use]
    pub fn random() -> Self {
        Self(MoveTicket::random())
    }
}

/// The first message of a connection, in each direction.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Opening {
    ticket: [u8; 32],
    version: u16,
    machine: MachineName,
    from: u8,
    to: u8,
    incarnation: u64,
}

/// What this end is, and compares with.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    pub(super) ticket: MeshTicket,
    pub(super) machine: MachineName,
    pub(super) me: Peer,
    pub(super) incarnation: u64,
}

impl Facts {
    /// What this end says to `to`.
    pub(super) fn opening(&self, to: Peer) -> Opening {
        Opening {
            ticket: *self.ticket.0.as_bytes(),
            version: MESH_VERSION,
            machine: self.machine.clone(),
            from: self.me.0,
            to: to.0,
            incarnation: self.incarnation,
        }
    }

    /// Compares what a peer says with what this end is; the peer's number.
    ///
    /// # Errors
    /// The first field that differs, with both values; of the ticket only that it does.
    pub(super) fn check(&self, opening: &Opening) -> Result<Peer, WireError> {
        if !MoveTicket::from_bytes(opening.ticket).matches(&self.ticket.0) {
            return Err(unexpected("ticket: it is not that of this machine's mesh".to_owned()));
        }
        if opening.version != MESH_VERSION {
            let detail = format!("mesh version: the peer speaks {}, this end {MESH_VERSION}", opening.version);
            return Err(WireError::new(WireErrorCode::Version, detail));
        }
        if opening.machine != self.machine {
            return Err(unexpected(format!("machine: the peer has {}, this end {}", opening.machine, self.machine)));
        }
        if opening.to != self.me.0 {
            return Err(unexpected(format!("to: the peer wants host {}, this end is {}", opening.to, self.me.0)));
        }
        Ok(Peer(opening.from))
    }
}

impl Opening {
    /// Whether the sender is who it was at first contact; that is remembered.
    ///
    /// # Errors
    /// Names both incarnations.
    pub(super) fn settle(&self, known: &mut Option<u64>) -> Result<(), WireError> {
        let expected = *known.get_or_insert(self.incarnation);
        if self.incarnation == expected {
            return Ok(());
        }
        let (host, found) = (self.from, self.incarnation);
        Err(unexpected(format!("incarnation: host {host} has {found}, this end knows it by {expected}")))
    }
}

pub(super) fn unexpected(detail: String) -> WireError {
    WireError::new(WireErrorCode::Unexpected, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(me: u8) -> Facts {
        let ticket = MeshTicket::from_bytes([7; 32]);
        Facts { ticket, machine: "vm1".parse().unwrap(), me: Peer(me), incarnation: 5 }
    }

    #[test]
    fn equal_ends_agree_and_each_difference_is_named() {
        let opening = facts(0).opening(Peer(1));
        assert_eq!(facts(1).check(&opening), Ok(Peer(0)));
        let other = |change: fn(&mut Opening)| {
            let mut opening = opening.clone();
            change(&mut opening);
            facts(1).check(&opening).unwrap_err().to_string()
        };
        assert!(other(|opening| opening.ticket[31] ^= 1).contains("ticket"));
        assert!(other(|opening| opening.version = 9).contains("mesh version: the peer speaks 9, this end 1"));
        assert!(other(|opening| opening.machine = "vm2".parse().unwrap()).contains("machine: the peer has vm2"));
        assert!(other(|opening| opening.to = 4).contains("to: the peer wants host 4, this end is 1"));
    }

    #[test]
    fn an_opening_is_never_longer_than_is_read() {
        let name = "a".repeat(63);
        let facts = Facts { machine: name.parse().unwrap(), incarnation: u64::MAX, ..facts(255) };
        assert!(postcard::to_stdvec(&facts.opening(Peer(255))).unwrap().len() <= OPENING_BYTES_MAX);
    }

    #[test]
    fn the_first_incarnation_is_the_one_that_is_expected() {
        let (opening, mut known) = (facts(0).opening(Peer(1)), None);
        assert!(opening.settle(&mut known).is_ok());
        assert!(opening.settle(&mut known).is_ok());
        let again = Facts { incarnation: 6, ..facts(0) }.opening(Peer(1));
        let refused = again.settle(&mut known).unwrap_err().to_string();
        assert_eq!(refused, "incarnation: host 0 has 6, this end knows it by 5");
    }
}
