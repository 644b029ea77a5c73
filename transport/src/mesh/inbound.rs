//! What comes from one peer: its streams, the most urgent first.

use super::{STREAMS_MAX, StreamNumber, framing::MessageReader};
use crate::session::SessionError;
use quinn_proto::{Connection, Dir, ReadError, StreamId};

/// Whoever takes messages.
pub(super) type Each<'a> = &'a mut dyn FnMut(StreamNumber, &[u8]) -> Result<(), SessionError>;

/// The streams of a peer that it has opened.
#[derive(Default)]
pub(super) struct Inbound {
    /// By the order in which they were opened, as their ids are.
    streams: Vec<InStream>,
    /// Stream numbers that are taken: a bit for each.
    numbers: u16,
}

struct InStream {
    id: StreamId,
    reader: MessageReader,
    readable: bool,
}

impl Inbound {
    /// Takes the streams that are new.
    pub(super) fn accept(&mut self, connection: &mut Connection) {
        while let Some(id) = connection.streams().accept(Dir::Uni) {
            debug_assert!(self.streams.len() < usize::from(STREAMS_MAX), "the transport allows no more");
            self.streams.push(InStream { id, reader: MessageReader::default(), readable: true });
        }
    }

    /// There is something to read on a stream.
    pub(super) fn readable(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.iter_mut().find(|stream| stream.id == id) {
            stream.readable = true;
        }
    }

    pub(super) fn is_readable(&self) -> bool {
        self.streams.iter().any(|stream| stream.readable)
    }

    /// Hands on what has come, until `room`, in bytes, is used up.
    ///
    /// # Errors
    /// How the peer breaks the protocol, or what `each` says.
    pub(super) fn read(
        &mut self,
        connection: &mut Connection,
        room: &mut usize,
        each: Each<'_>,
    ) -> Result<(), SessionError> {
        let Self { streams, numbers } = self;
        while *room > 0 {
            let readable = streams.iter_mut().filter(|stream| stream.readable);
            // What has no number yet comes first: it may be the most urgent.
            let Some(stream) = readable.min_by_key(|stream| stream.reader.number()) else { break };
            stream.read(connection, numbers, room, each)?;
        }
        Ok(())
    }
}

impl InStream {
    fn read(
        &mut self,
        connection: &mut Connection,
        numbers: &mut u16,
        room: &mut usize,
        each: Each<'_>,
    ) -> Result<(), SessionError> {
        let mut stream = connection.recv_stream(self.id);
        let mut chunks = stream.read(true).map_err(|error| SessionError::Lost(error.to_string()))?;
        let read = loop {
            if *room == 0 {
                break Ok(());
            }
            match chunks.next(*room) {
                Ok(Some(chunk)) => {
                    *room -= chunk.bytes.len();
                    let is_new = self.reader.number().is_none();
                    if is_new && let Err(error) = take_number(chunk.bytes.first(), numbers) {
                        break Err(error);
                    }
                    if let Err(error) = self.reader.feed(&chunk.bytes, &mut *each) {
                        break Err(error);
                    }
                }
                Ok(None) => break Err(self.reader.end()),
                Err(ReadError::Blocked) => {
                    self.readable = false;
                    break Ok(());
                }
                Err(ReadError::Reset(code)) => {
                    break Err(SessionError::Protocol(format!("a stream is reset with code {code}")));
                }
            }
        };
        // Room for more is told with the next packet.
        let _ = chunks.finalize();
        read
    }
}

/// A number is used once; whether it is in range is the reader's to say.
fn take_number(number: Option<&u8>, numbers: &mut u16) -> Result<(), SessionError> {
    let Some(number) = number.copied().filter(|number| *number < STREAMS_MAX) else { return Ok(()) };
    if *numbers & (1 << number) != 0 {
        return Err(SessionError::Protocol(format!("stream number {number} is used twice")));
    }
    *numbers |= 1 << number;
    Ok(())
}
