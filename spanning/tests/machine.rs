//! A real machine on real KVM that spans several parts, each with its own memory, talking over QUIC: what its vCPUs prove together. All parts are
//! in this process.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a panic in a test is its report")]

use std::{
    collections::BTreeMap,
    net::UdpSocket,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use vmotion_machine::{ConsoleConfig, ExitReason, Machine, MachineConfig, probe_host};
use vmotion_model::{Backing, ByteSize, DirtySource, Epoch, InterruptController, MachineSpec, MemoryLayout};
use vmotion_pager::Stalls;
use vmotion_probe_guest::{CommandLine, Program};
use vmotion_spanning::{
    directory::{HostId, HostSet, Route, shards},
    part::{OtherHost, PartConfig, SpanningPart},
    registry::{Piece, Placement, Registry, Unheard},
};
use vmotion_sys::kvm::{set_tsc_offset, tsc_offset};
use vmotion_transport::{
    ExpectedPeer, Identity, Principal,
    mesh::{MeshTicket, MeshTuning},
    pki::Authority,
};

const SOON: Duration = Duration::from_secs(90);
const PATIENCE: Duration = Duration::from_secs(10);
const LEASE: Duration = Duration::from_secs(30);

fn kvm_or_skip(test: &str) -> bool {
    match probe_host() {
        Ok(_) => true,
        Err(error) => {
            println!("SKIPPED {test}: {error}");
            false
        }
    }
}

fn host(number: usize) -> HostId {
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
struct Spanning {
    parts: Vec<SpanningPart>,
    console: (String, u64),
    directory: tempfile::TempDir,
}

impl Spanning {
    /// The hub is the first host; homes are in turn on all of them.
    fn boot(hosts: usize, cpus: u8, memory_mib: u64, cmdline: &CommandLine) -> Self {
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
        let layout = MemoryLayout::for_ram(spec.memory.bytes()).unwrap();
        let homes: Vec<_> = shards(&layout)
            .zip((0..hosts).cycle())
            .map(|(shard, home)| (shard, Route { home: host(home), epoch: Epoch::FIRST }))
            .collect();
        let authority = Authority::create(&directory.path().join("ca")).unwrap();
        let principal = |number: usize| Principal::Host(format!("h{number}").parse().unwrap());
        let identity = |number: usize| {
            let path = directory.path().join(format!("h{number}"));
            authority.issue(&principal(number), &path).unwrap();
            Arc::new(Identity::load(&path).unwrap())
        };
        let sockets: Vec<_> = (0..hosts).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
        let addresses: Vec<_> = sockets.iter().map(|socket| socket.local_addr().unwrap()).collect();
        let (ticket, store) = (MeshTicket::random(), Arc::new(Store::default()));
        let part = |(me, socket): (usize, UdpSocket)| {
            let started = SpanningPart::start(PartConfig {
                machine: MachineConfig { spec: spec.clone(), console: ConsoleConfig::default(), part: None },
                me: host(me),
                hub: host(0),
                hosts: (0..hosts).fold(HostSet::EMPTY, |hosts, number| hosts.with(host(number))),
                lease: LEASE,
                // All begin on the hub, which has the time from the beginning.
                vcpus: vec![Placement { host: host(0), epoch: Epoch::FIRST }; usize::from(cpus)],
                homes: homes.clone(),
                socket,
                identity: identity(me),
                incarnation: 1,
                ticket: ticket.clone(),
                tuning: MeshTuning::default(),
                registry: Arc::clone(&store) as _,
            });
            let part = started.unwrap();
            for other in (0..hosts).filter(|other| *other != me) {
                let expected = ExpectedPeer::Exactly(principal(other));
                part.connect(OtherHost { id: host(other), address: addresses[other], expected });
            }
            part
        };
        let parts: Vec<_> = sockets.into_iter().enumerate().map(part).collect();
        parts[1..].iter().for_each(|part| part.machine().stand_by().unwrap());
        parts[0].machine().load().unwrap();
        let spanning = Self { parts, console: (String::new(), 0), directory };
        for vcpu in 0..cpus {
            spanning.move_vcpu(vcpu, usize::from(vcpu) % hosts);
        }
        spanning.parts.iter().for_each(|part| part.machine().resume().unwrap());
        spanning
    }

    fn move_vcpu(&self, vcpu: u8, to: usize) -> Option<Duration> {
        let at = self.parts.iter().position(|part| part.machine().vcpus_here().contains(vcpu)).unwrap();
        (at != to).then(|| self.parts[at].give_vcpu(vcpu, host(to), PATIENCE).unwrap().pause)
    }

    fn read_console(&mut self) {
        let console = self.parts[0].machine().console();
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

    fn hub(&self) -> &Arc<Machine> {
        self.parts[0].machine()
    }

    /// The guest powers itself off, all parts end, and it has found nothing wrong; its proof.
    fn finish(mut self, program: Program) -> String {
        let exit = self.hub().wait_exit(SOON);
        self.read_console();
        let text = &self.console.0;
        if exit != Some(ExitReason::PowerOff) {
            for part in &self.parts {
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
        for part in &self.parts {
            assert!(part.machine().wait_exit(SOON).is_some(), "a part does not know that the guest has ended");
        }
        self.parts.into_iter().for_each(SpanningPart::end);
        drop(self.directory);
        proof
    }
}

fn cmdline(program: Program, operations: u64) -> CommandLine {
    CommandLine::new()
        .program(program)
        .operations(operations)
        .working_set_bytes(2 << 20)
        .poweroff(0x600, 0x34)
        .heartbeat_ms(100)
}

#[test]
fn every_program_proves_itself_on_three_hosts() {
    if !kvm_or_skip("every_program_proves_itself_on_three_hosts") {
        return;
    }
    for program in Program::ALL {
        let begun = Instant::now();
        let operations = if program == Program::Litmus { 4096 } else { 1000 };
        let machine = Spanning::boot(3, 3, 64, &cmdline(program, operations));
        println!("{} in {:?}", machine.finish(program), begun.elapsed());
    }
}

/// Numbers that look random (splitmix64).
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let value = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        usize::try_from(value >> 33).unwrap() % end
    }
}

/// Moves vCPUs and homes about until the guest has ended; how often each, and the pauses of vCPUs.
fn stir(machine: &Spanning, seed: u64, every: Duration) -> (Vec<Duration>, u32) {
    let mut random = Random(seed);
    let (mut pauses, mut homes) = (Vec::new(), 0);
    let all: Vec<_> = shards(machine.hub().memory().layout()).collect();
    while machine.hub().wait_exit(every).is_none() {
        let to = random.below(machine.parts.len());
        if random.below(2) == 0 {
            let vcpu = u8::try_from(random.below(usize::from(machine.hub().spec().cpus))).unwrap();
            pauses.extend(machine.move_vcpu(vcpu, to));
        } else {
            // Whoever has it gives it; the others refuse.
            let shard = all[random.below(all.len())];
            let given = machine.parts.iter().filter(|part| part.give_home(shard, host(to)).is_ok()).count();
            homes += u32::try_from(given).unwrap();
        }
    }
    (pauses, homes)
}

#[test]
fn pieces_move_while_programs_run() {
    if !kvm_or_skip("pieces_move_while_programs_run") {
        return;
    }
    for (program, seed) in
        [Program::Litmus, Program::Count, Program::Mutex, Program::Queue, Program::Scan].into_iter().zip(1..)
    {
        let machine = Spanning::boot(3, 4, 64, &cmdline(program, u64::MAX).seconds(6));
        let (mut pauses, homes) = stir(&machine, seed, Duration::from_millis(50));
        pauses.sort_unstable();
        let (longest, count) = (pauses.last().copied(), pauses.len());
        println!("{} {count} vCPUs moved, at most {longest:?}, {homes} homes", machine.finish(program));
        assert!(count > 10 && homes > 10, "{count} vCPUs and {homes} homes were moved");
    }
}

#[test]
fn parts_have_one_time() {
    if !kvm_or_skip("parts_have_one_time") {
        return;
    }
    let machine = Spanning::boot(3, 3, 64, &cmdline(Program::Mutex, u64::MAX).seconds(6));
    let mut random = Random(7);
    for _ in 0..20 {
        assert_eq!(machine.hub().wait_exit(Duration::from_millis(100)), None);
        let vcpu = u8::try_from(random.below(3)).unwrap();
        machine.move_vcpu(vcpu, random.below(3));
    }
    let clocks: Vec<_> = machine.parts.iter().map(SpanningPart::clocks).collect();
    for (here, rows) in clocks.iter().enumerate() {
        assert_eq!(rows.len(), 2, "{rows:?}");
        for row in rows {
            println!("{} at h{here}: {row:?}", row.host);
            assert!(row.exchanges > 10 && row.uncertain_ns < 20_000_000, "{row:?}");
            // They have one TSC, so one is ahead by as much as the other is behind.
            let back = clocks[row.host.index()].iter().find(|back| back.host == host(here)).unwrap();
            let apart = (row.ahead_ns + back.ahead_ns).unsigned_abs();
            assert!(apart <= row.uncertain_ns + back.uncertain_ns, "{row:?} {back:?}");
        }
    }
    println!("{}", machine.finish(Program::Mutex));
}

/// Without hardware virtualisation KVM takes offsets and keeps its own.
fn keeps_tsc_offsets() -> bool {
    let vcpu = kvm_ioctls::Kvm::new().unwrap().create_vm().unwrap().create_vcpu(0).unwrap();
    let offset = tsc_offset(&vcpu).unwrap().wrapping_add(1);
    set_tsc_offset(&vcpu, offset).unwrap();
    tsc_offset(&vcpu).unwrap() == offset
}

#[test]
fn a_vcpu_that_is_set_forward_keeps_that_wherever_it_goes() {
    if !kvm_or_skip("a_vcpu_that_is_set_forward_keeps_that_wherever_it_goes") {
        return;
    }
    let begun = Instant::now();
    let (guest, ahead, rounds) = (Duration::from_secs(8), Duration::from_millis(400), 10);
    let machine = Spanning::boot(1, 2, 64, &cmdline(Program::Mutex, u64::MAX).seconds(guest.as_secs()));
    let hub = machine.hub();
    let ticks = u64::from(hub.host_tsc_khz()) * u64::try_from(ahead.as_millis()).unwrap();
    for round in 1..=rounds {
        assert_eq!(hub.wait_exit(Duration::from_millis(20)), None);
        hub.advance_tsc(ticks);
        // The other vCPU follows while it runs.
        let vcpu = u8::from(round % 4 == 0);
        if round % 2 == 0 {
            let released = hub.release_vcpu(vcpu).unwrap();
            assert_eq!(released.tsc_advanced, ticks * u64::from(round));
            hub.adopt_vcpu(vcpu, &released.state, 0u64.wrapping_sub(released.tsc_advanced)).unwrap().run();
        }
    }
    println!("{}", machine.finish(Program::Mutex));
    let (took, most) = (begun.elapsed(), guest - ahead * (rounds - 1));
    if !keeps_tsc_offsets() {
        println!("SKIPPED what the guest sees of it: it sees this host's TSC; took {took:?}");
        return;
    }
    assert!(took < most, "a guest that was set forward by {:?} took {took:?} for {guest:?}", ahead * rounds);
}

/// What remote faults cost, and what local work loses: nothing is asserted.
#[test]
#[ignore = "a measurement: cargo test -p vmotion-spanning --test kvm measure -- --ignored --nocapture"]
fn measure() {
    if !kvm_or_skip("measure") {
        return;
    }
    let line = |program| cmdline(program, u64::MAX).working_set_bytes(128 << 20).seconds(5);
    for program in
        [Program::Scan, Program::Count, Program::FalseSharing, Program::Mutex, Program::Queue, Program::Litmus]
    {
        let machine = Spanning::boot(2, 2, 256, &line(program));
        let exit = machine.hub().wait_exit(SOON);
        assert_eq!(exit, Some(ExitReason::PowerOff));
        for (number, part) in machine.parts.iter().enumerate() {
            let faults = part.memory().statistics().unwrap().faults;
            let rows = [
                ("reads, home here", faults.reads_here),
                ("reads, home elsewhere", faults.reads_away),
                ("writes, home here", faults.writes_here),
                ("writes, home elsewhere", faults.writes_away),
            ];
            for (what, Stalls { count, p50, p99, p999, .. }) in rows {
                println!("h{number} {what:24} {count:8}   p50 {p50:>10.1?}   p99 {p99:>10.1?}   p999 {p999:>10.1?}");
            }
        }
        println!("{}", machine.finish(program));
    }
    for hosts in [1, 2, 2, 1, 1, 2] {
        let mut machine = Spanning::boot(hosts, 2, 256, &line(Program::Sum));
        assert_eq!(machine.hub().wait_exit(SOON), Some(ExitReason::PowerOff));
        machine.read_console();
        // After all of it was put in place.
        let seconds = machine.console.0.lines().filter(|line| line.starts_with("S "));
        let pages: Vec<u64> =
            seconds.filter_map(|line| line.split("written=").nth(1)?.split(' ').next()?.parse().ok()).collect();
        println!(
            "{hosts} hosts: {:?} pages added up by second",
            pages.windows(2).map(|two| two[1] - two[0]).collect::<Vec<_>>()
        );
        machine.finish(Program::Sum);
    }
}
