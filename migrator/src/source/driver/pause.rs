//! The pause: stopping the guest, and sending what is left while it stands still.

use super::{Driver, Open};
use crate::{
    copy::Task,
    digest::memory_digest,
    guest::{PausedGuest as _, SourceMachine},
    ownership::OwnerStore,
    protocol::{FINAL_MARKS, ToTarget},
    source::{round::is_worth_copies, state::Event, tasks::pause_and_look},
};
use bytes::Bytes;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use vmotion_model::{PAGE_SIZE, error_chain};
use vmotion_transport::session::WIRE_VERSION_COPIES;

/// What a pause may take beyond the limit before it counts as failed: a scheduling hiccup is not worth a roll-back.
const PAUSE_GRACE: Duration = Duration::from_millis(500);
/// Digests of all memory are taken inside the pause when asked for; nobody asks for a short pause then.
const VERIFY_GRACE: Duration = Duration::from_secs(60);
/// More of a pause is not sent a second time: it would take longer than what a lost packet costs.
const COPIED_BYTES_MAX: u64 = 4 << 20;

impl<M> Open<M> {
    /// Is what is sent now, of these pages, to be sent again at once?
    fn protects(&self, pages: u64) -> bool {
        let few = pages * PAGE_SIZE <= COPIED_BYTES_MAX;
        few && self.version >= WIRE_VERSION_COPIES && is_worth_copies(&self.stats)
    }
}

impl<M: SourceMachine, O: OwnerStore> Driver<M, O> {
    pub(super) fn pause_patience(&self) -> Duration {
        let allowed = Duration::from_millis(u64::from(self.options.request.downtime_ms_max));
        let verify = if self.options.request.verify { VERIFY_GRACE } else { Duration::ZERO };
        allowed + PAUSE_GRACE + verify
    }

    /// Warns the target, then warms up the store and stops the guest in a task, so that neither delays a cancellation; before that waits
    /// until nothing is on its way, where the pause must be `quiet`.
    pub(super) async fn pause(&mut self, quiet: bool) {
        self.foresight.let_go();
        if let Some(session) = &mut self.session {
            // A session that is lost reports itself.
            let _ = session.sender.send(&ToTarget::PauseSoon).await;
        }
        let tracker = self.tracker.clone();
        let (machine, store, events) = (Arc::clone(&self.machine), Arc::clone(&self.store), self.events.clone());
        let way = self.session.as_ref().filter(|_| quiet).map(|session| (session.arrived.clone(), session.last_mark()));
        tokio::spawn(async move {
            store.warm_up().await;
            if let Some((mut arrived, last)) = way
                && arrived.wait_for(|at| *at >= last).await.is_err()
            {
                // The listener, which is gone, has reported why.
                return;
            }
            tokio::task::spawn_blocking(move || {
                // A move that has ended meanwhile pauses nobody.
                if !events.is_closed() {
                    let _ = events.send(pause_and_look(&*machine, tracker.as_ref()));
                }
            });
        });
    }

    /// Sends what is left, unless that takes too long or the operator cancels. Work that blocks cannot be interrupted; what
    /// happened meanwhile counts all the same, for after this comes the offer.
    pub(super) async fn send_last_in_time(&mut self, guard: &M::Paused) -> Event<M::Paused> {
        let deadline = self.deadline.unwrap_or_else(|| Instant::now() + PAUSE_GRACE);
        let cancel = self.cancel.clone();
        let sent = tokio::select! {
            biased;
            () = cancel.cancelled() => return Event::Cancel,
            () = tokio::time::sleep_until(deadline.into()) => Ok(()),
            sent = self.send_last(guard) => sent,
        };
        match sent {
            _ if cancel.is_cancelled() => Event::Cancel,
            Err(reason) => Event::Failed(reason),
            Ok(()) if Instant::now() >= deadline => Event::Overran,
            Ok(()) => Event::LastSent,
        }
    }

    /// Last pages and state, side by side. Inside the pause: nothing here could have been done earlier.
    async fn send_last(&mut self, guard: &M::Paused) -> Result<(), String> {
        let session = self.session.as_mut().ok_or("there is no session")?;
        let copier = session.copier.clone().ok_or("there is no copier")?;
        let pages = self.last.clone().ok_or("there are no pages")?;
        let mark = self.final_mark.map_or(FINAL_MARKS, |mark| mark + 1);
        self.final_mark = Some(mark);
        let again = session.protects(if self.owed.is_some() { 0 } else { pages.count() });
        session.copies.want(again);
        let task = if self.owed.is_some() { Task::Declare(pages) } else { Task::CopyLast(pages) };
        let sending = tokio::spawn(async move { copier.perform(task, mark).await });
        let mut state = mark.to_le_bytes().to_vec();
        state.extend(tokio::task::block_in_place(|| guard.save()).map_err(|error| error_chain(&error))?);
        self.timeline.saved = Some(Instant::now());
        let state = Bytes::from(state);
        // Whichever is here first is taken.
        for _ in 0..1 + u8::from(again && state.len() as u64 <= COPIED_BYTES_MAX) {
            session.sender.send_state(state.clone()).await.map_err(|error| error_chain(&error))?;
        }
        // Of memory that follows there is no moment at which both ends hold all of it; its frames are checked one by one.
        if self.options.request.verify && self.owed.is_none() {
            let digest = tokio::task::block_in_place(|| memory_digest(&*self.machine));
            self.source_digest = Some(digest.map_err(|error| error_chain(&error))?);
        }
        tokio::task::block_in_place(|| guard.settle()).map_err(|error| error_chain(&error))?;
        sending.await.map_err(|error| error.to_string())?.map_err(|error| error_chain(&error))?;
        self.timeline.last_sent = Some(Instant::now());
        self.remaining = self.owed.as_ref().map_or(0, |owed| owed.left());
        Ok(())
    }
}
