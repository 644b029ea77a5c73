//! The agent's API: what a controller asks of a host.

use crate::{
    client::{ClientError, HttpClient},
    span::{PartAnswer, PartOrder, PartReady, PartRequest, PartState, part_path},
    trace::TraceId,
};
use bytes::Bytes;
use futures::Stream;
use reqwest::Method;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf};
use vmotion_model::{
    Accuracy, CpuModel, DatacenterName, Epoch, HostCapacity, HostName, HostTelemetry, MachineName, MachineSpec,
    MachineStatus, MachineTelemetry, MoveId, MoveLimit, MoveProgress, MoveRequest, MoveSummary, OwnerRecord,
};
use vmotion_transport::{ExpectedPeer, Identity, session::MoveTicket};

/// What a host is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct HostReport {
    /// Its name, the same as in its certificate.
    pub name: HostName,
    /// Where it stands.
    pub datacenter: DatacenterName,
    /// Base URL of the agent's API as others reach it.
    pub url: String,
    /// Room for machines.
    pub capacity: HostCapacity,
    /// Its processors.
    pub cpu: CpuModel,
    /// Version of the agent.
    pub version: String,
}

/// `POST /v1/hosts/{name}/heartbeat` at the controller, once a second.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Heartbeat {
    /// The host.
    pub host: HostReport,
    /// Every machine it knows.
    pub machines: Vec<MachineStatus>,
    /// What the host uses; `None` when that is not known, also from an older agent.
    #[serde(default)]
    pub telemetry: Option<HostTelemetry>,
    /// What machines use; one that is missing is not known.
    #[serde(default)]
    pub used: BTreeMap<MachineName, MachineTelemetry>,
}

/// `PUT /v1/machines/{name}`: run this machine here. The same request again changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct StartRequest {
    /// What to run.
    pub spec: MachineSpec,
    /// The epoch the record gives it.
    pub epoch: Epoch,
    /// A snapshot directory on the host to start from, instead of booting.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub from: Option<PathBuf>,
}

/// `POST /v1/machines/{name}/snapshot`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SnapshotRequest {
    /// New directory on the host to write to.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub directory: PathBuf,
}

/// `PUT /v1/machines/{name}/incoming`: be ready to receive this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct IncomingRequest {
    /// The move.
    pub move_id: MoveId,
    /// What to prepare.
    pub spec: MachineSpec,
    /// The owner record as it must be at switch-over.
    pub record: OwnerRecord,
    /// The move's secret.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub ticket: MoveTicket,
    /// Silence of the path that is waited for, in ms; `None` for what this host is set to.
    #[serde(default)]
    pub give_up_after_ms: Option<u64>,
    /// What logs name the move by.
    #[serde(default)]
    pub trace: Option<TraceId>,
}

/// The target process is prepared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct IncomingReady {
    /// UDP address the source must call.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub address: SocketAddr,
}

/// `PUT /v1/machines/{name}/outgoing`: move it away. The same move again changes nothing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct OutgoingRequest {
    /// The move.
    pub move_id: MoveId,
    /// The owner record as it is.
    pub record: OwnerRecord,
    /// Where to.
    pub target: HostName,
    /// UDP address of the target process.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub address: SocketAddr,
    /// The move's secret.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub ticket: MoveTicket,
    /// What the operator asked.
    pub request: MoveRequest,
    /// How far forecasts were off in earlier moves.
    #[serde(default)]
    pub accuracy: Accuracy,
    /// What logs name the move by.
    #[serde(default)]
    pub trace: Option<TraceId>,
}

/// `GET /v1/machines/{name}/moves/{id}`: how a move away from this host goes or went.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MoveReport {
    /// The latest event.
    #[serde(default)]
    pub progress: Option<MoveProgress>,
    /// Present once the move is over.
    #[serde(default)]
    pub summary: Option<MoveSummary>,
}

/// Which console bytes to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ConsoleQuery {
    /// First byte wanted; `None` for all that is kept. The answer's `x-offset` header tells what the first byte is.
    #[serde(default)]
    pub offset: Option<u64>,
    /// Go on with what comes, until the machine leaves or stops.
    #[serde(default)]
    pub follow: bool,
}

impl ConsoleQuery {
    /// As the query part of a URL.
    #[must_use]
    pub fn to_query(self) -> String {
        let offset = self.offset.map(|offset| format!("&offset={offset}")).unwrap_or_default();
        format!("?follow={}{offset}", self.follow)
    }
}

