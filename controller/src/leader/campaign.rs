//! Drives the state machine: asks the cluster, waits, and says when this controller begins and ends to lead.

use super::{Effects, Elections, Event, LEADER_KEY, Leader, LeaseId, Lost, Moment, Question, State, TTL};
use crate::store::{Revision, SharedStore, StoreError, Watch};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// A controller's part in the elections.
pub(crate) struct Campaign {
    elections: Arc<dyn Elections>,
    store: SharedStore,
    me: Leader,
    began: Instant,
    state: State,
    /// The lease to end once nothing is done under it any more.
    finished: Option<LeaseId>,
    /// Changes of the leader's key.
    watch: Option<Watch>,
}

impl Campaign {
    pub(crate) fn new(elections: Arc<dyn Elections>, store: SharedStore, me: Leader) -> Self {
        let began = Instant::now();
        Self { elections, store, me, began, state: State::new(), finished: None, watch: None }
    }

    fn now(&self) -> Moment {
        self.began.elapsed()
    }

    /// Waits until this controller leads, and gives its token. `on_standby` learns who leads, whenever that is news.
    pub(crate) async fn until_elected(&mut self, mut on_standby: impl FnMut(Option<&Leader>)) -> Revision {
        let mut told = None;
        let mut pause = Duration::ZERO;
        loop {
            if let Some(token) = self.state.token() {
                self.watch = None;
                return token;
            }
            if let State::Standby { leader } = &self.state
                && told.as_ref() != Some(leader)
            {
                on_standby(leader.as_ref());
                told = Some(leader.clone());
            }
            self.wait_for_change(pause).await;
            let answered = self.turn().await;
            self.revoke().await;
            pause = self.state.pause(answered);
        }
    }

    /// Keeps leading until that ends, by the cluster's word, by the clock, or by a commit that was refused; then `lost` is
    /// set, before this returns.
    pub(crate) async fn until_lost(&mut self, lost: &Lost) {
        let mut answered = true;
        while let Some(until) = self.state.deadline().filter(|_| self.state.token().is_some()) {
            let pause = self.state.pause(answered).min(until.saturating_sub(self.now()));
            tokio::select! {
                () = tokio::time::sleep(pause) => {
                    let ends = tokio::time::sleep(until.saturating_sub(self.now()));
                    answered = tokio::select! {
                        // The clock first: nothing that an answer says is worth more.
                        biased;
                        () = ends => { self.apply(Event::Nothing, until); false }
                        answered = self.turn() => answered,
                    };
                }
                () = lost.wait() => { let now = self.now(); self.apply(Event::Fenced, now); }
            }
        }
        lost.set();
    }

    /// Ends the lease of a term when all that was done in it has ended: another is elected at once.
    pub(crate) async fn resign(&mut self) {
        if let State::Leading { lease, .. } | State::Campaigning { lease } = &self.state {
            self.finished = Some(lease.id);
            self.state = State::new();
        }
        self.revoke().await;
    }

    /// One question and what follows; was it answered?
    async fn turn(&mut self) -> bool {
        let asked = self.now();
        let answer = ask(&*self.elections, self.state.question(), &self.me).await;
        let answered = answer.is_ok();
        let event = answer.unwrap_or_else(|error| {
            tracing::warn!(%error, "the cluster does not answer");
            Event::Nothing
        });
        self.apply(event, asked);
        answered
    }

    fn apply(&mut self, event: Event, asked: Moment) {
        let now = self.now();
        let before = self.state.clone();
        let state = std::mem::replace(&mut self.state, State::new());
        let (state, Effects { revoke }) = state.step(event, asked, now);
        self.state = state;
        self.finished = revoke.or(self.finished);
        if self.state.token() != before.token() {
            tracing::info!(state = ?self.state, "this controller's part has changed");
        }
    }

    async fn revoke(&mut self) {
        if let Some(lease) = self.finished.take()
            && let Err(error) = self.elections.revoke(lease).await
        {
            tracing::debug!(%error, "a lease is left to end by itself");
        }
    }

    /// Waits for `pause`, or until the leader's key changes.
    async fn wait_for_change(&mut self, pause: Duration) {
        if pause.is_zero() {
            return;
        }
        if self.watch.is_none() {
            self.watch = self.watch_key().await.ok();
        }
        let Some(watch) = &mut self.watch else { return tokio::time::sleep(pause).await };
        match tokio::time::timeout(pause, watch.next()).await {
            // Time is up, or there is news.
            Err(_) | Ok(Ok(_)) => {}
            Ok(Err(_)) => self.watch = None,
        }
    }

    async fn watch_key(&self) -> Result<Watch, StoreError> {
        let (_, revision) = self.store.list(LEADER_KEY).await?;
        self.store.watch(LEADER_KEY, revision).map_err(|error| StoreError::Failed(error.to_string()))
    }
}

/// Asks the cluster; the answer as an event.
pub(super) async fn ask(elections: &dyn Elections, question: Question, me: &Leader) -> Result<Event, StoreError> {
    Ok(match question {
        Question::Seat => Event::Seat(elections.seat().await?),
        Question::Grant => Event::Granted(elections.grant(TTL).await?),
        Question::Take(lease) => match elections.take(lease, me).await? {
            Some(seat) => Event::Seat(Some(seat)),
            None => return Err(StoreError::Failed("the key was neither made nor found".to_owned())),
        },
        Question::Renew(lease) if elections.renew(lease).await? => Event::Renewed,
        Question::Renew(_) => Event::LeaseGone,
    })
}
