//! Two hosts and a controller as real processes, and what a test needs to look at them and to harm them.

#![allow(dead_code, unused_imports, unreachable_pub, reason = "shared by tests of which each uses a part")]
#![allow(clippy::unwrap_used, reason = "a test's panic is its report")]

mod checkpoints;
mod console;
pub mod etcd;
mod huge_pages;
mod network;
mod processors;
mod random;
mod spanned;

pub use checkpoints::{Checkpoints, Held};
pub use console::ConsoleLog;
pub use huge_pages::HugePages;
pub use network::{Apart, Cut};
pub use processors::Processors;
pub use random::{Random, seed, setting};
pub use spanned::SpannedMachine;

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    sync::atomic::{AtomicU16, Ordering},
    time::{Duration, Instant},
};
use tokio::process::{Child, Command};
use vmotion_api::{AgentClient, ControllerClient, CreateRequest, MoveCommand, Operation};
use vmotion_model::{
    Backing, ByteSize, DirtySource, DiskSpec, Host, HostName, HostState, InterruptController, MachineName, MachineSpec,
    MachineState, MachineStatus, MoveRequest,
};
use vmotion_transport::{Identity, Principal, pki::Authority, session::MoveTicket};

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_vmotion");
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// Runs a test in a network of its own, or says that it is skipped, and why, when this machine cannot run guests.
pub fn scenario(test: &str, body: impl Future<Output = ()>) {
    if !Path::new("/dev/kvm").exists() {
        eprintln!("SKIPPED {test}: /dev/kvm is missing");
    } else if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED {test}: it needs root");
    } else {
        network::enter_new();
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        runtime.worker_threads(2).enable_all().build().unwrap().block_on(body);
    }
}

pub fn name<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
    text.parse().unwrap()
}

