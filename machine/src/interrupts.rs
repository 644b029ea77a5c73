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
//!
//! A PC's old controllers and timer, [`Pics`] and [`Pit`], are there for kernels that begin with them, as Linux does. Each line reaches the
//! I/O APIC and the PICs at once; the PICs' output is LINT0 of the first vCPU, which asks them for the vector when it takes the interrupt,
//! wherever it is.

mod controller;
mod driver;
mod io_apic;
mod local_apic;
mod message;
mod pics;
mod pit;

pub(crate) use controller::{ACKNOWLEDGE_PORT, Slot, UserInterrupts};
pub(crate) use driver::{Driver, now_ns};
pub use io_apic::{IO_APIC_PINS, IoApic};
pub use local_apic::{Addressing, LOCAL_APIC_BYTES, LocalApic, Pin, Sent};
pub use message::{Delivery, Destination, EVERYBODY, Message, Trigger};
pub use pics::{PIC_LINES, PicRegister, Pics};
pub use pit::Pit;

use std::sync::{Mutex, MutexGuard, PoisonError};

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
