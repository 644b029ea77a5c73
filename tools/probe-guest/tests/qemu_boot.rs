//! Boots the guest in QEMU's microvm, as a second opinion on the boot protocol beside our own machine. Skipped, by
//! name, where there is no QEMU or no KVM.

use std::fs::File;
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use vmotion_probe_guest::{BeatTracker, CommandLine, ConsoleEvent, ConsoleLine, ConsoleReader, Content, Rate};

const QEMU: &str = "qemu-system-x86_64";
const LIMIT: Duration = Duration::from_secs(60);

/// A QEMU that ends with the test.
struct Machine {
    process: Child,
    _image: tempfile::NamedTempFile,
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn boot(test: &str, vcpus: u32, command_line: &CommandLine) -> Option<Machine> {
    let kvm = File::options().read(true).write(true).open("/dev/kvm").is_ok();
    if !kvm || Command::new(QEMU).arg("--version").stdout(Stdio::null()).status().is_err() {
        eprintln!("{test}: skipped: needs {QEMU} and /dev/kvm");
        return None;
    }
    let mut image = tempfile::NamedTempFile::new().expect("a temporary file");
    image.write_all(vmotion_probe_guest::ELF).expect("room for the image");
    let process = Command::new(QEMU)
        .args(["-enable-kvm", "-cpu", "host,-arch-capabilities", "-M", "microvm,acpi=off,rtc=on,pit=on,pic=on"])
        .args(["-m", "128M", "-smp", &vcpus.to_string(), "-nographic", "-nodefaults", "-serial", "stdio"])
        .args(["-no-reboot", "-append", &command_line.to_string(), "-kernel"])
        .arg(image.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("QEMU starts");
    Some(Machine { process, _image: image })
}

/// All events until the guest powers off, and what was typed in answered on the way.
fn run(machine: &mut Machine, input: &str) -> Vec<ConsoleEvent> {
    let start = Instant::now();
    let mut output = machine.process.stdout.take().expect("stdout is a pipe");
    let mut typed = machine.process.stdin.take().expect("stdin is a pipe");
    let mut reader = ConsoleReader::new();
    let mut events = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let count = output.read(&mut buffer).expect("the console can be read");
        if count == 0 {
            return events;
        }
        let was_ready = is_ready(&events);
        events.extend(reader.push(&buffer[..count]));
        if !was_ready && is_ready(&events) {
            typed.write_all(input.as_bytes()).expect("the console takes input");
        }
        assert!(start.elapsed() < LIMIT, "the guest does not come to an end: {events:?}");
    }
}

fn is_ready(events: &[ConsoleEvent]) -> bool {
    events.iter().any(|event| matches!(event, ConsoleEvent::Line(ConsoleLine::Ready { .. })))
}

#[test]
fn guest_boots_beats_answers_and_ends_without_errors() {
    let command_line = CommandLine::new()
        .working_set_bytes(32 << 20)
        .rate(Rate::BytesPerSecond(50 << 20))
        .content(Content::Text)
        .heartbeat_ms(1)
        .seconds(3);
    let Some(mut machine) = boot("guest_boots_beats_answers_and_ends_without_errors", 2, &command_line) else { return };

    let events = run(&mut machine, "ping hello\n");

    let mut tracker = BeatTracker::default();
    let mut beats = 0;
    let (mut cpus, mut ponged, mut ended) = (0, false, false);
    for event in &events {
        match event {
            ConsoleEvent::Beat(beat) => {
                beats += 1;
                assert_eq!(tracker.observe(*beat), 0, "heartbeats are missing");
            }
            ConsoleEvent::Line(line) => {
                assert!(!line.is_failure() && !matches!(line, ConsoleLine::Unknown(_)), "{line:?}");
                match line {
                    ConsoleLine::Start(start) => cpus = start.cpus,
                    ConsoleLine::Pong(word) => ponged = word == "hello",
                    ConsoleLine::End { written, .. } => ended = *written > 0,
                    _ => {}
                }
            }
        }
    }
    assert_eq!(cpus, 2);
    assert!(ponged && ended && beats > 200, "ponged {ponged}, ended {ended}, {beats} heartbeats");
}
