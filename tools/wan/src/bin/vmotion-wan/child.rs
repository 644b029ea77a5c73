//! The command the link exists for.

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, kill_process};
use std::{os::unix::process::ExitStatusExt as _, process::ExitStatus, time::Duration};
use tokio::process::{Child, Command};
use vmotion_wan::{End, Wan};

/// How long it may take to end when asked.
const PATIENCE: Duration = Duration::from_secs(5);

/// Starts `command`, whose first word is the program, at one end or where this runs.
pub(crate) fn start(command: &[std::ffi::OsString], inside: Option<End>, wan: &Wan) -> Result<Child> {
    let (program, arguments) = command.split_first().context("there is no command")?;
    let mut command = match inside {
        Some(end) => {
            let mut command = Command::from(wan.namespace(end).command("env"));
            // `env` finds the program as a shell would, and says so when there is none.
            command.arg("--").arg(program);
            command
        }
        None => Command::new(program),
    };
    for (end, name) in [(End::A, "A"), (End::B, "B")] {
        command.env(format!("WAN_NETNS_{name}"), wan.namespace(end).name());
        command.env(format!("WAN_ADDRESS_{name}"), wan.address(end).to_string());
    }
    command.args(arguments).kill_on_drop(true);
    command.spawn().with_context(|| format!("cannot run {}", program.display()))
}

/// Its exit code as a shell would give it.
pub(crate) fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default());
    u8::try_from(code).unwrap_or(u8::MAX)
}

/// Asks it to end, and makes it end if it does not.
pub(crate) async fn end(child: &mut Child) -> Result<ExitStatus> {
    // Without an id it has ended and was waited for.
    if let Some(pid) = child.id().and_then(|id| Pid::from_raw(id.cast_signed())) {
        // It may have ended this moment.
        let _ = kill_process(pid, Signal::TERM);
    }
    if let Ok(status) = tokio::time::timeout(PATIENCE, child.wait()).await {
        return Ok(status?);
    }
    child.kill().await?;
    Ok(child.wait().await?)
}
