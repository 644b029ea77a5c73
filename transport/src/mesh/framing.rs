//! Messages on a stream: first one byte that numbers the stream, then messages, each behind its length.
//!
//! ```text
//!   number (1) │ length (4, little-endian) │ message │ length │ message │ …
//! ```
//! What a peer sends is read here and nowhere else. Nothing is allocated for a length that a peer only announces.

use super::{MESSAGE_BYTES_MAX, STREAMS_MAX, StreamNumber};
use crate::session::SessionError;

/// Before each message, its own not included.
pub(super) const LENGTH_BYTES: usize = 4;

/// Reads one stream of a peer, however it is cut into pieces.
#[derive(Debug, Default)]
pub struct MessageReader {
    number: Option<StreamNumber>,
    /// The beginning of a message whose end has not come: never more than the longest with its length.
    partial: Vec<u8>,
}

impl MessageReader {
    /// The stream's number, once that has come.
    #[must_use]
    pub const fn number(&self) -> Option<StreamNumber> {
        self.number
    }

    /// Takes the next `bytes`, and hands on each message that is whole, in order.
    ///
    /// # Errors
    /// [`SessionError::Protocol`] for a stream number or a length that is out of range; and what `each` returns.
    pub fn feed(
        &mut self,
        mut bytes: &[u8],
        mut each: impl FnMut(StreamNumber, &[u8]) -> Result<(), SessionError>,
    ) -> Result<(), SessionError> {
        let number = match self.number {
            Some(number) => number,
            None => {
                let Some((first, rest)) = bytes.split_first() else { return Ok(()) };
                bytes = rest;
                *self.number.insert(stream_number(*first)?)
            }
        };
        if !self.partial.is_empty() {
            bytes = self.complete(bytes)?;
            if wanted(&self.partial)? != Some(self.partial.len()) {
                return Ok(());
            }
            each(number, &self.partial[LENGTH_BYTES..])?;
            self.partial.clear();
        }
        while let Some(end) = wanted(bytes)?.filter(|end| *end <= bytes.len()) {
            each(number, &bytes[LENGTH_BYTES..end])?;
            bytes = &bytes[end..];
        }
        self.partial.extend_from_slice(bytes);
        Ok(())
    }

    /// Adds to what has begun, until it is whole; what is left.
    fn complete<'a>(&mut self, mut bytes: &'a [u8]) -> Result<&'a [u8], SessionError> {
        for _ in ["length", "message"] {
            let end = wanted(&self.partial)?.unwrap_or(LENGTH_BYTES);
            let missing = (end - self.partial.len()).min(bytes.len());
            self.partial.extend_from_slice(&bytes[..missing]);
            bytes = &bytes[missing..];
        }
        Ok(bytes)
    }

    /// What is wrong with a stream that ends here. A peer does not end streams: they end with their connection.
    #[must_use]
    pub fn end(&self) -> SessionError {
        let place = if self.partial.is_empty() { "between two messages" } else { "inside a message" };
        SessionError::Protocol(match self.number {
            Some(StreamNumber(number)) => format!("stream {number} ends {place}"),
            None => "a stream ends before its number".to_owned(),
        })
    }
}

fn stream_number(byte: u8) -> Result<StreamNumber, SessionError> {
    if byte < STREAMS_MAX {
        Ok(StreamNumber(byte))
    } else {
        Err(SessionError::Protocol(format!("stream number {byte} is not below {STREAMS_MAX}")))
    }
}

/// Bytes of the message that `bytes` begins with, its length included; `None` while that is not there.
fn wanted(bytes: &[u8]) -> Result<Option<usize>, SessionError> {
    let Some(length) = bytes.first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
    let length = u32::from_le_bytes(*length) as usize;
    if length > MESSAGE_BYTES_MAX {
        let problem = format!("a message announces {length} bytes, more than {MESSAGE_BYTES_MAX}");
        return Err(SessionError::Protocol(problem));
    }
    Ok(Some(LENGTH_BYTES + length))
}

