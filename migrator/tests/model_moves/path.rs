//! The network between the two ends: UDP relays on loopback that lose datagrams, bring them late or twice, or not at all.

use std::{
    collections::{HashMap, hash_map::Entry},
    io,
    net::{SocketAddr, UdpSocket as StdSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};
use tokio::{net::UdpSocket, runtime::Runtime};

/// Relays in front of the target. They listen on another address of this machine, on the ports that the target itself has:
/// the target tells the source the port of its demand lane, and the source calls it at the address it knows.
pub(crate) struct Path {
    /// Where the source calls.
    pub(crate) address: SocketAddr,
    pub(crate) weather: Arc<Weather>,
    // Relays as long as it lives.
    runtime: Option<Runtime>,
}

/// What happens to datagrams.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Climate {
    /// Lost, of a thousand.
    pub(crate) loss_per_mille: u32,
    /// Brought twice, of a thousand.
    pub(crate) twice_per_mille: u32,
    /// Each takes so long.
    pub(crate) delay: Duration,
    /// Each is brought up to so much later than it might, whatever was sent after it.
    pub(crate) late_max: Duration,
}

/// What happens to datagrams, now.
#[derive(Debug, Default)]
pub(crate) struct Weather {
    climate: Climate,
    cut: AtomicBool,
    demand_cut: AtomicBool,
    /// For good.
    gone: AtomicBool,
    dice: AtomicU32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lane {
    /// Control and bulk.
    Main,
    Demand,
}

/// What happens to one datagram.
enum Fate {
    Lost,
    /// Brought after each of these.
    Brought(Duration, Option<Duration>),
}

impl Weather {
    /// From now on, or no longer, nothing passes.
    pub(crate) fn cut(&self, cut: bool) {
        self.cut.store(cut, Ordering::Relaxed);
    }

    /// From now on nothing passes on the demand lane.
    pub(crate) fn cut_demand(&self) {
        self.demand_cut.store(true, Ordering::Relaxed);
    }

    /// One end is gone: nothing it might still do is seen.
    pub(crate) fn end(&self) {
        self.gone.store(true, Ordering::Relaxed);
    }

    fn roll(&self, limit: u32) -> u32 {
        // A multiplicative walk is random enough to lose packets by.
        let dice = self.dice.fetch_add(0x9e37_79b9, Ordering::Relaxed).wrapping_mul(0x85eb_ca6b);
        ((dice ^ dice >> 15).wrapping_mul(0xc2b2_ae35) >> 8) % limit.max(1)
    }

    fn fate(&self, lane: Lane) -> Fate {
        let Climate { loss_per_mille, twice_per_mille, delay, late_max } = self.climate;
        let demand_cut = lane == Lane::Demand && self.demand_cut.load(Ordering::Relaxed);
        if demand_cut || self.cut.load(Ordering::Relaxed) || self.gone.load(Ordering::Relaxed) {
            return Fate::Lost;
        }
        if loss_per_mille > 0 && self.roll(1000) < loss_per_mille {
            return Fate::Lost;
        }
        let late = || delay + late_max * self.roll(1000) / 1000;
        let twice = twice_per_mille > 0 && self.roll(1000) < twice_per_mille;
        Fate::Brought(late(), twice.then(late))
    }
}

/// Two sockets with one port: the target's, and the one in front of it.
pub(crate) fn socket_pair() -> (StdSocket, StdSocket) {
    for _ in 0..1000 {
        let target = StdSocket::bind("127.0.0.1:0").unwrap();
        let port = target.local_addr().unwrap().port();
        // Somebody who listens on all addresses may have the port at the other.
        if let Ok(front) = StdSocket::bind(("127.0.0.2", port)) {
            front.set_nonblocking(true).unwrap();
            return (target, front);
        }
    }
    panic!("no port is free on both loopback addresses");
}

impl Path {
    /// Relays from `main` and `demand`, which are in front of the target's sockets.
    pub(crate) fn open(main: StdSocket, demand: StdSocket, climate: Climate, seed: u32) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let weather = Arc::new(Weather { climate, dice: seed.into(), ..Weather::default() });
        let address = main.local_addr().unwrap();
        for (front, lane) in [(main, Lane::Main), (demand, Lane::Demand)] {
            let _inside = runtime.enter();
            let target = SocketAddr::from(([127, 0, 0, 1], front.local_addr().unwrap().port()));
            let front = Arc::new(UdpSocket::from_std(front).unwrap());
            runtime.spawn(relay(front, target, lane, Arc::clone(&weather)));
        }
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

/// Where a datagram goes.
#[derive(Clone)]
struct Way {
    socket: Arc<UdpSocket>,
    /// `None`: the socket is connected.
    to: Option<SocketAddr>,
}

impl Way {
    async fn send(&self, datagram: &[u8]) {
        let sent: io::Result<usize> = match self.to {
            Some(to) => self.socket.send_to(datagram, to).await,
            None => self.socket.send(datagram).await,
        };
        // Nobody there: lost.
        drop(sent);
    }
}

async fn bring(way: &Way, datagram: &[u8], lane: Lane, weather: &Weather) {
    let Fate::Brought(late, again) = weather.fate(lane) else { return };
    for late in std::iter::once(late).chain(again) {
        if late.is_zero() {
            way.send(datagram).await;
            continue;
        }
        let (way, datagram) = (way.clone(), datagram.to_vec());
        tokio::spawn(async move {
            tokio::time::sleep(late).await;
            way.send(&datagram).await;
        });
    }
}

/// Every caller gets a socket of its own towards the target, so that answers find their way back.
async fn relay(front: Arc<UdpSocket>, target: SocketAddr, lane: Lane, weather: Arc<Weather>) {
    let mut callers: HashMap<SocketAddr, Way> = HashMap::new();
    let mut datagram = vec![0; 65_536];
    loop {
        let Ok((length, caller)) = front.recv_from(&mut datagram).await else { continue };
        let back = match callers.entry(caller) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => {
                let back = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
                back.connect(target).await.unwrap();
                let home = Way { socket: Arc::clone(&front), to: Some(caller) };
                tokio::spawn(answer(Arc::clone(&back), home, lane, Arc::clone(&weather)));
                new.insert(Way { socket: back, to: None })
            }
        };
        bring(back, &datagram[..length], lane, &weather).await;
    }
}

async fn answer(back: Arc<UdpSocket>, home: Way, lane: Lane, weather: Arc<Weather>) {
    let mut datagram = vec![0; 65_536];
    loop {
        // A target that is gone answers with an ICMP error, again and again.
        let Ok(length) = back.recv(&mut datagram).await else {
            tokio::task::yield_now().await;
            continue;
        };
        bring(&home, &datagram[..length], lane, &weather).await;
    }
}
