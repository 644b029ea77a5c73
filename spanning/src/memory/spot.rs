//! What this host knows about each page it ever touched, was asked about, or gave away: nothing about all others.

use super::hosts::is_held;
use super::window::HoldWindow;
use crate::directory::{Access, Holder};
use std::collections::HashMap;
use std::time::Instant;
use vmotion_model::PageNumber;

/// One page on this host.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Spot {
    pub(super) holder: Holder,
    pub(super) window: HoldWindow,
    /// Who waits, the first of all.
    pub(super) waits: Option<Waiter>,
}

/// A thread that waits for a page.
#[derive(Debug, Clone, Copy)]
pub(super) struct Waiter {
    pub(super) thread: u32,
    pub(super) access: Access,
    pub(super) since: Instant,
}

/// All pages of this host that are not as they were in the beginning.
#[derive(Debug, Default)]
pub(super) struct Spots {
    by_page: HashMap<PageNumber, Spot>,
}

impl Spots {
    pub(super) fn get_mut(&mut self, page: PageNumber) -> &mut Spot {
        self.by_page.entry(page).or_default()
    }

    pub(super) fn len(&self) -> usize {
        self.by_page.len()
    }

    /// Pages that are here, or on their way from or to here.
    pub(super) fn held(&self) -> Vec<PageNumber> {
        self.by_page.iter().filter(|(_, spot)| is_held(&spot.holder)).map(|(page, _)| *page).collect()
    }

    pub(super) fn pages(&self) -> Vec<PageNumber> {
        self.by_page.keys().copied().collect()
    }
}
