//! How a guest ends, and that all its vCPUs stop then.

use super::VcpuShared;
use crate::devices::ShutdownSink;
use crate::machine::ExitReason;
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

type ExitNotify = Box<dyn Fn(&ExitReason) + Send + Sync>;

/// The first reason the guest gave to end, and all vCPUs, which must stop then.
#[derive(Default)]
pub(crate) struct Exits {
    reason: Mutex<Option<ExitReason>>,
    changed: Condvar,
    vcpus: OnceLock<Vec<Arc<VcpuShared>>>,
    notify: Mutex<Vec<ExitNotify>>,
}

impl Exits {
    pub(crate) fn set_vcpus(&self, vcpus: Vec<Arc<VcpuShared>>) {
        // Called once, while the machine is built.
        let _ = self.vcpus.set(vcpus);
    }

    pub(crate) fn reason(&self) -> Option<ExitReason> {
        self.reason.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Calls `notify` once with the reason, at once when there is one already.
    pub(crate) fn on_exit(&self, notify: ExitNotify) {
        let reason = self.reason.lock().unwrap_or_else(PoisonError::into_inner);
        match &*reason {
            Some(reason) => notify(reason),
            None => self.notify.lock().unwrap_or_else(PoisonError::into_inner).push(notify),
        }
    }

    pub(crate) fn wait(&self, within: Duration) -> Option<ExitReason> {
        let deadline = Instant::now() + within;
        let mut reason = self.reason.lock().unwrap_or_else(PoisonError::into_inner);
        while reason.is_none() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            reason = self.changed.wait_timeout(reason, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        reason.clone()
    }

    /// Makes the vCPUs that are here look at everything again. Takes no lock: whoever pauses the machine may be waiting for a vCPU.
    pub(crate) fn kick_all(&self) {
        self.vcpus.get().into_iter().flatten().filter(|vcpu| vcpu.is_here()).for_each(|vcpu| vcpu.kick());
    }
}

impl ShutdownSink for Exits {
    fn shut_down(&self, reason: ExitReason) {
        let mut first = self.reason.lock().unwrap_or_else(PoisonError::into_inner);
        if first.is_some() {
            return;
        }
        *first = Some(reason.clone());
        for vcpu in self.vcpus.get().into_iter().flatten() {
            vcpu.request_stop();
        }
        self.changed.notify_all();
        let notify = std::mem::take(&mut *self.notify.lock().unwrap_or_else(PoisonError::into_inner));
        drop(first);
        notify.iter().for_each(|call| call(&reason));
    }
}
