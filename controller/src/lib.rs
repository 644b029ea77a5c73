//! What was asked, and what happens next?
//!
//! Keeps the owner records, the machines, the hosts and the moves; answers operators and hosts over HTTP; and drives
//! each unfinished operation until it is over, across restarts. It contains no protocol of a move and touches no guest:
//! machine processes talk to each other, agents are asked. The one invariant: what was answered as done is in the store.

#![forbid(unsafe_code)]

mod accuracy;
mod app;
mod audit;
mod declared;
mod drains;
mod error;
mod front;
mod http;
mod inventory;
mod keeper;
mod leader;
mod machines;
mod metrics;
mod migration;
mod moves;
mod once;
mod operations;
mod owners;
mod placed;
mod placement;
mod plans;
mod questions;
mod reconciler;
mod records;
mod shape;
mod site;
pub mod store;
mod telemetry;
mod term;
mod undo;

pub use error::ControllerError;
pub use migration::{Copied, copy_store};

use front::Front;
use leader::{Campaign, Elections, Fenced, Leader, Lost};
use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use store::{
    SharedStore,
    etcd::{EtcdOptions, EtcdStore},
    redb::RedbStore,
};
use term::Term;
use tokio::{net::TcpListener, sync::watch, task::JoinHandle, time::timeout};
use vmotion_api::TlsListener;
use vmotion_transport::{Identity, Principal};

/// Name of the store's file in the data directory.
const STORE_FILE: &str = "controller.redb";
/// Requests in progress have this long to end when the controller stops.
const STOP_WITHIN: Duration = Duration::from_secs(5);
/// After a term that could not begin.
const BEGIN_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Where a controller keeps everything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreOptions {
    /// In a file in this directory, made when it does not exist: for one controller, which always leads.
    File(PathBuf),
    /// In a cluster: for several controllers, of which one leads.
    Etcd(EtcdOptions),
}

/// How to run a controller.
#[derive(Debug, Clone)]
pub struct ControllerOptions {
    /// Its name among controllers.
    pub name: String,
    /// Where it keeps everything.
    pub store: StoreOptions,
    /// Address of the HTTP API; port 0 for any.
    pub listen: SocketAddr,
    /// URL by which it is reached, when that is not the listening address.
    pub advertise: Option<String>,
    /// A controller's certificate.
    pub identity: Arc<Identity>,
    /// A host without a heartbeat for so long is gone.
    pub gone_after: Duration,
}

impl ControllerOptions {
    /// Silence after which a host is gone: five missed heartbeats.
    pub const GONE_AFTER: Duration = Duration::from_secs(5);

    /// Options with the usual limits, and the name that the certificate has.
    #[must_use]
    pub fn new(store: StoreOptions, listen: SocketAddr, identity: Arc<Identity>) -> Self {
        let name = identity.principal().name().to_string();
        Self { name, store, listen, advertise: None, identity, gone_after: Self::GONE_AFTER }
    }
}

/// Runs a controller until `stop` completes. `on_ready` learns the address once requests are answered, be it with who leads.
///
/// # Errors
/// [`ControllerError`] says what is missing; everything is checked before `on_ready` is called.
pub async fn run(
    options: ControllerOptions,
    on_ready: impl FnOnce(SocketAddr),
    stop: impl Future<Output = ()> + Send + 'static,
) -> Result<(), ControllerError> {
    let ControllerOptions { name, store, listen, advertise, identity, gone_after } = options;
    if !matches!(identity.principal(), Principal::Controller(_)) {
        return Err(ControllerError::NotController(identity.principal().to_string()));
    }
    let opened = Opened::open(store).await?;
    let listening = |source| ControllerError::Listen { address: listen, source };
    let listener = TcpListener::bind(listen).await.map_err(listening)?;
    let address = listener.local_addr().map_err(listening)?;
    let listener = TlsListener::new(listener, &identity)?;
    let url = advertise.unwrap_or_else(|| format!("https://{address}"));
    let me = Leader { name, url };
    let front = Front::new(me.clone());
    let helm = Helm { front: Arc::clone(&front), gone_after, identity };
    tracing::info!(%address, name = %me.name, store = %opened.describe(), "controller is ready");
    match opened {
        Opened::File { store, .. } => helm.alone(store, listener, || on_ready(address), stop).await,
        Opened::Etcd(store) => {
            on_ready(address);
            helm.elected(store, me, listener, stop).await
        }
    }
}

/// A store that answers.
enum Opened {
    File { store: SharedStore, path: PathBuf },
    Etcd(EtcdStore),
}

impl Opened {
    async fn open(options: StoreOptions) -> Result<Self, ControllerError> {
        match options {
            StoreOptions::File(path) => Ok(Self::File { store: open_file(&path)?, path }),
            StoreOptions::Etcd(options) => {
                let store = EtcdStore::new(&options)?;
                store.seat().await?;
                Ok(Self::Etcd(store))
            }
        }
    }

