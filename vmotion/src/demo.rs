//! `vmotion demo`: the product on one machine, with nothing to configure.
//!
//! A controller and two agents are started as the processes they always are, a self-checking guest is created through the
//! API and moved live, and what it says of itself is watched from outside all the while. Nothing is simulated but the
//! distance: both datacenters are on this machine.

mod watch;

use crate::{
    arguments::DemoArguments,
    commands::{issue_host, make_authority, request_key},
    context, output, progress,
};
use anyhow::{Context as _, Result, bail};
use serde::Serialize;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};
use tokio::process::{Child, Command};
use vmotion_api::{ControllerClient, CreateRequest, MachineView, MoveCommand, Operation};
use vmotion_model::{
    Backing, DirtySource, HostState, InterruptController, MachineName, MachineSpec, MoveOutcome, MoveRequest,
};
use vmotion_probe_guest::{CommandLine, Content, Rate};
use watch::{Observation, Watcher};

/// Services and guest are up long before.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the guest is watched before and after the move.
const WATCH: Duration = Duration::from_secs(3);

/// The report, as `--json` prints it.
#[derive(Debug, Serialize)]
struct Report {
    operation: Operation,
    /// From the guest's console, watched from outside.
    observation: Observation,
}

pub(crate) async fn run(arguments: DemoArguments, json: bool) -> Result<()> {
    let directory = tempfile::Builder::new().prefix("vmotion-demo-").tempdir().context("Cannot make a directory")?;
    let say = |text: &str| {
        if json {
            eprintln!("{text}");
        } else {
            println!("{text}");
        }
    };
    let world = World::start(directory.path()).await?;
    say(&format!("two datacenters on this machine: h1 in dc1, h2 in dc2, controller {}", world.client.url()));
    let result = tell(&world, &arguments, &say).await;
    world.stop().await;
    if arguments.keep || result.is_err() {
        say(&format!("files are in {}", directory.keep().display()));
    }
    let report = result?;
    if json {
        output::json(&report)?;
    } else {
        output::operation(&report.operation);
        println!("{}", report.observation);
    }
    if report.operation.outcome != Some(MoveOutcome::Moved) || !report.observation.errors.is_empty() {
        bail!("the demo did not go as it should");
    }
    Ok(())
}

async fn tell(world: &World, arguments: &DemoArguments, say: &impl Fn(&str)) -> Result<Report> {
    let name: MachineName = "vm1".parse()?;
    let cmdline = CommandLine::new()
        .working_set_bytes(arguments.working_set.bytes())
        .rate(Rate::BytesPerSecond(arguments.rate.bytes()))
        .content(Content::Text)
        .heartbeat_ms(1);
    let spec = MachineSpec {
        name: name.clone(),
        cpus: 2,
        memory: arguments.memory,
        kernel: world.kernel.clone(),
        initrd: None,
        cmdline: cmdline.to_string(),
        disks: Vec::new(),
        backing: Backing::Memfd,
        dirty_source: DirtySource::Auto,
        interrupts: InterruptController::Kernel,
    };
    let request =
        CreateRequest { spec, on: Some("h1".to_owned()), from: None, span: Vec::new(), audit: false, dry_run: false };
    let machine = world.client.create(&request, &request_key()).await?;
    say(&format!(
        "{} runs on {}: {} memory, 2 vCPUs, {} written over and over at {}/s, each page stamped and verified, a heartbeat every ms",
        machine.name, machine.host, arguments.memory, arguments.working_set, arguments.rate
    ));
    let mut watcher = Watcher::attach(&world.console("h1", &name), &world.console("h2", &name)).await?;
    watcher.until_ready(START_TIMEOUT).await?;
    watcher.watch(WATCH).await?;
    say("moving it to dc2 while it runs");
    let command =
        MoveCommand { machine: name.clone(), to: "dc2".to_owned(), request: MoveRequest::default(), dry_run: false };
    let operation = world.client.start_move(&command, &request_key()).await?;
    let watching = tokio::spawn(async move {
        let result = watcher.until_moved(START_TIMEOUT).await;
        (watcher, result)
    });
    let operation = progress::follow(&world.client, &operation.id, false).await?;
    let (mut watcher, moved) = watching.await?;
    moved?;
    watcher.watch(WATCH).await?;
    let view: MachineView = world.client.machine(&name).await?;
    say(&format!("{} now runs on {}", view.name, view.host));
    world.client.stop(&name).await?;
    world.client.remove(&name).await?;
    Ok(Report { operation, observation: watcher.finish() })
}

