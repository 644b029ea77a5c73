//! Standing still, and the point of no return as a type.
//!
//! A [`PauseGuard`] resumes the machine when it is dropped, so an early return or a panic cannot leave it standing. Freezing it
//! gives a [`Frozen`], whose drop does nothing: from there on only [`Frozen::thaw`], said aloud, runs the guest again.

use super::{Inner, Phase};
use crate::MachineError;
use std::sync::Arc;
use std::time::Duration;

/// Longest a save waits for the console log, in milliseconds.
const CONSOLE_FLUSH_MS: u64 = 100;

/// A machine that stands still until this is dropped.
#[derive(Debug)]
#[must_use = "dropping the guard resumes the machine"]
pub struct PauseGuard {
    inner: Option<Arc<Inner>>,
}

/// A machine that stands still for good, unless it is thawed.
#[derive(Debug)]
pub struct Frozen {
    inner: Arc<Inner>,
}

impl PauseGuard {
    pub(super) fn new(inner: Arc<Inner>) -> Result<Self, MachineError> {
        let mut phase = inner.phase();
        if *phase != Phase::Running {
            return Err(MachineError::WrongState { state: phase.name(), action: "pause" });
        }
        inner.park_vcpus()?;
        inner.devices.iter().for_each(|device| device.quiesce());
        *phase = Phase::Paused;
        drop(phase);
        Ok(Self { inner: Some(inner) })
    }

    fn inner(&self) -> &Arc<Inner> {
        // Taken only by the methods that consume the guard.
        self.inner.as_ref().unwrap_or_else(|| unreachable!("a guard has its machine until it is consumed"))
    }

    /// The complete state of the machine but its memory, at this moment. Console output so far is in its log afterwards.
    ///
    /// # Errors
    /// [`MachineError`] names what could not be saved; the guard still resumes the machine.
    pub fn save(&self) -> Result<Vec<u8>, MachineError> {
        save(self.inner())
    }

    /// Waits until everything the guest wrote to its disks is on stable storage, where another host sees it. The flush
    /// began with the pause; sending the last pages meanwhile hides it.
    ///
    /// # Errors
    /// [`MachineError::Device`] names the disk that failed.
    pub fn settle(&self) -> Result<(), MachineError> {
        self.inner().settle()
    }

    /// Gives up the automatic resume. Call [`Self::settle`] before: here it is too late to say that a disk failed, so
    /// that is only logged.
    #[must_use]
    pub fn freeze(mut self) -> Frozen {
        if let Err(error) = self.settle() {
            tracing::error!(%error, "disk writes may be missing where this machine goes");
        }
        let inner = Arc::clone(self.inner());
        self.inner = None;
        let mut phase = inner.phase();
        if *phase == Phase::Paused {
            *phase = Phase::Frozen;
        }
        drop(phase);
        Frozen { inner }
    }
}

impl Drop for PauseGuard {
    fn drop(&mut self) {
        if let Some(inner) = self.inner.take() {
            resume(&inner, Phase::Paused);
        }
    }
}

impl Frozen {
    /// The complete state of the machine but its memory; as [`PauseGuard::save`].
    ///
    /// # Errors
    /// [`MachineError`] names what could not be saved.
    pub fn save(&self) -> Result<Vec<u8>, MachineError> {
        save(&self.inner)
    }

    /// Runs the guest again: whoever calls this knows that no other copy does.
    pub fn thaw(self) {
        resume(&self.inner, Phase::Frozen);
    }
}

fn save(inner: &Inner) -> Result<Vec<u8>, MachineError> {
    let state = inner.save()?;
    inner.console.flush(Duration::from_millis(CONSOLE_FLUSH_MS));
    Ok(state)
}

fn resume(inner: &Inner, expected: Phase) {
    let mut phase = inner.phase();
    // Anything else means that the machine was stopped meanwhile.
    if *phase == expected
        && let Err(error) = inner.run(&mut phase, "resume")
    {
        tracing::error!(%error, "paused machine cannot be resumed");
    }
}
