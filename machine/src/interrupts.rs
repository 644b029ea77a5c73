//! Interrupt controllers in user space, for machines whose processors are on several hosts: KVM's drops interrupts for processors it does not
//! know. Pure; whoever drives them carries the [`Message`]s.

mod io_apic;
mod local_apic;
mod message;

pub use io_apic::{IO_APIC_PINS, IoApic};
pub use local_apic::{LOCAL_APIC_BYTES, LocalApic, Pin, Sent};
pub use message::{Delivery, Destination, EVERYBODY, Message, Trigger};
