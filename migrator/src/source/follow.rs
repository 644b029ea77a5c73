//! Serving a guest that runs elsewhere already: what it waits for at once, the rest in good order.

use crate::{
    copy::{Copier, lock},
    guest::SourceMachine,
    owed::OwedPages,
};
use bytes::Bytes;
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};
use vmotion_model::error_chain;
use vmotion_transport::{
    pages::{BatchEncoder, Codec, PageHasher},
    session::DemandServer,
};

/// Mark on every flow after the last pushed page.
pub(super) const LAST_MARK: u64 = u64::MAX - 1;
/// Pushed batches, about 0.7 ms of the path each, that a flow has on the way on a path without delay, at most: their rate keeps the path
/// busy without a queue, this is for when something stands still.
const AHEAD_MIN: u64 = 6;
/// Batches more for each ms of round-trip time. They hold 64 pages at most, which is not a millisecond's worth of a fast path.
const AHEAD_PER_MS: f64 = 3.0;
/// 512 MiB on the way are enough for any path.
const AHEAD_MAX: f64 = 2048.0;

/// What is owed by the offer that stands, if one does. What was owed by an offer that was taken back is nobody's business any more.
#[derive(Debug, Clone, Default)]
pub(super) struct Owing(Arc<Mutex<Option<Arc<OwedPages>>>>);

impl Owing {
    pub(super) fn set(&self, owed: Option<Arc<OwedPages>>) {
        *lock(&self.0) = owed;
    }

    fn get(&self) -> Option<Arc<OwedPages>> {
        lock(&self.0).clone()
    }
}

/// How many batches one flow may push ahead of what the target has placed.
pub(super) fn batches_ahead(rtt: Duration) -> u64 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bounded and positive")]
    let more = (rtt.as_secs_f64() * 1000.0 * AHEAD_PER_MS).min(AHEAD_MAX) as u64;
    AHEAD_MIN + more
}

/// Answers demands until the target asks no more. A page is sent once: who asks for one that is on its way waits for that.
pub(super) async fn serve<M: SourceMachine>(
    server: DemandServer,
    copier: Arc<Copier<M>>,
    owing: Owing,
    hasher: PageHasher,
) -> Result<(), String> {
    // Compressing one page costs its waiter more than its bytes.
    let mut encoder = BatchEncoder::new(hasher, Some(Codec::Raw));
    let answer = move |index: u64, out: &mut VecDeque<Bytes>| {
        let Some(owed) = owing.get() else { return };
        owed.note_demand(index);
        out.extend(copier.answer(index, &owed, &mut encoder).into_iter().flatten().filter(|part| !part.is_empty()));
    };
    server.serve(answer).await.map_err(|error| error_chain(&error))
}
