//! A controller, its agents, and an operator.

use crate::agent::FakeAgent;
use std::{
    future::Future,
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};
use tempfile::TempDir;
use tokio::{sync::oneshot, task::JoinHandle};
use vmotion_api::{ClientError, ControllerClient, CreateRequest, MachineView, MoveCommand, Operation};
use vmotion_controller::{ControllerError, ControllerOptions, StoreOptions};
use vmotion_model::{ByteSize, ErrorCode, MachineName, MachineSpec, MachineState, MoveId, MoveRequest, OwnerRecord};
use vmotion_transport::{Identity, pki::Authority};

/// Far beyond what anything here takes; only a failing test waits for it.
const DEADLINE: Duration = Duration::from_secs(60);

/// What stops the controller, and what it ended with.
type Running = (oneshot::Sender<()>, JoinHandle<Result<(), ControllerError>>);

pub(crate) struct World {
    directory: TempDir,
    authority: Authority,
    pub(crate) address: SocketAddr,
    pub(crate) operator: ControllerClient,
    pub(crate) h1: FakeAgent,
    pub(crate) h2: FakeAgent,
    running: Option<Running>,
}

impl World {
    /// A controller with `h1` in `dc1` and `h2` in `dc2`, both heard.
    pub(crate) async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::create(&directory.path().join("ca")).unwrap();
        let identity = |uri: &str| issue(&authority, directory.path().join(uri.replace('/', "-")), uri);
        identity("controller/c1");
        let operator = identity("operator/alice");
        let h1 = FakeAgent::start("h1", "dc1", identity("host/h1")).await;
        let h2 = FakeAgent::start("h2", "dc2", identity("host/h2")).await;
        let nowhere: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let client = ControllerClient::new("https://127.0.0.1:1", &operator).unwrap();
        let mut world = Self { directory, authority, address: nowhere, operator: client, h1, h2, running: None };
        world.start_controller().await;
        world.operator = ControllerClient::new(&world.url(), &operator).unwrap();
        world.beat().await;
        world
    }

    pub(crate) fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn identity(&self, uri: &str) -> Arc<Identity> {
        let path = self.path(&uri.replace('/', "-"));
        if path.exists() { Arc::new(Identity::load(&path).unwrap()) } else { issue(&self.authority, path, uri) }
    }

    pub(crate) fn client_of(&self, uri: &str) -> ControllerClient {
        ControllerClient::new(&self.url(), &self.identity(uri)).unwrap()
    }

    pub(crate) async fn beat(&mut self) {
        let (c1, c2) = (self.client_of("host/h1"), self.client_of("host/h2"));
        self.h1.beat(c1).await;
        self.h2.beat(c2).await;
    }

    pub(crate) async fn start_controller(&mut self) {
        let identity = self.identity("controller/c1");
        let mut options = ControllerOptions::new(StoreOptions::File(self.path("data")), self.address, identity);
        options.gone_after = Duration::from_secs(3);
        let (stop, stopped) = oneshot::channel::<()>();
        let (ready, address) = oneshot::channel();
        let running =
            tokio::spawn(vmotion_controller::run(options, move |address| ready.send(address).unwrap(), async move {
                drop(stopped.await)
            }));
        self.address = match address.await {
            Ok(address) => address,
            Err(_) => panic!("the controller did not start: {:?}", running.await),
        };
        self.running = Some((stop, running));
    }

    pub(crate) async fn stop_controller(&mut self) {
        let (stop, running) = self.running.take().unwrap();
        let _ = stop.send(());
        running.await.unwrap().unwrap();
    }

    pub(crate) async fn create(&self, name: &str, on: &str) -> MachineView {
        self.operator.create(&create_request(name, Some(on)), &format!("create-{name}")).await.unwrap()
    }

    pub(crate) async fn start_move(&self, name: &str, to: &str) -> Operation {
        self.operator.start_move(&command(name, to), &format!("move-{name}-{to}")).await.unwrap()
    }

    /// A machine on h1, and a move of it to h2 that the source knows of.
    pub(crate) async fn start_moving(&self) -> (MachineName, MoveId) {
        let machine = self.create("vm1", "h1").await.name;
        let id = self.start_move("vm1", "dc2").await.id;
        until("the source has been asked", async || self.h1.book(|book| book.outgoing.contains_key(&id))).await;
        (machine, id)
    }

    /// Switches over, as the machine processes would: the record decides, and the machine is at h2 afterwards.
    pub(crate) async fn switch_over(&self, id: &MoveId) -> OwnerRecord {
        let request = self.h2.book(|book| book.incoming[id].clone());
        let wanted = request.record.handed_to(&self.h2.name());
        let cas = vmotion_api::CasRequest { expected: request.record, wanted: wanted.clone() };
        let won = self.client_of("host/h2").compare_and_set(&cas, DEADLINE).await.unwrap();
        assert_eq!(won, wanted);
        let mut status = self.h1.book(|book| book.machines.remove(&wanted.machine)).unwrap();
        status.epoch = wanted.epoch;
        status.state = MachineState::Running;
        self.h2.book(|book| book.machines.insert(wanted.machine.clone(), status));
        won
    }

    pub(crate) async fn finished(&self, id: &MoveId) -> Operation {
        until("the move is over", async || self.operation(id).await.outcome.is_some()).await;
        self.operation(id).await
    }

    pub(crate) async fn operation(&self, id: &MoveId) -> Operation {
        self.operator.operation(id).await.unwrap()
    }

    pub(crate) async fn state_becomes(&self, name: &MachineName, state: MachineState) {
        until(&format!("{name} is {state:?}"), async || self.operator.machine(name).await.unwrap().state == state)
            .await;
    }
}

pub(crate) fn issue(authority: &Authority, path: PathBuf, uri: &str) -> Arc<Identity> {
    authority.issue(&format!("spiffe://vmotion/{uri}").parse().unwrap(), &path).unwrap();
    Arc::new(Identity::load(&path).unwrap())
}

pub(crate) fn create_request(name: &str, on: Option<&str>) -> CreateRequest {
    let spec = MachineSpec {
        name: name.parse().unwrap(),
        cpus: 1,
        memory: ByteSize::gib(1),
        kernel: "/boot/probe".into(),
        initrd: None,
        cmdline: String::new(),
        disks: vec![],
        backing: Default::default(),
        dirty_source: Default::default(),
        interrupts: Default::default(),
    };
    CreateRequest { spec, on: on.map(str::to_owned), from: None, span: Vec::new(), audit: false, dry_run: false }
}

pub(crate) fn command(name: &str, to: &str) -> MoveCommand {
    MoveCommand { machine: name.parse().unwrap(), to: to.to_owned(), request: MoveRequest::default(), dry_run: false }
}

pub(crate) async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let begun = Instant::now();
    while !holds().await {
        assert!(begun.elapsed() < DEADLINE, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[track_caller]
pub(crate) fn assert_answered<T: std::fmt::Debug>(answer: Result<T, ClientError>, code: ErrorCode, words: &str) {
    match answer {
        Err(ClientError::Answered(error)) => {
            assert_eq!(error.code, code, "{error:?}");
            let said = format!("{}; {}", error.message, error.hint.as_deref().unwrap_or_default());
            assert!(said.contains(words), "{said:?} does not say {words:?}");
        }
        other => panic!("{other:?}, expected {code:?}"),
    }
}
