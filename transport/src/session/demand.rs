//! The demand lane: a connection of its own for pages that a vCPU waits for, with a socket and a thread of its own at both ends, so
//! that bulk pages are never in their way.
//!
//! One bidirectional stream: towards the source 8-byte page indices, little-endian; towards the target page frames, as on a bulk
//! flow. The lane's thread does everything itself, see [`super::lane`]: at the target it asks a [`DemandSource`] what is wanted, and places
//! what comes; at the source it has each demand answered.

use super::{
    SessionError,
    lane::{Lane, LaneControl, LaneUser},
};
use crate::pages::{FrameDecoder, PageSink};
use bytes::Bytes;
use rustix::{
    event::{EventfdFlags, eventfd},
    fd::{AsFd, BorrowedFd, OwnedFd},
};
use std::{
    collections::VecDeque,
    fmt, io,
    sync::{Arc, mpsc},
};
use tokio::sync::oneshot;

const DEMAND_BYTES: usize = 8;
/// Most demands answered before the answers are sent: the peer says how many it makes.
const DEMANDS_MAX: usize = 128;
/// Most bytes of answers placed before demands are made.
const ANSWERS_BYTES: usize = 256 << 10;

/// Who knows which pages somebody waits for. Lives on the lane's thread.
pub trait DemandSource: Send {
    /// Appends what becomes readable when somebody waits.
    fn wakes<'a>(&'a self, into: &mut Vec<BorrowedFd<'a>>);
    /// Appends the pages, by index, that somebody waits for and that were not asked for yet. Never blocks.
    fn demands(&mut self, into: &mut Vec<u64>);
}

/// The target's end.
#[derive(Debug)]
pub struct DemandLane {
    lane: Lane,
}

impl DemandLane {
    pub(super) const fn new(lane: Lane) -> Self {
        Self { lane }
    }

    pub(super) fn control(&self) -> LaneControl {
        self.lane.control()
    }

    /// From now on asks for what `source` wants, and places what comes in `sink`; until this is dropped. Of a lane that is lost `source`
    /// does not hear: who waits for a page may be served by others.
    pub fn follow(&self, source: Box<dyn DemandSource>, decoder: FrameDecoder, sink: Arc<dyn PageSink + Send + Sync>) {
        self.lane.hand_to(Box::new(Asking { source, decoder, sink, wanted: Vec::new() }));
    }
}

/// The target's use of the lane.
struct Asking {
    source: Box<dyn DemandSource>,
    decoder: FrameDecoder,
    sink: Arc<dyn PageSink + Send + Sync>,
    wanted: Vec<u64>,
}

impl LaneUser for Asking {
    fn wakes<'a>(&'a self, into: &mut Vec<BorrowedFd<'a>>) {
        self.source.wakes(into);
    }

    fn woken(&mut self, out: &mut VecDeque<Bytes>) {
        self.source.demands(&mut self.wanted);
        if !self.wanted.is_empty() {
            let bytes: Vec<u8> = self.wanted.drain(..).flat_map(u64::to_le_bytes).collect();
            out.push_back(bytes.into());
        }
    }

    fn take_max(&self) -> usize {
        ANSWERS_BYTES
    }

    fn received(&mut self, bytes: &[u8], _: &mut VecDeque<Bytes>) -> Result<(), SessionError> {
        Ok(self.decoder.feed(bytes, &*self.sink, &mut |_| ())?)
    }

    fn over(&mut self, how: Result<(), SessionError>) {
        match how {
            Ok(()) => tracing::warn!("the source ended the demand lane"),
            Err(error) => tracing::warn!(error = %vmotion_model::error_chain(&error), "the demand lane ended"),
        }
    }
}

/// The source's end.
#[derive(Debug)]
pub struct DemandServer {
    lane: Lane,
}

impl DemandServer {
    pub(super) const fn new(lane: Lane) -> Self {
        Self { lane }
    }

