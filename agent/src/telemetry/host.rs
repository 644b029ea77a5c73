//! What the host uses: processors, pressure, network. Where the agent runs in a control group with a limit, the group is the host: its
//! machines can use no more, and what runs outside of it is not theirs.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use vmotion_model::{HostTelemetry, Pressure};

/// Ticks a second in `/proc/stat`: USER_HZ, which is 100 on every Linux of today.
const TICKS_PER_S: f64 = 100.0;

/// Measures this host.
#[derive(Debug, Default)]
pub(super) struct HostMeter {
    before: Option<Before>,
}

#[derive(Debug)]
struct Before {
    at: Instant,
    busy: Duration,
    network: Network,
}

impl HostMeter {
    /// Nothing at the first look.
    pub(super) fn measure(&mut self) -> Option<HostTelemetry> {
        let group = Group::of_this_process();
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as f32;
        let limit = group.as_ref().and_then(|group| group.limit).filter(|limit| *limit < processors);
        let busy = match (&group, limit) {
            (Some(group), Some(_)) => group.busy()?,
            _ => busy_of_host(&fs::read_to_string("/proc/stat").ok()?)?,
        };
        let network = fs::read_to_string("/proc/net/dev").map(|text| Network::parse(&text)).unwrap_or_default();
        let now = Before { at: Instant::now(), busy, network };
        let before = self.before.replace(now)?;
        let over = before.at.elapsed().as_secs_f64().max(0.001);
        let per_s = |now: u64, then: u64| now.saturating_sub(then) as f64 / over;
        let pressure_of = match limit {
            Some(_) => group.and_then(|group| group.pressure),
            None => None,
        };
        Some(HostTelemetry {
            cpus: limit.unwrap_or(processors),
            cpus_busy: busy.saturating_sub(before.busy).as_secs_f32() / before.at.elapsed().as_secs_f32().max(0.001),
            pressure: pressure(&pressure_of.unwrap_or_else(|| PathBuf::from("/proc/pressure"))),
            received_bytes_per_s: per_s(network.received, before.network.received),
            sent_bytes_per_s: per_s(network.sent, before.network.sent),
            network_bytes_per_s: fastest_network(),
        })
    }
}

/// Processor time since the host began, without idling and without waiting for disks.
fn busy_of_host(stat: &str) -> Option<Duration> {
    let all = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let ticks: Vec<f64> = all.split_ascii_whitespace().map_while(|number| number.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal; what guests use is in user already.
    let busy = [0, 1, 2, 5, 6].iter().map(|at| ticks.get(*at)).sum::<Option<f64>>()?;
    Some(Duration::from_secs_f64(busy / TICKS_PER_S))
}

/// Bytes since the host began, over all networks that lead out of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Network {
    received: u64,
    sent: u64,
}

impl Network {
    fn parse(dev: &str) -> Self {
        let mut all = Self::default();
        for line in dev.lines() {
            let Some((name, numbers)) = line.split_once(':') else { continue };
            if name.trim() == "lo" {
                continue;
            }
            let numbers: Vec<u64> = numbers.split_ascii_whitespace().map_while(|number| number.parse().ok()).collect();
            all.received = all.received.saturating_add(numbers.first().copied().unwrap_or(0));
            all.sent = all.sent.saturating_add(numbers.get(8).copied().unwrap_or(0));
        }
        all
    }
}

/// What the fastest network says it carries, in bytes/s.
fn fastest_network() -> Option<f64> {
    let speeds = fs::read_dir("/sys/class/net").ok()?.flatten().filter_map(|entry| {
        // In Mbit/s; -1 and errors for what has none.
        let speed: f64 = fs::read_to_string(entry.path().join("speed")).ok()?.trim().parse().ok()?;
        (speed > 0.0).then_some(speed * 125_000.0)
    });
    speeds.max_by(f64::total_cmp)
}

/// Of the host, or of a control group.
fn pressure(directory: &Path) -> Option<Pressure> {
    let of = |resource: &str| {
        let plain = directory.join(resource);
        let text =
            fs::read_to_string(&plain).or_else(|_| fs::read_to_string(directory.join(format!("{resource}.pressure"))));
        parse_pressure(&text.ok()?)
    };
    Some(Pressure { cpu_percent: of("cpu")?, memory_percent: of("memory")?, io_percent: of("io")? })
}

fn parse_pressure(text: &str) -> Option<f32> {
    let some = text.lines().find_map(|line| line.strip_prefix("some "))?;
    some.split_ascii_whitespace().find_map(|part| part.strip_prefix("avg10="))?.parse().ok()
}

/// The control group this process is in, of the second version or of the first.
#[derive(Debug)]
struct Group {
    /// Processors that it may use.
    limit: Option<f32>,
    /// Where its processor time is counted, and how.
    account: Account,
    /// Where its pressure is told.
    pressure: Option<PathBuf>,
}

#[derive(Debug)]
enum Account {
    /// `cpu.stat`, `usage_usec`.
    Second(PathBuf),
    /// `cpuacct.usage`, in ns.
    First(PathBuf),
}

