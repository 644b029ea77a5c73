//! The owner record, over HTTPS at the controller.

use std::time::Duration;
use vmotion_api::{CasRequest, ControllerClient};
use vmotion_migrator::ownership::{CasOutcome, OwnerStore, StoreUnreachable};
use vmotion_model::{MachineName, OwnerRecord};

/// A compare-and-set that is not answered by then is asked again; it is idempotent.
const PATIENCE: Duration = Duration::from_secs(2);

/// Owner records as the controller keeps them.
#[derive(Debug)]
pub(super) struct ControllerStore {
    client: ControllerClient,
    machine: MachineName,
}

impl ControllerStore {
    pub(super) const fn new(client: ControllerClient, machine: MachineName) -> Self {
        Self { client, machine }
    }
}

impl OwnerStore for ControllerStore {
    async fn warm_up(&self) {
        // Opens the connection that the compare-and-set will use. Whether it works is seen then.
        let _ = tokio::time::timeout(PATIENCE, self.client.owner(&self.machine)).await;
    }

    async fn compare_and_set(
        &self,
        expected: &OwnerRecord,
        wanted: &OwnerRecord,
    ) -> Result<CasOutcome, StoreUnreachable> {
        let request = CasRequest { expected: expected.clone(), wanted: wanted.clone() };
        match self.client.compare_and_set(&request, PATIENCE).await {
            Ok(record) if record == *wanted => Ok(CasOutcome::Won),
            Ok(record) if record == *expected => Err(StoreUnreachable("the record did not change".to_owned())),
            Ok(record) => Ok(CasOutcome::Lost(record)),
            Err(error) => Err(StoreUnreachable(error.to_string())),
        }
    }
}
