//! Can this host run machines, and take them in? What is missing is named, with what to do about it.
//!
//! Looks, and changes nothing: what it opens it closes again.

use crate::{host::meminfo, supervisor::bind_first_free};
use rustix::{fs::statvfs, process::Resource};
use serde::Serialize;
use std::{
    fs, io,
    net::IpAddr,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};
use vmotion_machine::probe_host;
use vmotion_model::{ByteSize, error_chain};
use vmotion_sys::userfaultfd::{Features, Userfault};
use vmotion_transport::{Identity, Tuning};

/// Files that a host with many machines has open: sockets, memory, disks, vCPUs of each.
const FILES_MIN: u64 = 4096;
/// Room for consoles, reports and logs.
const DISK_MIN: ByteSize = ByteSize::gib(1);
/// Below that nothing but the smallest machine fits.
const MEMORY_MIN: ByteSize = ByteSize::gib(1);
/// A certificate is to be replaced before it ends.
const REPLACE_BEFORE: Duration = Duration::from_secs(30 * 86_400);
/// What post-copy needs of the kernel.
const POST_COPY: Features = Features::MISSING_SHMEM.and(Features::MINOR_SHMEM);

/// What is looked at.
#[derive(Debug, Clone)]
pub struct DoctorOptions {
    /// Where the agent keeps everything; need not be there.
    pub data: PathBuf,
    /// The agent's certificate; `None` where it has none yet.
    pub identity: Option<PathBuf>,
    /// Where machines arrive.
    pub address: IpAddr,
    /// UDP ports for arriving machines.
    pub move_ports: RangeInclusive<u16>,
}

/// How serious it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// As it should be.
    Ok,
    /// Machines run, but slower, or not all is possible.
    Warning,
    /// Machines cannot run here, or not be moved.
    Failure,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub check: String,
    /// How serious it is.
    pub severity: Severity,
    /// What was found.
    pub found: String,
    /// What to do about it.
    pub advice: Option<String>,
}

impl Finding {
    /// As it should be.
    #[must_use]
    pub fn ok(check: &str, found: impl Into<String>) -> Self {
        Self { check: check.to_owned(), severity: Severity::Ok, found: found.into(), advice: None }
    }

    /// Machines run, but slower, or not all is possible.
    #[must_use]
    pub fn warning(check: &str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        let advice = Some(advice.into());
        Self { check: check.to_owned(), severity: Severity::Warning, found: found.into(), advice }
    }

    /// Machines cannot run here, or not be moved.
    #[must_use]
    pub fn failure(check: &str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { severity: Severity::Failure, ..Self::warning(check, found, advice) }
    }
}

/// Looks at everything.
#[must_use]
pub fn examine(options: &DoctorOptions) -> Vec<Finding> {
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let mut findings = vec![
        kvm(),
        userfault(Userfault::open().map(|open| open.features())),
        clock(&text("/proc/cpuinfo")),
        memory(&text("/proc/meminfo")),
        swap(&text("/proc/swaps")),
        buffers(&text("/proc/sys/net/core/rmem_max"), rustix::process::geteuid().is_root()),
        ports(options.address, options.move_ports.clone()),
        files(rustix::process::getrlimit(Resource::Nofile).current),
        accounts(Path::new("/proc")),
        data(&options.data),
    ];
    findings.extend(options.identity.as_deref().map(|directory| certificate(directory, SystemTime::now())));
    findings
}

fn kvm() -> Finding {
    match probe_host() {
        Ok(facts) => {
            let ring = if facts.dirty_ring { "with dirty rings" } else { "without dirty rings: its dirty log is used" };
            Finding::ok("kvm", format!("up to {} vCPUs a machine, {ring}; {}", facts.cpus_max, facts.cpu.vendor))
        }
        Err(error) => Finding::failure("kvm", error_chain(&error), "without KVM no machine runs here"),
    }
}

fn userfault(features: io::Result<Features>) -> Finding {
    let impossible = "post-copy and machines over several hosts are not possible here";
    match features {
        Ok(features) if features.contain(POST_COPY) => Finding::ok("userfaultfd", "memory can follow a machine"),
        Ok(features) => {
            let found = format!("the kernel lacks {}: {impossible}", features.lacking(POST_COPY).join(", "));
            Finding::warning("userfaultfd", found, "use Linux 5.14 or later")
        }
        Err(error) => {
            let advice = "run the agent as root, or let its user read and write /dev/userfaultfd";
            Finding::warning("userfaultfd", format!("{error}: {impossible}"), advice)
        }
    }
}

