//! A vCPU of a machine with parts on several hosts follows this host's idea of the machine's time, which is now and then set forward.
//!
//! All parts' vCPUs show one time. In TSC ticks, with everything wrapping:
//!
//! ```text
//!   machine's time here = host's TSC + first anchor + advanced           the anchor is this host's, and set forward by `advanced` in all
//!   what a vCPU shows   = machine's time + constant                       the constant goes with the vCPU and never changes
//!   so its offset       = first anchor + advanced + constant
//! ```
//! Who sets the time forward adds to one number that all vCPU threads can see, and kicks them. Each remembers how much of it is in its
//! offset, and adds the rest before it enters the guest: nobody waits for a vCPU, which may be waiting for a page.

use crate::MachineError;
use kvm_ioctls::VcpuFd;
use std::sync::atomic::{AtomicU64, Ordering};
use vmotion_sys::kvm::{set_tsc_offset, tsc_offset};

/// How far the machine's time was set forward on this host, in ticks of its TSC.
#[derive(Debug, Default)]
pub(crate) struct Advance(AtomicU64);

impl Advance {
    /// Sets the time forward by `ticks`. vCPUs that are kicked afterwards follow before they enter the guest.
    pub(crate) fn add(&self, ticks: u64) {
        self.0.fetch_add(ticks, Ordering::SeqCst);
    }

    /// All of it. In one order with what a kick sets, so whoever has taken a kick back sees what it was for; a plain load on this processor.
    pub(crate) fn total(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

/// Adds to the vCPU's TSC offset what is in `total` and not in `applied`. Guest and host ticks are taken for the same: vCPUs of such a
/// machine run at their host's frequency.
pub(super) fn follow(fd: &VcpuFd, total: u64, applied: &mut u64) -> Result<(), MachineError> {
    let ticks = total.wrapping_sub(*applied);
    if ticks == 0 {
        return Ok(());
    }
    *applied = total;
    // A host without the attribute: its vCPUs cannot be saved for another part either, so there is nobody to be in step with.
    let Ok(offset) = tsc_offset(fd) else { return Ok(()) };
    set_tsc_offset(fd, offset.wrapping_add(ticks)).map_err(MachineError::sys("set a TSC forward"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a panic in a test is its report")]

    use super::*;
    use kvm_ioctls::Kvm;

    #[test]
    fn a_vcpu_is_set_forward_by_what_is_new_to_it() {
        let Ok(kvm) = Kvm::new() else {
            println!("SKIPPED a_vcpu_is_set_forward_by_what_is_new_to_it: no /dev/kvm");
            return;
        };
        let fd = kvm.create_vm().unwrap().create_vcpu(0).unwrap();
        let Ok(before) = tsc_offset(&fd) else {
            println!("SKIPPED a_vcpu_is_set_forward_by_what_is_new_to_it: KVM has no TSC offsets");
            return;
        };
        set_tsc_offset(&fd, before.wrapping_add(1)).unwrap();
        let kept = tsc_offset(&fd).unwrap() != before;
        set_tsc_offset(&fd, before).unwrap();
        let (advance, mut applied) = (Advance::default(), 0);
        for (ticks, all) in [(0, 0), (1000, 1000), (0, 1000), (5, 1005)] {
            advance.add(ticks);
            follow(&fd, advance.total(), &mut applied).unwrap();
            // Without hardware virtualisation KVM keeps its own.
            let there = if kept { before.wrapping_add(all) } else { before };
            assert_eq!((applied, tsc_offset(&fd).unwrap()), (all, there));
        }
    }
}
