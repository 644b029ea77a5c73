//! What happens beside the driver's loop, and how the loop hears of it.

use super::state::Event;
use crate::{
    convergence::RoundReport,
    copy::{SharedTracker, lock},
    guest::SourceMachine,
    owed::PushWindow,
    ownership::{CasOutcome, OwnerStore},
    protocol::ToSource,
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::{mpsc, watch};
use vmotion_dirty_tracking::PageBitmap;
use vmotion_model::{OwnerRecord, error_chain};
use vmotion_transport::session::{ControlReceiver, SourceSession};

/// First and longest wait between two questions to a store that does not answer.
const STORE_RETRY: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// How long the target's last word may take.
const LAST_WORD: Duration = Duration::from_secs(2);

/// What tasks tell the loop.
pub(super) enum Message<M: SourceMachine> {
    Event(Event<M::Paused>),
    Opened(Box<SourceSession>),
    RoundDone { report: RoundReport, hopeless: bool, remaining: Arc<PageBitmap> },
    Paused { guard: M::Paused, remaining: Arc<PageBitmap>, asked: Instant, paused: Instant },
    FromTarget(ToSource),
}

/// A lane or a flow ended. A target that has everything closes them all, and what it said before may still be on its way to the loop:
/// that comes first.
pub(super) async fn fail_unless_over<M: SourceMachine>(events: &mpsc::UnboundedSender<Message<M>>, reason: String) {
    tokio::time::sleep(LAST_WORD).await;
    // Nobody listens when the move has ended meanwhile.
    let _ = events.send(Message::Event(Event::Failed(reason)));
}

/// Stops the guest and finds what really remains. On failure the guest runs on.
pub(super) fn pause_and_look<M: SourceMachine>(machine: &M, tracker: Option<&SharedTracker>) -> Message<M> {
    let asked = Instant::now();
    let guard = match machine.pause() {
        Ok(guard) => guard,
        Err(error) => return Message::Event(Event::Failed(error_chain(&error))),
    };
    let paused = Instant::now();
    let Some(tracker) = tracker else {
        // Nothing was copied: all that was ever touched remains.
        return match machine.touched() {
            Ok(touched) => Message::Paused { guard, remaining: Arc::new(touched), asked, paused },
            Err(error) => Message::Event(Event::Failed(error_chain(&error))),
        };
    };
    let mut remaining = PageBitmap::new(machine.layout().total_pages());
    match lock(tracker).fetch(&mut remaining) {
        Ok(_) => Message::Paused { guard, remaining: Arc::new(remaining), asked, paused },
        Err(error) => Message::Event(Event::Failed(error_chain(&error))),
    }
}

/// Passes on what the target says, and that it no longer says anything.
pub(super) async fn listen<M: SourceMachine>(
    mut receiver: ControlReceiver,
    arrived: watch::Sender<u64>,
    windows: Arc<[PushWindow]>,
    events: mpsc::UnboundedSender<Message<M>>,
) {
    loop {
        let message = match receiver.receive().await {
            Ok(Some(ToSource::RoundArrived { round })) => {
                let _ = arrived.send(round);
                continue;
            }
            Ok(Some(ToSource::Pushed { flow, mark })) => {
                if let Some(window) = windows.get(usize::from(flow)) {
                    window.placed(mark);
                }
                continue;
            }
            Ok(Some(message)) => Message::FromTarget(message),
            Ok(None) => Message::Event(Event::Failed("The target ended the session".to_owned())),
            Err(error) => Message::Event(Event::Failed(error_chain(&error))),
        };
        let last = matches!(message, Message::Event(_));
        if events.send(message).is_err() || last {
            return;
        }
    }
}

/// Asks the store until it answers; its silence is not an answer.
pub(crate) async fn ask_until_answered(
    store: &impl OwnerStore,
    expected: &OwnerRecord,
    wanted: &OwnerRecord,
) -> CasOutcome {
    let (mut wait, longest) = STORE_RETRY;
    loop {
        match store.compare_and_set(expected, wanted).await {
            Ok(outcome) => return outcome,
            Err(error) => tracing::warn!(machine = %expected.machine, %error, "owner record: asking again"),
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(longest);
    }
}

pub(super) async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

/// Bytes per second since the last reading.
#[derive(Debug, Default)]
pub(super) struct RateMeter {
    last: Option<(Instant, u64)>,
    rate: u64,
    pub(super) udp_bytes: u64,
}

impl RateMeter {
    pub(super) fn read(&mut self, bytes: u64) -> u64 {
        let now = Instant::now();
        let (since, before) = *self.last.get_or_insert((now, bytes));
        let seconds = now.duration_since(since).as_secs_f64();
        if seconds >= 0.1 {
            #[expect(
                clippy::cast_precision_loss,
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a rate"
            )]
            let rate = (bytes.saturating_sub(before) as f64 / seconds) as u64;
            self.rate = rate;
            self.last = Some((now, bytes));
        }
        self.rate
    }
}
