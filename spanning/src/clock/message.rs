//! What hosts say to each other about time.

use serde::{Deserialize, Serialize};

/// One of them. A frame is a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Message {
    /// To be answered at once.
    Ping {
        /// The sender's TSC.
        asked: u64,
        /// Its frequency, in kHz.
        khz: u32,
        /// The machine's time at the sender, if it knows.
        time: Option<u64>,
    },
    /// The answer.
    Pong {
        /// From the question.
        asked: u64,
        /// The frequency of the sender's TSC, in kHz.
        khz: u32,
        /// If it knows the machine's time.
        times: Option<Times>,
    },
}

/// The machine's time where a question was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Times {
    /// When it came.
    pub(super) received: u64,
    /// When it was answered.
    pub(super) answered: u64,
    /// How far that host was set forward so far, in ticks.
    pub(super) advanced: u64,
}

impl Message {
    pub(super) fn encode(&self) -> Vec<u8> {
        // Fails only for types that no message has.
        postcard::to_stdvec(self).unwrap_or_default()
    }

    /// The message in `frame`; the error says what is wrong.
    pub(super) fn decode(frame: &[u8]) -> Result<Self, String> {
        let (message, rest) = postcard::take_from_bytes(frame).map_err(|error| error.to_string())?;
        if rest.is_empty() { Ok(message) } else { Err(format!("{} bytes are left over", rest.len())) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn messages_arrive_as_they_were_sent() {
        let times = Times { received: u64::MAX, answered: 1, advanced: 2 };
        for message in [
            Message::Ping { asked: 7, khz: 2_000_000, time: None },
            Message::Ping { asked: u64::MAX, khz: 2_000_000, time: Some(u64::MAX) },
            Message::Pong { asked: 7, khz: 1, times: Some(times) },
        ] {
            assert_eq!(Message::decode(&message.encode()), Ok(message));
        }
    }

    proptest! {
        #[test]
        fn anything_else_is_refused_without_a_panic(frame in prop::collection::vec(any::<u8>(), 0..60)) {
            if let Ok(message) = Message::decode(&frame) {
                prop_assert_eq!(Message::decode(&message.encode()), Ok(message));
            }
        }
    }
}