impl Group {
    fn of_this_process() -> Option<Self> {
        let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
        let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
        let second = || {
            let (root, path) = (mount(&mounts, "cgroup2", None)?, path_in(&groups, None)?);
            let limit = least_upwards(&root, &path, limit_of_second)?;
            let directory = root.join(&path);
            Some(Self {
                limit: Some(limit),
                account: Account::Second(directory.join("cpu.stat")),
                pressure: Some(directory),
            })
        };
        let first = || {
            let (root, path) = (mount(&mounts, "cgroup", Some("cpu"))?, path_in(&groups, Some("cpu"))?);
            let limit = least_upwards(&root, &path, limit_of_first)?;
            let accounts = mount(&mounts, "cgroup", Some("cpuacct"))?.join(path_in(&groups, Some("cpuacct"))?);
            Some(Self { limit: Some(limit), account: Account::First(accounts.join("cpuacct.usage")), pressure: None })
        };
        second().or_else(first)
    }

    fn busy(&self) -> Option<Duration> {
        match &self.account {
            Account::Second(path) => {
                let text = fs::read_to_string(path).ok()?;
                let used = text.lines().find_map(|line| line.strip_prefix("usage_usec "))?;
                Some(Duration::from_micros(used.trim().parse().ok()?))
            }
            Account::First(path) => Some(Duration::from_nanos(fs::read_to_string(path).ok()?.trim().parse().ok()?)),
        }
    }
}

/// Where a hierarchy is mounted: the one with this controller, or the only one of the second version.
fn mount(mounts: &str, kind: &str, controller: Option<&str>) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (place, found, options) = (fields.nth(1)?, fields.next()?, fields.next()?);
        let has = controller.is_none_or(|wanted| options.split(',').any(|option| option == wanted));
        (found == kind && has).then(|| PathBuf::from(place))
    })
}

/// This process's place in a hierarchy, without the slash it begins with.
fn path_in(groups: &str, controller: Option<&str>) -> Option<PathBuf> {
    groups.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let is = match controller {
            Some(wanted) => controllers.split(',').any(|found| found == wanted),
            None => controllers.is_empty(),
        };
        is.then(|| PathBuf::from(path.trim_start_matches('/')))
    })
}

/// The least limit from a group up to its hierarchy's root.
fn least_upwards(root: &Path, path: &Path, limit: impl Fn(&Path) -> Option<f32>) -> Option<f32> {
    path.ancestors().filter_map(|ancestor| limit(&root.join(ancestor))).min_by(f32::total_cmp)
}

fn limit_of_second(group: &Path) -> Option<f32> {
    let text = fs::read_to_string(group.join("cpu.max")).ok()?;
    let (quota, period) = text.trim().split_once(' ')?;
    Some(quota.parse::<f32>().ok()? / period.parse::<f32>().ok()?)
}

fn limit_of_first(group: &Path) -> Option<f32> {
    let number = |name: &str| fs::read_to_string(group.join(name)).ok()?.trim().parse::<f32>().ok();
    // -1 is no limit.
    let quota = number("cpu.cfs_quota_us").filter(|quota| *quota > 0.0)?;
    Some(quota / number("cpu.cfs_period_us")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_accounts_are_read() {
        assert_eq!(busy_of_host("cpu  100 20 30 4000 500 6 4 7 8 9\ncpu0 1\n"), Some(Duration::from_millis(1600)));
        assert_eq!(parse_pressure("some avg10=1.25 avg60=0.10 avg300=0.00 total=1\nfull avg10=0.00\n"), Some(1.25));
        let dev = "Inter-| Receive | Transmit\n  lo: 5 0 0 0 0 0 0 0 5 0\neth0: 10 0 0 0 0 0 0 0 20 0\n";
        assert_eq!(Network::parse(dev), Network { received: 10, sent: 20 });
    }

    #[test]
    fn groups_of_both_versions_are_found() {
        let mounts = "cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\ncgroup /c/cpu cgroup rw,cpu 0 0\n";
        assert_eq!(mount(mounts, "cgroup2", None), Some("/sys/fs/cgroup".into()));
        assert_eq!(mount(mounts, "cgroup", Some("cpu")), Some("/c/cpu".into()));
        assert_eq!(mount(mounts, "cgroup", Some("cpuacct")), None);
        let groups = "3:cpu,cpuacct:/a/b\n0::/system.slice/agent\n";
        assert_eq!(path_in(groups, None), Some("system.slice/agent".into()));
        assert_eq!(path_in(groups, Some("cpuacct")), Some("a/b".into()));
    }

    #[test]
    fn the_least_limit_on_the_way_up_counts() {
        let root = tempfile::tempdir().unwrap();
        let inner = root.path().join("a/b");
        fs::create_dir_all(&inner).unwrap();
        assert_eq!(least_upwards(root.path(), Path::new("a/b"), limit_of_second), None);
        fs::write(root.path().join("a/cpu.max"), "50000 100000\n").unwrap();
        fs::write(inner.join("cpu.max"), "max 100000\n").unwrap();
        assert_eq!(least_upwards(root.path(), Path::new("a/b"), limit_of_second), Some(0.5));
        fs::write(inner.join("cpu.cfs_quota_us"), "-1\n").unwrap();
        fs::write(inner.join("cpu.cfs_period_us"), "100000\n").unwrap();
        assert_eq!(limit_of_first(&inner), None);
        fs::write(inner.join("cpu.cfs_quota_us"), "25000\n").unwrap();
        assert_eq!(limit_of_first(&inner), Some(0.25));
    }

    #[test]
    fn this_host_can_be_measured() {
        let mut meter = HostMeter::default();
        assert!(meter.measure().is_none());
        std::thread::sleep(Duration::from_millis(20));
        let measured = meter.measure().unwrap();
        assert!(measured.cpus > 0.0 && measured.cpus_busy >= 0.0, "{measured:?}");
    }
}
