//! The thread behind a queue, and what it shares with the transport's registers.

use super::Backend;
use crate::memory::GuestRam;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use virtio_queue::{Queue, QueueT};
use vmm_sys_util::eventfd::EventFd;

/// Interrupt status bit: the used ring has news.
const INTERRUPT_USED: u32 = 1;
/// Interrupt status bit: the configuration (here: the status) changed.
const INTERRUPT_CONFIG: u32 = 2;

/// Everything of a device but its registers.
pub(super) struct Shared {
    pub(super) backend: Box<dyn Backend>,
    pub(super) ram: Arc<GuestRam>,
    /// Written by the guest through an ioeventfd, and by us to wake the worker.
    pub(super) notify: EventFd,
    pub(super) irq: EventFd,
    /// Not under the lock: the guest acknowledges interrupts while a request is being performed.
    pub(super) interrupt_status: AtomicU32,
    /// The driver said that it is ready, and nothing went wrong since.
    pub(super) live: AtomicBool,
    /// A request was malformed; only a reset helps.
    pub(super) broken: AtomicBool,
    /// The machine runs; false while quiesced.
    pub(super) running: AtomicBool,
    pub(super) end: AtomicBool,
    queue: Mutex<Queue>,
}

impl Shared {
    pub(super) fn new(
        backend: Box<dyn Backend>,
        ram: Arc<GuestRam>,
        notify: EventFd,
        irq: EventFd,
        queue: Queue,
    ) -> Self {
        Self {
            backend,
            ram,
            notify,
            irq,
            interrupt_status: AtomicU32::new(0),
            live: AtomicBool::new(false),
            broken: AtomicBool::new(false),
            running: AtomicBool::new(false),
            end: AtomicBool::new(false),
            queue: Mutex::new(queue),
        }
    }

    pub(super) fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn wake(&self) {
        if let Err(error) = self.notify.write(1) {
            tracing::error!(%error, device = self.backend.name(), "worker cannot be woken");
        }
    }

    /// Raises the interrupt line again, when the guest has not acknowledged the last one.
    pub(super) fn raise_pending(&self) {
        if self.interrupt_status.load(Ordering::SeqCst) != 0 {
            self.raise();
        }
    }

    fn raise(&self) {
        if let Err(error) = self.irq.write(1) {
            tracing::error!(%error, device = self.backend.name(), "interrupt cannot be raised");
        }
    }

    fn interrupt(&self, reason: u32) {
        self.interrupt_status.fetch_or(reason, Ordering::SeqCst);
        self.raise();
    }

    /// The driver did something wrong: stop, and say so.
    pub(super) fn give_up(&self, reason: &dyn std::fmt::Display) {
        tracing::warn!(%reason, device = self.backend.name(), "device needs a reset");
        self.live.store(false, Ordering::SeqCst);
        self.broken.store(true, Ordering::SeqCst);
        self.interrupt(INTERRUPT_CONFIG);
    }

    fn may_work(&self) -> bool {
        let [running, live, end] = [&self.running, &self.live, &self.end].map(|flag| flag.load(Ordering::SeqCst));
        running && live && !end
    }

    /// Performs one request, if there is one; false when there is nothing to do.
    fn step(&self) -> bool {
        let mut queue = self.queue();
        // Under the lock: whoever quiesces clears the flag and then takes the lock to wait for us.
        if !self.may_work() {
            return false;
        }
        let memory = self.ram.devices();
        let Some(chain) = queue.pop_descriptor_chain(memory) else {
            // Nothing there; but the guest may have added something while notifications were off.
            return queue.enable_notification(memory).unwrap_or(false);
        };
        let head = chain.head_index();
        match self.backend.perform(memory, chain) {
            Ok(written) => {
                match queue.add_used(memory, head, written).and_then(|()| queue.needs_notification(memory)) {
                    Ok(true) => self.interrupt(INTERRUPT_USED),
                    Ok(false) => {}
                    Err(error) => self.give_up(&error),
                }
            }
            Err(error) => self.give_up(&error),
        }
        true
    }

    /// The worker's life: sleep until notified, then work until the queue is empty; flush when quiesced.
    pub(super) fn work(&self) {
        while !self.end.load(Ordering::SeqCst) {
            if let Err(error) = self.notify.read()
                && error.kind() != std::io::ErrorKind::Interrupted
            {
                tracing::error!(%error, device = self.backend.name(), "worker ends: its eventfd cannot be read");
                return;
            }
            // A queue of QUEUE_SIZE requests that always has one more is the guest's right; the flags end it.
            while self.step() {}
            if !self.running.load(Ordering::SeqCst)
                && let Err(error) = self.backend.settle()
            {
                // Reported to whoever settles, who tries again.
                tracing::warn!(%error, device = self.backend.name(), "disk cannot be flushed");
            }
        }
    }
}
