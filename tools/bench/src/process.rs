//! Processes that end with the bench, and Ctrl-C that lets it clean up.

use anyhow::{Context as _, Result, bail};
use std::{
    fs::File,
    path::Path,
    process::{Child, Command, Output, Stdio},
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Turns SIGINT and SIGTERM into a flag that every wait looks at.
pub(crate) fn watch_interrupts() -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        runtime.block_on(async {
            let (Ok(mut interrupt), Ok(mut terminate)) =
                (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
            else {
                return;
            };
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            INTERRUPTED.store(true, Ordering::Relaxed);
        });
    })?;
    Ok(())
}

/// An error once the user asked to end.
pub(crate) fn check_interrupted() -> Result<()> {
    if INTERRUPTED.load(Ordering::Relaxed) {
        bail!("interrupted");
    }
    Ok(())
}

/// Asks `question` until it has an answer.
pub(crate) fn wait_for<T>(
    what: &str,
    patience: Duration,
    mut question: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        check_interrupted()?;
        if let Some(answer) = question()? {
            return Ok(answer);
        }
        if start.elapsed() > patience {
            bail!("no {what} within {patience:?}");
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// A child that is killed when this goes out of scope.
#[derive(Debug)]
pub(crate) struct Running {
    name: String,
    child: Child,
}

impl Running {
    /// Starts `command`, whose program must begin a session of its own (see `Link::command`): Ctrl-C reaches the bench
    /// alone. What it prints goes to `log`.
    pub(crate) fn start(name: &str, mut command: Command, log: &Path) -> Result<Self> {
        let out = File::create(log).with_context(|| format!("Cannot write {}", log.display()))?;
        let errors = out.try_clone()?;
        command.stdin(Stdio::null()).stdout(out).stderr(errors);
        let child = command.spawn().with_context(|| format!("Cannot start {name}"))?;
        Ok(Self { name: name.to_owned(), child })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// An error when it has ended.
    pub(crate) fn check(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            Some(status) => bail!("{} ended: {status}", self.name),
            None => Ok(()),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only when it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs `command` to its end; what it printed, or an error with what it complained of.
pub(crate) fn output(command: Command) -> Result<Vec<u8>> {
    output_of(command, &[0])
}

/// The same, for a command that has more exit codes to say that it worked.
pub(crate) fn output_of(mut command: Command, good: &[i32]) -> Result<Vec<u8>> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("Cannot run {command:?}"))?;
    printed(&command, output, good)
}

/// The same, for a command that is asked to end (SIGINT) after `limit`. Whether it was, and what it printed.
pub(crate) fn output_within(mut command: Command, good: &[i32], limit: Duration) -> Result<(bool, Vec<u8>)> {
    let context = format!("Cannot run {command:?}");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().context(context)?;
    let pid = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw);
    let (over, ended) = mpsc::channel::<()>();
    let watch = thread::spawn(move || {
        let late = ended.recv_timeout(limit) == Err(mpsc::RecvTimeoutError::Timeout);
        if let Some(pid) = pid.filter(|_| late) {
            // It has not been waited for to its end, so the number is still its own.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::INT);
        }
        late
    });
    let output = child.wait_with_output();
    drop(over);
    let late = watch.join().unwrap_or(false);
    Ok((late, printed(&command, output?, good)?))
}

fn printed(command: &Command, output: Output, good: &[i32]) -> Result<Vec<u8>> {
    if !output.status.code().is_some_and(|code| good.contains(&code)) {
        let (said, printed) = (String::from_utf8_lossy(&output.stderr), String::from_utf8_lossy(&output.stdout));
        bail!("{command:?} failed ({}): {}\n{}", output.status, said.trim(), printed.trim());
    }
    Ok(output.stdout)
}
