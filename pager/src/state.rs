//! What is known about one page: a transition function, and a table of it for all pages.
//!
//! ```text
//!             fault, ask            begin                    finish
//!   Missing ────────────► Demanded ───────► FillingDemanded ───────► Arrived
//!      │                                     ▲ fault                    ▲
//!      └──────── begin ────────► Filling ────┴────────── finish ────────┘
//!   give back, from either Filling: Missing, and whoever waits is woken so that his next fault demands it again
//! ```
//!
//! Present pages never were missing. Whoever moved a page to Filling is the only one who writes its bytes.

use std::ops::Range;
use std::sync::atomic::{AtomicU8, Ordering};
use zerocopy::FromZeros;

#[cfg(test)]
mod tests;

/// The state of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum PageState {
    /// Was here all along.
    Present = 0,
    /// Its bytes are elsewhere, and nobody asked for them.
    Missing = 1,
    /// Asked for, once.
    Demanded = 2,
    /// Its bytes are being written.
    Filling = 3,
    /// Its bytes are being written, and somebody asked for it before or meanwhile.
    FillingDemanded = 4,
    /// Was missing, is here.
    Arrived = 5,
}

/// What a fault on a page means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FaultMeans {
    /// The page is here, only not mapped.
    Local,
    /// It must be fetched.
    Demand,
    /// It is on its way.
    Wait,
}

impl PageState {
    const ALL: [Self; 6] =
        [Self::Present, Self::Missing, Self::Demanded, Self::Filling, Self::FillingDemanded, Self::Arrived];

    /// Somebody touched it.
    pub(crate) const fn fault(self) -> (Self, FaultMeans) {
        match self {
            Self::Present | Self::Arrived => (self, FaultMeans::Local),
            Self::Missing => (Self::Demanded, FaultMeans::Demand),
            Self::Demanded | Self::FillingDemanded => (self, FaultMeans::Wait),
            Self::Filling => (Self::FillingDemanded, FaultMeans::Wait),
        }
    }

    /// It is asked for although nobody waits.
    pub(crate) const fn ask(self) -> Option<Self> {
        match self {
            Self::Missing => Some(Self::Demanded),
            _ => None,
        }
    }

    /// Somebody wants to write its bytes; `None` when it is here, or somebody else does.
    pub(crate) const fn begin(self) -> Option<Self> {
        match self {
            Self::Missing => Some(Self::Filling),
            Self::Demanded => Some(Self::FillingDemanded),
            _ => None,
        }
    }

    /// Its bytes were written; whether somebody asked for it. Only for whoever began.
    pub(crate) const fn finish(self) -> Option<(Self, bool)> {
        match self {
            Self::Filling => Some((Self::Arrived, false)),
            Self::FillingDemanded => Some((Self::Arrived, true)),
            _ => None,
        }
    }

    /// Its bytes could not be written; whether somebody may wait for it. Only for whoever began.
    pub(crate) const fn give_back(self) -> Option<(Self, bool)> {
        match self {
            Self::Filling => Some((Self::Missing, false)),
            Self::FillingDemanded => Some((Self::Missing, true)),
            _ => None,
        }
    }

    /// Are its bytes here?
    pub(crate) const fn is_here(self) -> bool {
        matches!(self, Self::Present | Self::Arrived)
    }
}

/// The states of all pages, one byte each. Memory is used only where pages were missing.
#[derive(Debug)]
pub(crate) struct PageStates {
    states: Box<[AtomicU8]>,
}

impl PageStates {
    /// All present; `None` when there is no memory for it.
    pub(crate) fn new(pages: usize) -> Option<Self> {
        Some(Self { states: <[AtomicU8]>::new_box_zeroed_with_elems(pages).ok()? })
    }

    fn slot(&self, index: u64) -> Option<&AtomicU8> {
        usize::try_from(index).ok().and_then(|index| self.states.get(index))
    }

    fn decode(value: u8) -> PageState {
        PageState::ALL[usize::from(value)]
    }

    /// The state of a page. Pages beyond the end count as present.
    pub(crate) fn get(&self, index: u64) -> PageState {
        self.slot(index).map_or(PageState::Present, |slot| Self::decode(slot.load(Ordering::Acquire)))
    }

    /// Before anybody else looks: the pages of `run` are missing.
    pub(crate) fn set_missing(&self, run: Range<u64>) {
        for slot in run.filter_map(|index| self.slot(index)) {
            slot.store(PageState::Missing as u8, Ordering::Release);
        }
    }

    /// Changes the state of a page as `transition` says, atomically; `None` when that refuses.
    pub(crate) fn change<T>(&self, index: u64, transition: impl Fn(PageState) -> Option<(PageState, T)>) -> Option<T> {
        let slot = self.slot(index)?;
        let mut value = slot.load(Ordering::Acquire);
        loop {
            let (next, result) = transition(Self::decode(value))?;
            match slot.compare_exchange_weak(value, next as u8, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Some(result),
                Err(other) => value = other,
            }
        }
    }
}
