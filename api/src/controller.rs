//! The controller's API: what operators and hosts ask of it.

use crate::{
    agent::{ConsoleQuery, Heartbeat, SnapshotRequest},
    client::{ClientError, HttpClient},
    span::{ClaimRequest, Claimed, ShapeChange, ShapePlan, ShapeRequest, SpanView, shape_path},
    trace::TraceId,
};
use bytes::Bytes;
use futures::Stream;
use reqwest::Method;
use serde::{Deserialize, Serialize};
use std::{path::PathBuf, time::Duration};
use vmotion_model::{
    Accuracy, Epoch, Host, HostName, MachineName, MachineSpec, MachineState, Motive, MoveId, MoveLimit, MoveOutcome,
    MoveProgress, MoveRequest, MoveSummary, OwnerRecord, Piece, Placement, StepReport,
};
use vmotion_transport::{ExpectedPeer, Identity};

/// `POST /v1/machines`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CreateRequest {
    /// What to run. With `from`, only the name is used.
    pub spec: MachineSpec,
    /// Host or datacenter; `None` lets the policy choose from all.
    #[serde(default)]
    pub on: Option<String>,
    /// A snapshot directory on the host to start from.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub from: Option<PathBuf>,
    /// Hosts to spread it over, the one with the devices first; empty for a machine on one host.
    #[serde(default)]
    pub span: Vec<HostName>,
    /// With `span`: compare the bytes of every copy of a page with those of its version, as long as the machine lives.
    #[serde(default)]
    pub audit: bool,
    /// Only say where it would go, and why.
    #[serde(default)]
    pub dry_run: bool,
}

/// `POST /v1/moves`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MoveCommand {
    /// Which machine.
    pub machine: MachineName,
    /// Host or datacenter.
    pub to: String,
    /// What may be suffered.
    #[serde(default)]
    pub request: MoveRequest,
    /// Only say where it would go, and why.
    #[serde(default)]
    pub dry_run: bool,
}

/// A machine as the controller knows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MachineView {
    /// Its name.
    pub name: MachineName,
    /// What it is.
    pub spec: MachineSpec,
    /// The host of its owner record.
    pub host: HostName,
    /// The epoch of its owner record.
    pub epoch: Epoch,
    /// What it does, as its host last said; `unknown` when that host is gone.
    pub state: MachineState,
    /// Why it stopped or failed.
    #[serde(default)]
    pub reason: Option<String>,
    /// The move that is under way.
    #[serde(default)]
    pub move_id: Option<MoveId>,
    /// Console bytes written since it was created.
    #[serde(default)]
    pub console_bytes: u64,
    /// Its process on the host.
    #[serde(default)]
    pub pid: Option<u32>,
    /// Where its pieces are, when it spans several hosts.
    #[serde(default)]
    pub pieces: Vec<Piece>,
}

/// A move as an operation: created by one request, followed by polling or by events.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Operation {
    /// Its name.
    pub id: MoveId,
    /// The machine.
    pub machine: MachineName,
    /// From where.
    pub source: HostName,
    /// Where to.
    pub target: HostName,
    /// What may be suffered.
    pub request: MoveRequest,
    /// Milliseconds since the epoch, by the controller's clock.
    pub created_unix_ms: u64,
    /// The latest event.
    #[serde(default)]
    pub progress: Option<MoveProgress>,
    /// Present once it is over.
    #[serde(default)]
    pub outcome: Option<MoveOutcome>,
    /// The numbers, when the source lived to tell them.
    #[serde(default)]
    pub summary: Option<MoveSummary>,
    /// Why the target host was chosen.
    #[serde(default)]
    pub placement: Option<Placement>,
    /// What it waits for, while a host that is needed does not answer.
    #[serde(default)]
    pub note: Option<String>,
    /// Who asked: an operator by name, or `policy`.
    #[serde(default)]
    pub asked_by: Option<String>,
    /// Why it is moved, when the policy asked.
    #[serde(default)]
    pub motive: Option<Motive>,
    /// The same in a sentence with its numbers.
    #[serde(default)]
    pub reason: Option<String>,
    /// What logs name everything that was done for it by.
    #[serde(default)]
    pub trace: Option<TraceId>,
    /// The steps of a change of where the pieces of a machine are; empty for a machine that moves as a whole.
    #[serde(default)]
    pub steps: Vec<StepReport>,
}

