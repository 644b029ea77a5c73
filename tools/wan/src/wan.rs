//! A link between two namespaces, running.

use crate::{
    counters::Counters,
    direction::{Direction, End},
    error::WanError,
    impairments::{HOLD_MAX, Impairments},
    link::Link,
    namespace::Namespace,
    player::Player,
    pump::Pump,
    timeline::{Step, Timeline},
    tun::{NAME_MAX, Tun, TunOptions},
};
use std::{
    hash::{BuildHasher as _, RandomState},
    net::{IpAddr, Ipv4Addr},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

/// Every host must be able to receive packets of this size (RFC 791), in bytes.
const MTU_MIN: u16 = 576;

/// What to start.
#[derive(Debug, Clone, PartialEq)]
pub struct WanOptions {
    /// What happens to packets that a sends to b.
    pub a_to_b: Impairments,
    /// What happens to packets that b sends to a.
    pub b_to_a: Impairments,
    /// Names of namespaces that exist, for a and b; `None` makes one, which is removed at the end.
    pub namespaces: [Option<String>; 2],
    /// Addresses of a and b.
    pub addresses: [IpAddr; 2],
    /// Name of the TUN device at both ends.
    pub device: String,
    /// Longest packet in bytes, IP header included.
    pub mtu: u16,
    /// Whether hosts may hand down up to 64 KiB at once, to be cut into packets by the device, as they do to a real card;
    /// packets that arrive together are then received together, too. The link treats each packet by itself either way.
    pub offloads: bool,
    /// What chance depends on. With the same seed, the n-th packet that is not dropped by the queue is lost again.
    pub seed: u64,
}

impl Default for WanOptions {
    fn default() -> Self {
        Self {
            a_to_b: Impairments::default(),
            b_to_a: Impairments::default(),
            namespaces: [None, None],
            addresses: [Ipv4Addr::new(10, 98, 0, 1).into(), Ipv4Addr::new(10, 98, 0, 2).into()],
            device: "wan0".to_owned(),
            mtu: 1500,
            offloads: true,
            // The standard library's hasher has random keys.
            seed: RandomState::new().hash_one(()),
        }
    }
}

impl WanOptions {
    /// The same both ways, and everything else by default.
    #[must_use]
    pub fn symmetric(impairments: Impairments) -> Self {
        Self { a_to_b: impairments, b_to_a: impairments, ..Self::default() }
    }

    fn check(&self) -> Result<(), WanError> {
        let refused = |field, value, allowed| Err(WanError::Option { field, value, allowed });
        if self.mtu < MTU_MIN {
            return refused("MTU", self.mtu.to_string(), "write 576 to 65535 bytes");
        }
        let name_fits = (1..=NAME_MAX).contains(&self.device.len())
            && self.device.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
        if !name_fits {
            return refused("device", format!("{:?}", self.device), "write 1 to 15 letters, digits, - or _");
        }
        let [a, b] = self.addresses;
        if a == b || a.is_ipv4() != b.is_ipv4() {
            return Err(WanError::Addresses { a, b });
        }
        if let [Some(a), Some(b)] = &self.namespaces
            && a == b
        {
            return Err(WanError::SameNamespace { name: a.clone() });
        }
        for Impairments { delay, jitter, reorder, .. } in [self.a_to_b, self.b_to_a] {
            let longest = delay.max(jitter).max(reorder.map_or(Duration::ZERO, |reorder| reorder.by));
            if longest > HOLD_MAX {
                return refused("delay", format!("{longest:?}"), "a packet is held for at most 60s");
            }
        }
        Ok(())
    }
}

/// A link between two namespaces that exists until this is dropped.
#[derive(Debug)]
pub struct Wan {
    // Dropped in this order: nobody may use a device when it goes, and its namespace goes last.
    shared: Arc<Pumps>,
    namespaces: [Namespace; 2],
    addresses: [IpAddr; 2],
    seed: u64,
    epoch: Instant,
}

/// Both directions.
#[derive(Debug)]
pub(crate) struct Pumps([Pump; 2]);

impl Pumps {
    pub(crate) fn apply(&self, step: &Step) {
        for direction in Direction::BOTH.into_iter().filter(|direction| step.affects(*direction)) {
            self.get(direction).update(|impairments| step.change.apply(impairments));
        }
    }

    fn get(&self, direction: Direction) -> &Pump {
        &self.0[direction.index()]
    }
}

impl Wan {
    /// Makes namespaces (unless they exist) and devices, and starts to carry packets between them. Needs root.
    ///
    /// # Errors
    /// [`WanError`]; whatever had been made by then is removed.
    pub fn start(options: &WanOptions) -> Result<Self, WanError> {
        static STARTED: AtomicU32 = AtomicU32::new(0);
        options.check()?;
        let (process, count) = (std::process::id(), STARTED.fetch_add(1, Ordering::Relaxed));
        let namespace = |end: End| match &options.namespaces[end as usize] {
            Some(name) => Namespace::existing(name),
            None => Namespace::create(format!("vmwan-{process}-{count}-{end}")),
        };
        let namespaces = [namespace(End::A)?, namespace(End::B)?];
        let tun = |end: End| {
            let device = TunOptions {
                device: &options.device,
                mtu: options.mtu,
                address: options.addresses[end as usize],
                peer: options.addresses[end.other() as usize],
                offloads: options.offloads,
            };
            Tun::create(&namespaces[end as usize], device).map(Arc::new)
        };
        let tuns = [tun(End::A)?, tun(End::B)?];
        let epoch = Instant::now();
        let pump = |direction: Direction, impairments: Impairments| {
            let link = Link::new(impairments, options.seed.wrapping_add(direction.index() as u64));
            let ends = [direction.from(), direction.from().other()].map(|end| &tuns[end as usize]);
            Pump::start(direction, ends, link, epoch).map_err(WanError::host("a thread"))
        };
        let pumps = [pump(Direction::AToB, options.a_to_b)?, pump(Direction::BToA, options.b_to_a)?];
        let shared = Arc::new(Pumps(pumps));
        Ok(Self { shared, namespaces, addresses: options.addresses, seed: options.seed, epoch })
    }

    /// Where an end is: sockets are made, and programs run, in there.
    #[must_use]
    pub const fn namespace(&self, end: End) -> &Namespace {
        &self.namespaces[end as usize]
    }

    /// Where the other end reaches it.
    #[must_use]
    pub const fn address(&self, end: End) -> IpAddr {
        self.addresses[end as usize]
    }

    /// What chance depends on.
    #[must_use]
    pub const fn seed(&self) -> u64 {
        self.seed
    }

    /// Since the start.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.epoch.elapsed()
    }

    /// What one direction does to packets now.
    #[must_use]
    pub fn impairments(&self, direction: Direction) -> Impairments {
        self.shared.get(direction).impairments()
    }

    /// Changes one direction. When this returns, nothing is dropped or delivered by the old impairments any more.
    pub fn set(&self, direction: Direction, impairments: Impairments) {
        self.shared.get(direction).update(|now| *now = impairments);
    }

    /// Loses everything both ways, also what is on the way.
    pub fn cut(&self) {
        Direction::BOTH.into_iter().for_each(|direction| self.cut_direction(direction, true));
    }

    /// Ends a cut both ways.
    pub fn restore(&self) {
        Direction::BOTH.into_iter().for_each(|direction| self.cut_direction(direction, false));
    }

    /// Begins or ends a cut of one direction.
    pub fn cut_direction(&self, direction: Direction, cut: bool) {
        self.shared.get(direction).update(|impairments| impairments.cut = cut);
    }

    /// Has `timeline` happen from now on, until the player is dropped. `observer` is told each change after it was made,
    /// and how long after the beginning that was.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub fn play(
        &self,
        timeline: Timeline,
        observer: impl FnMut(Duration, &Step) + Send + 'static,
    ) -> Result<Player, WanError> {
        Player::start(Arc::downgrade(&self.shared), timeline, observer).map_err(WanError::host("a thread"))
    }

    /// What happened to packets so far.
    #[must_use]
    pub fn counters(&self, direction: Direction) -> Counters {
        self.shared.get(direction).counters()
    }

    /// Whether both directions still work.
    ///
    /// # Errors
    /// [`WanError::Stopped`]: somebody has removed a device or a namespace.
    pub fn check(&self) -> Result<(), WanError> {
        for direction in Direction::BOTH {
            if let Some(error) = self.shared.get(direction).failure() {
                return Err(WanError::Stopped { direction, error });
            }
        }
        Ok(())
    }
}
