//! A machine that spans several hosts of a world.

use super::{Apart, World, key, name};
use std::time::{Duration, Instant};
use vmotion_api::{ClientError, CreateRequest, MachineView, Operation, ShapeChange};
use vmotion_model::{
    ByteSize, DiskSpec, HostName, InterruptController, MachineName, MachineSpec, MachineState, MoveOutcome,
};
use vmotion_probe_guest::CommandLine;

const PATIENCE: Duration = Duration::from_secs(60);

pub struct SpannedMachine {
    pub world: World,
    pub machine: MachineName,
    /// Every copy of the pages of what is created from now on is audited.
    pub audit: bool,
    cpus: u8,
    disks: Vec<DiskSpec>,
}

impl SpannedMachine {
    /// A world of these hosts, and a machine over all of them in equal shares.
    pub async fn create(
        lease: Duration,
        hosts: &'static [&'static str],
        apart: Option<Apart>,
        cpus: u8,
        cmdline: &CommandLine,
    ) -> Self {
        Self::create_over(lease, hosts, hosts, apart, cpus, cmdline).await
    }

    /// The same over some of the hosts.
    pub async fn create_over(
        lease: Duration,
        hosts: &'static [&'static str],
        over: &[&str],
        apart: Option<Apart>,
        cpus: u8,
        cmdline: &CommandLine,
    ) -> Self {
        let mut spanning = Self::to_be(World::start_with(lease, None, hosts, apart).await, cpus);
        spanning.begin(over, cmdline).await;
        spanning
    }

    /// One that [`Self::begin`] creates.
    pub fn to_be(world: World, cpus: u8) -> Self {
        Self { world, machine: name("big1"), audit: true, cpus, disks: Vec::new() }
    }

    /// The same with a disk of so many bytes.
    pub async fn create_with(
        lease: Duration,
        hosts: &'static [&'static str],
        cpus: u8,
        disk_bytes: u64,
        cmdline: &CommandLine,
    ) -> Self {
        let world = World::start_with(lease, None, hosts, None).await;
        let disks = vec![world.disk("big1.img", disk_bytes)];
        let mut spanning = Self { world, machine: name("big1"), audit: true, cpus, disks };
        spanning.begin(hosts, cmdline).await;
        spanning
    }

    /// Creates the machine, in a world that has none of it.
    pub async fn begin(&mut self, over: &[&str], cmdline: &CommandLine) {
        let span: Vec<HostName> = over.iter().map(|host| name(host)).collect();
        let request =
            CreateRequest { spec: self.spec(cmdline), on: None, from: None, span, audit: self.audit, dry_run: false };
        let view = self.world.client.create(&request, &key()).await.unwrap();
        assert_eq!(view.state, MachineState::Running, "{view:?}");
    }

    pub fn spec(&self, cmdline: &CommandLine) -> MachineSpec {
        let interrupts = InterruptController::User;
        let cmdline = cmdline.clone().poweroff(0x600, 0x34).heartbeat_ms(100).to_string();
        MachineSpec {
            cpus: self.cpus,
            interrupts,
            disks: self.disks.clone(),
            ..self.world.spec("big1", ByteSize::mib(64), &cmdline)
        }
    }

    pub async fn view(&self) -> MachineView {
        self.world.client.machine(&self.machine).await.unwrap()
    }

    pub async fn pieces(&self) -> Vec<String> {
        self.view().await.pieces.iter().map(|piece| format!("{} {}", piece.name, piece.host)).collect()
    }

    /// Begins a change, and waits for its end.
    pub async fn change(&self, change: ShapeChange) -> Result<Operation, ClientError> {
        let operation = self.world.client.reshape(&self.machine, change, &key()).await?;
        Ok(self.world.wait_for_outcome(&operation, PATIENCE).await)
    }

    /// Moves a piece; `None` when the guest has ended meanwhile.
    pub async fn give(&self, piece: &str, to: &str) -> Option<Operation> {
        let change = ShapeChange::Piece { piece: piece.parse().unwrap(), to: to.to_owned() };
        let moved = match self.change(change).await {
            Ok(operation) if operation.outcome == Some(MoveOutcome::Moved) => return Some(operation),
            Ok(operation) => format!("{operation:?}"),
            Err(error) => error.to_string(),
        };
        // A part may have ended before its hub's host has said so.
        let deadline = Instant::now() + Duration::from_secs(5);
        while self.view().await.state == MachineState::Running {
            assert!(Instant::now() < deadline, "{piece} {to}: {moved}; see {}", self.world.directory.path().display());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        None
    }

    /// The console of the machine, which is where its devices are.
    pub fn console(&self) -> String {
        let log = self.world.machine_directory("h1", &self.machine).join("console.log");
        String::from_utf8_lossy(&std::fs::read(log).unwrap_or_default()).into_owned()
    }

    pub async fn wait_until_it_stands(&self, patience: Duration) -> MachineView {
        let deadline = Instant::now() + patience;
        loop {
            let view = self.view().await;
            if matches!(view.state, MachineState::Stopped | MachineState::Failed) {
                return view;
            }
            assert!(Instant::now() < deadline, "{view:?}: {}", self.console());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The guest powers itself off, and all it said is written down.
    pub async fn stands_powered_off(&self, patience: Duration) {
        let view = self.wait_until_it_stands(patience).await;
        // Its last words are written down a moment after its end.
        let deadline = Instant::now() + Duration::from_secs(5);
        while !self.console().contains("END ") && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let powered_off = view.reason.as_ref().is_some_and(|reason| reason.contains("powered off"));
        assert!(powered_off, "{view:?}: {}", self.console());
    }

    /// The same, and it has found nothing wrong; what it counted.
    pub async fn finds_nothing_wrong(&self, patience: Duration) -> String {
        self.stands_powered_off(patience).await;
        let console = self.console();
        assert!(console.contains("errors=0") && console.contains("lost=0"), "{console}");
        console.lines().find(|line| line.starts_with("P ")).unwrap_or_default().to_owned()
    }

    pub async fn comes_to_a_good_end(self) {
        self.finds_nothing_wrong(PATIENCE).await;
        self.end().await;
    }

    /// Removes the machine: nothing of it is left.
    pub async fn remove(&self) {
        self.world.client.remove(&self.machine).await.unwrap();
        for host in self.world.names() {
            assert!(self.world.status(host, &self.machine).await.is_none(), "{host} has something left");
        }
        assert!(self.world.client.machines().await.unwrap().is_empty());
    }

    pub async fn end(self) {
        self.remove().await;
        self.world.stop().await;
    }
}
