//! For tests: a path that loses datagrams.

use std::{
    io,
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

/// Between the ends, in front of the one that is called.
#[derive(Default)]
pub(crate) struct Relay {
    /// Of how many datagrams one is lost; none for 0.
    pub(crate) loses_one_in: AtomicU64,
    pub(crate) cut: AtomicBool,
}

impl Relay {
    /// In front of `target`. Ends with the test.
    pub(crate) fn open(target: SocketAddr) -> (Arc<Self>, SocketAddr) {
        let relay = Arc::new(Self::default());
        let (front, back) = (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
        back.connect(target).unwrap();
        let address = front.local_addr().unwrap();
        let source = Arc::new(Mutex::new(address));
        let (there, back_again) = (Arc::clone(&relay), Arc::clone(&relay));
        let (caller, answers, front_again) =
            (Arc::clone(&source), back.try_clone().unwrap(), front.try_clone().unwrap());
        std::thread::spawn(move || {
            let (mut buffer, mut count) = ([0; 1 << 16], 0);
            while let Ok((length, from)) = front.recv_from(&mut buffer) {
                *caller.lock().unwrap() = from;
                there.pass(&mut count, || back.send(&buffer[..length]).map(drop));
            }
        });
        std::thread::spawn(move || {
            let (mut buffer, mut count) = ([0; 1 << 16], 0);
            while let Ok(length) = answers.recv(&mut buffer) {
                let to = *source.lock().unwrap();
                back_again.pass(&mut count, || front_again.send_to(&buffer[..length], to).map(drop));
            }
        });
        (relay, address)
    }

    fn pass(&self, count: &mut u64, send: impl FnOnce() -> io::Result<()>) {
        *count += 1;
        let lossy = self.loses_one_in.load(Ordering::Relaxed);
        if !self.cut.load(Ordering::Relaxed) && (lossy == 0 || !count.is_multiple_of(lossy)) {
            let _ = send();
        }
    }
}
