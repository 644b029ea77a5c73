//! The same probe guest moved live through vmotion and through QEMU, in one run, in alternating order.
//!
//! ```text
//! main ─▶ suite ─▶ for each link and content: rounds of contestants ─▶ samples ─▶ report
//!                     │                          ├─ qemu (QMP)      measured alike: console from outside,
//!                     └─ link (namespaces)       └─ ours (the CLI)  processor time from /proc, bytes
//! ```
//! What is measured is the product: vmotion is driven by its command line, with controller and agents as processes, and
//! every connection encrypted. The bench never reaches into either contestant. Whatever it makes (processes, network
//! namespaces, files) it removes, also after an error or Ctrl-C.

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "a command that prints tables")]

mod arguments;
mod carried;
mod columns;
mod console;
mod host;
mod link;
mod ours;
mod process;
mod qemu;
mod qmp;
mod report;
mod sample;
mod stats;
mod suite;
mod table;
mod touches;
mod usage;

use arguments::Arguments;
use clap::Parser as _;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(missing) = host::missing() {
        println!("skipped: {missing}");
        return ExitCode::SUCCESS;
    }
    if let Err(error) = process::watch_interrupts().and_then(|()| suite::run(&arguments)) {
        eprintln!("error: {error:#}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
