//! What was asked, and what happens next?
//!
//! Keeps the owner records, the machines, the hosts and the moves; answers operators and hosts over HTTP; and drives
//! each unfinished operation until it is over, across restarts. It contains no protocol of a move and touches no guest:
//! machine processes talk to each other, agents are asked. The one invariant: what was answered as done is in the store.

#![forbid(unsafe_code)]

mod accuracy;
mod app;
mod error;
mod http;
mod inventory;
mod machines;
mod moves;
mod once;
mod operations;
mod owners;
mod placement;
mod reconciler;
mod records;
mod shape;
pub mod store;

pub use error::ControllerError;

use app::App;
use inventory::Inventory;
use records::{HOSTS, HostRecord, load_all};
use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use store::{SharedStore, redb::RedbStore};
use tokio::{net::TcpListener, time::timeout};
use vmotion_api::TlsListener;
use vmotion_transport::{Identity, Principal};

/// Name of the store's file in the data directory.
const STORE_FILE: &str = "controller.redb";
/// Requests and tasks in progress have this long to end when the controller stops.
const STOP_WITHIN: Duration = Duration::from_secs(5);

/// How to run a controller.
#[derive(Debug, Clone)]
pub struct ControllerOptions {
    /// Directory of the store; made when it does not exist.
    pub data: PathBuf,
    /// Address of the HTTP API; port 0 for any.
    pub listen: SocketAddr,
    /// A controller's certificate.
    pub identity: Arc<Identity>,
    /// A host without a heartbeat for so long is gone.
    pub gone_after: Duration,
}

impl ControllerOptions {
    /// Silence after which a host is gone: five missed heartbeats.
    pub const GONE_AFTER: Duration = Duration::from_secs(5);

    /// Options with the usual limits.
    #[must_use]
    pub const fn new(data: PathBuf, listen: SocketAddr, identity: Arc<Identity>) -> Self {
        Self { data, listen, identity, gone_after: Self::GONE_AFTER }
    }
}

/// Runs a controller until `stop` completes. `on_ready` learns the address once requests are taken.
///
/// # Errors
/// [`ControllerError`] says what is missing; everything is checked before `on_ready` is called.
pub async fn run(
    options: ControllerOptions,
    on_ready: impl FnOnce(SocketAddr),
    stop: impl Future<Output = ()> + Send + 'static,
) -> Result<(), ControllerError> {
    let ControllerOptions { data, listen, identity, gone_after } = options;
    if !matches!(identity.principal(), Principal::Controller(_)) {
        return Err(ControllerError::NotController(identity.principal().to_string()));
    }
    let store = open_store(&data)?;
    let hosts = load_all::<HostRecord>(&*store, HOSTS).await.map_err(ControllerError::Records)?;
    let inventory = Inventory::new(gone_after, hosts.into_iter().map(|stored| stored.value));
    let listening = |source| ControllerError::Listen { address: listen, source };
    let listener = TcpListener::bind(listen).await.map_err(listening)?;
    let address = listener.local_addr().map_err(listening)?;
    let listener = TlsListener::new(listener, &identity)?;
    let app = App::new(store, inventory, identity);
    // Before the first request: a host may ask for an owner record the moment we answer.
    reconciler::resume(&app).await.map_err(ControllerError::Records)?;
    tracing::info!(%address, data = %data.display(), "controller is ready");
    on_ready(address);
    serve(listener, app, stop).await
}

fn open_store(data: &Path) -> Result<SharedStore, ControllerError> {
    std::fs::create_dir_all(data).map_err(|source| ControllerError::Data { path: data.to_owned(), source })?;
    Ok(Arc::new(RedbStore::open(&data.join(STORE_FILE))?))
}

async fn serve(
    listener: TlsListener,
    app: Arc<App>,
    stop: impl Future<Output = ()> + Send + 'static,
) -> Result<(), ControllerError> {
    let stopping = Arc::clone(&app);
    let stop = async move {
        stop.await;
        tracing::info!("controller stops");
        stopping.stop();
    };
    let serving = vmotion_api::serve(listener, http::router(Arc::clone(&app)), stop);
    let stopped = app.stopped();
    let overdue = async move {
        stopped.await;
        tokio::time::sleep(STOP_WITHIN).await;
    };
    let served = tokio::select! {
        served = serving => served.map_err(ControllerError::Serve),
        () = overdue => Ok(()),
    };
    app.stop();
    // What does not end by then is idempotent, and in the store.
    let _ = timeout(STOP_WITHIN, app.tasks_ended()).await;
    let store = Arc::clone(&app.store);
    drop(app);
    let _ = timeout(STOP_WITHIN, last_holder(&store)).await;
    served
}

/// Waits for the last connection to have let go of the store: who is told that we ended may open it again.
async fn last_holder(store: &SharedStore) {
    while Arc::strong_count(store) > 1 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
