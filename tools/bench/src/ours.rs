//! vmotion as an operator runs it: a controller, two agents, and the command line.
//!
//! On the shaped link the controller stands at the source's end. The owner record is asked for by the target, so that the
//! question crosses the link: the worse of the two places.

use crate::{
    link::{Link, Side},
    process::{Running, output, output_of, output_within, wait_for},
    qemu::{TLS_NAME, free_port},
    sample::OurMode,
    suite::{Guest, Movable, NotMoved, START_PATIENCE, Told},
    usage::{Who, running},
};
use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

const SOURCE: &str = "h1";
/// Also the name in QEMU's certificate.
const TARGET: &str = TLS_NAME;
/// What `vmotion move` ends with when the machine runs on where it was.
const EXIT_NOT_MOVED: i32 = 8;
/// In a namespace every port is free.
const PORT: u16 = 7070;

/// A controller and two agents that live as long as this.
#[derive(Debug)]
pub(crate) struct Service {
    directory: PathBuf,
    program: PathBuf,
    url: String,
    machines: u32,
    tls: PathBuf,
    processes: Vec<Running>,
}

impl Service {
    /// Starts everything on `link` and waits until both hosts are up.
    pub(crate) fn start(directory: &Path, vmotion: Option<&Path>, link: &Link) -> Result<Self> {
        fs::create_dir_all(directory)?;
        let directory = directory.canonicalize()?;
        // A copy: whoever builds meanwhile changes nothing, and our processes are known by it.
        let program = directory.join("vmotion");
        let original = vmotion.map_or_else(beside_this, |path| Ok(path.to_owned()))?;
        fs::copy(&original, &program).with_context(|| {
            format!("Cannot use {} (cargo build -p vmotion, or --vmotion FILE)", original.display())
        })?;
        let tls = directory.join("qemu-tls");
        let mut service = Self { directory, program, url: String::new(), machines: 0, tls, processes: Vec::new() };
        service.make_identities()?;
        service.make_qemu_identities()?;
        service.start_processes(link)?;
        wait_for("two hosts that are up", START_PATIENCE, || {
            for process in &mut service.processes {
                process.check()?;
            }
            // Until the controller listens, this fails.
            let Ok(hosts) = service.ask(link, &["host", "ls"]) else { return Ok(None) };
            let up = hosts.as_array().map_or(0, |hosts| hosts.iter().filter(|host| host["state"] == "up").count());
            Ok((up == 2).then_some(()))
        })?;
        Ok(service)
    }

    /// Certificates in the form that QEMU reads.
    pub(crate) fn tls_directory(&self) -> &Path {
        &self.tls
    }

    fn identity(&self, name: &str) -> String {
        self.directory.join(format!("{name}-identity")).display().to_string()
    }

