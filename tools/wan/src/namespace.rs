//! Network namespaces: the two hosts a WAN lies between.

use crate::error::WanError;
use std::{
    fs::File,
    io,
    os::{fd::AsFd as _, unix::process::CommandExt as _},
    path::PathBuf,
    process::{Command, Stdio},
    thread,
};

/// Where `ip netns` keeps them.
const DIRECTORY: &str = "/run/netns";

/// A network namespace with a name, as `ip netns` knows it.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    /// Removed when this is dropped.
    ours: bool,
}

impl Namespace {
    /// Makes one, with loopback up, that is removed when this is dropped.
    pub(crate) fn create(name: String) -> Result<Self, WanError> {
        ip(&["netns", "add", &name])?;
        let namespace = Self { name, ours: true };
        ip(&["-n", &namespace.name, "link", "set", "lo", "up"])?;
        Ok(namespace)
    }

    /// One that exists; it stays.
    pub(crate) fn existing(name: &str) -> Result<Self, WanError> {
        // A name is a file in one directory, nothing that leads elsewhere.
        if name.is_empty() || name.contains('/') || name.starts_with('.') {
            let allowed = "write a name that `ip netns list` shows";
            return Err(WanError::Option { field: "namespace", value: format!("{name:?}"), allowed });
        }
        let namespace = Self { name: name.to_owned(), ours: false };
        namespace.open().map_err(|error| WanError::Namespace { name: name.to_owned(), error })?;
        ip(&["-n", name, "link", "set", "lo", "up"])?;
        Ok(namespace)
    }

    /// As in `ip netns exec NAME`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A command that runs `program` in it. `ip netns exec` becomes the program: its process id stays.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]);
        command
    }

    /// Does `work` in it, on a thread of its own. Sockets and files of `/proc/thread-self/net` opened there stay what they
    /// are; threads and processes started there stay in it.
    ///
    /// # Errors
    /// When there is no thread to be had, or the namespace is gone.
    ///
    /// # Panics
    /// When `work` does.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, WanError> {
        thread::scope(|scope| {
            let inside = || -> io::Result<T> {
                let network = Some(rustix::thread::LinkNameSpaceType::Network);
                rustix::thread::move_into_link_name_space(self.open()?.as_fd(), network)?;
                Ok(work())
            };
            let thread = thread::Builder::new().name("in-namespace".to_owned()).spawn_scoped(scope, inside);
            let result = thread.and_then(|thread| match thread.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            });
            result.map_err(|error| WanError::Namespace { name: self.name.clone(), error })
        })
    }

    fn open(&self) -> io::Result<File> {
        File::open(PathBuf::from(DIRECTORY).join(&self.name))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if self.ours {
            // It can only be gone already.
            let _ = ip(&["netns", "delete", &self.name]);
        }
    }
}

/// Runs `ip` to its end, out of reach of the terminal's Ctrl-C: cleaning up must not be interrupted.
pub(crate) fn ip(arguments: &[&str]) -> Result<(), WanError> {
    let mut command = Command::new("ip");
    command.args(arguments).process_group(0).stdin(Stdio::null());
    let output = command.output().map_err(WanError::IpMissing)?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(WanError::Ip { arguments: arguments.join(" "), said })
}
