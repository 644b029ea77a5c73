//! The control stream: messages of the layer above, length-prefixed postcard, and state blobs on streams of their own.

use super::SessionError;
use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};

/// Longest control message, in bytes. The longest ones are progress reports and refusals.
const MESSAGE_BYTES_MAX: usize = 256 << 10;
/// Longest saved state of a machine, in bytes: 64 vCPUs with AMX state and every device stay below 2 MiB.
pub const STATE_BYTES_MAX: usize = 16 << 20;
/// Before each message, its own not included.
pub(super) const LENGTH_BYTES: usize = 4;
/// Control goes before anything else of its connection.
const PRIORITY_CONTROL: i32 = 100;
const PRIORITY_STATE: i32 = 50;

/// The sending half.
#[derive(Debug)]
pub struct ControlSender {
    stream: quinn::SendStream,
    connection: quinn::Connection,
}

/// The receiving half.
#[derive(Debug)]
pub struct ControlReceiver {
    stream: quinn::RecvStream,
    connection: quinn::Connection,
}

pub(super) fn pair(
    connection: &quinn::Connection,
    send: quinn::SendStream,
    receive: quinn::RecvStream,
) -> (ControlSender, ControlReceiver) {
    // Fails only on a stream that is closed already, which the first write will report.
    let _ = send.set_priority(PRIORITY_CONTROL);
    let sender = ControlSender { stream: send, connection: connection.clone() };
    (sender, ControlReceiver { stream: receive, connection: connection.clone() })
}

impl ControlSender {
    /// Sends one message. Not cancel-safe: a message cut off by a dropped future ends the session at the peer.
    ///
    /// # Errors
    /// [`SessionError::Lost`] when the connection is gone.
    pub async fn send<T: Serialize>(&mut self, message: &T) -> Result<(), SessionError> {
        write_message(&mut self.stream, message).await.map(drop)
    }

    /// Sends a state blob on a stream of its own.
    ///
    /// # Errors
    /// [`SessionError::Lost`] when the connection is gone.
    pub async fn send_state(&self, state: impl Into<Bytes>) -> Result<(), SessionError> {
        let mut stream = self.connection.open_uni().await?;
        let _ = stream.set_priority(PRIORITY_STATE);
        stream.write_chunk(state.into()).await?;
        // Fails only when the peer stopped the stream; it says why on the control stream.
        let _ = stream.finish();
        Ok(())
    }

    /// Ends the stream and waits, at most `patience`, until the peer has everything that was sent.
    pub async fn finish(&mut self, patience: std::time::Duration) {
        let _ = self.stream.finish();
        let _ = tokio::time::timeout(patience, self.stream.stopped()).await;
    }
}

impl ControlReceiver {
    /// The next message; `None` when the peer ended the stream in good order. Not cancel-safe: give it a task of its own.
    ///
    /// # Errors
    /// [`SessionError::Lost`] or [`SessionError::Protocol`].
    pub async fn receive<T: DeserializeOwned>(&mut self) -> Result<Option<T>, SessionError> {
        read_message(&mut self.stream).await
    }

    /// A handle that receives state blobs while this receiver waits for messages elsewhere.
    #[must_use]
    pub fn state_receiver(&self) -> StateReceiver {
        StateReceiver { connection: self.connection.clone() }
    }
}

/// Receives state blobs beside the control stream.
#[derive(Debug)]
pub struct StateReceiver {
    connection: quinn::Connection,
}

impl StateReceiver {
    /// The next state blob.
    ///
    /// # Errors
    /// [`SessionError::Protocol`] when it is longer than [`STATE_BYTES_MAX`].
    pub async fn receive(&self) -> Result<Vec<u8>, SessionError> {
        let mut stream = self.connection.accept_uni().await?;
        stream.read_to_end(STATE_BYTES_MAX).await.map_err(|error| match error {
            quinn::ReadToEndError::TooLong => {
                SessionError::Protocol(format!("the machine state is longer than {STATE_BYTES_MAX} bytes"))
            }
            quinn::ReadToEndError::Read(error) => error.into(),
        })
    }
}

pub(super) async fn read_message<T: DeserializeOwned>(
    stream: &mut quinn::RecvStream,
) -> Result<Option<T>, SessionError> {
    Ok(read_counted(stream).await?.map(|(message, _)| message))
}

/// A message, and the bytes it took of its stream.
pub(super) async fn read_counted<T: DeserializeOwned>(
    stream: &mut quinn::RecvStream,
) -> Result<Option<(T, u64)>, SessionError> {
    let mut length = [0; LENGTH_BYTES];
    match stream.read_exact(&mut length).await {
        Ok(()) => {}
        Err(quinn::ReadExactError::FinishedEarly(0)) => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    let length = u32::from_le_bytes(length) as usize;
    if length > MESSAGE_BYTES_MAX {
        return Err(SessionError::Protocol(format!("a control message announces {length} bytes")));
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    let message = postcard::from_bytes(&body).map_err(|error| SessionError::Protocol(error.to_string()))?;
    Ok(Some((message, (LENGTH_BYTES + length) as u64)))
}

/// Writes a message; the bytes it takes of its stream.
pub(super) async fn write_message<T: Serialize>(
    stream: &mut quinn::SendStream,
    message: &T,
) -> Result<u64, SessionError> {
    let framed = framed(message)?;
    let taken = framed.len() as u64;
    stream.write_chunk(framed.into()).await?;
    Ok(taken)
}

/// A message as it is written, length first: at once, so that one packet carries all of it.
pub(crate) fn framed<T: Serialize>(message: &T) -> Result<Vec<u8>, SessionError> {
    let body = postcard::to_stdvec(message).map_err(|error| SessionError::Protocol(error.to_string()))?;
    debug_assert!(body.len() <= MESSAGE_BYTES_MAX, "a message we make must be one the peer takes");
    let length = u32::try_from(body.len()).map_err(|error| SessionError::Protocol(error.to_string()))?;
    let mut framed = Vec::with_capacity(LENGTH_BYTES + body.len());
    framed.extend_from_slice(&length.to_le_bytes());
    framed.extend_from_slice(&body);
    Ok(framed)
}
