//! Several hosts in one process: each has its own memfd, its own mapping, its own node and a thread that drives it. Threads that touch a host's
//! mapping are its vCPUs.
#![allow(dead_code, reason = "every test program uses its own part of this")]
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "only used by tests, where a panic is the report")]

pub(crate) mod mesh;

use mesh::{Fabric, Running};
use std::fs::File;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;
use vmotion_model::{Epoch, MemoryLayout, PageNumber};
use vmotion_pager::{GuestRegion, PagerError};
use vmotion_spanning::directory::{HostId, HostSet, PAGES_PER_SHARD, Route, ShardNumber};
use vmotion_spanning::memory::{MemoryNode, NodeConfig, NodeControl, NodeError, NodeStats, ShardRegistry};
use vmotion_sys::memory::AlignedMapping;

pub(crate) const PAGE: usize = 4096;

/// Runs `test` in a thread of its own and fails when it takes too long: a thread that waits for a page does not end by itself.
pub(crate) fn watched(test: impl FnOnce() + Send + 'static) {
    let (done, finished) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        test();
        let _ = done.send(());
    });
    match finished.recv_timeout(Duration::from_secs(60)) {
        Err(mpsc::RecvTimeoutError::Timeout) => {
            eprintln!("a thread hangs");
            std::process::abort();
        }
        _ => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
    }
}

/// Says that a test is skipped, and why, where this process may not serve page faults or the kernel is too old.
pub(crate) fn skipped(test: &str) -> bool {
    let memfd = memfd(PAGE);
    let mapping = AlignedMapping::new(&memfd, 0, PAGE).unwrap();
    let address = mapping.address().expose_provenance();
    let region = GuestRegion { address, first: 0, pages: 1, file_offset: 0 };
    match vmotion_pager::CoherentMemory::new(&memfd, &[region]) {
        Ok(_) => false,
        Err(error @ (PagerError::NotPermitted(_) | PagerError::Lacks { .. })) => {
            println!("SKIPPED {test}: {error}");
            true
        }
        Err(error) => panic!("{error:?}"),
    }
}

fn memfd(bytes: usize) -> File {
    let memfd = rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&memfd, bytes as u64).unwrap();
    File::from(memfd)
}

/// Numbers that look random (splitmix64).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = self.0;
        value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ (value >> 31)
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

/// The guest's mapping on one host.
pub(crate) struct Guest {
    memfd: File,
    mapping: AlignedMapping,
    pages: u64,
}

impl Guest {
    pub(crate) fn new(pages: u64) -> Self {
        let bytes = usize::try_from(pages).unwrap() * PAGE;
        let memfd = memfd(bytes);
        let mapping = AlignedMapping::new(&memfd, 0, bytes).unwrap();
        Self { memfd, mapping, pages }
    }

    /// A word of a page, as a vCPU has it.
    pub(crate) fn word(&self, page: u64, word: usize) -> &AtomicU64 {
        assert!(page < self.pages && word < PAGE / 8);
        let address = self.mapping.address().wrapping_add(usize::try_from(page).unwrap() * PAGE + word * 8);
        // SAFETY: aligned, and mapped as long as `self` lives; whatever is in it is a number; this process only ever accesses it as
        // atomics, and by copies of the pager's, as a guest's memory is accessed.
        unsafe { AtomicU64::from_ptr(address.cast()) }
    }

    /// What holds it.
    pub(crate) const fn memfd(&self) -> &File {
        &self.memfd
    }

    /// Where it is in this process, and its length in pages.
    pub(crate) fn mapped_at(&self) -> (usize, u64) {
        (self.mapping.address().expose_provenance(), self.pages)
    }

    /// Writes a number half of which is in `page` and half in the next one: one instruction needs both.
    pub(crate) fn write_across(&self, page: u64, value: u64) {
        assert!(page + 1 < self.pages);
        let address = self.mapping.address().wrapping_add(usize::try_from(page + 1).unwrap() * PAGE - 4);
        // SAFETY: mapped as long as `self` lives; whatever is in it is a number; nobody has a reference to it.
        unsafe { address.cast::<u64>().write_unaligned(value) };
    }

    /// Reads a byte inside a system call, as the kernel does on behalf of KVM: the error that gives.
    pub(crate) fn touch_in_kernel(&self, page: u64) -> Option<rustix::io::Errno> {
        let (_reader, writer) = rustix::pipe::pipe().unwrap();
        let start = self.mapping.address().wrapping_add(usize::try_from(page).unwrap() * PAGE);
        // SAFETY: mapped as long as `self` lives; only the kernel reads it, and reports an error where it cannot.
        let byte = unsafe { std::slice::from_raw_parts(start, 1) };
        rustix::io::write(&writer, byte).err()
    }

