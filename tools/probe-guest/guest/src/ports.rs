//! Port I/O from ring 3; the task state segments' I/O bitmap allows all of it.

use core::arch::asm;

/// Reads a byte from a port.
pub fn read(port: u16) -> u8 {
    let value;
    // SAFETY: port reads cannot touch memory; the devices read here (UART, PIT, RTC) have no dangerous read effects.
    unsafe { asm!("in al, dx", out("al") value, in("dx") port, options(nomem, nostack, preserves_flags)) };
    value
}

/// Writes a byte to a port.
pub fn write(port: u16, value: u8) {
    // SAFETY: no device used here does DMA on a port write, so memory is not affected.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack, preserves_flags)) };
}
