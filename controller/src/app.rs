//! What every part of a running controller shares.

use crate::{
    audit::{Act, AuditLog},
    error::unavailable,
    inventory::Inventory,
    metrics::{Metrics, Timed},
    store::SharedStore,
    telemetry::Telemetry,
};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
};
use vmotion_api::{AgentClient, AuditEvent, Operation};
use vmotion_model::{ApiError, HostName, MachineName, MoveId, Survey};
use vmotion_transport::Identity;

/// The controller.
pub(crate) struct App {
    pub(crate) store: SharedStore,
    pub(crate) inventory: Inventory,
    pub(crate) telemetry: Telemetry,
    pub(crate) audit: AuditLog,
    pub(crate) metrics: Arc<Metrics>,
    identity: Arc<Identity>,
    /// One client for each host, and the URL it was made for.
    agents: Mutex<HashMap<HostName, (String, AgentClient)>>,
    /// Unfinished moves, live. Bounded by the number of machines: one move each.
    pub(crate) live: Mutex<BTreeMap<MoveId, watch::Sender<Operation>>>,
    /// Why a machine's host has not done yet what was asked. Bounded by the number of machines.
    pub(crate) waits: Mutex<HashMap<MachineName, String>>,
    /// Declared machines that could not be created, and why. Bounded by the declared model.
    pub(crate) missing: Mutex<BTreeMap<MachineName, String>>,
    /// What the last move of a machine measured. Bounded by the number of machines.
    pub(crate) surveys: Mutex<BTreeMap<MachineName, Survey>>,
    /// What the policy saw when it looked last, in a sentence.
    pub(crate) last_look: Mutex<Option<String>>,
    /// Something has changed that the policy is to look at now.
    pub(crate) look: Notify,
    /// Machines whose hosts are being asked again and again.
    pub(crate) asking: Mutex<HashSet<MachineName>>,
    /// Held while a host is chosen until that is in the store: memory is never promised twice.
    pub(crate) admission: tokio::sync::Mutex<()>,
    /// Held while a machine's host is being asked to start, stop or remove it.
    locks: Mutex<HashMap<MachineName, Arc<tokio::sync::Mutex<()>>>>,
    stopped: watch::Sender<bool>,
    tasks: Mutex<JoinSet<()>>,
}

/// A lock that no panic can take from us: what it guards is valid after every statement.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl App {
    pub(crate) fn new(store: SharedStore, inventory: Inventory, identity: Arc<Identity>) -> Arc<Self> {
        let metrics = Metrics::new();
        let store: SharedStore = Arc::new(Timed::new(store, Arc::clone(&metrics)));
        Arc::new(Self {
            store,
            inventory,
            telemetry: Telemetry::default(),
            audit: AuditLog::default(),
            metrics,
            identity,
            agents: Mutex::default(),
            live: Mutex::default(),
            waits: Mutex::default(),
            missing: Mutex::default(),
            surveys: Mutex::default(),
            last_look: Mutex::default(),
            look: Notify::new(),
            asking: Mutex::default(),
            admission: tokio::sync::Mutex::default(),
            locks: Mutex::default(),
            stopped: watch::Sender::new(false),
            tasks: Mutex::default(),
        })
    }

    /// A client of the agent of `host`.
    pub(crate) fn agent(&self, host: &HostName) -> Result<AgentClient, ApiError> {
        let unknown = || unavailable(format!("Host {host} has never been heard of"));
        let url = self.inventory.host(host).ok_or_else(unknown)?.url;
        let mut agents = lock(&self.agents);
        if let Some((_, client)) = agents.get(host).filter(|(known, _)| *known == url) {
            return Ok(client.clone());
        }
        let client = AgentClient::new(&url, host, &self.identity).map_err(vmotion_api::ClientError::into_api_error)?;
        agents.insert(host.clone(), (url, client.clone()));
        Ok(client)
    }

    /// Writes down what this controller did by itself. What it did is in the store already, and is not taken back for the log's sake.
    pub(crate) async fn acted(&self, what: String) {
        let caller = self.identity.principal().to_string();
        let act = Act { caller, address: None, event: AuditEvent::Acted { what } };
        if let Err(error) = self.audit.write(&*self.store, act.clone()).await {
            self.metrics.not_audited();
            tracing::error!(%error, ?act, "the audit log cannot be written");
        }
    }

    /// The lock of a machine.
    pub(crate) fn machine_lock(&self, name: &MachineName) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = lock(&self.locks);
        locks.retain(|_, lock| Arc::strong_count(lock) > 1);
        Arc::clone(locks.entry(name.clone()).or_default())
    }

    /// Runs `task` until it ends or the controller stops.
    pub(crate) fn spawn(self: &Arc<Self>, task: impl Future<Output = ()> + Send + 'static) {
        let stopped = self.stopped();
        let mut tasks = lock(&self.tasks);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(async move {
            tokio::select! {
                () = task => {}
                () = stopped => {}
            }
        });
    }

    /// Completes when the controller stops.
    pub(crate) fn stopped(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut receiver = self.stopped.subscribe();
        async move {
            // An error means that the controller itself is gone.
            let _ = receiver.wait_for(|stopped| *stopped).await;
        }
    }

    /// Ends every stream and every task.
    pub(crate) fn stop(&self) {
        let _ = self.stopped.send_replace(true);
    }

    /// Waits for every task to have ended.
    pub(crate) async fn tasks_ended(&self) {
        let mut tasks = std::mem::take(&mut *lock(&self.tasks));
        while tasks.join_next().await.is_some() {}
    }
}