    fn describe(&self) -> String {
        match self {
            Self::File { path, .. } => path.display().to_string(),
            Self::Etcd(store) => format!("etcd, {}", store.describe()),
        }
    }
}

fn open_file(data: &Path) -> Result<SharedStore, ControllerError> {
    std::fs::create_dir_all(data).map_err(|source| ControllerError::Data { path: data.to_owned(), source })?;
    Ok(Arc::new(RedbStore::open(&data.join(STORE_FILE))?))
}

/// What every term needs.
struct Helm {
    front: Arc<Front>,
    gone_after: Duration,
    identity: Arc<Identity>,
}

impl Helm {
    async fn load(&self, store: SharedStore) -> Result<Term, ControllerError> {
        Term::load(store, self.gone_after, Arc::clone(&self.identity)).await
    }

    /// The only controller: one term.
    async fn alone(
        self,
        store: SharedStore,
        listener: TlsListener,
        on_ready: impl FnOnce(),
        stop: impl Future<Output = ()> + Send + 'static,
    ) -> Result<(), ControllerError> {
        let term = self.load(Arc::clone(&store)).await?;
        term.resume(&self.front).await?;
        let serving = Serving::begin(listener, &self.front, stop);
        on_ready();
        serving.stopping().await;
        term.end(&self.front).await;
        let served = serving.end().await;
        let _ = timeout(STOP_WITHIN, last_holder(&store)).await;
        served
    }

    /// One of several: a term whenever it is elected.
    async fn elected(
        self,
        store: EtcdStore,
        me: Leader,
        listener: TlsListener,
        stop: impl Future<Output = ()> + Send + 'static,
    ) -> Result<(), ControllerError> {
        let serving = Serving::begin(listener, &self.front, stop);
        let elections: Arc<dyn Elections> = Arc::new(store.clone());
        let store: SharedStore = Arc::new(store);
        let mut campaign = Campaign::new(elections, Arc::clone(&store), me);
        loop {
            let token = tokio::select! {
                token = campaign.until_elected(|leader| self.front.stand_by(leader)) => token,
                () = serving.stopping() => break,
            };
            let lost = Lost::new();
            let fenced: SharedStore = Arc::new(Fenced::new(Arc::clone(&store), token, lost.clone()));
            let over = async {
                tokio::select! {
                    () = campaign.until_lost(&lost) => {}
                    () = serving.stopping() => {}
                }
            };
            let term = self.term(fenced, &lost, over).await;
            // Nothing is done under the lease any more.
            campaign.resign().await;
            if let Err(error) = term {
                tracing::error!(%error, "cannot lead for now");
                tokio::time::sleep(BEGIN_AGAIN_AFTER).await;
            }
        }
        campaign.resign().await;
        serving.end().await
    }

    /// A term until it is `over`; has ended, with all it began, when this returns.
    async fn term(
        &self,
        store: SharedStore,
        lost: &Lost,
        over: impl Future<Output = ()>,
    ) -> Result<(), ControllerError> {
        tokio::pin!(over);
        let term = tokio::select! {
            term = self.load(store) => term?,
            () = &mut over => return Ok(()),
        };
        let resumed = tokio::select! {
            resumed = term.resume(&self.front) => resumed,
            () = &mut over => Ok(()),
        };
        if resumed.is_ok() && !lost.is_set() {
            over.await;
        }
        lost.set();
        term.end(&self.front).await;
        resumed
    }
}

/// The address, answered until the controller stops.
struct Serving {
    stopping: watch::Receiver<bool>,
    served: JoinHandle<std::io::Result<()>>,
}

impl Serving {
    fn begin(listener: TlsListener, front: &Arc<Front>, stop: impl Future<Output = ()> + Send + 'static) -> Self {
        let (sender, stopping) = watch::channel(false);
        let stop = async move {
            stop.await;
            tracing::info!("controller stops");
            let _ = sender.send_replace(true);
        };
        let served = tokio::spawn(vmotion_api::serve(listener, Arc::clone(front).router(), stop));
        Self { stopping, served }
    }

    /// Completes when the controller is to stop.
    async fn stopping(&self) {
        // An error means that the server has ended.
        let _ = self.stopping.clone().wait_for(|stopping| *stopping).await;
    }

    /// Waits for requests in progress.
    async fn end(self) -> Result<(), ControllerError> {
        match timeout(STOP_WITHIN, self.served).await {
            Ok(Ok(served)) => served.map_err(ControllerError::Serve),
            // Overdue, or the runtime ends.
            Ok(Err(_)) | Err(_) => Ok(()),
        }
    }
}

/// Waits for the last connection to have let go of the store: who is told that we ended may open it again.
async fn last_holder(store: &SharedStore) {
    while Arc::strong_count(store) > 1 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