/// The URLs of controllers, as clients take them.
fn urls(here: std::net::Ipv4Addr, controllers: &[(&'static str, u16)]) -> String {
    let url = |(_, port): &(&str, u16)| format!("https://{here}:{port}");
    controllers.iter().map(url).collect::<Vec<_>>().join(",")
}

/// A range of UDP ports that no other world of this process uses, outside of those the kernel gives away.
fn port_range(ports: u16) -> (u16, u16) {
    static NEXT: AtomicU16 = AtomicU16::new(20_000);
    let first = NEXT.fetch_add(ports, Ordering::Relaxed);
    (first, first + ports - 1)
}

pub struct World {
    pub directory: tempfile::TempDir,
    pub client: ControllerClient,
    pub operator: Identity,
    services: HashMap<&'static str, Child>,
    hosts: HashMap<&'static str, Host>,
    /// Its controllers, and where they listen.
    controllers: Vec<(&'static str, u16)>,
    /// The cluster in which they keep everything, when they are several.
    etcd: Option<String>,
    pub move_ports: (u16, u16),
    peer_timeout: Duration,
    checkpoints: Option<PathBuf>,
    /// Its hosts.
    names: &'static [&'static str],
    /// Where the controller listens.
    here: std::net::Ipv4Addr,
    /// The networks of its hosts, when each has its own.
    apart: Option<Apart>,
}

impl World {
    /// A controller, `h1` in `dc1` and `h2` in `dc2`.
    pub async fn start(peer_timeout: Duration, checkpoints: Option<PathBuf>) -> Self {
        Self::start_with(peer_timeout, checkpoints, &["h1", "h2"], None).await
    }

    /// A controller, and `hN` in `dcN` for each of them, in this network or each in its own.
    pub async fn start_with(
        peer_timeout: Duration,
        checkpoints: Option<PathBuf>,
        names: &'static [&'static str],
        apart: Option<Apart>,
    ) -> Self {
        Self::build(peer_timeout, checkpoints, names, apart, &["controller"], None).await
    }

    /// Controllers `c1`, `c2` and `c3` on one cluster, and two hosts.
    pub async fn start_on_etcd(peer_timeout: Duration, cluster: &etcd::Cluster) -> Self {
        let members = Some(cluster.urls().join(","));
        Self::build(peer_timeout, None, &["h1", "h2"], None, &["c1", "c2", "c3"], members).await
    }

    async fn build(
        peer_timeout: Duration,
        checkpoints: Option<PathBuf>,
        names: &'static [&'static str],
        apart: Option<Apart>,
        controllers: &[&'static str],
        etcd: Option<String>,
    ) -> Self {
        let directory = tempfile::Builder::new().prefix("vmotion-test-").tempdir().unwrap();
        let authority = Authority::create(&directory.path().join("pki")).unwrap();
        for (principal, place) in [
            (Principal::Controller(name("controller")), "controller-identity"),
            (Principal::Admin(name("tester")), "operator-identity"),
        ] {
            authority.issue(&principal, &directory.path().join(place)).unwrap();
        }
        for host in names {
            authority.issue(&Principal::Host(name(host)), &directory.path().join(format!("{host}-identity"))).unwrap();
        }
        fs::write(directory.path().join("probe.elf"), vmotion_probe_guest::ELF).unwrap();
        let operator = Identity::load(&directory.path().join("operator-identity")).unwrap();
        let here = apart.as_ref().map_or(std::net::Ipv4Addr::LOCALHOST, |_| Apart::HERE);
        // All at once, so that they differ.
        let listeners = controllers.iter().map(|name| (*name, std::net::TcpListener::bind((here, 0)).unwrap()));
        let listeners: Vec<_> = listeners.collect();
        let controllers: Vec<(&'static str, u16)> =
            listeners.iter().map(|(name, listener)| (*name, listener.local_addr().unwrap().port())).collect();
        drop(listeners);
        let client = ControllerClient::new(&urls(here, &controllers), &operator).unwrap();
        let mut world = Self {
            directory,
            client,
            operator,
            services: HashMap::new(),
            hosts: HashMap::new(),
            controllers,
            // In a network of its own a host has all ports to itself; several controllers are there for several moves at once.
            move_ports: if apart.is_some() {
                (20_000, 20_099)
            } else {
                port_range(if etcd.is_some() { 40 } else { 5 })
            },
            etcd,
            peer_timeout,
            checkpoints,
            names,
            here,
            apart,
        };
        world.controllers().into_iter().for_each(|controller| world.start_service(controller));
        names.iter().for_each(|host| world.start_service(host));
        world.wait_until_up().await;
        world
    }

    /// Its hosts.
    pub const fn names(&self) -> &'static [&'static str] {
        self.names
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn controller_port(&self) -> u16 {
        self.controllers[0].1
    }

    /// The names of its controllers.
    pub fn controllers(&self) -> Vec<&'static str> {
        self.controllers.iter().map(|(name, _)| *name).collect()
    }

    /// The URL of one of them.
    pub fn controller_url(&self, controller: &str) -> String {
        let (_, port) = self.controllers.iter().find(|(name, _)| *name == controller).unwrap();
        format!("https://{}:{port}", self.here)
    }

    fn log(&self, name: &str) -> fs::File {
        fs::File::options().create(true).append(true).open(self.path(name)).unwrap()
    }

    pub fn start_service(&mut self, service: &'static str) {
        let port = self.controllers.iter().find(|(name, _)| *name == service).map(|(_, port)| *port);
        let own_network = self.apart.is_some() && port.is_none();
        let mut command = if own_network { Apart::command() } else { Command::new(PROGRAM) };
        if let Some(port) = port {
            command.args(["controller", "--listen", &format!("{}:{port}", self.here)]);
            match &self.etcd {
                Some(etcd) => command.args(["--name", service, "--etcd", etcd]).arg("--data").arg(self.path(service)),
                None => command.arg("--data").arg(self.path("c")),
            };
        } else {
            let dc = service.replace('h', "dc");
            let (first, last) = self.move_ports;
            command
                .args(["agent", "--name", service, "--dc", &dc, "--move-ports", &format!("{first}-{last}")])
                .args(["--peer-timeout", &self.peer_timeout.as_millis().to_string()])
                .args(["--controller", &urls(self.here, &self.controllers)])
                .arg("--data")
                .arg(self.path(service));
            if own_network {
                let at = self.names.iter().position(|host| *host == service).unwrap();
                command.args(["--listen", &format!("{}:0", Apart::address(at))]);
            }
            if let Some(path) = &self.checkpoints {
                command.env("VMOTION_CHECKPOINTS", path);
            }
        }
        let identity = if port.is_some() { "controller" } else { service };
        let child = command
            .arg("--identity")
            .arg(self.path(&format!("{identity}-identity")))
            .env("VMOTION_HOME", self.directory.path())
            .stdin(Stdio::null())
            .stdout(self.log(&format!("{service}.log")))
            .stderr(self.log(&format!("{service}.log")))
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        if let Some(apart) = self.apart.as_ref().filter(|_| own_network) {
            let at = self.names.iter().position(|host| *host == service).unwrap();
            apart.attach(at, child.id().unwrap());
        }
        self.services.insert(service, child);
    }

    /// `kill -9`.
    pub async fn kill_service(&mut self, service: &str) {
        if let Some(mut child) = self.services.remove(service) {
            let _ = child.start_kill();
            let _ = child.wait().await;
        }
    }

    /// Process of a service.
    pub fn pid(&self, service: &str) -> u32 {
        self.services[service].id().unwrap()
    }

    pub fn runs(&self, service: &str) -> bool {
        self.services.contains_key(service)
    }

    pub async fn wait_until_up(&mut self) {
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            let hosts = self.client.hosts().await.unwrap_or_default();
            let up: Vec<Host> = hosts.into_iter().filter(|host| host.state == HostState::Up).collect();
            if up.len() == self.names.len() {
                for host in up {
                    let key = self.names.iter().find(|known| **known == host.name.as_str()).unwrap();
                    self.hosts.insert(key, host);
                }
                // A restarted agent has a new port; what the controller knows may be of the old one.
                let mut all_answer = true;
                for host in self.names {
                    all_answer &= self.agent(host).host().await.is_ok();
                }
                if all_answer {
                    return;
                }
            }
            assert!(Instant::now() < deadline, "the services did not come up: see {}", self.directory.path().display());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub fn agent(&self, host: &str) -> AgentClient {
        let host = &self.hosts[host];
        AgentClient::new(&host.url, &host.name, &self.operator).unwrap()
    }

    pub fn spec(&self, machine: &str, memory: ByteSize, cmdline: &str) -> MachineSpec {
        MachineSpec {
            name: name(machine),
            cpus: 2,
            memory,
            kernel: self.path("probe.elf"),
            initrd: None,
            cmdline: cmdline.to_owned(),
            disks: Vec::new(),
            backing: Backing::Memfd,
            dirty_source: DirtySource::Auto,
            interrupts: InterruptController::Kernel,
        }
    }

    pub fn disk(&self, file: &str, bytes: u64) -> DiskSpec {
        let path = self.path(file);
        fs::File::create(&path).unwrap().set_len(bytes).unwrap();
        DiskSpec { path, read_only: false }
    }

    pub async fn create(&self, spec: MachineSpec, on: &str) {
        let request =
            CreateRequest { spec, on: Some(on.to_owned()), from: None, span: Vec::new(), audit: false, dry_run: false };
        self.client.create(&request, &key()).await.unwrap();
    }

    pub async fn start_move(&self, machine: &MachineName, to: &str, request: MoveRequest) -> Operation {
        let command = MoveCommand { machine: machine.clone(), to: to.to_owned(), request, dry_run: false };
        self.client.start_move(&command, &key()).await.unwrap()
    }

    /// Waits until the operation has an outcome; a controller that is away is asked again.
    pub async fn wait_for_outcome(&self, operation: &Operation, patience: Duration) -> Operation {
        let deadline = Instant::now() + patience;
        loop {
            if let Ok(now) = self.client.operation(&operation.id).await
                && now.outcome.is_some()
            {
                return now;
            }
            assert!(
                Instant::now() < deadline,
                "{} has no outcome after {patience:?}: {:?}; see {}",
                operation.id,
                self.client.operation(&operation.id).await,
                self.directory.path().display()
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// What the host's agent says of the machine, when it has it.
    pub async fn status(&self, host: &str, machine: &MachineName) -> Option<MachineStatus> {
        self.agent(host).machine(machine).await.ok()
    }

    /// Hosts on which a copy of the machine runs now.
    pub async fn copies(&self, machine: &MachineName) -> Vec<(&'static str, MachineStatus)> {
        let mut copies = Vec::new();
        for host in self.names {
            if let Some(status) = self.status(host, machine).await
                && status.pid.is_some()
                && matches!(status.state, MachineState::Running | MachineState::Moving)
            {
                copies.push((*host, status));
            }
        }
        copies
    }

    pub fn machine_directory(&self, host: &str, machine: &MachineName) -> PathBuf {
        self.path(host).join("machines").join(machine.as_str())
    }

    /// All console output of the machine, put together from the logs of both hosts.
    pub fn console(&self, machine: &MachineName) -> ConsoleLog {
        let directories: Vec<PathBuf> = self.names.iter().map(|host| self.machine_directory(host, machine)).collect();
        ConsoleLog::collect(&directories)
    }

    /// Waits until the console holds `text`.
    pub async fn wait_for_console(&self, machine: &MachineName, text: &str) {
        let deadline = Instant::now() + START_TIMEOUT;
        while !self.console(machine).text().contains(text) {
            assert!(Instant::now() < deadline, "the console never said {text:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Ends every machine, then the services.
    pub async fn stop(mut self) {
        for machine in self.client.machines().await.unwrap_or_default() {
            let _ = self.client.stop(&machine.name).await;
        }
        for host in self.names {
            self.kill_service(host).await;
        }
        for controller in self.controllers() {
            self.kill_service(controller).await;
        }
    }

    /// Keeps the files of a failed test.
    pub fn keep(&mut self) -> PathBuf {
        self.directory.disable_cleanup(true);
        self.directory.path().to_owned()
    }
}

impl Drop for World {
    /// Machine processes outlive agents by design; a test that panics must not leave them behind.
    fn drop(&mut self) {
        for host in self.names {
            let Ok(machines) = fs::read_dir(self.path(host).join("machines")) else { continue };
            for machine in machines.flatten() {
                if let Some(pid) = process_of(&machine.path()) {
                    kill(pid);
                }
            }
        }
        if std::thread::panicking() {
            eprintln!("files are kept in {}", self.keep().display());
        }
    }
}

/// The machine process of a directory, when it still is one of ours.
pub fn process_of(directory: &Path) -> Option<u32> {
    let state: serde_json::Value = serde_json::from_slice(&fs::read(directory.join("state.json")).ok()?).ok()?;
    let pid = u32::try_from(state.get("pid")?.as_u64()?).ok()?;
    let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let command = String::from_utf8_lossy(&command).into_owned();
    (command.contains("machine") && command.contains(&directory.display().to_string())).then_some(pid)
}

/// `kill -9`, and waits until it is gone.
pub fn kill(pid: u32) {
    let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) else { return };
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
}

pub fn key() -> String {
    String::from(MoveTicket::random())
}

pub fn host_of(index: usize) -> HostName {
    name(["h1", "h2"][index])
}