fn clock(cpuinfo: &str) -> Finding {
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    let missing: Vec<&str> =
        ["constant_tsc", "nonstop_tsc"].into_iter().filter(|flag| !flags.split(' ').any(|has| has == *flag)).collect();
    if missing.is_empty() {
        return Finding::ok("clock", "the processors' time stamp counters keep time");
    }
    let found = format!("the processors do not say {}", missing.join(", "));
    Finding::warning("clock", found, "guests that trust the time stamp counter may see time jump when they are moved")
}

fn memory(text: &str) -> Finding {
    let [total, available] = ["MemTotal", "MemAvailable"].map(|key| meminfo(text, key));
    let found = format!("{available} of {total} are available");
    if available < MEMORY_MIN {
        return Finding::warning("memory", found, "hardly any machine has room here");
    }
    Finding::ok("memory", found)
}

fn swap(swaps: &str) -> Finding {
    match swaps.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect::<Vec<_>>().as_slice() {
        [] => Finding::ok("swap", "none"),
        places => Finding::warning(
            "swap",
            format!("to {}", places.join(", ")),
            "what is swapped out must be read back before it can be sent: moves take longer; swapoff where only machines run",
        ),
    }
}

fn buffers(rmem_max: &str, is_root: bool) -> Finding {
    let wanted = Tuning::SOCKET_BUFFER_BYTES;
    match rmem_max.trim().parse::<usize>() {
        Ok(most) if most < wanted && !is_root => Finding::warning(
            "udp buffers",
            format!("at most {} a socket", ByteSize(most as u64)),
            format!("sysctl -w net.core.rmem_max={wanted} net.core.wmem_max={wanted}, or fast links are not used up"),
        ),
        Ok(_) => Finding::ok("udp buffers", format!("{} a socket are possible", ByteSize(wanted as u64))),
        Err(_) => Finding::warning("udp buffers", "cannot be read", "look at net.core.rmem_max"),
    }
}

fn ports(address: IpAddr, ports: RangeInclusive<u16>) -> Finding {
    let (first, last) = (*ports.start(), *ports.end());
    match bind_first_free(address, ports).and_then(|socket| socket.local_addr().ok()) {
        Some(free) => {
            Finding::ok("move ports", format!("of UDP {first} to {last} on {address}, {} is free", free.port()))
        }
        None => Finding::failure(
            "move ports",
            format!("of UDP {first} to {last} on {address} none is free"),
            "give the agent another --move-ports; nothing can arrive here",
        ),
    }
}

fn files(most: Option<u64>) -> Finding {
    match most {
        Some(most) if most < FILES_MIN => Finding::warning(
            "open files",
            format!("at most {most} a process"),
            format!("raise it to {FILES_MIN} or more (`ulimit -n`, LimitNOFILE of the unit)"),
        ),
        Some(most) => Finding::ok("open files", format!("at most {most} a process")),
        None => Finding::ok("open files", "no limit"),
    }
}

fn accounts(proc: &Path) -> Finding {
    let missing: Vec<&str> =
        ["self/schedstat", "pressure/cpu"].into_iter().filter(|path| !proc.join(path).exists()).collect();
    if missing.is_empty() {
        return Finding::ok("accounts", "the kernel says who waits for processors");
    }
    let found =
        format!("there is no {}", missing.iter().map(|path| format!("/proc/{path}")).collect::<Vec<_>>().join(", "));
    Finding::warning(
        "accounts",
        found,
        "a kernel with CONFIG_SCHEDSTATS and CONFIG_PSI (psi=1); the policy knows less of this host",
    )
}

/// The directory, or the first above it that is there.
fn data(directory: &Path) -> Finding {
    let absolute = std::path::absolute(directory).unwrap_or_else(|_| directory.to_owned());
    let Some(there) = absolute.ancestors().find(|path| path.exists()) else {
        return Finding::failure("data", format!("there is no {}", absolute.display()), "name another with --data");
    };
    let writable = rustix::fs::access(there, rustix::fs::Access::WRITE_OK);
    if let Err(error) = writable {
        let found = format!("{} cannot be written: {}", there.display(), io::Error::from(error));
        return Finding::failure("data", found, "name a directory that the agent may write with --data");
    }
    match statvfs(there) {
        Ok(known) => {
            let free = ByteSize(known.f_bavail.saturating_mul(known.f_frsize));
            let found = format!("{free} are free in {}", there.display());
            if free < DISK_MIN {
                return Finding::warning("data", found, format!("make room: consoles and reports need {DISK_MIN}"));
            }
            Finding::ok("data", found)
        }
        Err(error) => Finding::warning("data", format!("{}: {error}", there.display()), "look at the disk"),
    }
}

