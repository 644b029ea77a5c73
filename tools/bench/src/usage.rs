//! Processor time of a contestant's processes, read from /proc while they live.
//!
//! A process that ends takes its numbers along, so they are read again and again until the move is over. Threads that run
//! the guest are told apart by their names.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

/// Often enough to lose little of a process that ends, seldom enough not to weigh.
const READ_EVERY: Duration = Duration::from_millis(20);
/// What /proc counts in (USER_HZ), on every Linux this runs on.
pub(crate) const TICKS_PER_S: f64 = 100.0;

/// Whose time.
#[derive(Debug, Clone)]
pub(crate) enum Who {
    /// These processes.
    Pids(Vec<u32>),
    /// All that run this program, now or later.
    Program(PathBuf),
}

#[derive(Debug, Clone, Copy, Default)]
struct Reading {
    all: u64,
    vcpu: u64,
}

/// Seconds of processor time.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Usage {
    /// Of everything.
    pub(crate) all_s: f64,
    /// Without the threads that run the guest.
    pub(crate) own_s: f64,
}

/// Reads from now on.
#[derive(Debug)]
pub(crate) struct Meter {
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<Usage>,
}

impl Meter {
    pub(crate) fn start(who: Who) -> std::io::Result<Self> {
        let stop = Arc::<AtomicBool>::default();
        let stopped = Arc::clone(&stop);
        let first = read(&who);
        let thread = thread::Builder::new().name("meter".to_owned()).spawn(move || {
            let mut last = first.clone();
            while !stopped.load(Ordering::Relaxed) {
                thread::sleep(READ_EVERY);
                for (pid, now) in read(&who) {
                    keep(last.entry(pid).or_default(), now);
                }
            }
            difference(&first, &last)
        })?;
        Ok(Self { stop, thread })
    }

    pub(crate) fn finish(self) -> Usage {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_default()
    }
}

/// Numbers only grow. A process that has just ended still tells its own, but its threads are gone.
fn keep(last: &mut Reading, now: Reading) {
    last.all = last.all.max(now.all);
    last.vcpu = last.vcpu.max(now.vcpu);
}

fn difference(first: &HashMap<u32, Reading>, last: &HashMap<u32, Reading>) -> Usage {
    let (mut all, mut vcpu) = (0, 0);
    for (pid, now) in last {
        let before = first.get(pid).copied().unwrap_or_default();
        all += now.all.saturating_sub(before.all);
        vcpu += now.vcpu.saturating_sub(before.vcpu);
    }
    let seconds = |ticks: u64| ticks as f64 / TICKS_PER_S;
    Usage { all_s: seconds(all), own_s: seconds(all.saturating_sub(vcpu)) }
}

fn read(who: &Who) -> HashMap<u32, Reading> {
    let pids = match who {
        Who::Pids(pids) => pids.clone(),
        Who::Program(program) => running(program),
    };
    pids.into_iter().filter_map(|pid| Some((pid, read_process(pid)?))).collect()
}

/// Processes that run `program`.
pub(crate) fn running(program: &Path) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pid = |entry: fs::DirEntry| entry.file_name().to_str()?.parse::<u32>().ok();
    let runs_it = |pid: &u32| fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|path| path == program);
    entries.flatten().filter_map(pid).filter(runs_it).collect()
}

fn read_process(pid: u32) -> Option<Reading> {
    let (_, all) = parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?;
    let mut vcpu = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten() {
        // A thread may end while it is looked at.
        let Ok(stat) = fs::read_to_string(task.path().join("stat")) else { continue };
        if let Some((_, ticks)) = parse(&stat).filter(|(name, _)| runs_guest(name)) {
            vcpu += ticks;
        }
    }
    Some(Reading { all, vcpu })
}

/// `vcpu0` is ours, `CPU 0/KVM` is QEMU's.
fn runs_guest(name: &str) -> bool {
    name.starts_with("vcpu") || (name.starts_with("CPU ") && name.ends_with("/KVM"))
}

/// Name, and user and system ticks. The name is in parentheses and may hold anything.
fn parse(stat: &str) -> Option<(String, u64)> {
    let (head, rest) = stat.rsplit_once(')')?;
    let (_, name) = head.split_once('(')?;
    let mut fields = rest.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some((name.to_owned(), user + system))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_spaces_are_read() {
        let stat = "12 (CPU 0/KVM) S 1 1 1 0 -1 4194560 1 0 0 0 70 8 0 0 20 0 5 0 100";
        let (name, ticks) = parse(stat).unwrap();
        assert_eq!((name.as_str(), ticks), ("CPU 0/KVM", 78));
        assert!(runs_guest(&name) && runs_guest("vcpu1") && !runs_guest("copy-0"));
    }

    #[test]
    fn threads_of_a_process_that_ended_still_count() {
        let mut last = Reading { all: 10, vcpu: 4 };
        keep(&mut last, Reading { all: 12, vcpu: 0 });
        assert_eq!((last.all, last.vcpu), (12, 4));
    }

    #[test]
    fn this_process_is_found_and_read() {
        let here = std::env::current_exe().unwrap();
        assert!(running(&here).contains(&std::process::id()));
        assert!(read_process(std::process::id()).is_some());
    }
}