    #[cfg(test)]
    pub(super) fn control(&self) -> LaneControl {
        self.lane.control()
    }

    /// Has `answer` called with each page that is asked for, in the order they are, until the target asks no more; it appends what is to be
    /// sent, if anything. It is called by the lane's thread, and must not block. The indices are the peer's: check them.
    ///
    /// # Errors
    /// [`SessionError::Lost`] when the connection is gone.
    pub async fn serve(
        self,
        answer: impl FnMut(u64, &mut VecDeque<Bytes>) + Send + 'static,
    ) -> Result<(), SessionError> {
        let (tell, over) = oneshot::channel();
        self.lane.hand_to(Box::new(Answering { answer, partial: Vec::new(), tell: Some(tell) }));
        over.await.unwrap_or_else(|_| Err(SessionError::Lost("the demand lane's thread ended".to_owned())))
    }
}

/// The source's use of the lane.
struct Answering<F> {
    answer: F,
    /// Bytes of an index that has not arrived as a whole.
    partial: Vec<u8>,
    tell: Option<oneshot::Sender<Result<(), SessionError>>>,
}

impl<F: FnMut(u64, &mut VecDeque<Bytes>) + Send> LaneUser for Answering<F> {
    fn wakes<'a>(&'a self, _: &mut Vec<BorrowedFd<'a>>) {}

    fn woken(&mut self, _: &mut VecDeque<Bytes>) {}

    fn take_max(&self) -> usize {
        DEMANDS_MAX * DEMAND_BYTES
    }

    fn received(&mut self, bytes: &[u8], out: &mut VecDeque<Bytes>) -> Result<(), SessionError> {
        self.partial.extend_from_slice(bytes);
        let (demands, rest) = self.partial.as_chunks::<DEMAND_BYTES>();
        demands.iter().for_each(|index| (self.answer)(u64::from_le_bytes(*index), out));
        let taken = self.partial.len() - rest.len();
        self.partial.drain(..taken);
        Ok(())
    }

    fn over(&mut self, how: Result<(), SessionError>) {
        if let Some(tell) = self.tell.take() {
            // Nobody waits any more: then the lane is about to be dropped.
            let _ = tell.send(how);
        }
    }
}

/// A [`DemandSource`] for those who learn of a demand on a thread of their own.
///
/// # Errors
/// When the kernel gives no eventfd.
pub fn demand_queue() -> io::Result<(DemandSender, DemandQueue)> {
    let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
    let (demand, demands) = mpsc::channel();
    Ok((DemandSender { demand, wake: Arc::clone(&wake) }, DemandQueue { demands, wake }))
}

/// Says that somebody waits for a page.
#[derive(Debug, Clone)]
pub struct DemandSender {
    demand: mpsc::Sender<u64>,
    wake: Arc<OwnedFd>,
}

impl DemandSender {
    /// Asks for a page, once.
    pub fn ask(&self, page: u64) {
        // The queue is gone once the session is: then nobody answers, and the waiter waits.
        if self.demand.send(page).is_ok() {
            // Fails only when the counter is full, which is as good as written.
            let _ = rustix::io::write(&*self.wake, &1u64.to_ne_bytes());
        }
    }
}

/// What was asked for by a [`DemandSender`].
pub struct DemandQueue {
    demands: mpsc::Receiver<u64>,
    wake: Arc<OwnedFd>,
}

impl DemandSource for DemandQueue {
    fn wakes<'a>(&'a self, into: &mut Vec<BorrowedFd<'a>>) {
        into.push(self.wake.as_fd());
    }

    fn demands(&mut self, into: &mut Vec<u64>) {
        // Before the queue is emptied, so that what comes meanwhile wakes again.
        let _ = rustix::io::read(&*self.wake, &mut [0; 8]);
        into.extend(self.demands.try_iter());
    }
}

impl fmt::Debug for DemandQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DemandQueue").finish_non_exhaustive()
    }
}
