//! How a page is used: migratory pages are granted for writing at the first read.
//!
//! What a lock guards goes from host to host, and each reads it before it writes it: two transactions where one would do. A home that has
//! seen a page go like that answers the next reads with the right to write. From: Cox and Fowler, *Adaptive cache coherency for detecting
//! migratory shared data* (1993); Stenström, Brorsson and Sandberg, *An adaptive cache coherence protocol optimized for migratory sharing*
//! (1993).
//!
//! Whether a host that got the right has written is not seen here, so the page has to prove itself again after a few grants: it costs a
//! migratory page one more transaction in so many, and a page that is only read by now so many wrong grants, once.

use super::{Access, Copies, HostId};

/// Reads that are answered with the right to write, before the page has to prove itself again.
const CREDIT: u8 = 8;

/// What a home has seen of one page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(super) struct Habit {
    /// The only one who has read since the last write, where that was another's.
    reader: Option<HostId>,
    credit: u8,
}

impl Habit {
    /// What `from` is granted, who wants `access`; `crowded`: others wait to read as well.
    pub(super) fn judge<C>(&mut self, copies: &Copies<C>, from: HostId, access: Access, crowded: bool) -> Access {
        let reader = self.reader.take();
        match (copies, access) {
            (Copies::Owned(_), Access::Read) if crowded => self.credit = 0,
            (Copies::Owned(_), Access::Read) if self.credit > 0 => {
                self.credit -= 1;
                return Access::Write;
            }
            (Copies::Owned(_), Access::Read) => self.reader = Some(from),
            // More than one reads.
            (Copies::Shared { .. }, Access::Read) => self.credit = 0,
            (Copies::Shared { .. }, Access::Write) if reader == Some(from) => self.credit = CREDIT,
            (Copies::Owned(_) | Copies::Shared { .. } | Copies::Lost, _) => {}
        }
        access
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic in a test is its report")]

    use super::super::{Content, HostSet};
    use super::*;

    fn host(number: u8) -> HostId {
        HostId::new(number).unwrap()
    }

    /// A page's home, where whoever is granted something has it at once.
    #[derive(Default)]
    struct Page {
        habit: Habit,
        owner: Option<HostId>,
        sharers: HostSet,
    }

    impl Page {
        fn get(&mut self, from: u8, access: Access) -> Access {
            let copies = match self.owner {
                Some(owner) => Copies::Owned(owner),
                None => Copies::Shared { sharers: self.sharers, content: Content::<()>::Zero },
            };
            let granted = self.habit.judge(&copies, host(from), access, false);
            match granted {
                Access::Write => (self.owner, self.sharers) = (Some(host(from)), HostSet::EMPTY),
                Access::Read => {
                    let owner = self.owner.take().map_or(HostSet::EMPTY, HostSet::only);
                    self.sharers = if owner.is_empty() { self.sharers } else { owner }.with(host(from));
                }
            }
            granted
        }

        /// Reads and then writes; how many transactions that takes.
        fn visit(&mut self, from: u8) -> usize {
            match self.get(from, Access::Read) {
                Access::Write => 1,
                Access::Read => {
                    self.get(from, Access::Write);
                    2
                }
            }
        }
    }

    #[test]
    fn what_goes_from_hand_to_hand_is_handed_over_once() {
        let mut page = Page::default();
        page.get(0, Access::Write);
        let visits: Vec<usize> = (0..20).map(|visit| page.visit(1 + visit % 3)).collect();
        assert_eq!(visits[0], 2, "it has to be seen first");
        assert_eq!(visits.iter().filter(|transactions| **transactions == 2).count(), 3, "{visits:?}");
    }

    #[test]
    fn what_is_only_read_is_shared_again_after_a_while() {
        let mut page = Page::default();
        page.get(0, Access::Write);
        page.visit(1);
        let wrong = (0..20).filter(|read| page.get(2 + read % 2, Access::Read) == Access::Write).count();
        assert_eq!(wrong, usize::from(CREDIT));
    }

    #[test]
    fn one_that_writes_and_many_that_read_prove_nothing() {
        let mut page = Page::default();
        for _ in 0..20 {
            page.get(0, Access::Write);
            for reader in 1..4 {
                assert_eq!(page.get(reader, Access::Read), Access::Read);
            }
        }
    }

    #[test]
    fn a_crowd_that_wants_to_read_may() {
        let mut page = Page::default();
        page.get(0, Access::Write);
        page.visit(1);
        let copies = Copies::<()>::Owned(host(1));
        assert_eq!(page.habit.judge(&copies, host(2), Access::Read, true), Access::Read);
        assert_eq!(page.habit.judge(&copies, host(2), Access::Read, false), Access::Read, "the credit is gone");
    }
}