/// Calls an agent.
#[derive(Debug, Clone)]
pub struct AgentClient {
    http: HttpClient,
}

impl AgentClient {
    /// A client of the agent of `host` at `url`.
    ///
    /// # Errors
    /// When the identity cannot be used.
    pub fn new(url: &str, host: &HostName, identity: &Identity) -> Result<Self, ClientError> {
        let expected = ExpectedPeer::Exactly(vmotion_transport::Principal::Host(host.clone()));
        Ok(Self { http: HttpClient::new("Agent", url, identity, expected)? })
    }

    /// What the host is.
    ///
    /// # Errors
    /// [`ClientError`], as for every call here.
    pub async fn host(&self) -> Result<HostReport, ClientError> {
        self.http.get("/v1/host").await
    }

    /// Every machine the agent knows.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn machines(&self) -> Result<Vec<MachineStatus>, ClientError> {
        self.http.get("/v1/machines").await
    }

    /// One machine.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn machine(&self, name: &MachineName) -> Result<MachineStatus, ClientError> {
        self.http.get(&format!("/v1/machines/{name}")).await
    }

    /// Runs a machine.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn start(&self, request: &StartRequest) -> Result<MachineStatus, ClientError> {
        self.http.call(Method::PUT, &format!("/v1/machines/{}", request.spec.name), request).await
    }

    /// Prepares a part of a machine that spans several hosts.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn prepare_part(&self, request: &PartRequest) -> Result<PartReady, ClientError> {
        self.http.call(Method::PUT, &part_path(&request.spec.name), request).await
    }

    /// The part of a machine that is there, and what it did lately.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn part(&self, name: &MachineName) -> Result<PartState, ClientError> {
        self.http.get(&part_path(name)).await
    }

    /// Has a part do something.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn order_part(&self, name: &MachineName, order: &PartOrder) -> Result<PartAnswer, ClientError> {
        self.http.call(Method::POST, &format!("{}/orders", part_path(name)), order).await
    }

    /// Stops a machine; its definition and console stay.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn stop(&self, name: &MachineName) -> Result<MachineStatus, ClientError> {
        self.http.call(Method::POST, &format!("/v1/machines/{name}/stop"), &()).await
    }

    /// Removes a stopped machine and its files.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn remove(&self, name: &MachineName) -> Result<(), ClientError> {
        self.http.delete(&format!("/v1/machines/{name}")).await
    }

    /// Saves a machine to a directory; it goes on running.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn snapshot(&self, name: &MachineName, request: &SnapshotRequest) -> Result<(), ClientError> {
        self.http.call(Method::POST, &format!("/v1/machines/{name}/snapshot"), request).await
    }

    /// Prepares to receive a machine.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn incoming(&self, request: &IncomingRequest) -> Result<IncomingReady, ClientError> {
        self.http.call(Method::PUT, &format!("/v1/machines/{}/incoming", request.spec.name), request).await
    }

    /// Starts moving a machine away.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn outgoing(&self, request: &OutgoingRequest) -> Result<MoveReport, ClientError> {
        self.http.call(Method::PUT, &format!("/v1/machines/{}/outgoing", request.record.machine), request).await
    }

    /// How a move away from the host goes.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn move_report(&self, name: &MachineName, id: &MoveId) -> Result<MoveReport, ClientError> {
        self.http.get(&format!("/v1/machines/{name}/moves/{id}")).await
    }

    /// Cancels a move (at either end); one that has been offered can no longer be cancelled.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn cancel(&self, name: &MachineName, id: &MoveId) -> Result<(), ClientError> {
        self.http.delete(&format!("/v1/machines/{name}/moves/{id}")).await
    }

    /// Changes the limits of a move that goes on, at its source.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn limit(&self, name: &MachineName, id: &MoveId, limit: &MoveLimit) -> Result<(), ClientError> {
        self.http.call(Method::PATCH, &format!("/v1/machines/{name}/moves/{id}"), limit).await
    }

    /// Console output from an offset, and the offset it begins at.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn console(
        &self,
        name: &MachineName,
        query: ConsoleQuery,
    ) -> Result<(u64, impl Stream<Item = Result<Bytes, ClientError>> + Send + Unpin + use<>), ClientError> {
        self.http.get_stream(&format!("/v1/machines/{name}/console{}", query.to_query())).await
    }

    /// Types into the console.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn console_input(&self, name: &MachineName, bytes: Bytes) -> Result<(), ClientError> {
        self.http.post_bytes(&format!("/v1/machines/{name}/console"), bytes).await
    }
}
