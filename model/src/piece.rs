//! Pieces of machines that span several hosts: each has a host of its own, and moves.

use crate::{Epoch, HostName, MachineSpec};
use serde::{Deserialize, Serialize};
use std::{fmt, ops::Range, str::FromStr};

/// Hosts that a machine may span.
pub const SPAN_HOSTS_MAX: usize = 16;

/// A piece of a machine: `vcpu2`, `mem1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(try_from = "String", into = "String")]
pub enum PieceName {
    /// A vCPU.
    Vcpu(u8),
    /// A slice of memory: the homes of its pages. A machine has as many as it had hosts when it was created.
    Memory(u8),
}

/// Why a piece's name was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("Piece {0:?} is not valid: use vcpuN or memN, such as vcpu2 or mem0")]
pub struct PieceNameError(pub String);

impl fmt::Display for PieceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vcpu(number) => write!(f, "vcpu{number}"),
            Self::Memory(number) => write!(f, "mem{number}"),
        }
    }
}

impl FromStr for PieceName {
    type Err = PieceNameError;

    fn from_str(text: &str) -> Result<Self, PieceNameError> {
        let number = |digits: &str| digits.parse().ok().filter(|_| digits.bytes().all(|byte| byte.is_ascii_digit()));
        let piece = match (text.strip_prefix("vcpu"), text.strip_prefix("mem")) {
            (Some(digits), _) => number(digits).map(Self::Vcpu),
            (None, Some(digits)) => number(digits).map(Self::Memory),
            (None, None) => None,
        };
        piece.ok_or_else(|| PieceNameError(text.to_owned()))
    }
}

impl TryFrom<String> for PieceName {
    type Error = PieceNameError;

    fn try_from(text: String) -> Result<Self, PieceNameError> {
        text.parse()
    }
}

impl From<PieceName> for String {
    fn from(piece: PieceName) -> Self {
        piece.to_string()
    }
}

/// A piece, and where it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Piece {
    /// Which.
    pub name: PieceName,
    /// Where it is.
    pub host: HostName,
    /// Grows with every move of it.
    pub epoch: Epoch,
}

/// The pieces that a machine with `cpus` vCPUs begins with on `hosts`, in order: neighbouring vCPUs together, and a slice of memory on each.
#[must_use]
pub fn first_pieces(cpus: u8, hosts: &[HostName]) -> Vec<Piece> {
    let slices = u8::try_from(hosts.len()).unwrap_or(u8::MAX);
    let spread = spread_over(cpus, slices, hosts);
    spread.into_iter().map(|(name, host)| Piece { name, host, epoch: Epoch::FIRST }).collect()
}

/// Where the pieces of a machine with `cpus` vCPUs and `slices` slices of memory are when it is spread over `hosts`: in equal shares, in order.
#[must_use]
pub fn spread_over(cpus: u8, slices: u8, hosts: &[HostName]) -> Vec<(PieceName, HostName)> {
    let share = |number: u8, of: u8| hosts.get(usize::from(number) * hosts.len() / usize::from(of.max(1))).cloned();
    let vcpus = (0..cpus).filter_map(|vcpu| Some((PieceName::Vcpu(vcpu), share(vcpu, cpus)?)));
    let slices = (0..slices).filter_map(|slice| Some((PieceName::Memory(slice), share(slice, slices)?)));
    vcpus.chain(slices).collect()
}

/// Which of a machine's shards (by their place among all of them, in ascending order) are in slice `slice` of `slices`.
#[must_use]
pub fn slice_of_shards(shards: usize, slice: usize, slices: usize) -> Range<usize> {
    let slices = slices.max(1);
    shards * slice.min(slices) / slices..shards * (slice + 1).min(slices) / slices
}

impl MachineSpec {
    /// May the machine span these hosts?
    ///
    /// # Errors
    /// A sentence that names the field, its value and what to do.
    pub fn validate_span(&self, hosts: &[HostName]) -> Result<(), String> {
        if hosts.len() > SPAN_HOSTS_MAX {
            return Err(format!("span names {} hosts: use at most {SPAN_HOSTS_MAX}", hosts.len()));
        }
        let mut sorted: Vec<_> = hosts.iter().collect();
        sorted.sort_unstable();
        if let Some(twice) = sorted.windows(2).find(|two| two[0] == two[1]) {
            return Err(format!("span names {} twice: name each host once", twice[0]));
        }
        if self.interrupts != crate::InterruptController::User {
            return Err(
                "interrupts kernel: a machine on several hosts delivers its interrupts itself; use interrupts user"
                    .to_owned(),
            );
        }
        if self.backing != crate::Backing::Memfd {
            return Err(
                "backing huge2m: a machine on several hosts shares its memory by pages of 4 KiB; use backing memfd"
                    .to_owned(),
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic in a test is its report")]

    use super::*;

    fn hosts(count: usize) -> Vec<HostName> {
        (1..=count).map(|number| format!("h{number}").parse().unwrap()).collect()
    }

    #[test]
    fn names_are_read_as_they_are_written() {
        for text in ["vcpu0", "vcpu63", "mem0", "mem12"] {
            assert_eq!(text.parse::<PieceName>().unwrap().to_string(), text);
        }
        for text in ["", "vcpu", "vcpu256", "mem+1", "disk0", "vcpu1x"] {
            assert!(text.parse::<PieceName>().is_err(), "{text}");
        }
    }

    #[test]
    fn pieces_begin_spread_out() {
        let pieces = first_pieces(4, &hosts(2));
        let shown: Vec<_> = pieces.iter().map(|piece| format!("{} {}", piece.name, piece.host)).collect();
        assert_eq!(shown, ["vcpu0 h1", "vcpu1 h1", "vcpu2 h2", "vcpu3 h2", "mem0 h1", "mem1 h2"]);
        assert_eq!(first_pieces(1, &hosts(3)).len(), 4);
    }

    #[test]
    fn a_machine_is_spread_over_fewer_hosts_than_it_has_slices_and_over_more() {
        let over =
            |count| spread_over(2, 3, &hosts(count)).into_iter().map(|(_, host)| host.to_string()).collect::<Vec<_>>();
        assert_eq!(over(1), ["h1"; 5]);
        assert_eq!(over(2), ["h1", "h2", "h1", "h1", "h2"]);
        assert_eq!(over(4), ["h1", "h3", "h1", "h2", "h3"]);
        assert!(over(0).is_empty());
    }

    #[test]
    fn slices_hold_every_shard_once() {
        for (shards, slices) in [(32, 2), (33, 4), (2, 3), (0, 2)] {
            let all: Vec<_> = (0..slices).flat_map(|slice| slice_of_shards(shards, slice, slices)).collect();
            assert_eq!(all, (0..shards).collect::<Vec<_>>());
        }
    }
}
