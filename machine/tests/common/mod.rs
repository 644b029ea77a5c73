//! What the tests on real KVM share: a probe guest to run, its console to watch, and a small pre-copy to move it.
#![allow(dead_code, reason = "every test program uses its own part of this")]
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::cast_possible_truncation,
    reason = "only used by tests, where a panic is the report"
)]

pub(crate) mod tiny;

use std::path::PathBuf;
use std::time::{Duration, Instant};
use vmotion_dirty_tracking::PageBitmap;
use vmotion_machine::{ConsoleConfig, Machine, MachineConfig, probe_host};
use vmotion_model::{Backing, ByteSize, DirtySource, DiskSpec, InterruptController, MachineSpec, PAGE_SIZE};

/// False, and says so by name, on hosts that cannot run machines.
pub(crate) fn kvm_or_skip(test: &str) -> bool {
    match probe_host() {
        Ok(_) => true,
        Err(error) => {
            println!("SKIPPED {test}: {error}");
            false
        }
    }
}

/// A machine that boots the probe guest.
pub(crate) struct Probe {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) config: MachineConfig,
}

impl Probe {
    pub(crate) fn new(cpus: u8, memory_mib: u64, source: DirtySource, cmdline: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let kernel = directory.path().join("probe.elf");
        std::fs::write(&kernel, vmotion_probe_guest::ELF).unwrap();
        let config = MachineConfig {
            spec: spec(kernel, cpus, memory_mib, source, cmdline),
            console: ConsoleConfig::default(),
            part: None,
        };
        Self { directory, config }
    }

    /// With its interrupt controllers in this process.
    pub(crate) fn user_interrupts(mut self) -> Self {
        self.config.spec.interrupts = InterruptController::User;
        self
    }

    pub(crate) fn disk(mut self, bytes: u64, read_only: bool) -> Self {
        let path = self.directory.path().join(format!("disk{}.img", self.config.spec.disks.len()));
        std::fs::File::create(&path).unwrap().set_len(bytes).unwrap();
        self.config.spec.disks.push(DiskSpec { path, read_only });
        self
    }

    pub(crate) fn boot(&self) -> Machine {
        let machine = Machine::boot(&self.config).unwrap();
        machine.resume().unwrap();
        machine
    }
}

pub(crate) fn spec(
    kernel: PathBuf,
    cpus: u8,
    memory_mib: u64,
    dirty_source: DirtySource,
    cmdline: &str,
) -> MachineSpec {
    MachineSpec {
        name: "probe".parse().unwrap(),
        cpus,
        memory: ByteSize::mib(memory_mib),
        kernel,
        initrd: None,
        cmdline: cmdline.to_owned(),
        disks: Vec::new(),
        backing: Backing::Memfd,
        dirty_source,
        interrupts: InterruptController::Kernel,
    }
}

/// Collects a machine's console over its moves.
#[derive(Default)]
pub(crate) struct Watcher {
    pub(crate) text: String,
    offset: u64,
}

impl Watcher {
    /// From what `machine` prints next.
    pub(crate) fn starting_at(machine: &Machine) -> Self {
        Self { text: String::new(), offset: machine.console().offset() }
    }

    /// Reads what is new; a gap is a failure.
    pub(crate) fn read(&mut self, machine: &Machine) {
        loop {
            let (from, bytes) = machine.console().read(self.offset, 1 << 20);
            assert_eq!(from, self.offset, "console output has a gap");
            if bytes.is_empty() {
                return;
            }
            self.offset += bytes.len() as u64;
            self.text.push_str(&String::from_utf8_lossy(&bytes));
        }
    }

    /// Reads until `wanted` appears in what comes from now on.
    pub(crate) fn wait_for(&mut self, machine: &Machine, wanted: &str, within: Duration) {
        let from = self.text.len();
        let deadline = Instant::now() + within;
        loop {
            self.read(machine);
            if self.text[from..].contains(wanted) {
                return;
            }
            let exit = machine.wait_exit(Duration::ZERO);
            self.read(machine);
            assert!(
                Instant::now() < deadline && (exit.is_none() || self.text[from..].contains(wanted)),
                "no {wanted:?} within {within:?}, exit {exit:?}, console:\n{}",
                self.text
            );
            let _ = machine.console().wait_beyond(self.offset, Duration::from_millis(20));
        }
    }

    /// The guest's wall clock, which its monotonic clock drives, at the last summary it printed, in ms since 1970.
    pub(crate) fn guest_wall_ms(&self) -> u64 {
        let line = self.text.lines().rfind(|line| line.starts_with("S ") && line.contains(" written=")).unwrap();
        let word = line.split(' ').find_map(|word| word.strip_prefix("wall_ms=")).unwrap();
        word.parse().unwrap()
    }

    /// The guest found nothing wrong.
    pub(crate) fn assert_sound(&self) {
        for bad in ["CORRUPT", "PANIC", "FAULT"] {
            assert!(!self.text.contains(bad), "{bad} on the console:\n{}", self.text);
        }
        let complete = self.text.rfind('\n').unwrap_or(0);
        for line in self.text[..complete].lines().filter(|line| line.starts_with("S ")) {
            assert!(line.contains(" corrupt=0 "), "corruption counted: {line}");
            assert!(line.contains(" tsc_back=0 "), "time went backwards: {line}");
        }
    }
}

fn copy(source: &Machine, target: &Machine, pages: &PageBitmap) {
    let mut buffer = vec![0; 256 * PAGE_SIZE as usize];
    for run in pages.runs() {
        let mut first = run.start;
        while first < run.end {
            let count = (run.end - first).min(256);
            let bytes = &mut buffer[..(count * PAGE_SIZE) as usize];
            source.memory().read_run(first, count, bytes).unwrap();
            target.memory().write_run(first, bytes).unwrap();
            first += count;
        }
    }
}

/// All memory, as one number.
fn assert_same_memory(source: &Machine, target: &Machine) {
    let mut pages = source.memory().allocated().unwrap();
    pages.or(&target.memory().allocated().unwrap());
    let (mut one, mut two) = ([0; PAGE_SIZE as usize], [0; PAGE_SIZE as usize]);
    for index in pages.runs().flatten() {
        source.memory().read_page(index, &mut one).unwrap();
        target.memory().read_page(index, &mut two).unwrap();
        assert!(one == two, "page {index:#x} differs after the copy");
    }
}

/// Moves a running machine into a new one by pre-copy, in this process, and compares all memory.
pub(crate) fn hop(source: Machine, config: &MachineConfig) -> Machine {
    let target = Machine::prepare(config).unwrap();
    let total = source.memory().total_pages();
    let mut tracker = source.dirty_tracker(DirtySource::Auto).unwrap();
    tracker.start().unwrap();
    for _ in 0..3 {
        let mut written = PageBitmap::new(total);
        tracker.fetch(&mut written).unwrap();
        tracker.clear(&written, 0..total).unwrap();
        copy(&source, &target, &written);
    }
    let guard = source.pause().unwrap();
    let state = guard.save().unwrap();
    let mut written = PageBitmap::new(total);
    tracker.fetch(&mut written).unwrap();
    copy(&source, &target, &written);
    assert_same_memory(&source, &target);
    let frozen = guard.freeze();
    target.restore(&state).unwrap();
    target.resume().unwrap();
    drop(frozen);
    target
}
