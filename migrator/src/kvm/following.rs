//! Memory that follows a guest: faults are read by a thread for each shard, answered here or asked for; what arrives is mapped.

use crate::guest::{GuestError, Wants};
use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, eventfd},
    fd::OwnedFd,
};
use std::{sync::Arc, thread};
use vmotion_dirty_tracking::PageBitmap;
use vmotion_machine::Machine;
use vmotion_model::{FollowReport, PAGE_SIZE, error_chain};
use vmotion_pager::{FaultQueue, GuestRegion, Pager, Resolution};

/// Fault queues, each with its thread. One userfaultfd is one lock.
const SHARDS_MAX: usize = 4;
/// Of threads that somebody waits for.
const URGENT_NICE: i32 = -10;

/// The pager of one machine, and its threads. Dropping it ends them.
#[derive(Debug)]
pub(super) struct Following {
    pager: Arc<Pager>,
    wants: Wants,
    missing: u64,
    /// Readable once the threads are to end.
    stop: Arc<OwnedFd>,
}

impl Following {
    /// Sees to it that whoever touches one of `missing` waits for it, and starts answering.
    pub(super) fn start(machine: &Machine, missing: &PageBitmap, wants: Wants) -> Result<Self, GuestError> {
        let failed = |error: &(dyn std::error::Error + 'static)| GuestError(error_chain(error));
        let ram = machine.memory();
        let region = |(address, pages): (usize, std::ops::Range<u64>)| GuestRegion {
            address,
            first: pages.start,
            pages: pages.end - pages.start,
            file_offset: pages.start * PAGE_SIZE,
        };
        let regions: Vec<GuestRegion> = ram.mapped_at().map(region).collect();
        let shards = thread::available_parallelism().map_or(1, usize::from).min(SHARDS_MAX);
        let (pager, queues) = Pager::arm(ram.memfd(), &regions, missing, shards).map_err(|error| failed(&error))?;
        let stop = eventfd(0, EventfdFlags::CLOEXEC).map_err(|error| failed(&error))?;
        let following = Self { pager: Arc::new(pager), wants, missing: missing.count(), stop: Arc::new(stop) };
        for (shard, queue) in queues.into_iter().enumerate() {
            let answerer = Answerer {
                pager: Arc::clone(&following.pager),
                queue,
                stop: Arc::clone(&following.stop),
                wants: following.wants.clone(),
            };
            let thread = thread::Builder::new().name(format!("faults-{shard}"));
            thread.spawn(move || answerer.run()).map_err(|error| failed(&error))?;
        }
        following.tell_if_done();
        Ok(following)
    }

    /// `bytes` are what the pages from `first` on hold. Pages that are here already keep what the guest made of them.
    pub(super) fn complete_from(&self, first: u64, bytes: &[u8]) -> Result<(), GuestError> {
        self.pager.complete_from(first, bytes).map_err(|error| GuestError(error_chain(&error)))?;
        self.tell_if_done();
        Ok(())
    }

    pub(super) fn complete_zero(&self, first: u64, pages: u64) -> Result<(), GuestError> {
        self.pager.complete_zero(first, pages).map_err(|error| GuestError(error_chain(&error)))?;
        self.tell_if_done();
        Ok(())
    }

    fn tell_if_done(&self) {
        if self.pager.remaining() == 0 {
            self.wants.all_here.notify_one();
        }
    }

    pub(super) fn report(&self) -> FollowReport {
        let stats = self.pager.stats();
        let us = |stall: std::time::Duration| stall.as_secs_f64() * 1e6;
        let stalls = stats.fetched;
        FollowReport {
            missing_pages: self.missing,
            demanded_pages: stats.pages_demanded,
            duration_ms: 0.0,
            stall_p50_us: us(stalls.p50),
            stall_p99_us: us(stalls.p99),
            stall_p999_us: us(stalls.p999),
            stall_max_us: us(stalls.max),
            stall_total_ms: stalls.total.as_secs_f64() * 1000.0,
        }
    }

    /// Whoever waits for a page waits until the process ends. Closing the userfaultfds would let the guest go on with memory that
    /// is not its own; so they stay open as long as the guest's threads exist.
    pub(super) fn abandon(&self) {
        std::mem::forget(Arc::clone(&self.pager));
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        // Fails only when the counter is full, which is as good as written.
        let _ = rustix::io::write(&*self.stop, &1u64.to_ne_bytes());
    }
}

/// One thread's work: faults of one shard.
struct Answerer {
    pager: Arc<Pager>,
    queue: FaultQueue,
    stop: Arc<OwnedFd>,
    wants: Wants,
}

impl Answerer {
    fn run(self) {
        // Somebody waits for each answer; without the privilege the others are as urgent.
        let _ = rustix::process::setpriority_process(None, URGENT_NICE);
        let mut faults = Vec::new();
        loop {
            let (queue, stop) = (PollFd::new(&self.queue, PollFlags::IN), PollFd::new(&*self.stop, PollFlags::IN));
            let mut fds = [queue, stop];
            match rustix::event::poll(&mut fds, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return tracing::error!(%error, "faults cannot be waited for"),
            }
            if fds[1].revents().contains(PollFlags::IN) {
                return;
            }
            faults.clear();
            if let Err(error) = self.queue.read(&mut faults) {
                return tracing::error!(error = %error_chain(&error), "faults cannot be read");
            }
            for fault in faults.drain(..) {
                match self.pager.resolve(&fault) {
                    Ok(Resolution::Demand(pages)) => {
                        drop(self.wants.demand.send(pages.into_iter().flatten().collect()))
                    }
                    Ok(Resolution::Answered | Resolution::Waiting) => {}
                    Err(error) => tracing::error!(error = %error_chain(&error), "a fault cannot be answered"),
                }
            }
        }
    }
}