    /// Writes where nobody may: past the mapping that the pager guards.
    pub(crate) fn corrupt(&self, page: u64) {
        let file = &self.memfd;
        std::os::unix::fs::FileExt::write_all_at(file, &[0xee], page * PAGE as u64 + 99).unwrap();
    }

    /// Pages the memfd has memory for.
    pub(crate) fn allocated(&self) -> u64 {
        let ranges = vmotion_sys::memory::data_ranges(&self.memfd, 0..self.pages * PAGE as u64).unwrap();
        ranges.iter().map(|range| (range.end - range.start) / PAGE as u64).sum()
    }
}

/// The store of all hosts: compare-and-set, answered at once.
#[derive(Clone, Default)]
pub(crate) struct Store {
    routes: Arc<Mutex<Vec<Route>>>,
    controls: Arc<Mutex<Vec<NodeControl>>>,
    /// It hears nobody, and keeps nothing of what is said.
    pub(crate) deaf: Arc<AtomicBool>,
}

impl Store {
    pub(crate) fn route(&self, shard: usize) -> Route {
        self.routes.lock().unwrap()[shard]
    }

    pub(crate) fn epochs(&self) -> Vec<u64> {
        self.routes.lock().unwrap().iter().map(|route| route.epoch.0).collect()
    }
}

struct Claims {
    host: HostId,
    store: Store,
}

impl ShardRegistry for Claims {
    fn claim(&mut self, shard: ShardNumber, wanted: Route) {
        if self.store.deaf.load(Ordering::Acquire) {
            return;
        }
        let mut routes = self.store.routes.lock().unwrap();
        let known = &mut routes[usize::try_from(shard.0).unwrap()];
        if wanted.epoch == known.epoch.next() {
            *known = wanted;
        }
        let _ = self.store.controls.lock().unwrap()[self.host.index()].word(shard, *known);
    }
}

/// What a vCPU does with its host's mapping.
pub(crate) type Vcpu<'a, R> = Box<dyn FnOnce(&Guest) -> R + Send + 'a>;

pub(crate) fn host(number: usize) -> HostId {
    HostId::new(u8::try_from(number).unwrap()).unwrap()
}

/// Hosts of one machine, served.
pub(crate) struct Cluster {
    pub(crate) guests: Vec<Arc<Guest>>,
    pub(crate) controls: Vec<NodeControl>,
    pub(crate) fabric: Arc<Fabric>,
    pub(crate) store: Store,
    nodes: Vec<Running>,
    pages: u64,
    measures: bool,
    audit: bool,
}

/// Hosts that may come later.
const ROOM: usize = 2;

pub(crate) struct Options {
    pub(crate) hosts: usize,
    pub(crate) pages: u64,
    pub(crate) measures: bool,
    pub(crate) audit: bool,
    /// Streams overtake each other, by this seed.
    pub(crate) jumble: Option<u64>,
}

impl Default for Options {
    fn default() -> Self {
        Self { hosts: 3, pages: 4 * PAGES_PER_SHARD, measures: false, audit: false, jumble: None }
    }
}

impl Cluster {
    /// The home of shard n is host n, as far as there are hosts.
    pub(crate) fn new(options: &Options) -> Self {
        let Options { hosts, pages, measures, audit, jumble } = *options;
        let all = (0..hosts).map(host).fold(HostSet::EMPTY, HostSet::with);
        let shards = usize::try_from(pages.div_ceil(PAGES_PER_SHARD)).unwrap();
        let routes: Vec<_> =
            (0..shards).map(|shard| Route { home: host(shard % hosts), epoch: Epoch::FIRST }).collect();
        let store = Store { routes: Arc::new(Mutex::new(routes.clone())), ..Store::default() };
        let fabric = Arc::new(Fabric::new(hosts + ROOM, jumble));
        let (guests, controls, nodes) = (Vec::new(), Vec::new(), Vec::new());
        let mut cluster = Self { guests, controls, fabric, store, nodes, pages, measures, audit };
        for number in 0..hosts {
            cluster.start(number, all, &routes);
        }
        for (one, other) in cluster.pairs() {
            cluster.fabric.connect(one, other);
        }
        cluster
    }

