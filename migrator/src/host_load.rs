//! Are this host's processors all busy? From the kernel's own accounting, over the time since the last question.

/// Idle time below this part of all time counts as none: a busy host is never idle for exactly nothing.
const IDLE_MIN: f64 = 0.05;

/// Remembers the last reading.
#[derive(Debug, Default)]
pub(crate) struct HostLoad {
    last: Option<(u64, u64)>,
}

impl HostLoad {
    /// `None` at first, and where `/proc/stat` cannot be read.
    pub(crate) fn are_processors_busy(&mut self) -> Option<bool> {
        let (idle, all) = parse(&std::fs::read_to_string("/proc/stat").ok()?)?;
        let (idle_before, all_before) = self.last.replace((idle, all))?;
        let elapsed = all.checked_sub(all_before).filter(|elapsed| *elapsed > 0)?;
        #[expect(clippy::cast_precision_loss, reason = "clock ticks of a fraction of a second")]
        let idle_part = idle.saturating_sub(idle_before) as f64 / elapsed as f64;
        Some(idle_part < IDLE_MIN)
    }
}

/// Idle (and waiting for disks) and all ticks, from the first line: user nice system idle iowait irq softirq steal ….
/// Guest time is part of user time.
fn parse(stat: &str) -> Option<(u64, u64)> {
    let ticks = stat.lines().next()?.strip_prefix("cpu ")?.split_ascii_whitespace().take(8);
    let ticks: Vec<u64> = ticks.map(str::parse).collect::<Result<_, _>>().ok()?;
    Some((ticks.get(3)? + ticks.get(4)?, ticks.iter().sum()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_and_total_ticks_are_read() {
        assert_eq!(parse("cpu  10 0 5 80 5 0 0 0 7 0\ncpu0 …"), Some((85, 100)));
        assert_eq!(parse("intr 1"), None);
    }

    #[test]
    fn this_host_answers_from_the_second_question_on() {
        let mut load = HostLoad::default();
        assert_eq!(load.are_processors_busy(), None);
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert!(load.are_processors_busy().is_some());
    }
}
