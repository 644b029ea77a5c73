//! What the guest does to its memory while it is not moved: a sample, looked at once a second, by a thread of its own.

use std::{
    io,
    os::unix::fs::FileExt as _,
    sync::{Arc, Mutex, PoisonError, Weak},
    thread,
    time::{Duration, Instant},
};
use vmotion_dirty_tracking::{DirtySampler, PageReader, SampledUse};
use vmotion_machine::{GuestRam, Machine};
use vmotion_model::{MemoryTelemetry, PAGE_SIZE};

const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Reading through the memfd leaves holes holes, and never waits for a page that is still on its way.
struct Sampled<'a>(&'a GuestRam);

impl PageReader for Sampled<'_> {
    fn pages(&self) -> u64 {
        self.0.total_pages()
    }

    fn read(&self, page: u64, into: &mut [u8]) -> io::Result<()> {
        self.0.memfd().read_exact_at(into, page * PAGE_SIZE)
    }
}

/// The newest figures of a machine.
#[derive(Debug, Clone, Default)]
pub(super) struct MemoryUse(Arc<Mutex<Option<MemoryTelemetry>>>);

impl MemoryUse {
    /// Watches `machine` until it is gone, whenever `may_look` says that all its memory is here.
    pub(super) fn watch(machine: &Arc<Machine>, may_look: impl Fn() -> bool + Send + 'static) -> io::Result<Self> {
        let known = Self::default();
        let (latest, machine) = (known.clone(), Arc::downgrade(machine));
        thread::Builder::new().name("samples".to_owned()).spawn(move || sample(&machine, &latest, may_look))?;
        Ok(known)
    }

    /// `None` until something is known.
    pub(super) fn get(&self) -> Option<MemoryTelemetry> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn sample(machine: &Weak<Machine>, latest: &MemoryUse, may_look: impl Fn() -> bool) {
    let mut sampler = DirtySampler::new(u64::from(std::process::id()));
    let mut before = Instant::now();
    loop {
        thread::sleep(LOOK_EVERY);
        let Some(machine) = machine.upgrade() else { return };
        if !may_look() {
            // What is on its way would look like what the guest writes.
            sampler = DirtySampler::new(u64::from(std::process::id()));
            before = Instant::now();
            continue;
        }
        let now = Instant::now();
        match sampler.look(&Sampled(machine.memory()), now - before) {
            Ok(()) => {}
            Err(error) => {
                tracing::warn!(%error, "the guest's memory cannot be sampled");
                return;
            }
        }
        before = now;
        let telemetry = |known: SampledUse| MemoryTelemetry {
            dirty_pages_per_s: known.dirty_pages_per_s,
            working_set_pages: known.working_set_pages,
            zero_share: known.zero_share,
        };
        if let Some(known) = sampler.known() {
            *latest.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(telemetry(known));
        }
    }
}
