//! What the tests with real devices share.

#![allow(dead_code, unreachable_pub, reason = "every test program uses its own part of this")]
#![allow(clippy::unwrap_used, reason = "a test's panic is its report")]

use std::{
    ffi::{c_int, c_void},
    io::ErrorKind,
    net::UdpSocket,
    os::fd::AsRawFd as _,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};
use vmotion_wan::{End, Wan};

/// How long an answer may take that must come, and one that must not. Longer than anything the tests configure.
const PATIENCE: Duration = Duration::from_millis(1500);

/// Says that a test is skipped, and why, where devices cannot be made.
pub fn skipped(test: &str) -> bool {
    let missing = if !rustix::process::geteuid().is_root() {
        "it needs root"
    } else if !Path::new("/dev/net/tun").exists() {
        "/dev/net/tun is missing"
    } else {
        return false;
    };
    eprintln!("SKIPPED {test}: {missing}");
    true
}

/// Has what is sent at once go down as one, to be cut into datagrams of `bytes` (`UDP_SEGMENT`).
pub fn send_trains(socket: &UdpSocket, bytes: u16) {
    set_udp_option(socket, libc::UDP_SEGMENT, bytes.into());
}

/// Has datagrams that arrive together be received at once (`UDP_GRO`).
pub fn receive_trains(socket: &UdpSocket) {
    set_udp_option(socket, libc::UDP_GRO, 1);
}

fn set_udp_option(socket: &UdpSocket, name: c_int, value: c_int) {
    let length = libc::socklen_t::try_from(size_of::<c_int>()).unwrap();
    // SAFETY: the kernel reads one `c_int`, which outlives the call.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_UDP, name, (&raw const value).cast::<c_void>(), length)
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

/// b answers what a says, over UDP.
pub struct Echo {
    asker: UdpSocket,
    stop: Arc<AtomicBool>,
}

impl Echo {
    pub fn start(wan: &Wan) -> Self {
        let bind = |end| wan.namespace(end).run(|| UdpSocket::bind((wan.address(end), 0))).unwrap().unwrap();
        let (asker, answerer) = (bind(End::A), bind(End::B));
        asker.connect(answerer.local_addr().unwrap()).unwrap();
        asker.set_read_timeout(Some(PATIENCE)).unwrap();
        answerer.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let stop = Arc::<AtomicBool>::default();
        let stopped = Arc::clone(&stop);
        thread::spawn(move || {
            let mut buffer = [0; 1 << 16];
            while !stopped.load(Ordering::Relaxed) {
                if let Ok((bytes, from)) = answerer.recv_from(&mut buffer) {
                    // The asker may be gone.
                    let _ = answerer.send_to(&buffer[..bytes], from);
                }
            }
        });
        Self { asker, stop }
    }

    /// The round trip, or `None` when no answer came.
    pub fn ask(&self, words: &[u8]) -> Option<Duration> {
        let start = Instant::now();
        self.send(words);
        let answer = self.receive()?;
        assert_eq!(answer, words);
        Some(start.elapsed())
    }

    pub fn send(&self, words: &[u8]) {
        self.asker.send(words).unwrap();
    }

    /// `None` when nothing came.
    pub fn receive(&self) -> Option<Vec<u8>> {
        let mut buffer = vec![0; 1 << 16];
        match self.asker.recv(&mut buffer) {
            Ok(bytes) => Some(buffer[..bytes].to_vec()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => None,
            Err(error) => panic!("{error}"),
        }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
