//! A machine in several parts, all in this process, each with its own memory, talking over QUIC.
#![allow(dead_code, reason = "every test program uses its own part of this")]
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "only used by tests, where a panic is the report")]

use std::{
    collections::BTreeMap,
    net::{SocketAddr, UdpSocket},
    sync::{Arc, Mutex},
    time::Duration,
};
use vmotion_machine::{ConsoleConfig, ExitReason, Machine, MachineConfig, probe_host};
use vmotion_model::{Backing, ByteSize, DirtySource, Epoch, InterruptController, MachineSpec, MemoryLayout};
use vmotion_probe_guest::{CommandLine, Program};
use vmotion_spanning::{
    directory::{HostId, HostSet, Route, ShardNumber, shards},
    part::{KnownHomes, Left, OtherHost, PartConfig, SpanningPart},
    registry::{Piece, Placement, Registry, Unheard},
};
use vmotion_transport::{
    ExpectedPeer, Identity, Principal,
    mesh::{MeshTicket, MeshTuning},
    pki::Authority,
};

pub(crate) const SOON: Duration = Duration::from_secs(90);
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
pub(crate) const LEASE: Duration = Duration::from_secs(30);

pub(crate) fn kvm_or_skip(test: &str) -> bool {
    match probe_host() {
        Ok(_) => true,
        Err(error) => {
            println!("SKIPPED {test}: {error}");
            false
        }
    }
}

pub(crate) fn host(number: usize) -> HostId {
    HostId::new(u8::try_from(number).unwrap()).unwrap()
}

/// A store in this process.
#[derive(Default)]
struct Store(Mutex<BTreeMap<Piece, Placement>>);

impl Registry for Store {
    fn claim(&self, piece: Piece, wanted: Placement) -> Result<Placement, Unheard> {
        let mut placements = self.0.lock().unwrap();
        let known = placements.entry(piece).or_insert(wanted);
        if wanted.epoch > known.epoch {
            *known = wanted;
        }
        Ok(*known)
    }
}

/// A machine in several parts, all in this process.
pub(crate) struct Spanning {
    /// Those that are there, by their numbers.
    pub(crate) parts: BTreeMap<usize, SpanningPart>,
    addresses: BTreeMap<usize, SocketAddr>,
    /// Processes that were started so far: each is another run.
    runs: u64,
    spec: MachineSpec,
    lease: Duration,
    audit: bool,
    authority: Authority,
    ticket: MeshTicket,
    store: Arc<Store>,
    pub(crate) console: (String, u64),
    directory: tempfile::TempDir,
}

fn principal(number: usize) -> Principal {
    Principal::Host(format!("h{number}").parse().unwrap())
}

impl Spanning {
    /// The hub is the first host; homes are in turn on all of them, and so are vCPUs.
    pub(crate) fn boot(hosts: usize, cpus: u8, memory_mib: u64, cmdline: &CommandLine) -> Self {
        Self::boot_with(hosts, cpus, memory_mib, (LEASE, false), cmdline)
    }

    pub(crate) fn boot_with(
        hosts: usize,
        cpus: u8,
        memory_mib: u64,
        (lease, audit): (Duration, bool),
        cmdline: &CommandLine,
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let kernel = directory.path().join("probe.elf");
        std::fs::write(&kernel, vmotion_probe_guest::ELF).unwrap();
        let spec = MachineSpec {
            name: "big1".parse().unwrap(),
            cpus,
            memory: ByteSize::mib(memory_mib),
            kernel,
            initrd: None,
            cmdline: cmdline.to_string(),
            disks: Vec::new(),
            backing: Backing::Memfd,
            dirty_source: DirtySource::Log,
            interrupts: InterruptController::User,
        };
        let mut machine = Self {
            parts: BTreeMap::new(),
            addresses: BTreeMap::new(),
            runs: 0,
            spec,
            lease,
            audit,
            authority: Authority::create(&directory.path().join("ca")).unwrap(),
            ticket: MeshTicket::random(),
            store: Arc::new(Store::default()),
            console: (String::new(), 0),
            directory,
        };
        let homes: Vec<_> = machine
            .shards()
            .into_iter()
            .zip((0..hosts).cycle())
            .map(|(shard, home)| (shard, Route { home: host(home), epoch: Epoch::FIRST }))
            .collect();
        let all: Vec<usize> = (0..hosts).collect();
        for number in 0..hosts {
            // All vCPUs begin on the hub, which has the time from the beginning.
            let vcpus = vec![Placement { host: host(0), epoch: Epoch::FIRST }; usize::from(cpus)];
            machine.start(number, &all, vcpus, KnownHomes::All(homes.clone()));
        }
        for (number, part) in &machine.parts {
            machine.others(*number).for_each(|other| part.connect(other));
        }
        machine.parts.values().skip(1).for_each(|part| part.machine().stand_by().unwrap());
        machine.hub().load().unwrap();
        for vcpu in 0..cpus {
            machine.move_vcpu(vcpu, usize::from(vcpu) % hosts);
        }
        machine.parts.values().for_each(|part| part.machine().resume().unwrap());
        machine
    }

    pub(crate) fn shards(&self) -> Vec<ShardNumber> {
        shards(&MemoryLayout::for_ram(self.spec.memory.bytes()).unwrap()).collect()
    }

