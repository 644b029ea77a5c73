//! A machine's directory on a host: what survives every process.
//!
//! ```text
//! DATA/machines/NAME/
//!   launch.json    what the machine process was started for
//!   state.json     what it last said of itself; the truth once it is gone
//!   control.sock   requests from the agent
//!   console.log    output since the machine came here      console.sock   live output, and input
//!   process.log    what the process logs                   moves/ID.json  reports of finished moves away
//! ```

use crate::process::{Launch, ProcessState};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    fs, io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};
use vmotion_model::{MachineName, MoveId};

/// Paths of one machine.
#[derive(Debug, Clone)]
pub(crate) struct MachineDirectory {
    path: PathBuf,
    /// Held while `state.json` is written.
    writing: Arc<Mutex<()>>,
}

impl MachineDirectory {
    /// The directory of `name` below the agent's `data`.
    #[must_use]
    pub(crate) fn of(data: &Path, name: &MachineName) -> Self {
        Self::at(data.join("machines").join(name.as_str()))
    }

    /// The directory at `path`.
    #[must_use]
    pub(crate) fn at(path: PathBuf) -> Self {
        Self { path, writing: Arc::default() }
    }

    /// All machines below `data`, sorted.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub(crate) fn all(data: &Path) -> io::Result<Vec<MachineName>> {
        let entries = match fs::read_dir(data.join("machines")) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut names = Vec::new();
        for entry in entries {
            if let Some(name) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    /// The directory itself.
    #[must_use]
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn exists(&self) -> bool {
        self.path.is_dir()
    }

    pub(crate) fn control_socket(&self) -> PathBuf {
        self.path.join("control.sock")
    }

    pub(crate) fn console_socket(&self) -> PathBuf {
        self.path.join("console.sock")
    }

    pub(crate) fn console_log(&self) -> PathBuf {
        self.path.join("console.log")
    }

    pub(crate) fn process_log(&self) -> PathBuf {
        self.path.join("process.log")
    }

    fn move_report(&self, id: &MoveId) -> PathBuf {
        self.path.join("moves").join(format!("{id}.json"))
    }

    /// Makes a place for a machine that starts or arrives: what an earlier stay left is put aside, so that console
    /// offsets of this stay begin with this log.
    pub(crate) fn prepare(&self) -> io::Result<()> {
        // Owner only: the launch file holds a move's ticket, the sockets give orders.
        let mut owner_only = fs::DirBuilder::new();
        owner_only.recursive(true).mode(0o700);
        owner_only.create(&self.path)?;
        owner_only.create(self.path.join("moves"))?;
        let log = self.console_log();
        if log.exists() {
            // Named by the offset of its first byte: offsets only grow, so the names sort and never clash.
            let base = self.read_state().map_or(0, |state| state.console_base);
            if fs::metadata(&log)?.len() == 0 {
                fs::remove_file(&log)?;
            } else {
                fs::rename(&log, self.path.join(format!("console.{base}.log")))?;
            }
        }
        for stale in [self.control_socket(), self.console_socket(), self.path.join("state.json")] {
            remove_if_there(&stale)?;
        }
        Ok(())
    }

    pub(crate) fn remove(&self) -> io::Result<()> {
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    pub(crate) fn write_launch(&self, launch: &Launch) -> io::Result<()> {
        write_json(&self.path.join("launch.json"), launch)
    }

    pub(crate) fn read_launch(&self) -> io::Result<Launch> {
        read_json(&self.path.join("launch.json"))
    }

    /// One writer at a time, who asks for the state when it is his turn: what is in the file in the end is the newest, and whole.
    pub(crate) fn write_state(&self, state: impl FnOnce() -> ProcessState) -> io::Result<()> {
        // It guards no data; a panic leaves nothing behind in it.
        let _turn = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        write_json(&self.path.join("state.json"), &state())
    }

    pub(crate) fn read_state(&self) -> io::Result<ProcessState> {
        read_json(&self.path.join("state.json"))
    }

    /// Where a prepared arrival listens.
    pub(crate) fn write_ready(&self, ready: &vmotion_api::IncomingReady) -> io::Result<()> {
        write_json(&self.path.join("incoming.json"), ready)
    }

    pub(crate) fn read_ready(&self) -> io::Result<vmotion_api::IncomingReady> {
        read_json(&self.path.join("incoming.json"))
    }

    /// Removes what an attempt to start or receive left; the whole directory when nothing older is in it.
    pub(crate) fn forget_attempt(&self) {
        let older = fs::read_dir(&self.path).is_ok_and(|entries| {
            entries.flatten().any(|entry| {
                let name = entry.file_name();
                name.to_str()
                    .is_some_and(|name| name.starts_with("console.") && name != "console.log" && name != "console.sock")
            })
        });
        let removed = if older { remove_if_there(&self.path.join("state.json")) } else { self.remove() };
        if let Err(error) = removed {
            tracing::warn!(%error, "the attempt's files cannot be removed");
        }
    }

    pub(crate) fn write_report(&self, id: &MoveId, report: &vmotion_api::MoveReport) -> io::Result<()> {
        write_json(&self.move_report(id), report)
    }

    pub(crate) fn read_report(&self, id: &MoveId) -> io::Result<vmotion_api::MoveReport> {
        read_json(&self.move_report(id))
    }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Readers see the old file or the new one, never half of one. One writer at a time.
fn write_json(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let text = serde_json::to_vec_pretty(value)?;
    let fresh = path.with_extension("new");
    fs::write(&fresh, text)?;
    fs::rename(&fresh, path)
}

fn read_json<T: DeserializeOwned>(path: &Path) -> io::Result<T> {
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};
    use vmotion_model::{Backing, ByteSize, DirtySource, Epoch, InterruptController, MachineSpec, MachineState};

    fn state(console_bytes: u64) -> ProcessState {
        let spec = MachineSpec {
            name: "vm1".parse().unwrap(),
            cpus: 1,
            memory: ByteSize::mib(64),
            kernel: "/kernel".into(),
            initrd: None,
            cmdline: String::new(),
            disks: Vec::new(),
            backing: Backing::Memfd,
            dirty_source: DirtySource::Auto,
            interrupts: InterruptController::Kernel,
        };
        ProcessState {
            spec,
            epoch: Epoch::FIRST,
            state: MachineState::Running,
            pid: 1,
            // Longer and shorter in turn, as a state is that names a move or does not.
            reason: console_bytes.is_multiple_of(2).then(|| "x".repeat(5000)),
            console_base: 0,
            console_bytes,
            move_id: None,
            left: false,
        }
    }

    #[test]
    fn writers_of_a_state_leave_the_newest_and_all_of_it() {
        let path = tempfile::tempdir().unwrap();
        let directory = MachineDirectory::at(path.path().to_owned());
        let number = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        directory.clone().write_state(|| state(number.fetch_add(1, Ordering::Relaxed))).unwrap();
                    }
                });
            }
        });
        assert_eq!(directory.read_state().unwrap().console_bytes, 799);
    }
}