/// A controller and two agents, each a process of this program.
struct World {
    directory: PathBuf,
    kernel: PathBuf,
    client: ControllerClient,
    /// In the order they are to be ended.
    children: Vec<Child>,
}

impl World {
    async fn start(directory: &Path) -> Result<Self> {
        let kernel = directory.join("probe.elf");
        fs::write(&kernel, vmotion_probe_guest::ELF).context("Cannot write the guest's kernel")?;
        let (authority, controller_identity, operator) = make_authority(&directory.join("pki"))?;
        let log = |name: &str| fs::File::create(directory.join(format!("{name}.log")));
        let program = std::env::current_exe().context("Cannot find this program")?;
        let start = |name: &str, arguments: Vec<String>, identity: &Path| -> Result<Child> {
            Command::new(&program)
                .args(arguments)
                .arg("--identity")
                .arg(identity)
                .env("VMOTION_HOME", directory)
                .stdin(Stdio::null())
                .stdout(log(name)?)
                .stderr(log(&format!("{name}.err"))?)
                .kill_on_drop(true)
                .spawn()
                .with_context(|| format!("Cannot start {name}"))
        };
        let port = free_port()?;
        let url = format!("https://127.0.0.1:{port}");
        let data = |name: &str| directory.join(name).display().to_string();
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let controller = start(
            "controller",
            words(&["controller", "--data", &data("c"), "--listen", &format!("127.0.0.1:{port}")]),
            &controller_identity,
        )?;
        let mut children = Vec::new();
        for (name, dc) in [("h1", "dc1"), ("h2", "dc2")] {
            let identity = directory.join(format!("{name}-identity"));
            issue_host(&authority, &name.parse()?, &identity)?;
            let arguments = ["agent", "--name", name, "--dc", dc, "--data", &data(name), "--controller", &url];
            children.push(start(name, words(&arguments), &identity)?);
        }
        children.push(controller);
        let client = context::connect(&url, &operator)?;
        let mut world = Self { directory: directory.to_owned(), kernel, client, children };
        world.wait_until_up().await?;
        Ok(world)
    }

    async fn wait_until_up(&mut self) -> Result<()> {
        let start = Instant::now();
        loop {
            let hosts = self.client.hosts().await.unwrap_or_default();
            if hosts.iter().filter(|host| host.state == HostState::Up).count() == 2 {
                return Ok(());
            }
            for child in &mut self.children {
                if let Some(status) = child.try_wait()? {
                    bail!("a service ended with {status}: {}", self.last_words());
                }
            }
            if start.elapsed() > START_TIMEOUT {
                bail!("the services did not come up within {START_TIMEOUT:?}: {}", self.last_words());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The last line of each service that complained.
    fn last_words(&self) -> String {
        let last = |name: &str| {
            let text = fs::read_to_string(self.directory.join(format!("{name}.err.log"))).ok()?;
            Some(format!("{name}: {}", text.lines().last()?))
        };
        ["controller", "h1", "h2"].into_iter().filter_map(last).collect::<Vec<_>>().join("; ")
    }

    /// Where a machine's live console is on a host of this world.
    fn console(&self, host: &str, machine: &MachineName) -> PathBuf {
        self.directory.join(host).join("machines").join(machine.as_str()).join("console.sock")
    }

    /// Ends the services, and whatever machine is left when something went wrong.
    async fn stop(mut self) {
        for machine in self.client.machines().await.unwrap_or_default() {
            let _ = self.client.stop(&machine.name).await;
        }
        for child in &mut self.children {
            let _ = child.start_kill();
            let _ = child.wait().await;
        }
    }
}

/// A TCP port that was free a moment ago.
fn free_port() -> Result<u16> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").context("Cannot find a free port")?;
    Ok(listener.local_addr()?.port())
}
