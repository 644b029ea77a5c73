//! A real etcd cluster for a test, and what can be done to its members.
//!
//! Members are processes of Debian's `etcd-server` on free ports of 127.0.0.1, with their data in a directory that ends with the
//! test, as they do.

#![allow(dead_code, unreachable_pub, missing_docs, reason = "shared by tests of which each uses a part")]
#![allow(clippy::unwrap_used, reason = "a test's panic is its report")]

use std::{
    fs,
    net::TcpListener,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

const START_TIMEOUT: Duration = Duration::from_secs(60);

/// Is there an etcd? Says that `test` is skipped where there is none.
pub fn is_missing(test: &str) -> bool {
    let missing = Command::new("etcd").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err();
    if missing {
        eprintln!("SKIPPED {test}: etcd is missing (Debian's etcd-server)");
    }
    missing
}

pub struct Cluster {
    directory: tempfile::TempDir,
    members: Vec<Member>,
    /// Options of every member.
    extra: Vec<String>,
}

struct Member {
    client_port: u16,
    peer_port: u16,
    child: Option<Child>,
}

/// A member that stands still until this is dropped: it takes connections, and answers nobody.
pub struct Frozen {
    pid: u32,
}

impl Drop for Frozen {
    fn drop(&mut self) {
        signal(self.pid, rustix::process::Signal::CONT);
    }
}

fn signal(pid: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    let _ = rustix::process::kill_process(pid, signal);
}

/// Ports that are free now, all different.
fn free_ports(count: usize) -> Vec<u16> {
    let listeners: Vec<_> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    listeners.iter().map(|listener| listener.local_addr().unwrap().port()).collect()
}

impl Cluster {
    /// Three members that have elected a leader.
    pub async fn start(extra: &[&str]) -> Self {
        let ports = free_ports(6);
        let member = |pair: &[u16]| Member { client_port: pair[0], peer_port: pair[1], child: None };
        let mut cluster = Self {
            directory: tempfile::Builder::new().prefix("vmotion-etcd-").tempdir().unwrap(),
            members: ports.chunks(2).map(member).collect(),
            extra: extra.iter().map(|option| (*option).to_owned()).collect(),
        };
        (0..3).for_each(|at| cluster.start_member(at));
        cluster.wait_until_healthy().await;
        cluster
    }

    pub fn urls(&self) -> Vec<String> {
        (0..self.members.len()).map(|at| self.url(at)).collect()
    }

    pub fn url(&self, at: usize) -> String {
        format!("http://127.0.0.1:{}", self.members[at].client_port)
    }

    /// Starts a member that is not running, with the data it had.
    pub fn start_member(&mut self, at: usize) {
        if self.members[at].child.is_some() {
            return;
        }
        let peer = |member: &Member| format!("http://127.0.0.1:{}", member.peer_port);
        let all: Vec<String> =
            self.members.iter().enumerate().map(|(at, member)| format!("m{at}={}", peer(member))).collect();
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.directory.path().join(format!("m{at}.log")))
            .unwrap();
        let child = Command::new("etcd")
            .args(["--name", &format!("m{at}"), "--initial-cluster", &all.join(",")])
            .args(["--listen-client-urls", &self.url(at), "--advertise-client-urls", &self.url(at)])
            .args(["--listen-peer-urls", &peer(&self.members[at])])
            .args(["--initial-advertise-peer-urls", &peer(&self.members[at])])
            .args(["--logger", "zap", "--log-outputs", "stderr"])
            .arg("--data-dir")
            .arg(self.directory.path().join(format!("m{at}")))
            .args(&self.extra)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.members[at].child = Some(child);
    }

    /// `kill -9`.
    pub fn kill_member(&mut self, at: usize) {
        if let Some(mut child) = self.members[at].child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Cuts a member off: the others and all clients hear nothing of it.
    pub fn freeze(&self, at: usize) -> Option<Frozen> {
        let pid = self.members[at].child.as_ref()?.id();
        signal(pid, rustix::process::Signal::STOP);
        Some(Frozen { pid })
    }

    /// What a member's gateway answers.
    pub async fn ask(&self, at: usize, path: &str, body: &str) -> Option<serde_json::Value> {
        let body = body.to_owned();
        let (host, path) = (format!("127.0.0.1:{}", self.members[at].client_port), path.to_owned());
        tokio::task::spawn_blocking(move || post(&host, &path, &body)).await.unwrap()
    }

    /// The member that leads, as the first that answers says.
    pub async fn leader(&self) -> Option<usize> {
        for at in 0..self.members.len() {
            let Some(status) = self.ask(at, "/v3/maintenance/status", "{}").await else { continue };
            let (Some(leader), Some(own)) = (status["leader"].as_str(), status["header"]["member_id"].as_str()) else {
                continue;
            };
            if leader == own {
                return Some(at);
            }
        }
        None
    }

    pub async fn wait_until_healthy(&self) {
        let deadline = Instant::now() + START_TIMEOUT;
        for at in 0..self.members.len() {
            // A linearisable read: the member reaches a leader that reaches more than half.
            while self.members[at].child.is_some()
                && self
                    .ask(at, "/v3/kv/range", "{\"key\":\"AA==\"}")
                    .await
                    .is_none_or(|found| found.get("error").is_some())
            {
                assert!(Instant::now() < deadline, "etcd did not come up: see {}", self.directory.path().display());
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        (0..self.members.len()).for_each(|at| self.kill_member(at));
        if std::thread::panicking() {
            self.directory.disable_cleanup(true);
            eprintln!("etcd's files are kept in {}", self.directory.path().display());
        }
    }
}

/// One request over a plain connection: nothing of what is tested.
fn post(host: &str, path: &str, body: &str) -> Option<serde_json::Value> {
    use std::io::{Read as _, Write as _};
    let address = host.parse().ok()?;
    let mut stream = std::net::TcpStream::connect_timeout(&address, Duration::from_secs(1)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
    let length = body.len();
    let request = format!("POST {path} HTTP/1.0\r\nHost: {host}\r\nContent-Length: {length}\r\n\r\n{body}");
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()
}
