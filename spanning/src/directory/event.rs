//! What a holder hears from its driver, the pager, and asks of it: the system calls of one page.
//!
//! ```text
//!   Invalid  → Shared           Fill, Map(Read)        write through the alias, UFFDIO_CONTINUE with write protection
//!   Invalid  → Modified         Fill, Map(Write)       write through the alias, UFFDIO_CONTINUE
//!   Shared   → Modified         Unprotect              UFFDIO_WRITEPROTECT off
//!   Modified → Shared           Revoke(Shared), Read   UFFDIO_WRITEPROTECT on, then read through the alias
//!   Modified → Invalid          Revoke(Invalid), Read  MADV_DONTNEED on the guest's mapping, then read through the alias
//!   Shared   → Invalid          Revoke(Invalid)        MADV_DONTNEED on the guest's mapping
//! ```
//! The order within a line is the contract: who reads before the revocation has returned loses what is written in between.

use super::{Access, Answer, Content, HostId, Left, Order, Reply, Request, Txn};
use vmotion_model::Epoch;

/// What the guest may do with a page on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Rights {
    /// Nothing: not mapped.
    Invalid,
    /// Read: mapped, write-protected.
    Shared,
    /// Read and write.
    Modified,
}

impl From<Access> for Rights {
    fn from(access: Access) -> Self {
        match access {
            Access::Read => Self::Shared,
            Access::Write => Self::Modified,
        }
    }
}

impl From<Left> for Rights {
    fn from(left: Left) -> Self {
        match left {
            Left::Invalid => Self::Invalid,
            Left::Shared => Self::Shared,
        }
    }
}

/// A time on this host's monotonic clock, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Moment(pub u64);

/// What the driver knows at the moment of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct At {
    /// The time.
    pub now: Moment,
    /// The epoch of the page's shard in this host's [`Table`](super::Table).
    pub epoch: Epoch,
}

/// What happens to a holder.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Event<C> {
    /// A vCPU, a device model or the kernel touched the page and waits.
    Fault(Access),
    /// This host wants to be rid of the page.
    Evict,
    /// The home orders.
    Order {
        /// The home's host.
        from: HostId,
        /// Why.
        txn: Txn,
        /// What to do.
        order: Order,
    },
    /// The home replies. A redirection was shown to the [`Table`](super::Table) before.
    Reply {
        /// The home's host.
        from: HostId,
        /// What became of the request.
        reply: Reply<C>,
    },
    /// The mapping system call has **returned**.
    Installed {
        /// Until when orders are put off, so that the instruction which needed the page gets on.
        hold_until: Moment,
    },
    /// The page was read through the alias, **after** the revocation had returned.
    Read(Content<C>),
    /// It may be time for what was put off.
    HoldOver,
    /// This host lost its lease: no vCPU runs here any more.
    Fenced,
}

/// What the driver must do.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Effect<C> {
    /// Send this to the shard's home, wherever the table says that it is by now.
    Ask {
        /// The epoch to send it with: a redirection names it.
        epoch: Epoch,
        /// What is asked.
        request: Request<C>,
    },
    /// Send this to the home that began the transaction.
    Answer {
        /// The home's host.
        to: HostId,
        /// What is answered.
        txn: Txn,
        /// What was done.
        answer: Answer<C>,
    },
    /// Write the page through the alias. The guest cannot see it yet.
    Fill(Content<C>),
    /// `UFFDIO_CONTINUE`, for reading with write protection; wakes. Then comes `Installed`.
    Map(Access),
    /// `UFFDIO_WRITEPROTECT` off; wakes. Then comes `Installed`.
    Unprotect,
    /// `MADV_DONTNEED` on the guest's mapping, or `UFFDIO_WRITEPROTECT` on.
    Revoke(Left),
    /// Read the page through the alias; comes after `Revoke`. Then comes `Read`.
    Read,
    /// Wake whoever waits: the page is there already.
    Wake,
    /// Come back with `HoldOver` at this time.
    HoldUntil(Moment),
    /// The bytes are of no use here any more: the frame may be freed.
    Free,
    /// `UFFDIO_POISON`: the page is lost.
    Poison,
}

/// At most two, to be carried out in this order and before the next event of the page.
pub type Effects<C> = [Option<Effect<C>>; 2];
