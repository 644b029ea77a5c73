//! Processors of its own for each host of a test: a control group with a quota, of the first version or of the second.

use std::{
    fs,
    path::{Path, PathBuf},
};

const PERIOD_US: u64 = 20_000;

/// A control group, gone when this is dropped.
pub struct Processors {
    directories: Vec<PathBuf>,
}

impl Processors {
    /// So many processors for whoever enters; `None` where this machine has no control groups that could be made.
    pub fn new(name: &str, processors: f64) -> Option<Self> {
        let name = format!("vmotion-test-{}-{name}", std::process::id());
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of a period")]
        let quota_us = (processors * PERIOD_US as f64) as u64;
        Self::first(&name, quota_us).or_else(|| Self::second(&name, quota_us))
    }

    fn first(name: &str, quota_us: u64) -> Option<Self> {
        let controllers = ["cpu", "cpuacct"].map(|controller| Path::new("/sys/fs/cgroup").join(controller));
        let mut directories = Vec::new();
        for controller in controllers {
            let directory = controller.join(name);
            // Both may be one hierarchy under two names.
            if !directory.exists() {
                fs::create_dir(&directory).ok()?;
            }
            directories.push(directory);
        }
        fs::write(directories[0].join("cpu.cfs_period_us"), PERIOD_US.to_string()).ok()?;
        fs::write(directories[0].join("cpu.cfs_quota_us"), quota_us.to_string()).ok()?;
        Some(Self { directories })
    }

    fn second(name: &str, quota_us: u64) -> Option<Self> {
        let directory = Path::new("/sys/fs/cgroup").join(name);
        fs::create_dir(&directory).ok()?;
        let group = Self { directories: vec![directory] };
        fs::write(group.directories[0].join("cpu.max"), format!("{quota_us} {PERIOD_US}")).ok()?;
        Some(group)
    }

    /// Puts a process in; what it starts from then on is in as well.
    pub fn enter(&self, pid: u32) {
        for directory in &self.directories {
            fs::write(directory.join("cgroup.procs"), pid.to_string()).unwrap();
        }
    }
}

impl Drop for Processors {
    fn drop(&mut self) {
        for directory in &self.directories {
            // Who is still in would keep it; its processes are ending.
            for _ in 0..100 {
                match fs::remove_dir(directory) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        std::thread::sleep(std::time::Duration::from_millis(20));
                    }
                    _ => break,
                }
            }
        }
    }
}