    fn data(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn make_identities(&self) -> Result<()> {
        let run = |words: &[&str]| {
            let mut command = Command::new(&self.program);
            command.args(words).env("VMOTION_HOME", &self.directory);
            output(command)
        };
        let authority = self.directory.join("ca").display().to_string();
        run(&["pki", "init", &authority])?;
        for (role, name) in [("controller", "controller"), ("operator", "operator"), ("host", SOURCE), ("host", TARGET)]
        {
            run(&["pki", "issue", role, name, "--ca", &authority, "--out", &self.identity(name)])?;
        }
        Ok(())
    }

    /// The same certificates for QEMU: of the source as client, of the target as server.
    fn make_qemu_identities(&self) -> Result<()> {
        fs::create_dir_all(&self.tls)?;
        for (name, end) in [(SOURCE, "client"), (TARGET, "server")] {
            let identity = PathBuf::from(self.identity(name));
            for (from, to) in [
                ("ca.pem", "ca-cert.pem".to_owned()),
                ("cert.pem", format!("{end}-cert.pem")),
                ("key.pem", format!("{end}-key.pem")),
            ] {
                fs::copy(identity.join(from), self.tls.join(to)).with_context(|| format!("Cannot copy {from}"))?;
            }
        }
        Ok(())
    }

    fn start_processes(&mut self, link: &Link) -> Result<()> {
        let port = if matches!(link, Link::Loopback) { free_port()? } else { PORT };
        let listen = format!("{}:{port}", link.address(Side::Source));
        self.url = format!("https://{listen}");
        let start = |name: &str, side: Side, words: &[&str]| {
            let mut command = link.command(side, &self.program.display().to_string());
            command.args(words).arg("--data").arg(self.data(name)).args(["--identity", &self.identity(name)]);
            command.env("VMOTION_HOME", &self.directory);
            Running::start(name, command, &self.directory.join(format!("{name}.log")))
        };
        let mut processes = vec![start("controller", Side::Source, &["controller", "--listen", &listen])?];
        for (name, dc, side) in [(SOURCE, "dc1", Side::Source), (TARGET, "dc2", Side::Target)] {
            let listen = format!("{}:0", link.address(side));
            let words = ["agent", "--name", name, "--dc", dc, "--listen", &listen, "--controller", &self.url];
            processes.push(start(name, side, &words)?);
        }
        self.processes = processes;
        Ok(())
    }

    /// Runs a command of the operator; what it prints as JSON.
    fn ask(&self, link: &Link, words: &[&str]) -> Result<Value> {
        let printed = output_of(self.command(link, words), &[0, EXIT_NOT_MOVED])?;
        json_of(&printed, words)
    }

    fn command(&self, link: &Link, words: &[&str]) -> Command {
        let mut command = link.command(Side::Source, &self.program.display().to_string());
        command.args(words).args(["--json", "--controller", &self.url, "--identity", &self.identity("operator")]);
        command.env("VMOTION_HOME", &self.directory);
        command
    }

    /// Creates a machine at the source.
    pub(crate) fn machine<'s>(&'s mut self, mode: OurMode, guest: &Guest, link: &'s Link) -> Result<Machine<'s>> {
        self.machines += 1;
        let name = format!("vm{}", self.machines);
        let (kernel, memory, cpus) =
            (guest.kernel.display().to_string(), format!("{}M", guest.memory_bytes >> 20), guest.cpus.to_string());
        let machine = Machine { service: self, link, name, mode, limit: guest.limit, operation: Value::Null };
        machine.service.ask(
            link,
            &[
                "create",
                &machine.name,
                "--kernel",
                &kernel,
                "--memory",
                &memory,
                "--cpus",
                &cpus,
                "--cmdline",
                &guest.cmdline,
                "--on",
                SOURCE,
            ],
        )?;
        Ok(machine)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.processes.clear();
        // Machines outlive their agents by design. These run our copy of the program, so they are ours.
        for pid in running(&self.program) {
            if let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
    }
}

fn json_of(printed: &[u8], words: &[&str]) -> Result<Value> {
    if printed.is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_slice(printed).with_context(|| format!("vmotion {words:?} printed what is not JSON"))
}

/// The `vmotion` that was built along with this program.
fn beside_this() -> Result<PathBuf> {
    let here = std::env::current_exe().context("Cannot find this program")?;
    Ok(here.with_file_name("vmotion"))
}

/// A machine of the service, to be moved once; stopped and removed when dropped.
#[derive(Debug)]
pub(crate) struct Machine<'s> {
    service: &'s Service,
    link: &'s Link,
    name: String,
    mode: OurMode,
    limit: Duration,
    operation: Value,
}

impl Movable for Machine<'_> {
    fn consoles(&self) -> [PathBuf; 2] {
        [SOURCE, TARGET].map(|host| self.service.data(host).join("machines").join(&self.name).join("console.sock"))
    }

    fn begin(&mut self) -> Result<()> {
        // It runs since it was created; filling its memory takes longer than attaching.
        Ok(())
    }

    fn who(&self) -> Who {
        Who::Program(self.service.program.clone())
    }

    fn relocate(&mut self) -> Result<()> {
        // A move that did not happen has its own exit code, and still prints the operation.
        let mut words = vec!["move", self.name.as_str(), "--to", TARGET];
        if let Some(strategy) = self.mode.strategy {
            words.extend(["--strategy", strategy]);
        }
        if let Some(memory) = self.mode.delta_memory {
            words.extend(["--delta-memory", memory]);
        }
        // An interrupted `vmotion move` cancels, and waits for the end.
        let command = self.service.command(self.link, &words);
        let (late, printed) = output_within(command, &[0, EXIT_NOT_MOVED], self.limit)?;
        self.operation = json_of(&printed, &words)?;
        if self.operation.pointer("/outcome/result").and_then(Value::as_str) != Some("moved") {
            let outcome = &self.operation["outcome"];
            let reason = outcome.get("reason").unwrap_or(outcome);
            bail!(if late { NotMoved::too_late() } else { NotMoved::refused(reason.to_string()) });
        }
        Ok(())
    }

    fn told(&mut self) -> Result<Told> {
        let number = |pointer: &str| {
            let value = self.operation.pointer(pointer).and_then(Value::as_f64);
            value.with_context(|| format!("the report of the move lacks {pointer}"))
        };
        Ok(Told {
            total_ms: number("/summary/total_ms")?,
            downtime_ms: number("/summary/downtime/source_ms")?,
            wire_bytes: number("/summary/udp_bytes")?,
            detail: self.operation["summary"].clone(),
        })
    }
}

impl Drop for Machine<'_> {
    fn drop(&mut self) {
        // What cannot be stopped in an orderly way ends with the service.
        for words in [["stop", self.name.as_str()], ["rm", self.name.as_str()]] {
            if let Err(error) = self.service.ask(self.link, &words) {
                eprintln!("warning: {error:#}");
            }
        }
    }
}