/// `POST /v1/owners/{machine}/cas`: replace `expected` by `wanted`. Answered with the record as it is afterwards.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CasRequest {
    /// What the record must be now.
    pub expected: OwnerRecord,
    /// What it is to become.
    pub wanted: OwnerRecord,
}

/// Calls a controller.
#[derive(Debug, Clone)]
pub struct ControllerClient {
    pub(crate) http: HttpClient,
}

type Answer<T> = Result<T, ClientError>;

impl ControllerClient {
    /// A client of the controller at `url`, or of the one that leads at one of several URLs with commas between them.
    ///
    /// # Errors
    /// When a URL or the identity cannot be used.
    pub fn new(url: &str, identity: &Identity) -> Answer<Self> {
        Ok(Self { http: HttpClient::new("Controller", url, identity, ExpectedPeer::AnyController)? })
    }

    /// The controller's URL, or those of several, as they were given.
    #[must_use]
    pub fn url(&self) -> &str {
        self.http.base()
    }

    /// All machines.
    ///
    /// # Errors
    /// [`ClientError`], as for every call here.
    pub async fn machines(&self) -> Answer<Vec<MachineView>> {
        self.http.get("/v1/machines").await
    }

    /// One machine.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn machine(&self, name: &MachineName) -> Answer<MachineView> {
        self.http.get(&format!("/v1/machines/{name}")).await
    }

    /// Creates a machine; repeating the call with the same key does not create another.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn create(&self, request: &CreateRequest, key: &str) -> Answer<MachineView> {
        self.http.post_once("/v1/machines", request, key).await
    }

    /// Where a machine would be created, and why.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn create_dry_run(&self, request: &CreateRequest) -> Answer<Placement> {
        let request = CreateRequest { dry_run: true, ..request.clone() };
        self.http.call(Method::POST, "/v1/machines", &request).await
    }

    /// How a machine gets on over its hosts.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn shape(&self, name: &MachineName) -> Answer<SpanView> {
        self.http.get(&shape_path(name)).await
    }

    /// Begins to change where the pieces of a machine are; the same key with the same change has one effect.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn reshape(&self, name: &MachineName, change: ShapeChange, key: &str) -> Answer<Operation> {
        let request = ShapeRequest { change, dry_run: false };
        self.http.post_once(&shape_path(name), &request, key).await
    }

    /// What such a change would do.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn reshape_dry_run(&self, name: &MachineName, change: ShapeChange) -> Answer<ShapePlan> {
        let request = ShapeRequest { change, dry_run: true };
        self.http.call(Method::POST, &shape_path(name), &request).await
    }

    /// A host claims a piece of a machine.
    ///
    /// # Errors
    /// [`ClientError`]; without an answer the attempt may or may not have happened.
    pub async fn claim(&self, name: &MachineName, request: &ClaimRequest, patience: Duration) -> Answer<Claimed> {
        self.http.post_within(&format!("/v1/machines/{name}/claims"), request, patience).await
    }

    /// Stops a machine.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn stop(&self, name: &MachineName) -> Answer<MachineView> {
        self.http.call(Method::POST, &format!("/v1/machines/{name}/stop"), &()).await
    }

    /// Removes a stopped machine.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn remove(&self, name: &MachineName) -> Answer<()> {
        self.http.delete(&format!("/v1/machines/{name}")).await
    }

    /// Saves a machine to a directory on its host.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn snapshot(&self, name: &MachineName, request: &SnapshotRequest) -> Answer<()> {
        self.http.call(Method::POST, &format!("/v1/machines/{name}/snapshot"), request).await
    }

    /// Console output from an offset, and the offset it begins at. Ends when the machine leaves its host.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn console(
        &self,
        name: &MachineName,
        query: ConsoleQuery,
    ) -> Answer<(u64, impl Stream<Item = Result<Bytes, ClientError>> + Send + Unpin + use<>)> {
        self.http.get_stream(&format!("/v1/machines/{name}/console{}", query.to_query())).await
    }

    /// Types into the console.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn console_input(&self, name: &MachineName, bytes: Bytes) -> Answer<()> {
        self.http.post_bytes(&format!("/v1/machines/{name}/console"), bytes).await
    }

    /// All hosts.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn hosts(&self) -> Answer<Vec<Host>> {
        self.http.get("/v1/hosts").await
    }

    /// Lets no new machine onto a host, or lets them again.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn cordon(&self, name: &HostName, cordoned: bool) -> Answer<Host> {
        let verb = if cordoned { "cordon" } else { "uncordon" };
        self.http.call(Method::POST, &format!("/v1/hosts/{name}/{verb}"), &()).await
    }

    /// A host's sign of life.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn heartbeat(&self, heartbeat: &Heartbeat) -> Answer<()> {
        let path = format!("/v1/hosts/{}/heartbeat", heartbeat.host.name);
        self.http.post_within(&path, heartbeat, Duration::from_secs(3)).await
    }

    /// Starts a move; repeating the call with the same key does not start another.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn start_move(&self, command: &MoveCommand, key: &str) -> Answer<Operation> {
        self.http.post_once("/v1/moves", command, key).await
    }

    /// Where a move would go, and why.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn move_dry_run(&self, command: &MoveCommand) -> Answer<Placement> {
        let command = MoveCommand { dry_run: true, ..command.clone() };
        self.http.call(Method::POST, "/v1/moves", &command).await
    }

    /// All moves, oldest first.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn moves(&self) -> Answer<Vec<Operation>> {
        self.http.get("/v1/moves").await
    }

    /// One move.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn operation(&self, id: &MoveId) -> Answer<Operation> {
        self.http.get(&format!("/v1/moves/{id}")).await
    }

    /// A move's events as server-sent events: each `data:` line is an [`Operation`]; the last one has an outcome.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn move_events(
        &self,
        id: &MoveId,
    ) -> Answer<impl Stream<Item = Result<Bytes, ClientError>> + Send + Unpin + use<>> {
        Ok(self.http.get_stream(&format!("/v1/moves/{id}/events")).await?.1)
    }

    /// Cancels a move.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn cancel(&self, id: &MoveId) -> Answer<Operation> {
        self.http.delete(&format!("/v1/moves/{id}")).await
    }

    /// Changes the limits of a move that goes on.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn limit(&self, id: &MoveId, limit: &MoveLimit) -> Answer<Operation> {
        self.http.call(Method::PATCH, &format!("/v1/moves/{id}"), limit).await
    }

    /// How far forecasts were off, in the moves that are remembered.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn accuracy(&self) -> Answer<Accuracy> {
        self.http.get("/v1/moves/accuracy").await
    }

    /// A machine's owner record.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn owner(&self, name: &MachineName) -> Answer<OwnerRecord> {
        self.http.get(&format!("/v1/owners/{name}")).await
    }

    /// Compare-and-set of an owner record; the answer is the record as it is afterwards.
    ///
    /// # Errors
    /// [`ClientError`]; without an answer the attempt may or may not have happened.
    pub async fn compare_and_set(&self, request: &CasRequest, patience: Duration) -> Answer<OwnerRecord> {
        let path = format!("/v1/owners/{}/cas", request.expected.machine);
        self.http.post_within(&path, request, patience).await
    }
}
