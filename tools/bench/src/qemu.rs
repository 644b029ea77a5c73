//! QEMU as a careful operator would set it up, driven by its monitor.

use crate::{
    host::QEMU,
    link::{Link, Side},
    process::{Running, wait_for},
    qmp::Monitor,
    sample::{PostCopy, QemuMode},
    suite::{Guest, Movable, NotMoved, START_PATIENCE, Told},
    usage::Who,
};
use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use std::{
    net::TcpListener,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Far above any link: by default QEMU holds itself to 1 Gbit/s.
const BANDWIDTH_BYTES_PER_S: u64 = 100_000_000_000;
/// The name in the target's certificate.
pub(crate) const TLS_NAME: &str = "h2";
/// In a namespace every port is free.
const PORT: u16 = 4444;

/// A guest in one QEMU, and another that waits for it.
#[derive(Debug)]
pub(crate) struct Pair {
    source: Half,
    target: Half,
    uri: String,
    mode: QemuMode,
    limit: Duration,
}

#[derive(Debug)]
struct Half {
    process: Running,
    monitor: Monitor,
    console: PathBuf,
}

impl Pair {
    /// Boots the guest, and prepares the target. `tls` holds the certificates of both ends.
    pub(crate) fn start(directory: &Path, mode: QemuMode, guest: &Guest, link: &Link, tls: &Path) -> Result<Self> {
        let port = if matches!(link, Link::Loopback) { free_port()? } else { PORT };
        let uri = format!("tcp:{}:{port}", link.address(Side::Target));
        let mut source = Half::start(directory, Side::Source, mode, guest, link, tls)?;
        let mut target = Half::start(directory, Side::Target, mode, guest, link, tls)?;
        source.set_up(Side::Source, mode)?;
        target.set_up(Side::Target, mode)?;
        target.monitor.ask("migrate-incoming", json!({ "uri": uri }))?;
        Ok(Self { source, target, uri, mode, limit: guest.limit })
    }
}

impl Half {
    fn start(directory: &Path, side: Side, mode: QemuMode, guest: &Guest, link: &Link, tls: &Path) -> Result<Self> {
        let name = if side == Side::Source { "source" } else { "target" };
        let (console, monitor) = (directory.join(format!("{name}.console")), directory.join(format!("{name}.qmp")));
        let listen = |path: &Path| format!("unix:{},server=on,wait=off", path.display());
        let mut command = link.command(side, QEMU);
        command
            .args(["-enable-kvm", "-cpu", "host,-arch-capabilities"])
            .args(["-M", "microvm,acpi=off,rtc=on,pit=on,pic=on", "-nodefaults", "-no-reboot", "-display", "none"])
            .args(["-name", "guest=bench,debug-threads=on"])
            .args(["-smp", &guest.cpus.to_string(), "-m", &format!("{}M", guest.memory_bytes >> 20)])
            .arg("-kernel")
            .arg(&guest.kernel)
            .args(["-append", &guest.cmdline])
            .args(["-serial", &listen(&console), "-qmp", &listen(&monitor)]);
        if mode.tls {
            let end = if side == Side::Source { "client" } else { "server" };
            // Our certificates name signatures as their only use, as TLS 1.3 wants; QEMU 7.2's own check of them is older.
            let tls =
                format!("tls-creds-x509,id=tls0,dir={},endpoint={end},verify-peer=on,sanity-check=off", tls.display());
            command.args(["-object", &tls]);
        }
        if side == Side::Target {
            command.args(["-incoming", "defer"]);
        } else {
            // Until its console is watched.
            command.arg("-S");
        }
        let log = directory.join(format!("{name}.log"));
        let mut process = Running::start(&format!("QEMU ({name})"), command, &log)?;
        let stream = wait_for("monitor of QEMU", START_PATIENCE, || {
            let alive = process.check();
            let said = || std::fs::read_to_string(&log).unwrap_or_default();
            alive.with_context(|| said().trim().to_owned())?;
            Ok(UnixStream::connect(&monitor).ok())
        })?;
        Ok(Self { process, monitor: Monitor::open(stream)?, console })
    }

    fn set_up(&mut self, side: Side, mode: QemuMode) -> Result<()> {
        let on = |name: &str| json!({ "capability": name, "state": true });
        let mut capabilities = vec![on("events")];
        let mut parameters = json!({});
        if side == Side::Source {
            parameters["max-bandwidth"] = BANDWIDTH_BYTES_PER_S.into();
            parameters["downtime-limit"] = mode.downtime_ms_max.into();
        }
        if mode.channels > 0 {
            capabilities.push(on("multifd"));
            parameters["multifd-channels"] = mode.channels.into();
        }
        if mode.post_copy != PostCopy::No {
            capabilities.push(on("postcopy-ram"));
            capabilities.push(on("postcopy-blocktime"));
        }
        if mode.post_copy == PostCopy::Preempt {
            capabilities.push(on("postcopy-preempt"));
        }
        if mode.xbzrle_bytes > 0 {
            capabilities.push(on("xbzrle"));
            parameters["xbzrle-cache-size"] = mode.xbzrle_bytes.into();
        }
        if mode.zstd {
            parameters["multifd-compression"] = "zstd".into();
        }
        if mode.tls {
            parameters["tls-creds"] = "tls0".into();
            if side == Side::Source {
                parameters["tls-hostname"] = TLS_NAME.into();
            }
        }
        self.monitor.ask("migrate-set-capabilities", json!({ "capabilities": capabilities }))?;
        self.monitor.ask("migrate-set-parameters", parameters)?;
        Ok(())
    }

    /// Waits until the migration has a status.
    fn wait_for_status(&mut self, wanted: &str, deadline: Instant) -> Result<()> {
        self.wait_for_event(deadline, |event| match event.pointer("/data/status").and_then(Value::as_str) {
            Some(status) if status == wanted => Ok(true),
            Some(bad @ ("failed" | "cancelled" | "postcopy-paused")) => {
                bail!(NotMoved::refused(format!("QEMU's migration is {bad}")))
            }
            _ => Ok(false),
        })
    }

    /// Waits for an event that `wanted` takes.
    fn wait_for_event(&mut self, deadline: Instant, wanted: impl Fn(&Value) -> Result<bool>) -> Result<()> {
        loop {
            if Instant::now() > deadline {
                bail!(NotMoved::too_late());
            }
            let Some(event) = self.monitor.next_event(deadline)? else { continue };
            if wanted(&event)? {
                return Ok(());
            }
        }
    }
}

impl Movable for Pair {
    fn consoles(&self) -> [PathBuf; 2] {
        [self.source.console.clone(), self.target.console.clone()]
    }

    fn begin(&mut self) -> Result<()> {
        self.source.monitor.ask("cont", json!({}))?;
        Ok(())
    }

    fn who(&self) -> Who {
        Who::Pids(vec![self.source.process.pid(), self.target.process.pid()])
    }

    fn relocate(&mut self) -> Result<()> {
        let deadline = Instant::now() + self.limit;
        self.source.monitor.ask("migrate", json!({ "uri": self.uri }))?;
        if self.mode.post_copy == PostCopy::No {
            self.source.wait_for_status("completed", deadline)?;
            return self.target.wait_for_event(deadline, |event| Ok(event["event"] == "RESUME"));
        }
        self.source.wait_for_status("active", deadline)?;
        self.source.monitor.ask("migrate-start-postcopy", json!({}))?;
        self.source.wait_for_status("completed", deadline)?;
        // The last page is there.
        self.target.wait_for_status("completed", deadline)
    }

    fn told(&mut self) -> Result<Told> {
        let source = self.source.monitor.ask("query-migrate", json!({}))?;
        let target = self.target.monitor.ask("query-migrate", json!({}))?;
        let number = |pointer: &str| {
            let value = source.pointer(pointer).and_then(Value::as_f64);
            value.with_context(|| format!("query-migrate lacks {pointer}"))
        };
        Ok(Told {
            total_ms: number("/total-time")?,
            // Only of a migration that has come to its end.
            downtime_ms: number("/downtime").unwrap_or(f64::NAN),
            wire_bytes: number("/ram/transferred")?,
            detail: json!({ "source": source, "target": target }),
        })
    }
}

/// A TCP port that was free a moment ago.
pub(crate) fn free_port() -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").context("Cannot find a free port")?;
    Ok(listener.local_addr()?.port())
}
