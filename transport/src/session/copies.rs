//! Sending parts of flows again, in datagrams: see [`super::mend`].

use super::{
    flow::FrameParts,
    mend::{COPY_HEAD_BYTES, Copy},
};
use bytes::Bytes;
use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};
use tokio::sync::mpsc;

/// So often is everything sent again. Twice, because once is not enough to count on where the stream waits for a lost packet: copies
/// then stand alone, and of a thousand one is lost too.
const COPIES: u64 = 2;
/// Copies that wait for a flow's receiver, of each flow.
const WAITING_MAX: usize = 4096;

/// Whether what the flows of a session send is sent again at once, so that a lost packet delays nothing. All clones are one switch. Off
/// at first, and without effect where the target does not take copies.
#[derive(Debug, Clone, Default)]
pub struct Copies {
    wanted: Arc<AtomicBool>,
    bytes: Arc<AtomicU64>,
}

impl Copies {
    /// From now on, or no longer. What is under way already may still be treated as before.
    pub fn want(&self, wanted: bool) {
        self.wanted.store(wanted, Ordering::Relaxed);
    }

    /// Bytes of pages that were sent again so far.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

/// One flow's.
#[derive(Debug)]
pub(super) struct CopySender {
    /// `None` where the target does not take copies.
    pub(super) connection: Option<quinn::Connection>,
    pub(super) flow: u8,
    /// Where in the stream the next frame begins.
    pub(super) position: u64,
    pub(super) copies: Copies,
}

impl CopySender {
    /// `frame` goes into the stream; again, where that is wanted.
    pub(super) fn send(&mut self, frame: &FrameParts) {
        let begin = self.position;
        self.position += frame.iter().map(Bytes::len).sum::<usize>() as u64;
        let Some(connection) = &self.connection else { return };
        if !self.copies.wanted.load(Ordering::Relaxed) {
            return;
        }
        let Some(room) = connection.max_datagram_size().and_then(|size| size.checked_sub(COPY_HEAD_BYTES + 1)) else {
            return;
        };
        let whole = Bytes::from(frame.concat());
        for _ in 0..COPIES {
            let mut at = 0;
            while at < whole.len() {
                let end = (at + room + 1).min(whole.len());
                let copy = Copy { at: begin + at as u64, bytes: whole.slice(at..end) };
                // What does not fit is not missed, and a connection that is lost reports itself.
                let _ = connection.send_datagram(copy.encode(self.flow));
                at = end;
            }
            self.copies.bytes.fetch_add(whole.len() as u64, Ordering::Relaxed);
        }
    }
}

/// Where the copies for each flow go.
pub(super) type Ways = Vec<mpsc::Sender<Copy>>;

/// A way for each of `flows` flows.
pub(super) fn ways(flows: u8) -> (Ways, Vec<mpsc::Receiver<Copy>>) {
    (0..flows).map(|_| mpsc::channel(WAITING_MAX)).unzip()
}

/// Hands the copies that come on `connection` to their flows until it ends. What nobody is waiting for is dropped.
pub(super) async fn hand_out(connection: quinn::Connection, ways: Ways) {
    while let Ok(datagram) = connection.read_datagram().await {
        if let Some((flow, copy)) = Copy::decode(datagram)
            && let Some(way) = ways.get(usize::from(flow))
        {
            let _ = way.try_send(copy);
        }
    }
}
