//! The probe guest's programs on one host: what they prove on several is only worth something if they come to their end here, and find what
//! they are to find.

#![allow(clippy::unwrap_used, reason = "a panic in a test is its report")]

mod common;

use common::{Probe, Watcher, kvm_or_skip};
use std::time::Duration;
use vmotion_machine::ExitReason;
use vmotion_model::DirtySource;
use vmotion_probe_guest::{CommandLine, Program};

const SOON: Duration = Duration::from_secs(60);

#[test]
fn every_program_comes_to_its_end_without_an_error() {
    let test = "every_program_comes_to_its_end_without_an_error";
    if !kvm_or_skip(test) {
        return;
    }
    for program in Program::ALL {
        let operations = if program == Program::Litmus { 8_192 } else { 2_000 };
        let cmdline = CommandLine::new()
            .program(program)
            .operations(operations)
            .working_set_bytes(2 << 20)
            .poweroff(0x600, 0x34)
            .heartbeat_ms(10);
        let machine = Probe::new(4, 64, DirtySource::Log, &cmdline.to_string()).user_interrupts().boot();
        let mut watcher = Watcher::default();
        let exit = machine.wait_exit(SOON);
        watcher.read(&machine);
        assert_eq!(exit, Some(ExitReason::PowerOff), "{program}: {}", watcher.text);
        watcher.assert_sound();
        let proof = watcher.text.lines().find(|line| line.starts_with("P ")).unwrap_or_default().to_owned();
        assert!(proof.contains(" lost=0"), "{program}: {}", watcher.text);
        let done = proof.split("operations=").nth(1).and_then(|rest| rest.split(' ').next()?.parse::<u64>().ok());
        assert!(done >= Some(4 * operations), "{program}: {proof}");
        assert!(watcher.text.contains("errors=0"), "{program}: {}", watcher.text);
        if program == Program::Litmus {
            let made = |name: &str| proof.contains(&format!(" {name}=")) && !proof.contains(&format!(" {name}=0"));
            assert!(["SB", "LB", "MP", "CoRR", "IRIW"].into_iter().all(made), "a test was never made: {proof}");
        }
        println!("{proof}");
    }
}
