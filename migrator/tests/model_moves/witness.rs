//! Who sees everything: which copies run, and every page that is not what the guest made of it.

use std::sync::{
    Mutex,
    atomic::{AtomicU64, Ordering},
};

/// One end of a move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Side {
    Source,
    Target,
}

impl Side {
    pub(crate) const BOTH: [Self; 2] = [Self::Source, Self::Target];
    const fn index(self) -> usize {
        self as usize
    }
}

/// Sees both copies.
#[derive(Debug, Default)]
pub(crate) struct Witness {
    state: Mutex<Seen>,
    checked: AtomicU64,
    demanded: AtomicU64,
}

#[derive(Debug, Default)]
struct Seen {
    running: [bool; 2],
    starts: [u32; 2],
    both: bool,
    wrong: Vec<String>,
}

/// More say nothing new.
const WRONGS_MAX: usize = 8;

impl Witness {
    pub(crate) fn set(&self, side: Side, running: bool) {
        let mut seen = self.state.lock().unwrap();
        seen.starts[side.index()] += u32::from(running && !seen.running[side.index()]);
        seen.running[side.index()] = running;
        seen.both |= seen.running == [true; 2];
    }

    pub(crate) fn runs(&self, side: Side) -> bool {
        self.state.lock().unwrap().running[side.index()]
    }

    /// How often a copy began to run; the first time at the source is its life before the move.
    pub(crate) fn starts(&self, side: Side) -> u32 {
        self.state.lock().unwrap().starts[side.index()]
    }

    /// Did both copies ever run at the same moment?
    pub(crate) fn saw_both(&self) -> bool {
        self.state.lock().unwrap().both
    }

    /// A page, or something else, is not what it must be.
    pub(crate) fn complain(&self, what: String) {
        let wrong = &mut self.state.lock().unwrap().wrong;
        if wrong.len() < WRONGS_MAX {
            wrong.push(what);
        }
    }

    pub(crate) fn complaints(&self) -> Vec<String> {
        self.state.lock().unwrap().wrong.clone()
    }

    pub(crate) fn note_check(&self) {
        self.checked.fetch_add(1, Ordering::Relaxed);
    }

    /// Pages whose content was compared with what the guest wrote.
    pub(crate) fn checked(&self) -> u64 {
        self.checked.load(Ordering::Relaxed)
    }

    pub(crate) fn note_demand(&self) {
        self.demanded.fetch_add(1, Ordering::Relaxed);
    }

    /// Pages that were asked for because the guest, or the loading of its state, waited for them.
    pub(crate) fn demanded(&self) -> u64 {
        self.demanded.load(Ordering::Relaxed)
    }
}
