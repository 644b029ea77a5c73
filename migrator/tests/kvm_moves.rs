//! The engine on real machines: a self-checking guest, moved between two machines of this process over QUIC.
//!
//! Everything is real but the hosts: memory, vCPUs, dirty tracking, TLS, sockets. The owner record is a mutex.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test's panic is its report")]

use std::{
    net::UdpSocket,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;
use vmotion_machine::{ConsoleConfig, Machine, MachineConfig, STATE_VERSION};
use vmotion_migrator::{
    KvmSource, KvmTarget,
    ownership::{CasOutcome, OwnerStore, StoreUnreachable, decide},
    source::{SourceMove, SourceOptions},
    target::{TargetMove, TargetOptions, TargetOutcome},
};
use vmotion_model::{
    Accuracy, ByteSize, DirtySource, Epoch, HostName, MachineSpec, MoveId, MoveOutcome, MoveRequest, MoveSummary,
    OwnerRecord, OwnerState, PAGE_SIZE, Strategy,
};
use vmotion_probe_guest::{CommandLine, ConsoleEvent, ConsoleLine, ConsoleReader, Content, Extent, Pattern, Rate};
use vmotion_transport::{
    ExpectedPeer, Identity, Principal, Tuning,
    pki::Authority,
    session::{
        FEATURE_DELTA, FEATURE_POST_COPY, Hello, MoveTicket, TargetFacts, TargetListener, WIRE_VERSION_MAX,
        WIRE_VERSION_MIN,
    },
};

struct Record(Mutex<OwnerRecord>);

impl OwnerStore for Record {
    async fn warm_up(&self) {}

    async fn compare_and_set(
        &self,
        expected: &OwnerRecord,
        wanted: &OwnerRecord,
    ) -> Result<CasOutcome, StoreUnreachable> {
        let mut record = self.0.lock().unwrap();
        let outcome = decide(&record, expected, wanted);
        if outcome == CasOutcome::Won {
            *record = wanted.clone();
        }
        Ok(outcome)
    }
}

struct Bench {
    _directory: tempfile::TempDir,
    identities: [Arc<Identity>; 2],
    record: Arc<Record>,
    spec: MachineSpec,
    machine: Arc<Machine>,
    moves: u64,
    reader: ConsoleReader,
    offset: u64,
    failures: Vec<String>,
}

fn host(index: usize) -> HostName {
    format!("h{}", index + 1).parse().unwrap()
}

fn kvm_is_missing(test: &str) -> bool {
    match vmotion_machine::probe_host() {
        Ok(_) => false,
        Err(error) => {
            eprintln!("SKIPPED {test}: {error}");
            true
        }
    }
}

impl Bench {
    fn boot(memory: ByteSize, cmdline: CommandLine, dirty_source: DirtySource) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::create(&directory.path().join("ca")).unwrap();
        let identities = [0, 1].map(|index| {
            let path = directory.path().join(host(index).as_str());
            authority.issue(&Principal::Host(host(index)), &path).unwrap();
            Arc::new(Identity::load(&path).unwrap())
        });
        let kernel = directory.path().join("probe.elf");
        std::fs::write(&kernel, vmotion_probe_guest::ELF).unwrap();
        let spec = MachineSpec {
            name: "vm1".parse().unwrap(),
            cpus: 2,
            memory,
            kernel,
            initrd: None,
            cmdline: cmdline.to_string(),
            disks: Vec::new(),
            backing: vmotion_model::Backing::Memfd,
            dirty_source,
            interrupts: vmotion_model::InterruptController::Kernel,
        };
        let machine = Machine::boot(&config(&spec)).unwrap();
        machine.resume().unwrap();
        let record =
            OwnerRecord { machine: spec.name.clone(), epoch: Epoch::FIRST, owner: host(0), state: OwnerState::Running };
        Self {
            _directory: directory,
            identities,
            record: Arc::new(Record(Mutex::new(record))),
            spec,
            machine: Arc::new(machine),
            moves: 0,
            reader: ConsoleReader::new(),
            offset: 0,
            failures: Vec::new(),
        }
    }

    /// Reads new console output; true when a line satisfied `wanted`.
    fn read_console(&mut self, wanted: impl Fn(&ConsoleLine) -> bool) -> bool {
        let (start, bytes) = self.machine.console().read(self.offset, 1 << 20);
        assert!(start <= self.offset.max(start), "console offsets go forward");
        assert!(self.offset == 0 || start == self.offset, "console bytes {}..{start} are missing", self.offset);
        self.offset = start + bytes.len() as u64;
        let mut found = false;
        for event in self.reader.push(&bytes) {
            if let ConsoleEvent::Line(line) = event {
                if line.is_failure() {
                    self.failures.push(format!("{line:?}"));
                }
                found |= wanted(&line);
            }
        }
        found
    }

    fn wait_for(&mut self, what: &str, wanted: impl Fn(&ConsoleLine) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !self.read_console(&wanted) {
            assert!(Instant::now() < deadline, "the guest never said {what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    async fn start_move(&mut self, request: MoveRequest) -> (MoveSummary, Option<Arc<Machine>>) {
        let from = usize::try_from(self.moves % 2).unwrap();
        let to = 1 - from;
        self.moves += 1;
        let record = self.record.0.lock().unwrap().clone();
        let ticket = MoveTicket::random();
        let move_id = MoveId::numbered(self.moves);
        let arriving = Arc::new(Machine::prepare(&config(&self.spec)).unwrap());
        let flows =
            std::env::var("FLOWS").ok().and_then(|text| text.parse().ok()).unwrap_or_else(|| Tuning::default().flows);
        let tuning = Tuning { flows, ..Tuning::default() };
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let expected = ExpectedPeer::Exactly(Principal::Host(host(from)));
        let listener = TargetListener::new(socket, &self.identities[to], expected, ticket.clone(), tuning).unwrap();
        let listener = listener.with_demand_lane(UdpSocket::bind("127.0.0.1:0").unwrap()).unwrap();
        let layout = self.machine.memory().layout().clone();
        let target = TargetMove {
            machine: Arc::new(KvmTarget::new(Arc::clone(&arriving)).unwrap()),
            store: Arc::clone(&self.record),
            listener,
            options: TargetOptions {
                expected: record.clone(),
                renewals: tokio::sync::watch::Sender::new(record.epoch),
                host: host(to),
                ticket: ticket.clone(),
                facts: TargetFacts {
                    features: KvmTarget::features(),
                    layout: layout.clone(),
                    cpu: arriving.cpu_model().clone(),
                    cpus: self.spec.cpus,
                    state_version_max: STATE_VERSION,
                    machine: self.spec.name.clone(),
                    move_id: move_id.clone(),
                    flows_max: 8,
                },
                patience: Duration::from_secs(20),
            },
        };
        let source = SourceMove {
            machine: Arc::new(KvmSource::new(Arc::clone(&self.machine))),
            store: Arc::clone(&self.record),
            identity: Arc::clone(&self.identities[from]),
            options: SourceOptions {
                renewals: tokio::sync::watch::Sender::new(record.epoch),
                target: host(to),
                address,
                local: None,
                ticket,
                hello: Hello {
                    version_min: WIRE_VERSION_MIN,
                    version_max: WIRE_VERSION_MAX,
                    features: [FEATURE_DELTA, FEATURE_POST_COPY].map(str::to_owned).into(),
                    page_size: PAGE_SIZE,
                    layout,
                    cpu: self.machine.cpu_model().clone(),
                    cpus: self.spec.cpus,
                    state_version: STATE_VERSION,
                    machine: self.spec.name.clone(),
                    move_id,
                    epoch: record.epoch,
                    flows: tuning.flows,
                },
                record,
                request,
                tuning,
                accuracy: Accuracy::default(),
                limit: Arc::default(),
            },
        };
        let arrival = tokio::spawn(target.run(|_| (), CancellationToken::new()));
        let summary = source.run(|_| (), |_| (), CancellationToken::new()).await;
        let arrived = match arrival.await.unwrap() {
            TargetOutcome::Running(_) => Some(arriving),
            TargetOutcome::Discarded(reason) | TargetOutcome::Failed { reason, .. } => {
                eprintln!("discarded: {reason}");
                None
            }
        };
        (summary, arrived)
    }

    /// Moves the machine; the console of the old copy is read to its end first.
    async fn must_move(&mut self, request: MoveRequest) -> MoveSummary {
        let (summary, arrived) = self.start_move(request).await;
        assert_eq!(summary.outcome, MoveOutcome::Moved, "{summary:?}");
        self.read_console(|_| false);
        let old = std::mem::replace(&mut self.machine, arrived.expect("a moved machine runs at the target"));
        old.stop();
        self.wait_for("anything after the move", |line| matches!(line, ConsoleLine::Second(_)));
        assert_eq!(self.failures, Vec::<String>::new());
        summary
    }
}

fn config(spec: &MachineSpec) -> MachineConfig {
    MachineConfig { spec: spec.clone(), console: ConsoleConfig::default(), part: None }
}

fn show(summary: &MoveSummary) {
    println!(
        "total {:.0} ms, downtime {:.1} ms {:?}, predicted {:?}, rounds {}, pages {:?}, wire {} MiB, udp {} MiB, cpu {:.2}+{:.2} s",
        summary.total_ms,
        summary.downtime.source_ms,
        summary.downtime,
        summary.predicted,
        summary.rounds,
        summary.pages,
        summary.wire_bytes >> 20,
        summary.udp_bytes >> 20,
        summary.source_cpu_s,
        summary.target_cpu_s,
    );
}

/// Memory follows the guest: it runs at the target while most of it is still here, checks what it reads, and writes on.
async fn followed_there_and_back(test: &str, strategy: Strategy, content: Content, pattern: Pattern) {
    if kvm_is_missing(test) || vmotion_pager::probe().is_err() {
        println!("skipped: {test}: needs KVM and userfaultfd");
        return;
    }
    let cmdline = CommandLine::new()
        .working_set_bytes(64 << 20)
        .rate(Rate::BytesPerSecond(200 << 20))
        .pattern(pattern)
        .content(content);
    let mut bench = Bench::boot(ByteSize::mib(256), cmdline, DirtySource::Auto);
    bench.wait_for("READY", |line| matches!(line, ConsoleLine::Ready { .. }));
    for _ in 0..6 {
        let summary = bench.must_move(MoveRequest { strategy, ..MoveRequest::default() }).await;
        show(&summary);
        if strategy == Strategy::Postcopy {
            let follow = summary.follow.expect("memory followed");
            println!("{follow:?}");
            assert!(follow.missing_pages > 10_000, "{follow:?}");
            assert!(follow.demanded_pages > 0, "a guest that writes waits for something: {follow:?}");
            assert_eq!(summary.rounds, 0);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_follows_a_guest_that_writes_everywhere() {
    let test = "memory_follows_a_guest_that_writes_everywhere";
    followed_there_and_back(test, Strategy::Postcopy, Content::Text, Pattern::Uniform).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_follows_a_guest_that_writes_in_order() {
    let test = "memory_follows_a_guest_that_writes_in_order";
    followed_there_and_back(test, Strategy::Postcopy, Content::Random, Pattern::Sequential).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_round_first_and_the_rest_follows() {
    let test = "a_round_first_and_the_rest_follows";
    followed_there_and_back(test, Strategy::Hybrid, Content::Text, Pattern::Zipf).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_outruns_the_path_is_handed_over_and_misses_nothing() {
    let test = "a_guest_that_outruns_the_path_is_handed_over_and_misses_nothing";
    if kvm_is_missing(test) || vmotion_pager::probe().is_err() {
        println!("skipped: {test}: needs KVM and userfaultfd");
        return;
    }
    let cmdline = CommandLine::new()
        .working_set_bytes(96 << 20)
        .rate(Rate::BytesPerSecond(200 << 20))
        .pattern(Pattern::Uniform)
        .content(Content::Random);
    let mut bench = Bench::boot(ByteSize::mib(256), cmdline, DirtySource::Auto);
    bench.wait_for("READY", |line| matches!(line, ConsoleLine::Ready { .. }));
    for _ in 0..2 {
        let request = MoveRequest { bandwidth_max: Some(40 << 20), ..MoveRequest::default() };
        let summary = bench.must_move(request).await;
        show(&summary);
        let follow = summary.follow.expect("a round that leads nowhere ends in a hand-over");
        assert_eq!(summary.rounds, 1, "{follow:?}");
        // Long enough for the guest to come across every page.
        bench.wait_for("anything later", |line| matches!(line, ConsoleLine::Second(_)));
        bench.wait_for("anything later", |line| matches!(line, ConsoleLine::Second(_)));
    }
    assert_eq!(bench.failures, Vec::<String>::new());
}

async fn there_and_back(test: &str, source: DirtySource, content: Content, moves: u32) {
    if kvm_is_missing(test) {
        return;
    }
    let cmdline = CommandLine::new().working_set_bytes(64 << 20).rate(Rate::BytesPerSecond(50 << 20)).content(content);
    let mut bench = Bench::boot(ByteSize::mib(256), cmdline, source);
    bench.wait_for("READY", |line| matches!(line, ConsoleLine::Ready { .. }));
    for _ in 0..moves {
        let summary = bench.must_move(MoveRequest { verify: true, ..MoveRequest::default() }).await;
        show(&summary);
        assert!(summary.digests.as_ref().expect("a verified move has digests").equal());
        assert!(summary.pages.zero > 0, "most of the machine was never touched: {:?}", summary.pages);
    }
    let record = bench.record.0.lock().unwrap().clone();
    assert_eq!(record.epoch, Epoch(1 + u64::from(moves)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writing_guest_moves_there_and_back_by_dirty_log() {
    there_and_back("by_dirty_log", DirtySource::Log, Content::Text, 4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writing_guest_moves_there_and_back_by_dirty_ring() {
    there_and_back("by_dirty_ring", DirtySource::Ring, Content::Random, 4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_writes_lines_of_its_pages_moves_by_what_changed() {
    if kvm_is_missing("a_guest_that_writes_lines_of_its_pages_moves_by_what_changed") {
        return;
    }
    let cmdline = CommandLine::new()
        .working_set_bytes(48 << 20)
        .rate(Rate::BytesPerSecond(30 << 20))
        .pattern(Pattern::Zipf)
        .content(Content::Random)
        .extent(Extent::Line);
    let mut bench = Bench::boot(ByteSize::mib(256), cmdline, DirtySource::Auto);
    bench.wait_for("READY", |line| matches!(line, ConsoleLine::Ready { .. }));
    let request = MoveRequest {
        bandwidth_max: Some(40 << 20),
        strategy: Strategy::Precopy,
        verify: true,
        delta_memory_bytes: Some(32 << 20),
        ..MoveRequest::default()
    };
    for _ in 0..2 {
        let summary = bench.must_move(request.clone()).await;
        show(&summary);
        assert!(summary.pages.delta > 0, "{:?}", summary.pages);
        assert!(summary.digests.as_ref().expect("a verified move has digests").equal());
    }
    let without = MoveRequest { delta_memory_bytes: Some(0), ..request };
    let summary = bench.must_move(without).await;
    show(&summary);
    assert_eq!(summary.pages.delta, 0);
    // Long enough for the guest to come across many of its pages.
    bench.wait_for("anything later", |line| matches!(line, ConsoleLine::Second(_)));
    bench.wait_for("anything later", |line| matches!(line, ConsoleLine::Second(_)));
    assert_eq!(bench.failures, Vec::<String>::new());
}

/// Not an assertion: prints what a larger move takes, for `cargo test -- --ignored --nocapture`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement, run by hand"]
async fn measure_one_gib() {
    for content in [Content::Text, Content::Random] {
        let cmdline =
            CommandLine::new().working_set_bytes(512 << 20).rate(Rate::BytesPerSecond(100 << 20)).content(content);
        let mut bench = Bench::boot(ByteSize::gib(1), cmdline, DirtySource::Auto);
        bench.wait_for("READY", |line| matches!(line, ConsoleLine::Ready { .. }));
        for _ in 0..3 {
            let summary = bench.must_move(MoveRequest::default()).await;
            show(&summary);
        }
    }
}
