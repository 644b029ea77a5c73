//! Ways to stop: on purpose, and not.

use core::fmt::Write;
use core::panic::PanicInfo;

use crate::boot;
use crate::ports;
use crate::serial::{Line, Serial};
use crate::shared::MAILBOXES;

/// Powers the machine off by what the command line named, or resets it: by the keyboard controller, else by a triple
/// fault.
pub fn off(poweroff: Option<(u16, u8)>) -> ! {
    if let Some((port, byte)) = poweroff {
        ports::write(port, byte);
    }
    ports::write(0x64, 0xfe);
    boot::triple_fault()
}

/// Reads an address no page table entry maps, so that the crash report itself can be tested.
pub fn fault() {
    let unmapped: *const u8 = core::ptr::with_exposed_provenance(1 << 45);
    // SAFETY: the read faults, and the fault handler never returns here.
    core::hint::black_box(unsafe { unmapped.read_volatile() });
}

/// Says a last word in vCPU `cpu`'s name and halts it.
fn last_words(cpu: usize, line: &Line) -> ! {
    if cpu == 0 {
        // Whatever line was under way is broken off; the receiver sees its end.
        let mut serial = Serial::new();
        serial.queue(b"\n");
        serial.queue(line.as_bytes());
        serial.flush();
    } else {
        while !MAILBOXES[cpu].post(line.as_bytes()) {
            core::hint::spin_loop();
        }
    }
    loop {
        boot::halt(0);
    }
}

/// Ring 0 hands every fault it cannot use over to this, on a stack of its own.
#[unsafe(no_mangle)]
extern "C" fn ring3_crash(vector: u64, error: u64, rip: u64, cr2: u64, rsp: u64, cs: u64) -> ! {
    let cpu = boot::cpu_of_stack(rsp as usize);
    let mut line = Line::new();
    let _ = writeln!(
        line,
        "EXCEPTION vector={vector} cpu={cpu} rip={rip:#x} error={error:#x} cr2={cr2:#x} rsp={rsp:#x} cs={cs:#x}"
    );
    last_words(cpu, &line)
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    let cpu = boot::this_cpu();
    let mut line = Line::new();
    let _ = write!(line, "PANIC cpu={cpu} ");
    if let Some(place) = info.location() {
        let _ = write!(line, "at {}:{} ", place.file(), place.line());
    }
    let _ = writeln!(line, "{}", info.message());
    last_words(cpu, &line)
}
