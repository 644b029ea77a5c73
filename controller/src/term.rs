//! One stay at the helm: from what the store holds to requests being answered, and back.
//!
//! The one invariant: nothing of a term acts after [`Term::end`]. Tasks have ended by then; a request that is still being
//! answered finds the store closed to it.

use crate::{
    app::App,
    error::ControllerError,
    front::Front,
    http,
    inventory::Inventory,
    keeper,
    migration::UNFINISHED,
    reconciler,
    records::{HOSTS, HostRecord, Stored, load_all},
    store::SharedStore,
};
use std::{sync::Arc, time::Duration};
use tokio::time::timeout;
use vmotion_model::{ApiError, ErrorCode};
use vmotion_transport::Identity;

/// Tasks in progress have this long to end.
const END_WITHIN: Duration = Duration::from_secs(5);

/// A term of this controller.
pub(crate) struct Term {
    app: Arc<App>,
}

impl Term {
    /// What an earlier controller left; nothing acts yet.
    pub(crate) async fn load(
        store: SharedStore,
        gone_after: Duration,
        identity: Arc<Identity>,
    ) -> Result<Self, ControllerError> {
        let hosts = read(&store).await.map_err(ControllerError::Records)?;
        let inventory = Inventory::new(gone_after, hosts.into_iter().map(|stored| stored.value));
        Ok(Self { app: App::new(store, inventory, identity) })
    }

    /// Goes on with every operation, and then lets requests in: a host may ask for an owner record the moment we answer.
    pub(crate) async fn resume(&self, front: &Front) -> Result<(), ControllerError> {
        reconciler::resume(&self.app).await.map_err(ControllerError::Records)?;
        keeper::begin(&self.app);
        let beginning = Arc::clone(&self.app);
        self.app.spawn(async move { beginning.acted("leads from here on".to_owned()).await });
        front.lead(http::router(Arc::clone(&self.app)));
        Ok(())
    }

    /// Lets no request in any more, ends streams and tasks, and waits for the tasks. What does not end is idempotent, and in the store.
    pub(crate) async fn end(self, front: &Front) {
        front.stand_by(None);
        self.app.stop();
        let _ = timeout(END_WITHIN, self.app.tasks_ended()).await;
    }
}

async fn read(store: &SharedStore) -> Result<Vec<Stored<HostRecord>>, ApiError> {
    if store.get(UNFINISHED).await?.is_some() {
        return Err(ApiError::new(
            ErrorCode::Unavailable,
            "The store is a copy that was not finished: empty it, and copy again with vmotion store copy",
        ));
    }
    load_all::<HostRecord>(&**store, HOSTS).await
}
