//! The network between the two ends: a UDP relay on loopback that can lose datagrams, or all of them.

use std::{
    collections::{HashMap, hash_map::Entry},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
};
use tokio::{net::UdpSocket, runtime::Runtime};

/// A relay in front of the target.
pub(crate) struct Path {
    /// Where the source calls.
    pub(crate) address: SocketAddr,
    pub(crate) weather: Arc<Weather>,
    // Relays as long as it lives.
    runtime: Option<Runtime>,
}

/// What happens to datagrams.
#[derive(Debug, Default)]
pub(crate) struct Weather {
    cut: AtomicBool,
    loss_per_mille: AtomicU32,
    dice: AtomicU32,
}

impl Weather {
    /// From now on, or no longer, nothing passes.
    pub(crate) fn cut(&self, cut: bool) {
        self.cut.store(cut, Ordering::Relaxed);
    }

    fn loses(&self) -> bool {
        let loss = self.loss_per_mille.load(Ordering::Relaxed);
        // A multiplicative walk is random enough to lose packets by.
        let dice = self.dice.fetch_add(0x9e37_79b9, Ordering::Relaxed).wrapping_mul(0x85eb_ca6b) >> 8;
        self.cut.load(Ordering::Relaxed) || dice % 1000 < loss
    }
}

impl Path {
    pub(crate) fn open(target: SocketAddr, loss_per_mille: u32) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let weather = Arc::new(Weather { loss_per_mille: loss_per_mille.into(), ..Weather::default() });
        let front = Arc::new(runtime.block_on(UdpSocket::bind("127.0.0.1:0")).unwrap());
        let address = front.local_addr().unwrap();
        runtime.spawn(relay(front, target, Arc::clone(&weather)));
        Self { address, weather, runtime: Some(runtime) }
    }
}

impl Drop for Path {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Every caller gets a socket of its own towards the target, so that answers find their way back.
async fn relay(front: Arc<UdpSocket>, target: SocketAddr, weather: Arc<Weather>) {
    let mut callers: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
    let mut datagram = vec![0; 65_536];
    loop {
        let Ok((length, caller)) = front.recv_from(&mut datagram).await else { continue };
        if weather.loses() {
            continue;
        }
        let back = match callers.entry(caller) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => {
                let back = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
                back.connect(target).await.unwrap();
                tokio::spawn(answer(Arc::clone(&back), Arc::clone(&front), caller, Arc::clone(&weather)));
                new.insert(back)
            }
        };
        let _ = back.send(&datagram[..length]).await;
    }
}

async fn answer(back: Arc<UdpSocket>, front: Arc<UdpSocket>, caller: SocketAddr, weather: Arc<Weather>) {
    let mut datagram = vec![0; 65_536];
    loop {
        // A target that is gone answers with an ICMP error, again and again.
        let Ok(length) = back.recv(&mut datagram).await else {
            tokio::task::yield_now().await;
            continue;
        };
        if !weather.loses() {
            let _ = front.send_to(&datagram[..length], caller).await;
        }
    }
}