    /// The next host, or one that has gone.
    fn start(&mut self, number: usize, hosts: HostSet, routes: &[Route]) {
        let guest = Arc::new(Guest::new(self.pages));
        let address = guest.mapping.address().expose_provenance();
        let config = NodeConfig {
            host: host(number),
            hosts,
            layout: MemoryLayout::for_ram(self.pages * PAGE as u64).unwrap(),
            memfd: &guest.memfd,
            regions: &[GuestRegion { address, first: 0, pages: self.pages, file_offset: 0 }],
            routes: &mut (0..).map(ShardNumber).zip(routes.iter().copied()),
            first_stream: 1,
            registry: Box::new(Claims { host: host(number), store: self.store.clone() }),
            on_failure: Box::new(move |error: Arc<NodeError>| {
                eprintln!("host {number}: {}", vmotion_model::error_chain(&*error));
                if !matches!(*error, NodeError::Store(_) | NodeError::Audit { .. }) {
                    std::process::abort();
                }
            }),
            measures: self.measures,
            audit: self.audit,
        };
        let (node, control) = MemoryNode::new(config).unwrap();
        let running = self.fabric.run(number, Box::new(node));
        let mut known = self.store.controls.lock().unwrap();
        if number < self.guests.len() {
            known[number] = control.clone();
            (self.guests[number], self.controls[number], self.nodes[number]) = (guest, control, running);
        } else {
            known.push(control.clone());
            self.guests.push(guest);
            self.controls.push(control);
            self.nodes.push(running);
        }
    }

    /// A host comes that knows nothing; `others` are there.
    pub(crate) fn join(&mut self, number: usize, others: &[usize]) {
        let hosts = others.iter().chain([&number]).map(|other| host(*other)).fold(HostSet::EMPTY, HostSet::with);
        let routes = vec![Route::ask(host(0)); self.store.epochs().len()];
        others.iter().for_each(|other| self.controls[*other].admit(host(number)).unwrap());
        self.start(number, hosts, &routes);
        others.iter().for_each(|other| self.fabric.connect(*other, number));
    }

    /// A host that has no home leaves, and `others` forget it.
    pub(crate) fn part_with(&mut self, number: usize, others: &[usize]) {
        let leaving = &self.controls[number];
        while !leaving.leave(true).unwrap().is_nothing() {
            std::thread::sleep(Duration::from_millis(1));
        }
        for other in others {
            let named = self.controls[*other].dismiss(host(number), Duration::from_secs(5)).unwrap();
            assert_eq!(named, None, "host {other} names host {number}");
            self.fabric.cut(*other, number);
        }
        self.nodes[number].stop();
    }

    /// Moves the homes of `shards` from `from` to `to`, and waits until they are there.
    pub(crate) fn give(&self, from: usize, shards: impl Iterator<Item = usize>, to: usize) {
        for shard in shards.filter(|shard| self.store.route(*shard).home == host(from)) {
            // It may not know yet that it has it.
            while self.controls[from].relocate(ShardNumber(shard as u64), host(to)).is_err() {
                std::thread::sleep(Duration::from_millis(1));
            }
            while self.store.route(shard).home != host(to) {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }

    pub(crate) fn pairs(&self) -> Vec<(usize, usize)> {
        let hosts = self.guests.len();
        (0..hosts).flat_map(|one| (one + 1..hosts).map(move |other| (one, other))).collect()
    }

    pub(crate) fn stats(&self, host: usize) -> NodeStats {
        self.controls[host].statistics().unwrap()
    }

    /// Runs each of `vcpus` on its host until all have ended.
    pub(crate) fn run<R: Send>(&self, vcpus: Vec<(usize, Vcpu<'_, R>)>) -> Vec<R> {
        std::thread::scope(|scope| {
            let threads: Vec<_> = vcpus
                .into_iter()
                .map(|(host, vcpu)| {
                    let guest = &*self.guests[host];
                    scope.spawn(move || vcpu(guest))
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    pub(crate) fn evict_all(&self, host: usize) {
        self.controls[host].evict(PageNumber(0)..PageNumber(u64::MAX)).unwrap();
    }

    /// What all hosts have sent: messages with pages.
    pub(crate) fn pages_sent(&self) -> u64 {
        let of = |host| self.stats(host).peers.iter().map(|peer| peer.traffic.pages_sent).sum::<u64>();
        (0..self.guests.len()).map(of).sum()
    }

    /// No peer found fault with another.
    pub(crate) fn assert_no_misfits(&self) {
        for (number, control) in self.controls.iter().enumerate() {
            assert!(control.failure().is_none());
            assert_eq!(self.stats(number).counts.misfits, 0, "host {number}");
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            node.stop();
        }
    }
}

pub(crate) fn relaxed(word: &AtomicU64) -> u64 {
    word.load(Ordering::Relaxed)
}
