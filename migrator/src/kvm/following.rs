//! Memory that follows a guest: faults are answered here or asked for; what arrives is mapped.

use crate::guest::GuestError;
use rustix::fd::{AsFd, BorrowedFd};
use std::{sync::Arc, thread};
use tokio::sync::Notify;
use vmotion_dirty_tracking::PageBitmap;
use vmotion_machine::Machine;
use vmotion_model::{FollowReport, PAGE_SIZE, error_chain};
use vmotion_pager::{Fault, FaultQueue, GuestRegion, Pager, Resolution};
use vmotion_transport::session::DemandSource;

/// Fault queues: one userfaultfd is one lock.
const SHARDS_MAX: usize = 4;

/// The pager of one machine.
#[derive(Debug)]
pub(super) struct Following {
    pager: Arc<Pager>,
    all_here: Arc<Notify>,
    missing: u64,
}

impl Following {
    /// Sees to it that whoever touches one of `missing` waits for it; what is returned beside says which those are.
    pub(super) fn start(
        machine: &Machine,
        missing: &PageBitmap,
        all_here: Arc<Notify>,
    ) -> Result<(Self, Box<dyn DemandSource>), GuestError> {
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
        let following = Self { pager: Arc::new(pager), all_here, missing: missing.count() };
        let faults = Faults { pager: Arc::clone(&following.pager), queues, read: Vec::new() };
        following.tell_if_done();
        Ok((following, Box::new(faults)))
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
            self.all_here.notify_one();
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

/// What vCPUs and devices wait for: faults are answered where the page is here, and become demands where it is not.
struct Faults {
    pager: Arc<Pager>,
    queues: Vec<FaultQueue>,
    read: Vec<Fault>,
}

impl DemandSource for Faults {
    fn wakes<'a>(&'a self, into: &mut Vec<BorrowedFd<'a>>) {
        into.extend(self.queues.iter().map(AsFd::as_fd));
    }

    fn demands(&mut self, into: &mut Vec<u64>) {
        // One that fails would fail at once again, and for ever.
        self.queues.retain(|queue| {
            let read = queue.read(&mut self.read);
            if let Err(error) = &read {
                tracing::error!(error = %error_chain(error), "faults cannot be read");
            }
            read.is_ok()
        });
        for fault in self.read.drain(..) {
            match self.pager.resolve(&fault) {
                Ok(Resolution::Demand(pages)) => into.extend(pages.into_iter().flatten()),
                Ok(Resolution::Answered | Resolution::Waiting) => {}
                Err(error) => tracing::error!(error = %error_chain(&error), "a fault cannot be answered"),
            }
        }
    }
}
