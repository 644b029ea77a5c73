//! The model guest as a machine that arrives: filled while it stands still, and waiting for what follows it.

use super::{
    guest::{ModelGuest, failing, pages_of_its_guest},
    memory::{PAGE, Registers},
};
use std::sync::Arc;
use tokio::sync::Notify;
use vmotion_dirty_tracking::PageBitmap;
use vmotion_migrator::guest::{GuestError, GuestPages, TargetMachine};
use vmotion_model::{FollowReport, MemoryLayout};
use vmotion_transport::{
    pages::PageSink,
    session::{DemandSource, demand_queue},
};

/// The target machine.
pub(crate) struct ModelTarget(pub(crate) Arc<ModelGuest>);

pages_of_its_guest!(ModelTarget);

impl PageSink for ModelTarget {
    fn total_pages(&self) -> u64 {
        self.0.layout().total_pages()
    }

    fn with_pages(&self, first: u64, pages: u64, use_bytes: &mut dyn FnMut(&mut [u8])) {
        match self.0.memory().fill(first, pages) {
            Ok(bytes) => use_bytes(bytes),
            Err(wrong) if self.0.witness.runs(self.0.side) => self.0.witness.complain(wrong),
            // It counts if it ever runs.
            Err(_) => {}
        }
    }

    fn zero_pages(&self, first: u64, pages: u64) {
        if self.is_live() {
            self.0.memory().complete(first, pages, None);
            self.0.wake_waiters();
            return;
        }
        self.with_pages(first, pages, &mut |bytes| bytes.fill(0));
    }

    fn missing_pages(&self, first: u64, pages: u64) {
        self.0.memory().declare_missing(first, pages);
    }

    fn is_live(&self) -> bool {
        self.0.memory().is_live()
    }

    fn place_verified(&self, first: u64, bytes: &[u8]) {
        self.0.memory().complete(first, (bytes.len() / PAGE) as u64, Some(bytes));
        self.0.wake_waiters();
    }
}

impl TargetMachine for ModelTarget {
    fn restore(&self, state: &[u8]) -> Result<(), GuestError> {
        let (fails, reads) = {
            let faults = self.0.fault();
            (faults.restore_fails, faults.restore_reads)
        };
        {
            let mut memory = self.0.memory();
            memory.close();
            memory.registers = Registers::load(state, memory.pages())?;
            if !memory.is_live() && !memory.missing().is_empty() {
                self.0
                    .witness
                    .complain("the state is loaded, pages are missing, and there is nobody to ask".to_owned());
            }
            // Whatever was not declared missing must be right from here on.
            for page in 0..memory.pages() {
                if !memory.missing().contains(page)
                    && let Err(wrong) = memory.check(page)
                {
                    self.0.witness.complain(format!("as the state is loaded, {wrong}"));
                }
            }
        }
        for page in 0..reads.min(self.total_pages()) {
            if self.0.read(page).is_none() {
                return Err(GuestError("the process ended".to_owned()));
            }
        }
        if fails { Err(failing("restore")) } else { Ok(()) }
    }

    fn resume(&self) -> Result<(), GuestError> {
        self.0.let_go();
        if let Some(wrong) = self.0.memory().spoiled.take() {
            self.0.witness.complain(format!("{wrong} that runs"));
        }
        Ok(())
    }

    fn follow(&self, all_here: Arc<Notify>) -> Result<Box<dyn DemandSource>, GuestError> {
        if self.0.fault().follow_fails {
            return Err(failing("following"));
        }
        let (demands, queue) = demand_queue().map_err(|error| GuestError(error.to_string()))?;
        self.0.memory().follow(demands, all_here);
        Ok(Box::new(queue))
    }

    fn forget_missing(&self) {
        self.0.memory().forget_missing();
    }

    fn followed(&self) -> FollowReport {
        FollowReport { demanded_pages: self.0.memory().asked(), ..FollowReport::default() }
    }

    /// Whoever waits for a page waits until the process ends; who touches none goes on until then.
    fn abandon(&self) {}
}
