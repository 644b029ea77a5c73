//! Telling the controller, once a second, that this host lives and what is on it.

use crate::{service::Shared, telemetry::Measured};
use std::{sync::Arc, time::Duration};
use tokio::time::MissedTickBehavior;
use vmotion_api::{ControllerClient, Heartbeat};

const EVERY: Duration = Duration::from_secs(1);

/// Sends heartbeats for ever. A controller that does not answer is told again; machines do not depend on it.
pub(crate) async fn beat(shared: Arc<Shared>, controller: ControllerClient) {
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut heard = None;
    loop {
        ticks.tick().await;
        let machines = shared.supervisor.machines().await;
        let Measured { host: telemetry, machines: used } = shared.latest.get();
        let heartbeat = Heartbeat { host: shared.report(&machines), machines, telemetry, used };
        let answer = controller.heartbeat(&heartbeat).await;
        // Once per change: a controller that is away for an hour is one line, not 3,600.
        match (&answer, heard) {
            (Ok(()), Some(true)) | (Err(_), Some(false)) => {}
            (Ok(()), _) => tracing::info!(controller = controller.url(), "controller hears this host"),
            (Err(error), _) => tracing::warn!(%error, "controller does not hear this host; machines run on"),
        }
        heard = Some(answer.is_ok());
    }
}
