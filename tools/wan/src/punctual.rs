//! A link does not wait for the programs it connects: its threads run before everything that is scheduled by share.

use rustix::thread::set_current_timer_slack;
use std::{io, num::NonZeroU64};

/// Lowest of the real-time priorities: enough to be ahead of ordinary threads, behind all others that are in a hurry.
const PRIORITY: i32 = 1;

/// Has the calling thread scheduled when it is due. A thread that sleeps in between cannot starve others for long, and the
/// kernel leaves them a share of each second in any case.
///
/// # Errors
/// What the kernel says; timers are precise nevertheless.
pub(crate) fn be_punctual() -> io::Result<()> {
    // Timers of ordinary threads may be 50 µs late.
    set_current_timer_slack(NonZeroU64::new(1))?;
    let parameter = libc::sched_param { sched_priority: PRIORITY };
    // SAFETY: the kernel reads one `sched_param`, which outlives the call; 0 is the calling thread.
    let result = unsafe { libc::sched_setscheduler(0, libc::SCHED_RR, &raw const parameter) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    #[test]
    fn whoever_may_not_is_told_so() {
        let result = std::thread::spawn(super::be_punctual).join().unwrap();
        assert!(result.is_ok() || !rustix::process::geteuid().is_root(), "{result:?}");
    }
}
