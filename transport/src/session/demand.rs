//! The demand lane: a connection of its own for pages that a vCPU waits for, with sockets and a thread of its own at both ends, so
//! that bulk pages are never in their way.
//!
//! One bidirectional stream: towards the source 8-byte page indices, little-endian; towards the target page frames, as on a bulk
//! flow.

use super::{FlowReceiver, SessionError, Urgent};
use bytes::Bytes;

/// Most demands read at a time.
const DEMANDS_MAX: usize = 128;
const DEMAND_BYTES: usize = 8;

/// The target's end: asks.
#[derive(Debug)]
pub struct DemandSender {
    pub(super) stream: quinn::SendStream,
}

impl DemandSender {
    /// Asks for pages, by index.
    ///
    /// # Errors
    /// [`SessionError::Lost`] when the connection is gone.
    pub async fn ask(&mut self, pages: &[u64]) -> Result<(), SessionError> {
        let bytes: Vec<u8> = pages.iter().flat_map(|page| page.to_le_bytes()).collect();
        self.stream.write_chunk(bytes.into()).await?;
        Ok(())
    }
}

/// The target's end, both directions.
#[derive(Debug)]
pub struct DemandLane {
    /// Asks.
    pub sender: DemandSender,
    /// Takes what was asked for.
    pub receiver: FlowReceiver,
    /// Where both belong; ends with this.
    pub urgent: Urgent,
}

/// The source's end: answers.
#[derive(Debug)]
pub struct DemandServer {
    pub(super) send: quinn::SendStream,
    pub(super) receive: quinn::RecvStream,
    /// Bytes of an index that has not arrived as a whole.
    partial: Vec<u8>,
    urgent: Urgent,
}

impl DemandServer {
    pub(super) const fn new(send: quinn::SendStream, receive: quinn::RecvStream, urgent: Urgent) -> Self {
        Self { send, receive, partial: Vec::new(), urgent }
    }

    /// Where to answer: the lane's own thread.
    #[must_use]
    pub fn runtime(&self) -> tokio::runtime::Handle {
        self.urgent.handle().clone()
    }

    /// The next demands, at least one, in the order they were made; `None` when the target asks no more. The indices are the
    /// peer's: check them.
    ///
    /// # Errors
    /// [`SessionError::Lost`] when the connection is gone.
    pub async fn next(&mut self) -> Result<Option<Vec<u64>>, SessionError> {
        loop {
            let room = DEMANDS_MAX * DEMAND_BYTES - self.partial.len();
            let chunk = self.receive.read_chunk(room, true).await;
            let Some(chunk) = chunk.map_err(|error| SessionError::Lost(error.to_string()))? else { return Ok(None) };
            self.partial.extend_from_slice(&chunk.bytes);
            let whole = self.partial.len() / DEMAND_BYTES * DEMAND_BYTES;
            if whole > 0 {
                let demands =
                    self.partial[..whole].chunks_exact(DEMAND_BYTES).filter_map(|bytes| bytes.try_into().ok());
                let demands = demands.map(u64::from_le_bytes).collect();
                self.partial.drain(..whole);
                return Ok(Some(demands));
            }
        }
    }

    /// Sends a frame.
    ///
    /// # Errors
    /// [`SessionError::Lost`] when the connection is gone.
    pub async fn answer(&mut self, mut frame: [Bytes; 2]) -> Result<(), SessionError> {
        self.send.write_all_chunks(&mut frame).await?;
        Ok(())
    }
}
