//! The first message of a stream, of a peer that has not shown yet who it is.

use quinn_proto::{Connection, ReadError, StreamId};
use serde::de::DeserializeOwned;

/// Before the message, its own not included.
const LENGTH_BYTES: usize = 4;
const WRONG: &str = "what it says is no opening";

/// What came of it. Nothing behind it is read.
#[derive(Default)]
pub(crate) struct FirstMessage(Vec<u8>);

impl FirstMessage {
    /// The message, once all of it is there; or what is wrong with it. One longer than `bytes_max` is not awaited.
    pub(crate) fn read<T: DeserializeOwned>(
        &mut self,
        connection: &mut Connection,
        stream: StreamId,
        bytes_max: usize,
    ) -> Option<Result<T, &'static str>> {
        let mut stream = connection.recv_stream(stream);
        let Ok(mut chunks) = stream.read(true) else { return Some(Err(WRONG)) };
        loop {
            let length = match self.0.first_chunk::<LENGTH_BYTES>() {
                Some(length) => LENGTH_BYTES + u32::from_le_bytes(*length) as usize,
                None => LENGTH_BYTES,
            };
            if length > LENGTH_BYTES + bytes_max {
                break Some(Err("a control message is too long"));
            }
            let missing = length - self.0.len();
            if missing == 0 {
                let message = postcard::from_bytes(&self.0[LENGTH_BYTES..]);
                break Some(message.map_err(|_| WRONG));
            }
            match chunks.next(missing) {
                Ok(Some(chunk)) => self.0.extend_from_slice(&chunk.bytes),
                Err(ReadError::Blocked) => break None,
                Ok(None) | Err(ReadError::Reset(_)) => break Some(Err(WRONG)),
            }
        }
    }
}