    /// Starts the part of a host; it knows of `hosts`, and talks with nobody.
    fn start(&mut self, number: usize, hosts: &[usize], vcpus: Vec<Placement>, homes: KnownHomes) {
        self.runs += 1;
        let path = self.directory.path().join(format!("run{}", self.runs));
        self.authority.issue(&principal(number), &path).unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        self.addresses.insert(number, socket.local_addr().unwrap());
        let started = SpanningPart::start(PartConfig {
            machine: MachineConfig { spec: self.spec.clone(), console: ConsoleConfig::default(), part: None },
            me: host(number),
            hub: host(0),
            hosts: hosts.iter().fold(HostSet::EMPTY, |hosts, number| hosts.with(host(*number))),
            lease: self.lease,
            vcpus,
            homes,
            socket,
            identity: Arc::new(Identity::load(&path).unwrap()),
            incarnation: self.runs,
            ticket: self.ticket.clone(),
            tuning: MeshTuning::default(),
            registry: Arc::clone(&self.store) as _,
            audit: self.audit,
        });
        self.parts.insert(number, started.unwrap());
    }

    fn other(&self, number: usize) -> OtherHost {
        let expected = ExpectedPeer::Exactly(principal(number));
        OtherHost { id: host(number), address: self.addresses[&number], expected }
    }

    fn others(&self, number: usize) -> impl Iterator<Item = OtherHost> {
        self.parts.keys().filter(move |other| **other != number).map(|other| self.other(*other))
    }

    /// A host comes to the running machine.
    pub(crate) fn join(&mut self, number: usize) {
        let hosts: Vec<usize> = self.parts.keys().copied().chain([number]).collect();
        let vcpus = self.parts[&0].vcpus();
        self.start(number, &hosts, vcpus, KnownHomes::AskHub);
        for (_, part) in self.parts.iter().filter(|(other, _)| **other != number) {
            part.connect(self.other(number));
            // Again: it is the same.
            part.connect(self.other(number));
        }
        let part = &self.parts[&number];
        self.others(number).for_each(|other| part.connect(other));
        part.machine().stand_by().unwrap();
        part.machine().resume().unwrap();
    }

    /// A host that has no piece leaves the running machine.
    pub(crate) fn part_with(&mut self, number: usize) -> Left {
        let left = self.parts[&number].leave(PATIENCE).unwrap();
        let part = self.parts.remove(&number).unwrap();
        self.parts.values().for_each(|other| other.dismiss(host(number), PATIENCE).unwrap());
        part.end();
        left
    }

    /// Moves the homes of `shards` to a host, wherever they are.
    pub(crate) fn move_homes(&self, shards: &[ShardNumber], to: usize) -> usize {
        let from = self.parts.iter().filter(|(number, _)| **number != to);
        from.map(|(_, part)| part.give_homes(shards.iter().copied(), host(to), PATIENCE).unwrap()).sum()
    }

    pub(crate) fn move_vcpu(&self, vcpu: u8, to: usize) -> Option<Duration> {
        let (at, part) = self.parts.iter().find(|(_, part)| part.machine().vcpus_here().contains(vcpu)).unwrap();
        (*at != to).then(|| part.give_vcpu(vcpu, host(to), PATIENCE).unwrap().pause)
    }

    pub(crate) fn read_console(&mut self) {
        let console = self.parts[&0].machine().console();
        let (text, offset) = &mut self.console;
        loop {
            let (from, bytes) = console.read(*offset, 1 << 20);
            assert_eq!(from, *offset);
            if bytes.is_empty() {
                return;
            }
            *offset += bytes.len() as u64;
            text.push_str(&String::from_utf8_lossy(&bytes));
        }
    }

    pub(crate) fn hub(&self) -> &Arc<Machine> {
        self.parts[&0].machine()
    }

    /// The guest powers itself off, all parts end, and it has found nothing wrong; its proof.
    pub(crate) fn finish(mut self, program: Program) -> String {
        let exit = self.hub().wait_exit(SOON);
        self.read_console();
        let text = &self.console.0;
        if exit != Some(ExitReason::PowerOff) {
            for part in self.parts.values() {
                eprintln!("{:?} {:#?}", part.figures(), part.memory().statistics());
            }
            eprintln!("{program}: {exit:?}: {text}");
            // Threads may wait for pages.
            std::process::abort();
        }
        assert!(text.contains("errors=0"), "{program}: {text}");
        let proof = text.lines().find(|line| line.starts_with("P ")).unwrap_or_default().to_owned();
        assert!(proof.contains(" lost=0"), "{program}: {text}");
        let mut seconds = text.lines().filter(|line| line.starts_with("S "));
        assert!(seconds.all(|second| second.contains(" tsc_back=0 ")), "{program}: time went back: {text}");
        for part in self.parts.values() {
            assert!(part.machine().wait_exit(SOON).is_some(), "a part does not know that the guest has ended");
        }
        self.parts.into_values().for_each(SpanningPart::end);
        drop(self.directory);
        proof
    }
}

pub(crate) fn cmdline(program: Program, operations: u64) -> CommandLine {
    CommandLine::new()
        .program(program)
        .operations(operations)
        .working_set_bytes(2 << 20)
        .poweroff(0x600, 0x34)
        .heartbeat_ms(100)
}

/// The shards of the host `number` of three.
pub(crate) fn third(shards: &[ShardNumber], number: usize) -> Vec<ShardNumber> {
    shards.iter().copied().skip(number).step_by(3).collect()
}

/// Numbers that look random (splitmix64).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let value = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        usize::try_from(value >> 33).unwrap() % end
    }
}