fn certificate(directory: &Path, now: SystemTime) -> Finding {
    let renew = "vmotion pki issue host NAME on the controller's machine makes another";
    let identity = match Identity::load(directory) {
        Ok(identity) => identity,
        Err(error) => return Finding::failure("certificate", error_chain(&error), renew),
    };
    let who = identity.principal();
    match identity.expires().and_then(|ends| ends.duration_since(now).ok()) {
        None => Finding::failure("certificate", format!("that of {who} has ended"), renew),
        Some(left) => {
            let found = format!("that of {who} ends in {} days", left.as_secs() / 86_400);
            if left < REPLACE_BEFORE {
                Finding::warning("certificate", found, renew)
            } else {
                Finding::ok("certificate", found)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic in a test is its report")]

    use super::*;
    use std::net::UdpSocket;
    use vmotion_transport::{Principal, pki::Authority};

    fn severities(findings: &[Finding]) -> Vec<Severity> {
        findings.iter().map(|finding| finding.severity).collect()
    }

    #[test]
    fn what_the_kernel_says_is_judged() {
        let cpuinfo = "processor\t: 0\nflags\t\t: fpu constant_tsc nonstop_tsc\n";
        assert_eq!(clock(cpuinfo).severity, Severity::Ok);
        assert!(clock("flags\t\t: fpu constant_tsc\n").found.contains("nonstop_tsc"));
        let meminfo = |available: u64| format!("MemTotal:  8388608 kB\nMemFree: 1 kB\nMemAvailable: {available} kB\n");
        assert_eq!(memory(&meminfo(4 << 20)), Finding::ok("memory", "4 GiB of 8 GiB are available"));
        assert_eq!(memory(&meminfo(1000)).severity, Severity::Warning);
        assert_eq!(swap("Filename Type Size\n").severity, Severity::Ok);
        assert!(swap("Filename Type Size\n/dev/sda2 partition 1\n").found.contains("/dev/sda2"));
        assert_eq!(buffers("212992\n", true).severity, Severity::Ok, "root need not ask");
        assert!(buffers("212992\n", false).advice.unwrap().contains("net.core.rmem_max="));
        let limits = [Some(1024), Some(1 << 20), None].map(files);
        assert_eq!(severities(&limits), [Severity::Warning, Severity::Ok, Severity::Ok]);
        assert_eq!(userfault(Err(io::ErrorKind::PermissionDenied.into())).severity, Severity::Warning);
    }

    #[test]
    fn ports_that_are_all_taken_are_a_failure() {
        let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let looked = || ports("127.0.0.1".parse().unwrap(), port..=port);
        assert_eq!(looked().severity, Severity::Failure);
        drop(taken);
        assert_eq!(looked().severity, Severity::Ok);
    }

    #[test]
    fn a_directory_that_is_to_come_is_judged_by_where_it_will_be() {
        let directory = tempfile::tempdir().unwrap();
        let found = data(&directory.path().join("a/b"));
        assert!(found.severity < Severity::Failure && found.found.contains(directory.path().to_str().unwrap()));
        assert_eq!(accounts(directory.path()).severity, Severity::Warning);
    }

    #[test]
    fn certificates_that_end_are_named_before_they_do() {
        let directory = tempfile::tempdir().unwrap();
        let (ca, identity) = (directory.path().join("ca"), directory.path().join("h1"));
        assert_eq!(certificate(&identity, SystemTime::now()).severity, Severity::Failure);
        let authority = Authority::create(&ca).unwrap();
        authority.issue(&Principal::Host("h1".parse().unwrap()), &identity).unwrap();
        let ends = Identity::load(&identity).unwrap().expires().unwrap();
        let day = Duration::from_secs(86_400);
        let at = |when: SystemTime| certificate(&identity, when).severity;
        assert_eq!(
            [at(ends - 40 * day), at(ends - day), at(ends + day)],
            [Severity::Ok, Severity::Warning, Severity::Failure]
        );
    }

    #[test]
    fn a_host_can_be_examined_whatever_it_has() {
        let directory = tempfile::tempdir().unwrap();
        let address = "127.0.0.1".parse().unwrap();
        let options =
            DoctorOptions { data: directory.path().to_owned(), identity: None, address, move_ports: 47_000..=47_999 };
        let findings = examine(&options);
        assert_eq!(findings.len(), 10);
        assert!(
            findings.iter().all(|finding| (finding.severity == Severity::Ok) == finding.advice.is_none()),
            "{findings:?}"
        );
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0, "it only looks");
    }
}
