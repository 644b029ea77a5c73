//! The program as an operator starts it. Needs root and /dev/net/tun.

#![expect(clippy::unwrap_used, reason = "a test's panic is its report")]

mod common;

use common::skipped;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, Output, Stdio},
};

fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_vmotion-wan"))
}

fn run(arguments: &[&str]) -> Output {
    program().args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_command_finds_both_ends_and_its_exit_code_is_ours() {
    if skipped("a_command_finds_both_ends_and_its_exit_code_is_ours") {
        return;
    }
    let script = "
        ip -n $WAN_NETNS_A -brief address show wan0
        ip -n $WAN_NETNS_B -brief address show wan0
        exit 7";
    let output = run(&["--delay", "1ms", "--", "sh", "-c", script]);
    assert_eq!(output.status.code(), Some(7));
    let printed = text(&output.stdout);
    assert!(printed.contains("10.98.0.1 peer 10.98.0.2") && printed.contains("10.98.0.2 peer 10.98.0.1"), "{printed}");
    assert!(text(&output.stderr).contains("seed "), "what we say does not mix with what the command prints");
}

#[test]
fn a_command_may_run_at_one_end() {
    if skipped("a_command_may_run_at_one_end") {
        return;
    }
    let output = run(&["--inside", "b", "--", "ip", "-brief", "address", "show", "wan0"]);
    assert!(text(&output.stdout).contains("10.98.0.2 peer 10.98.0.1"), "{output:?}");
    assert_eq!(run(&["--inside", "b", "--", "no-such-program"]).status.code(), Some(127));
}

#[test]
fn a_signal_ends_it_and_nothing_is_left() {
    if skipped("a_signal_ends_it_and_nothing_is_left") {
        return;
    }
    for (signal, command) in
        [(Signal::INT, &[][..]), (Signal::TERM, &[][..]), (Signal::TERM, &["--", "sleep", "1000"][..])]
    {
        let mut child = program()
            .args(["--json", "--delay", "1ms"])
            .args(command)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // Where a command runs, standard output is the command's.
        let said: Box<dyn std::io::Read> = match command {
            [] => Box::new(child.stdout.take().unwrap()),
            _ => Box::new(child.stderr.take().unwrap()),
        };
        let mut lines = BufReader::new(said).lines();
        let started: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        let namespaces = ["a", "b"].map(|end| started[end]["namespace"].as_str().unwrap().to_owned());
        let there = |name: &String| Path::new("/run/netns").join(name).exists();
        assert!(namespaces.iter().all(there), "{started}");
        kill_process(Pid::from_raw(child.id().cast_signed()).unwrap(), signal).unwrap();
        let ended: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        assert_eq!(ended["event"], "ended");
        let expected = if command.is_empty() { 0 } else { 128 + Signal::TERM.as_raw() };
        assert_eq!(child.wait().unwrap().code(), Some(expected));
        assert!(!namespaces.iter().any(there));
    }
}

#[test]
fn a_script_is_played_and_its_changes_are_told() {
    if skipped("a_script_is_played_and_its_changes_are_told") {
        return;
    }
    let arguments = ["--json", "--at", "10ms cut", "--at", "20ms b-to-a loss=1%", "--", "sleep", "0.5"];
    let said = text(&run(&arguments).stderr);
    assert!(said.contains("\"both cut\"") && said.contains("\"b-to-a loss=1%\""), "{said}");
}

#[test]
fn errors_are_one_line_that_names_what_is_wrong() {
    for (arguments, code, words) in [
        (&["--rate", "100"][..], 2, ["--rate", "800Mbit"]),
        (&["--at", "12 cut"], 125, ["--at \"12 cut\"", "unit"]),
        (&["--script", "/no/such/file"], 125, ["/no/such/file", "No such file"]),
        (&["--mtu", "100"], 125, ["MTU 100", "576"]),
    ] {
        let output = run(arguments);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(words.iter().all(|word| said.contains(word)), "{said}");
    }
}
