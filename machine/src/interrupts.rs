//! Interrupt controllers in user space, for machines whose processors are on several hosts: KVM's drops interrupts for processors it does not
//! know.
//!
//! ```text
//!  device ── eventfd ─▶ Driver ─▶ IoApic ─┐                       ┌─ Slot of vCPU 0: LocalApic, NMI, INIT, SIPI ─▶ its thread
//!  vCPU thread ── MMIO ─▶ its LocalApic ──┴─ Message ─▶ ──────────┼─ Slot of vCPU 1 ...
//!                                            Driver: due timers ──┘  kick
//! ```
//!
//! [`LocalApic`] and [`IoApic`] are pure. `UserInterrupts` puts a lock around each of them and carries [`Message`]s from one to the other. A
//! slot is the queue of its vCPU: what an INIT forgets is forgotten when it arrives, so nothing that was sent later is.
//! Not there: PIC and PIT. A Linux guest has nothing to measure its timers with then.

mod controller;
mod driver;
mod io_apic;
mod local_apic;
mod message;

pub(crate) use controller::{Slot, UserInterrupts};
pub(crate) use driver::{Driver, now_ns};
pub use io_apic::{IO_APIC_PINS, IoApic};
pub use local_apic::{Addressing, LOCAL_APIC_BYTES, LocalApic, Pin, Sent};
pub use message::{Delivery, Destination, EVERYBODY, Message, Trigger};

use std::sync::{Mutex, MutexGuard, PoisonError};

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
