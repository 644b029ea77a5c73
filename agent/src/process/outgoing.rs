//! One move away, as a task of the machine process.

use super::{
    checkpoint::checkpoint,
    life::{Life, lock},
};
use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use vmotion_api::{MoveReport, OutgoingRequest, within};
use vmotion_machine::STATE_VERSION;
use vmotion_migrator::{
    BandwidthLimit, KvmSource, Plan,
    source::{SourceMove, SourceOptions},
};
use vmotion_model::{Epoch, MoveId, MoveLimit, MoveRequest, PAGE_SIZE};
use vmotion_transport::session::{FEATURE_DELTA, FEATURE_POST_COPY, Hello, WIRE_VERSION_MAX, WIRE_VERSION_MIN};

/// A move away that runs or ran.
pub(super) struct Outgoing {
    id: MoveId,
    report: Mutex<MoveReport>,
    cancel: CancellationToken,
    limit: Arc<BandwidthLimit>,
}

impl Outgoing {
    /// Starts the move.
    pub(super) fn start(life: Arc<Life>, request: OutgoingRequest) -> Arc<Self> {
        let outgoing = Arc::new(Self {
            id: request.move_id.clone(),
            report: Mutex::default(),
            cancel: CancellationToken::new(),
            limit: Arc::default(),
        });
        let running = Arc::clone(&outgoing);
        life.move_began(&request.move_id);
        let (renewals, mut renewed) = watch::channel(request.record.epoch);
        let keeper = Arc::clone(&life);
        tokio::spawn(async move {
            while renewed.changed().await.is_ok() {
                let epoch = *renewed.borrow_and_update();
                keeper.move_renewed(epoch);
            }
        });
        tokio::spawn(within(request.trace.clone(), async move {
            let source = SourceMove {
                machine: Arc::new(KvmSource::new(Arc::clone(&life.machine))),
                store: Arc::clone(&life.store),
                identity: Arc::clone(&life.identity),
                options: options(&life, request, renewals, Arc::clone(&running.limit)),
            };
            let heard = Arc::clone(&running);
            let progress = move |progress| lock(&heard.report).progress = Some(progress);
            let entered = |state| checkpoint("source", state);
            let summary = source.run(progress, entered, running.cancel.clone()).await;
            let report = {
                let mut report = lock(&running.report);
                report.summary = Some(summary);
                report.clone()
            };
            life.move_ended(&running.id, &report);
        }));
        outgoing
    }

    pub(super) const fn id(&self) -> &MoveId {
        &self.id
    }

    pub(super) fn report(&self) -> MoveReport {
        lock(&self.report).clone()
    }

    pub(super) fn is_over(&self) -> bool {
        lock(&self.report).summary.is_some()
    }

    pub(super) fn limit(&self, limit: MoveLimit) {
        self.limit.set(limit.bandwidth_max);
    }

    pub(super) fn cancel(&self) {
        self.cancel.cancel();
    }
}

fn options(
    life: &Life,
    request: OutgoingRequest,
    renewals: watch::Sender<Epoch>,
    limit: Arc<BandwidthLimit>,
) -> SourceOptions {
    let OutgoingRequest { move_id, record, target, address, ticket, request, accuracy, trace: _ } = request;
    let mut tuning = life.launch.tuning();
    if let Some(ms) = request.give_up_after_ms {
        tuning.silence_max = Duration::from_millis(ms);
    }
    let hello = Hello {
        version_min: WIRE_VERSION_MIN,
        version_max: WIRE_VERSION_MAX,
        features: features(&request),
        page_size: PAGE_SIZE,
        layout: life.machine.memory().layout().clone(),
        cpu: life.machine.cpu_model().clone(),
        cpus: life.launch.spec.cpus,
        state_version: STATE_VERSION,
        machine: record.machine.clone(),
        move_id,
        epoch: record.epoch,
        flows: tuning.flows,
    };
    SourceOptions { record, renewals, target, address, local: None, ticket, hello, request, tuning, accuracy, limit }
}

/// What this source asks of its target.
fn features(request: &MoveRequest) -> BTreeSet<String> {
    let follows = Plan::may_hand_over(request.strategy).then_some(FEATURE_POST_COPY);
    let deltas = (request.delta_memory_bytes != Some(0)).then_some(FEATURE_DELTA);
    follows.into_iter().chain(deltas).map(str::to_owned).collect()
}
