//! How does a page get here the moment a vCPU needs it?
//!
//! Guest RAM is one memfd mapped twice. The guest's mapping (A) is what KVM's memory slots and device threads use; the service alias
//! (B) is this crate's own. At switch-over some pages are *missing*: their bytes are still elsewhere, and their place in the
//! memfd holds nothing, or old bytes.
//!
//! ```text
//!   vCPU touches a missing page of A ── waits in the kernel
//!        │ event
//!   FaultQueue::read ──► Pager::resolve ──► Answered (the page was here, only not mapped) ── vCPU goes on
//!                                      └──► Demand ── the caller fetches it; Waiting ── it is on its way
//!   bytes arrive, are verified ──► Pager::complete_from: copied through B, mapped into A ── vCPU goes on
//! ```
//!
//! Faults are served per 2 MiB block: only blocks with missing pages are registered with userfaultfd, and a block is given back to
//! the kernel when its last missing page has arrived. Nothing here starts a thread or waits: the caller drives it from its own
//! event loop or threads, one per [`FaultQueue`].
//!
//! Where the memfd holds nothing, copying and mapping is one step (`UFFDIO_COPY`).
//!
//! The invariant: a page becomes visible in A only with all its bytes, and every waiter is woken after that. Never: touch A
//! from a thread that serves faults (it would wait for itself).
//!
//! That is a move's memory, where every page comes once and stays. Memory whose pages come and go, for a machine on several hosts, is
//! [`CoherentMemory`].
//!
//! What the rest of the process must not do to A while pages are missing: populate it (`MADV_POPULATE_*` waits for every missing
//! page), collapse it to huge pages (`MADV_COLLAPSE` would show missing pages to the guest), or punch holes into the memfd.
#![forbid(unsafe_code)]

mod abandon;
mod arm;
mod coherent;
mod error;
mod fault;
mod install;
mod local;
mod pager;
mod plan;
mod queue;
mod shared;
mod space;
mod state;
mod stats;

pub use arm::Prepared;
pub use coherent::{Allow, CoherentMemory, Touch};
pub use error::PagerError;
pub use fault::Resolution;
pub use pager::Pager;
pub use queue::{Fault, FaultQueue};
pub use space::GuestRegion;
pub use stats::{FaultStats, Recorder, Stalls};

use vmotion_sys::userfaultfd::{Features, Userfault};

/// What every pager needs of the kernel.
const NEEDED: Features = Features::MISSING_SHMEM.and(Features::MINOR_SHMEM);

/// Can this process serve page faults on this host? A target asks before it accepts a move.
///
/// # Errors
/// [`PagerError::NotPermitted`] and [`PagerError::Lacks`] say what to do about it.
pub fn probe() -> Result<(), PagerError> {
    open(NEEDED).map(drop)
}

fn open(needed: Features) -> Result<Userfault, PagerError> {
    let userfault = Userfault::open().map_err(|error| match error.kind() {
        std::io::ErrorKind::PermissionDenied => PagerError::NotPermitted(error),
        _ => PagerError::kernel("open a userfaultfd")(error),
    })?;
    let lacking = userfault.features().lacking(needed);
    if lacking.is_empty() { Ok(userfault) } else { Err(PagerError::Lacks { features: lacking.join(", ") }) }
}