/// Appends the message that `write` appends, behind its length; the bytes it took.
///
/// # Panics
/// When `write` takes bytes away, or appends more than [`MESSAGE_BYTES_MAX`]: a fault in this program.
pub(super) fn append(into: &mut Vec<u8>, write: &mut dyn FnMut(&mut Vec<u8>)) -> usize {
    let start = into.len();
    into.extend_from_slice(&[0; LENGTH_BYTES]);
    let body = into.len();
    write(into);
    let length = into.len().checked_sub(body).filter(|length| *length <= MESSAGE_BYTES_MAX);
    let length = length.and_then(|length| u32::try_from(length).ok());
    let length = length.expect("a message appends at most MESSAGE_BYTES_MAX bytes");
    into[start..body].copy_from_slice(&length.to_le_bytes());
    into.len() - start
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Messages = Vec<Vec<u8>>;

    fn stream(number: u8, messages: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = vec![number];
        for message in messages {
            append(&mut bytes, &mut |into| into.extend_from_slice(message));
        }
        bytes
    }

    fn read(reader: &mut MessageReader, pieces: &[&[u8]]) -> Result<Messages, SessionError> {
        let mut messages = Vec::new();
        for piece in pieces {
            reader.feed(piece, |number, message| {
                assert_eq!(number, StreamNumber(7));
                messages.push(message.to_vec());
                Ok(())
            })?;
        }
        Ok(messages)
    }

    proptest! {
        #[test]
        fn messages_are_read_as_they_were_written_however_they_are_cut(
            messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..20),
            cuts in prop::collection::vec(1_usize..200, 1..50),
        ) {
            let bytes = stream(7, &messages);
            let (mut rest, mut pieces) = (&bytes[..], Vec::new());
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (piece, behind) = rest.split_at((*cut).min(rest.len()));
                pieces.push(piece);
                rest = behind;
            }
            let mut reader = MessageReader::default();
            prop_assert_eq!(read(&mut reader, &pieces).unwrap(), messages);
            prop_assert!(reader.end().to_string().contains("between two messages"));
        }

        #[test]
        fn hostile_bytes_are_an_error_or_messages_and_take_no_more_memory_than_a_message(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..100), 0..20),
        ) {
            let mut reader = MessageReader::default();
            for piece in &pieces {
                if reader.feed(piece, |_, _| Ok(())).is_err() {
                    break;
                }
                prop_assert!(reader.partial.len() <= LENGTH_BYTES + MESSAGE_BYTES_MAX);
            }
        }
    }

    #[test]
    fn the_longest_message_passes_and_a_longer_one_is_refused_before_it_comes() {
        let longest = vec![vec![5; MESSAGE_BYTES_MAX]];
        assert_eq!(read(&mut MessageReader::default(), &[&stream(7, &longest)]).unwrap(), longest);
        let announced = u32::try_from(MESSAGE_BYTES_MAX + 1).unwrap().to_le_bytes();
        for pieces in [&[&[7][..], &announced[..]][..], &[&[7][..], &announced[..2], &announced[2..]][..]] {
            let refused = read(&mut MessageReader::default(), pieces).unwrap_err().to_string();
            assert!(refused.contains("announces 65537 bytes"), "{refused}");
        }
    }

    #[test]
    fn a_stream_number_out_of_range_is_named() {
        let refused = read(&mut MessageReader::default(), &[&[STREAMS_MAX]]).unwrap_err().to_string();
        assert!(refused.contains("stream number 16 is not below 16"), "{refused}");
    }

    #[test]
    fn the_end_of_a_stream_says_where_it_is() {
        let mut reader = MessageReader::default();
        assert!(reader.end().to_string().contains("before its number"));
        read(&mut reader, &[&[7, 3, 0, 0, 0, 1]]).unwrap();
        assert!(reader.end().to_string().contains("stream 7 ends inside a message"));
    }
}
