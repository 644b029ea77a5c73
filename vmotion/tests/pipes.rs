//! Commands in pipes.

use std::process::{Command, Stdio};

#[test]
fn a_reader_that_has_seen_enough_ends_a_command_without_a_word() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmotion"));
    let mut child =
        command.args(["completions", "bash"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert_eq!(output.status.code(), Some(141));
}
