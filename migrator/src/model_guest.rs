//! A guest made of a byte vector, for the state machines and drivers: pausing, freezing and running are counters that a
//! test can read.

use crate::guest::{FrozenGuest, GuestError, PausedGuest};

/// A guard with no guest behind it: for checking the pure state machine.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Token;

impl PausedGuest for Token {
    type Frozen = Self;
    fn save(&self) -> Result<Vec<u8>, GuestError> {
        Ok(Vec::new())
    }
    fn settle(&self) -> Result<(), GuestError> {
        Ok(())
    }
    fn freeze(self) -> Self {
        self
    }
}

impl FrozenGuest for Token {
    fn thaw(self) {}
}
