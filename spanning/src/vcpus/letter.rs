//! What the parts of a machine say to each other about vCPUs: interrupts, accesses to devices, and vCPUs on their way.

use crate::clock::Departure;
use serde::{Deserialize, Serialize};
use vmotion_machine::{
    ExitReason, Space,
    interrupts::{Addressing, Message},
};
use vmotion_model::Epoch;

/// Longest access to a device at once, in bytes: a page of string I/O.
pub(super) const ACCESS_BYTES_MAX: usize = 4096;

/// One of them. In order between two hosts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Letter {
    /// For a vCPU of the receiver, or one that has gone on from there.
    Interrupt { vcpu: u8, message: Message },
    /// What interrupts find a vCPU by, which the sender has since `epoch`.
    Addressing { vcpu: u8, epoch: Epoch, addressing: Addressing },
    /// A level-triggered interrupt is over.
    EndOfInterrupt { vector: u8 },
    /// To the host with the devices.
    Access { number: u64, vcpu: u8, space: Space, address: u64, access: Access },
    /// What was read.
    Accessed { number: u64, data: Vec<u8> },
    /// The sender has it from now on.
    Placed { vcpu: u8, epoch: Epoch },
    /// Interrupts for it will be sent to you: it is about to come.
    Expect { vcpu: u8, epoch: Epoch },
    /// They wait here.
    Ready { vcpu: u8, epoch: Epoch },
    /// This is it; and the machine's time, as it left it.
    State { vcpu: u8, epoch: Epoch, departure: Departure, state: Vec<u8> },
    /// It runs here; or why it does not.
    Taken { vcpu: u8, epoch: Epoch, taken: Result<Took, String> },
    /// It will not come, unless it is there.
    Forget { vcpu: u8, epoch: Epoch },
    /// The sender is about to leave, in this attempt: the vCPUs that it had, and the hosts that have them since.
    Leaving { attempt: u64, placements: Vec<(u8, u8, Epoch)> },
    /// Whoever leaves is sent nothing for those vCPUs any more. Comes after all that was.
    Farewell { attempt: u64 },
    /// The guest has ended.
    Ended(ExitReason),
}

/// How long the target of a move took, in ns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Took {
    pub(super) restore_ns: u64,
    pub(super) claim_ns: u64,
}

/// An access to a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Access {
    Read { bytes: u16 },
    Write(Vec<u8>),
}

impl Letter {
    pub(super) fn encode(&self) -> Vec<u8> {
        // Fails only for types that no letter has.
        postcard::to_stdvec(self).unwrap_or_default()
    }

    /// The letter in `bytes`; the error says what is wrong.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, String> {
        let (letter, rest) = postcard::take_from_bytes(bytes).map_err(|error| error.to_string())?;
        if !rest.is_empty() {
            return Err(format!("{} bytes are left over", rest.len()));
        }
        let length = match &letter {
            Self::Access { access: Access::Read { bytes }, .. } => usize::from(*bytes),
            Self::Access { access: Access::Write(data), .. } | Self::Accessed { data, .. } => data.len(),
            _ => 0,
        };
        if length > ACCESS_BYTES_MAX {
            return Err(format!("a device is accessed for {length} bytes at once"));
        }
        Ok(letter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn letters_arrive_as_they_were_sent() {
        let letters = [
            Letter::State {
                vcpu: 3,
                epoch: Epoch(7),
                departure: Departure { anchor: u64::MAX, time: 5 },
                state: vec![1; 12_000],
            },
            Letter::Access {
                number: 9,
                vcpu: 1,
                space: Space::Ports,
                address: 0x3f8,
                access: Access::Read { bytes: 1 },
            },
            Letter::Ended(ExitReason::InternalError { text: "why".to_owned() }),
        ];
        for letter in letters {
            assert_eq!(Letter::decode(&letter.encode()), Ok(letter));
        }
    }

    #[test]
    fn accesses_are_bounded() {
        let (space, address) = (Space::Memory, 0);
        let access = Access::Read { bytes: 4097 };
        assert!(Letter::decode(&Letter::Access { number: 0, vcpu: 0, space, address, access }.encode()).is_err());
        assert!(Letter::decode(&Letter::Accessed { number: 0, data: vec![0; 4097] }.encode()).is_err());
    }

    proptest! {
        #[test]
        fn anything_else_is_refused_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(letter) = Letter::decode(&bytes) {
                prop_assert!(Letter::decode(&letter.encode()).is_ok());
            }
        }
    }
}
