//! Bulk flows: one connection, one stream, page frames in order.

use super::{
    SessionError,
    copies::CopySender,
    mend::{Copy, Mender},
};
use crate::pages::{FrameDecoder, PageSink, WireCost};
use bytes::Bytes;
use std::{sync::Arc, time::Instant};
use tokio::sync::mpsc;

/// Frames between the encoding thread and the connection. Enough to keep the connection busy while the next batch is
/// made, few enough that a pause is not spent waiting for a backlog.
const QUEUE_FRAMES: usize = 4;
/// Packets' worth of data taken at a time at the target.
const READ_CHUNKS: usize = 64;

/// What is written at once: head and payload of a frame, and a mark behind it; each may be empty. A write for each would wake the
/// connection three times, and put the few bytes of the head into a packet of their own.
pub type FrameParts = [Bytes; 3];

/// The source's end of a flow: a bounded queue into a task that writes. Back-pressure reaches the encoding thread by its
/// blocking on the queue.
#[derive(Debug)]
pub struct FlowSender {
    queue: mpsc::Sender<FrameParts>,
    writer: tokio::task::JoinHandle<Result<(), SessionError>>,
}

impl FlowSender {
    pub(super) fn start(mut stream: quinn::SendStream, wire: Arc<WireCost>, mut copies: CopySender) -> Self {
        let (queue, mut frames) = mpsc::channel::<FrameParts>(QUEUE_FRAMES);
        let writer = tokio::spawn(async move {
            while let Some(mut frame) = frames.recv().await {
                let bytes = frame.iter().map(Bytes::len).sum::<usize>() as u64;
                copies.send(&frame);
                let start = Instant::now();
                stream.write_all_chunks(&mut frame).await?;
                // Small frames say more about scheduling than about the link.
                if bytes >= 16 << 10 {
                    wire.record(bytes, u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX));
                }
            }
            let _ = stream.finish();
            Ok(())
        });
        Self { queue, writer }
    }

    /// Hands a frame to the flow from an ordinary thread, waiting while the queue is full.
    ///
    /// # Errors
    /// [`SessionError::Lost`] when the flow's connection is gone.
    pub fn send_blocking(&self, frame: FrameParts) -> Result<(), SessionError> {
        self.queue.blocking_send(frame).map_err(|_| SessionError::Lost("a page flow ended".to_owned()))
    }

    /// Ends the flow and waits until the transport has taken everything.
    ///
    /// # Errors
    /// What ended the flow early.
    pub async fn finish(self) -> Result<(), SessionError> {
        drop(self.queue);
        self.writer.await.map_err(|error| SessionError::Lost(error.to_string()))?
    }
}

/// The target's end of a flow.
#[derive(Debug)]
pub struct FlowReceiver {
    stream: quinn::RecvStream,
    /// Bytes of the stream read so far.
    position: u64,
    /// Parts of the stream that were sent again.
    copies: Option<mpsc::Receiver<Copy>>,
}

impl FlowReceiver {
    /// Of a stream of which `position` bytes were read already.
    pub(super) const fn new(stream: quinn::RecvStream, position: u64) -> Self {
        Self { stream, position, copies: None }
    }

    pub(super) fn with_copies(self, copies: mpsc::Receiver<Copy>) -> Self {
        Self { copies: Some(copies), ..self }
    }

    /// Decodes the flow into `sink` until its end; `on_mark` hears every mark in order. Returns the pages placed.
    ///
    /// # Errors
    /// [`SessionError::Frame`] on anything malformed, [`SessionError::Lost`] when the connection breaks or the stream
    /// ends inside a frame.
    pub async fn run<S: PageSink + ?Sized>(
        mut self,
        mut decoder: FrameDecoder,
        sink: &S,
        mut on_mark: impl FnMut(u64) + Send,
    ) -> Result<u64, SessionError>
    where
        for<'a> &'a S: Send,
    {
        let adapter = Borrowed(sink);
        let mut chunks: [Bytes; READ_CHUNKS] = std::array::from_fn(|_| Bytes::new());
        let (mut mender, mut ready) = (Mender::new(self.position), Vec::new());
        loop {
            tokio::select! {
                biased;
                count = self.stream.read_chunks(&mut chunks) => {
                    let Some(count) = count? else { break };
                    for chunk in &mut chunks[..count] {
                        let bytes = std::mem::take(chunk);
                        let at = self.position;
                        self.position += bytes.len() as u64;
                        mender.take(Copy { at, bytes }, &mut ready);
                    }
                }
                copy = next(&mut self.copies) => mender.take(copy, &mut ready),
            }
            for bytes in ready.drain(..) {
                decoder.feed(&bytes, &adapter, &mut on_mark)?;
            }
        }
        if !decoder.is_idle() || mender.position() != self.position {
            return Err(SessionError::Lost("a page flow ended inside a frame".to_owned()));
        }
        Ok(decoder.pages())
    }
}

/// Never, where there are none any more.
async fn next(copies: &mut Option<mpsc::Receiver<Copy>>) -> Copy {
    if let Some(waiting) = copies {
        if let Some(copy) = waiting.recv().await {
            return copy;
        }
        *copies = None;
    }
    std::future::pending().await
}

/// Lends an unsized sink where a `dyn PageSink` is asked for.
struct Borrowed<'a, S: ?Sized>(&'a S);

impl<S: PageSink + ?Sized> PageSink for Borrowed<'_, S> {
    fn total_pages(&self) -> u64 {
        self.0.total_pages()
    }
    fn with_pages(&self, first: u64, pages: u64, use_bytes: &mut dyn FnMut(&mut [u8])) {
        self.0.with_pages(first, pages, use_bytes);
    }
    fn expect_pages(&self, first: u64, pages: u64) {
        self.0.expect_pages(first, pages);
    }
    fn zero_pages(&self, first: u64, pages: u64) {
        self.0.zero_pages(first, pages);
    }
    fn missing_pages(&self, first: u64, pages: u64) {
        self.0.missing_pages(first, pages);
    }
    fn is_live(&self) -> bool {
        self.0.is_live()
    }
    fn place_verified(&self, first: u64, bytes: &[u8]) {
        self.0.place_verified(first, bytes);
    }
}
