//! Who waited for which pages since somebody last asked: what advice on where pieces belong is made of.

use super::hot::HotPages;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use vmotion_model::PageNumber;

/// Threads that are told apart; vCPUs are at most 64. What others wait for is forgotten.
const THREADS_MAX: usize = 128;

/// What the threads of a host waited for in some time.
#[derive(Debug, Clone)]
pub struct Recent {
    /// When that time began.
    pub since: Instant,
    /// Its threads, as this process's PID namespace names them.
    pub threads: BTreeMap<u32, Visits>,
}

/// What one thread waited for.
#[derive(Debug, Clone, Default)]
pub struct Visits {
    /// Faults that the kernel reported.
    pub faults: u64,
    /// How long it waited for pages that came, where it was the first to wait.
    pub waited: Duration,
    /// The pages that it waited for most.
    pub pages: HotPages,
}

impl Default for Recent {
    fn default() -> Self {
        Self { since: Instant::now(), threads: BTreeMap::new() }
    }
}

impl Recent {
    fn thread(&mut self, thread: u32) -> Option<&mut Visits> {
        if self.threads.len() >= THREADS_MAX && !self.threads.contains_key(&thread) {
            return None;
        }
        Some(self.threads.entry(thread).or_default())
    }

    pub(super) fn touched(&mut self, thread: u32, page: PageNumber) {
        if let Some(visits) = self.thread(thread) {
            visits.faults += 1;
            visits.pages.count(page);
        }
    }

    pub(super) fn waited(&mut self, thread: u32, waited: Duration) {
        if let Some(visits) = self.thread(thread) {
            visits.waited += waited;
        }
    }

    /// All of it; a new time begins.
    pub(super) fn take(&mut self) -> Self {
        std::mem::take(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_thread_has_its_own_pages_and_what_was_taken_is_gone() {
        let mut recent = Recent::default();
        for _ in 0..3 {
            recent.touched(7, PageNumber(1));
            recent.touched(8, PageNumber(2));
        }
        recent.touched(8, PageNumber(1));
        recent.waited(8, Duration::from_micros(5));
        let taken = recent.take();
        assert_eq!((taken.threads[&7].faults, taken.threads[&8].faults), (3, 4));
        assert_eq!(taken.threads[&8].pages.hottest_first(), [(PageNumber(2), 3), (PageNumber(1), 1)]);
        assert_eq!(taken.threads[&8].waited, Duration::from_micros(5));
        assert!(recent.take().threads.is_empty());
    }

    #[test]
    fn more_threads_than_a_machine_has_do_not_fill_memory() {
        let mut recent = Recent::default();
        (0..1000).for_each(|thread| recent.touched(thread, PageNumber(0)));
        assert_eq!(recent.threads.len(), THREADS_MAX);
    }
}
