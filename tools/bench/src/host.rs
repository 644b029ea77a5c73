//! The machine this runs on: is everything there, what is it, and is it quiet?

use crate::process;
use anyhow::Result;
use std::{
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};
use vmotion_sys::memory::AlignedMapping;

pub(crate) const QEMU: &str = "qemu-system-x86_64";
/// Other work than this part of all processors is waited for.
const QUIET_BUSY_PART: f64 = 0.35;
const QUIET_PATIENCE: Duration = Duration::from_secs(30);
const QUIET_WINDOW: Duration = Duration::from_millis(500);

/// Has the machine below this one back as much free memory as a target will touch. Cloud machines hand free memory back (free page
/// reporting), and whoever touches it first waits for it: 10 µs a page here, five times what everything else costs. That would
/// measure how long ago somebody else used the memory.
pub(crate) fn back_memory(bytes: u64) -> Result<()> {
    let memfd = rustix::fs::memfd_create("backing", rustix::fs::MemfdFlags::CLOEXEC)?;
    rustix::fs::ftruncate(&memfd, bytes)?;
    let mapping = AlignedMapping::new(&fs::File::from(memfd), 0, usize::try_from(bytes)?)?;
    if mapping.populate_huge(0..mapping.bytes()).is_err() {
        mapping.populate(0..mapping.bytes())?;
    }
    Ok(())
}

/// What is missing to run anything at all, and how to get it.
pub(crate) fn missing() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("this needs root: it opens /dev/kvm and makes network namespaces".to_owned());
    }
    if fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_err() {
        return Some("/dev/kvm is missing or cannot be opened: this host has no KVM".to_owned());
    }
    let answers = |program: &str, option: &str| Command::new(program).arg(option).output().is_ok();
    if !answers(QEMU, "--version") {
        return Some(format!("{QEMU} is missing (Debian: apt install qemu-system-x86)"));
    }
    if !answers("ip", "-V") || !answers("tc", "-V") {
        return Some("ip or tc is missing (Debian: apt install iproute2)".to_owned());
    }
    None
}

/// Ticks of all processors together since the start.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Ticks {
    /// Working.
    pub(crate) busy: u64,
    /// Wanted to work, but the hypervisor below gave the processor to others.
    pub(crate) stolen: u64,
    all: u64,
}

impl Ticks {
    /// As of now; nothing where /proc/stat cannot be read.
    pub(crate) fn now() -> Self {
        std::fs::read_to_string("/proc/stat").ok().and_then(|stat| Self::parse(&stat)).unwrap_or_default()
    }

    /// user nice system idle iowait irq softirq steal; guest time is part of user time.
    fn parse(stat: &str) -> Option<Self> {
        let numbers = stat.lines().next()?.strip_prefix("cpu ")?.split_ascii_whitespace().take(8);
        let numbers: Vec<u64> = numbers.map(str::parse).collect::<Result<_, _>>().ok()?;
        let [_, _, _, idle, waiting, _, _, stolen] = numbers[..] else { return None };
        let all: u64 = numbers.iter().sum();
        Some(Self { busy: all - idle - waiting - stolen, stolen, all })
    }

    /// What passed since `before`.
    pub(crate) fn since(&self, before: &Self) -> Self {
        Self {
            busy: self.busy.saturating_sub(before.busy),
            stolen: self.stolen.saturating_sub(before.stolen),
            all: self.all.saturating_sub(before.all),
        }
    }

    /// `ticks` as a part of all.
    pub(crate) fn part(&self, ticks: f64) -> f64 {
        ticks / (self.all.max(1) as f64)
    }
}

/// Waits until others leave the processors alone; gives up after a while. The part that was busy last.
pub(crate) fn wait_until_quiet() -> Result<f64> {
    let start = Instant::now();
    loop {
        process::check_interrupted()?;
        let before = Ticks::now();
        std::thread::sleep(QUIET_WINDOW);
        let passed = Ticks::now().since(&before);
        let busy = passed.part((passed.busy + passed.stolen) as f64);
        if busy < QUIET_BUSY_PART || start.elapsed() > QUIET_PATIENCE {
            return Ok(busy);
        }
    }
}

fn first_line(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    text.lines().next().unwrap_or_default().to_owned()
}

fn field(path: &str, key: &str) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with(key)).unwrap_or_default();
    line.split_once(':').map_or("?", |(_, value)| value.trim()).to_owned()
}

/// Lines for the report.
pub(crate) fn facts() -> Vec<String> {
    let processors = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let pvm = Path::new("/sys/module/kvm_pvm").exists();
    let module = ["kvm_intel", "kvm_amd", "kvm_pvm"]
        .into_iter()
        .find(|module| Path::new("/sys/module").join(module).exists())
        .unwrap_or("kvm, kind unknown");
    let mut facts = vec![
        format!(
            "{processors} processors ({}), {} memory",
            field("/proc/cpuinfo", "model name"),
            field("/proc/meminfo", "MemTotal")
        ),
        format!("Linux {}, {module}", first_line("uname", &["-r"])),
        format!(
            "{}; its TCP uses {} here",
            first_line(QEMU, &["--version"]),
            fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control").unwrap_or_default().trim()
        ),
        format!("vmotion at commit {}", first_line("git", &["describe", "--always", "--dirty", "--abbrev=10"])),
        format!("load average at the end: {}", fs::read_to_string("/proc/loadavg").unwrap_or_default().trim()),
    ];
    if pvm {
        facts
            .push("no hardware virtualisation (kvm-pvm): exits and page faults of a guest cost more than usual".into());
    }
    facts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busy_idle_and_stolen_ticks_are_told_apart() {
        let ticks = Ticks::parse("cpu  10 0 5 80 5 0 0 4 7 0\ncpu0 …").unwrap();
        assert_eq!((ticks.busy, ticks.stolen, ticks.all), (15, 4, 104));
    }
}
