//! How long the threads of a process ran, and how long they were ready and did not run: `/proc/PID/task/TID/schedstat`.

use std::{collections::BTreeMap, fs, io, ops::Add, time::Duration};

/// A thread that is ready for no more than this part of the time has done all it had to.
const SLEEPS: f64 = 0.8;
/// One that is ready for so much of it has not.
const NEVER_SLEEPS: f64 = 0.95;

/// Times of a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Used {
    /// On a processor.
    pub(super) ran: Duration,
    /// Ready to run, and not on one.
    pub(super) waited: Duration,
}

impl Add for Used {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { ran: self.ran + other.ran, waited: self.waited + other.waited }
    }
}

impl Used {
    /// What a thread would have run in a time `over`, had it not had to wait. One that is ready all the time would have run all the time; one
    /// that sleeps again and again has done all it had to, and would have done it sooner. Between the two lies a doubt.
    pub(super) fn wanted(self, over: Duration) -> Duration {
        let ready = (self.ran + self.waited).as_secs_f64() / over.as_secs_f64().max(0.001);
        let wants = ((ready - SLEEPS) / (NEVER_SLEEPS - SLEEPS)).clamp(0.0, 1.0);
        self.ran + self.waited.mul_f64(wants)
    }
}

/// Of every thread of a process, since it began.
#[derive(Debug, Clone, Default)]
pub(super) struct ThreadTimes(BTreeMap<u32, (String, Used)>);

impl ThreadTimes {
    /// Looks now.
    ///
    /// # Errors
    /// When the process is gone, or the kernel keeps no such account.
    pub(super) fn read(pid: u32) -> io::Result<Self> {
        let mut threads = BTreeMap::new();
        for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
            let path = entry?.path();
            let Some(thread) = path.file_name().and_then(|name| name.to_str()?.parse().ok()) else { continue };
            let read = || {
                Some((fs::read_to_string(path.join("comm")).ok()?, fs::read_to_string(path.join("schedstat")).ok()?))
            };
            // A thread may end between its listing and its reading.
            let Some((name, times)) = read() else { continue };
            if let Some(used) = parse(&times) {
                threads.insert(thread, (name.trim_end().to_owned(), used));
            }
        }
        if threads.is_empty() {
            return Err(io::Error::other("no thread has a schedstat"));
        }
        Ok(Self(threads))
    }

    /// By name of thread, what came on top of `before`. Threads that ended meanwhile are missing.
    pub(super) fn since(&self, before: &Self) -> Vec<(&str, Used)> {
        let used = |thread: &u32, now: &Used| {
            let then = before.0.get(thread).map_or_else(Used::default, |(_, used)| *used);
            Used { ran: now.ran.saturating_sub(then.ran), waited: now.waited.saturating_sub(then.waited) }
        };
        self.0.iter().map(|(thread, (name, now))| (name.as_str(), used(thread, now))).collect()
    }
}

/// Nanoseconds on a processor, nanoseconds ready, and how often.
fn parse(schedstat: &str) -> Option<Used> {
    let mut numbers = schedstat.split_ascii_whitespace().map(|number| number.parse().ok().map(Duration::from_nanos));
    Some(Used { ran: numbers.next()??, waited: numbers.next()?? })
}

/// Which vCPU a thread of this name runs.
pub(super) fn vcpu_of(name: &str) -> Option<u8> {
    name.strip_prefix("vcpu")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn a_busy_thread_is_seen_by_its_name() {
        let busy = std::thread::Builder::new().name("vcpu7".to_owned());
        let before = ThreadTimes::read(std::process::id()).unwrap();
        let (told, tell) = std::sync::mpsc::channel();
        let thread = busy
            .spawn(move || {
                let (start, mut turns) = (Instant::now(), 0u64);
                while start.elapsed() < Duration::from_millis(50) {
                    turns = std::hint::black_box(turns + 1);
                }
                told.send(()).unwrap();
                std::thread::park();
            })
            .unwrap();
        tell.recv().unwrap();
        let after = ThreadTimes::read(std::process::id()).unwrap();
        let since = after.since(&before);
        let (_, used) = since.iter().find(|(name, _)| vcpu_of(name) == Some(7)).unwrap();
        assert!(used.ran + used.waited >= Duration::from_millis(30), "{used:?}");
        thread.thread().unpark();
        thread.join().unwrap();
    }

    #[test]
    fn what_waits_all_the_time_wants_more_and_what_sleeps_does_not() {
        let wanted = |ran, waited| {
            let used = Used { ran: Duration::from_millis(ran), waited: Duration::from_millis(waited) };
            used.wanted(Duration::from_millis(1000)).as_millis()
        };
        assert_eq!(wanted(100, 900), 1000);
        assert_eq!(wanted(100, 500), 100);
        assert_eq!(wanted(1000, 0), 1000);
        assert_eq!(wanted(0, 0), 0);
        assert!((100..900).contains(&wanted(100, 800)));
    }

    #[test]
    fn accounts_are_read_and_nonsense_is_not() {
        let used = parse("5000000 1000000 12\n").unwrap();
        assert_eq!((used.ran, used.waited), (Duration::from_millis(5), Duration::from_millis(1)));
        assert_eq!(parse(""), None);
        assert_eq!(parse("12"), None);
        assert_eq!([vcpu_of("vcpu63"), vcpu_of("vcpu"), vcpu_of("tokio")], [Some(63), None, None]);
    }

    #[test]
    fn a_process_that_is_gone_is_an_error() {
        assert!(ThreadTimes::read(u32::MAX).is_err());
    }
}
