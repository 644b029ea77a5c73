//! One host's part of a spanning machine, put together: the machine, its memory, its vCPUs, and the mesh that all of it talks over.
//!
//! ```text
//!   Machine (KVM) ── faults ──▶ MemoryNode ─┐
//!        └── interrupts, accesses ─▶ Vcpus ─┴─▶ one thread ── Mesh ──▶ the other hosts
//! ```

mod hosts;
mod users;

pub use hosts::{DismissError, LeaveError, Left, StillHere};

use crate::{
    clock::{ClockUser, PeerClock, Timekeeper},
    directory::{HostId, HostSet, Route, ShardError, ShardNumber, shards},
    memory::{Gone, MemoryNode, NodeConfig, NodeControl, NodeError, PullError, Pulled, RelocationError, ShardRegistry},
    peer_of,
    registry::{Piece, Placement, Registry},
    vcpus::{Given, MoveError, Vcpus},
};
use hosts::Addresses;
use std::{
    fmt, io,
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc,
        mpsc::{self, Receiver, Sender},
    },
    thread,
    time::{Duration, Instant},
};
use thiserror::Error;
use users::{Orders, Users};
use vmotion_machine::{ExitReason, Machine, MachineConfig, MachineError, Part, VcpuSet};
use vmotion_model::error_chain;
use vmotion_pager::GuestRegion;
use vmotion_transport::{
    ExpectedPeer, Identity,
    mesh::{Mesh, MeshFigures, MeshOptions, MeshTicket, MeshTuning, StreamNumber},
    session::SessionError,
};

/// The stream of times. Below are those of vCPUs.
const CLOCK_STREAM: u8 = 1;
/// From here on they are those of memory.
const MEMORY_STREAMS: u8 = 2;
/// How long to wait before the store is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(50);
/// How long a home takes to move, usually.
const LOOK_AGAIN: Duration = Duration::from_micros(300);

/// Why a part could not be put together.
#[derive(Debug, Error)]
pub enum PartError {
    /// The machine.
    #[error("This host's part of the machine cannot be built")]
    Machine(#[from] MachineError),
    /// Its memory.
    #[error("This host's part of the machine's memory cannot be served")]
    Memory(#[from] NodeError),
    /// The mesh.
    #[error("This host cannot talk to the machine's other hosts")]
    Mesh(#[from] SessionError),
    /// A thread or a descriptor.
    #[error("This process may not have what a part of a machine needs")]
    Process(#[from] io::Error),
    /// The placement of its pieces does not fit the machine.
    #[error("{what} {found} does not fit: {expected}")]
    Placement {
        /// Which field.
        what: &'static str,
        /// What is in it.
        found: String,
        /// What would fit.
        expected: String,
    },
}

/// Why the home of a part of memory did not move.
#[derive(Debug, Error)]
pub enum HomeError {
    /// It cannot.
    #[error("The home of {shard} cannot be given away")]
    Refused {
        /// Of which 2 MiB.
        shard: ShardNumber,
        /// Why.
        source: RelocationError,
    },
    /// It is still on its way.
    #[error(
        "The home of {shard} has not arrived at {to} within {patience:?}, after {given} others; it can be tried again"
    )]
    Late {
        /// How many went before it.
        given: usize,
        /// Of which 2 MiB.
        shard: ShardNumber,
        /// Where it is to go.
        to: HostId,
        /// How long was waited.
        patience: Duration,
    },
}

/// Another host of the machine.
#[derive(Debug, Clone)]
pub struct OtherHost {
    /// Its place in the machine's list of hosts.
    pub id: HostId,
    /// Where its mesh listens.
    pub address: SocketAddr,
    /// Who it must show that it is.
    pub expected: ExpectedPeer,
}

/// What a part is told of who has the machine's memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KnownHomes {
    /// Where the home of each shard is.
    All(Vec<(ShardNumber, Route)>),
    /// Nothing: the hub is asked first, and sends who asks to where it is. For a host that comes to a running machine.
    AskHub,
}

/// What a part is put together from.
pub struct PartConfig {
    /// The machine; which part of it follows from the rest.
    pub machine: MachineConfig,
    /// This host.
    pub me: HostId,
    /// The host with the devices, the I/O APIC and the console.
    pub hub: HostId,
    /// Its hosts, this one too: all that `vcpus` and `homes` name. Others may be [connected](SpanningPart::connect) later.
    pub hosts: HostSet,
    /// Silence of another host after which the machine ends here: what only that host has is lost, and a machine without it is none.
    pub lease: Duration,
    /// Where each vCPU is, in the order of their numbers.
    pub vcpus: Vec<Placement>,
    /// Where the homes of its memory are.
    pub homes: KnownHomes,
    /// The mesh's socket.
    pub socket: UdpSocket,
    /// Who this host is.
    pub identity: Arc<Identity>,
    /// Which run of this host it is.
    pub incarnation: u64,
    /// The secret of the machine's mesh.
    pub ticket: MeshTicket,
    /// How to use the paths.
    pub tuning: MeshTuning,
    /// Who decides where pieces are.
    pub registry: Arc<dyn Registry>,
    /// Compare the bytes of copies with those of their versions ([`NodeConfig::audit`]): the same on all hosts.
    pub audit: bool,
}

/// This host's part of a machine. Where the guest has not ended, end the process rather than drop this: vCPUs and devices may wait for pages.
pub struct SpanningPart {
    me: HostId,
    hub: HostId,
    machine: Arc<Machine>,
    vcpus: Vcpus,
    memory: NodeControl,
    registry: Arc<dyn Registry>,
    time: Arc<Timekeeper>,
    mesh: Mesh,
    orders: Orders,
    /// Where the other hosts are.
    addresses: Addresses,
}

impl fmt::Debug for SpanningPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SpanningPart")
            .field("machine", &self.machine)
            .field("vcpus", &self.vcpus)
            .finish_non_exhaustive()
    }
}

impl SpanningPart {
    /// Puts the part together and begins to talk to the others. Nothing of the guest runs, and no memory is there but what they have.
    ///
    /// # Errors
    /// [`PartError`]; nothing is left behind.
    pub fn start(config: PartConfig) -> Result<Self, PartError> {
        let PartConfig {
            machine,
            me,
            hub,
            hosts,
            lease,
            vcpus,
            homes,
            socket,
            identity,
            incarnation,
            ticket,
            tuning,
            registry,
            audit,
        } = config;
        check(&machine, hosts, hub, &vcpus)?;
        if me == hub && homes == KnownHomes::AskHub {
            let (what, found) = ("Homes", "to be asked of the hub".to_owned());
            return Err(PartError::Placement { what, found, expected: "this host is the hub".to_owned() });
        }
        let name = machine.spec.name.clone();
        let here: VcpuSet = (0u8..).zip(&vcpus).filter(|(_, at)| at.host == me).map(|(vcpu, _)| vcpu).collect();
        let vcpus = Vcpus::new(me, hub, vcpus)?;
        let part = Part { vcpus: here, devices: me == hub, elsewhere: vcpus.elsewhere() };
        let machine = Arc::new(Machine::prepare(&MachineConfig { part: Some(part), ..machine })?);
        let ram = machine.memory();
        // Huge pages would be mapped whole: a page is what has a holder.
        let regions: Vec<GuestRegion> = ram.mapped_at().map(region_of).collect();
        let homes = match homes {
            KnownHomes::All(homes) => homes,
            KnownHomes::AskHub => shards(ram.layout()).map(|shard| (shard, Route::ask(hub))).collect(),
        };
        let (questions, asked) = mpsc::channel();
        let failing = Arc::downgrade(&machine);
        let on_failure = move |error: Arc<NodeError>| {
            if let Some(machine) = failing.upgrade() {
                machine.end(ExitReason::InternalError { text: error_chain(&*error) });
            }
        };
        let (node, memory) = MemoryNode::new(NodeConfig {
            host: me,
            hosts,
            layout: ram.layout().clone(),
            memfd: ram.memfd(),
            regions: &regions,
            routes: &mut homes.into_iter(),
            first_stream: MEMORY_STREAMS,
            registry: Box::new(Questions(questions)),
            on_failure: Box::new(on_failure),
            measures: false,
            audit,
        })?;
        let (store, control) = (Arc::clone(&registry), memory.clone());
        thread::Builder::new().name("placements".to_owned()).spawn(move || ask(&*store, &control, &asked))?;
        let time = Timekeeper::new(&machine, me == hub);
        let letters = vcpus.serve(&machine, &registry, &time)?;
        let clock = ClockUser::new(Arc::clone(&time), StreamNumber(CLOCK_STREAM));
        let options = MeshOptions { socket, identity, me: peer_of(me), incarnation, machine: name, ticket, tuning };
        let (users, orders) = Users::new((letters, clock, node), hosts.without(me), lease, &machine)?;
        let mesh = Mesh::start(options, Box::new(users))?;
        let addresses = Addresses::default();
        Ok(Self { me, hub, machine, vcpus, memory, registry, time, mesh, orders, addresses })
    }

    /// The machine's part. On the hub its kernel is loaded ([`Machine::load`]), on the others it stands by ([`Machine::stand_by`]); then
    /// it is resumed.
    #[must_use]
    pub const fn machine(&self) -> &Arc<Machine> {
        &self.machine
    }

    /// Its memory.
    #[must_use]
    pub const fn memory(&self) -> &NodeControl {
        &self.memory
    }

    /// Where each vCPU is, as far as is known here.
    #[must_use]
    pub fn vcpus(&self) -> Vec<Placement> {
        self.vcpus.placements()
    }

    /// The connections with the other hosts.
    #[must_use]
    pub fn figures(&self) -> MeshFigures {
        self.mesh.figures()
    }

    /// How the machine's time here compares with that on the other hosts, as far as is known.
    #[must_use]
    pub fn clocks(&self) -> Vec<PeerClock> {
        self.time.clocks()
    }

    /// Moves a vCPU from this host to `to`. Waits for `patience` at most, unless the store cannot be heard.
    ///
    /// # Errors
    /// [`MoveError`]: it runs here as before, or is where it was.
    pub fn give_vcpu(&self, vcpu: u8, to: HostId, patience: Duration) -> Result<Given, MoveError> {
        self.vcpus.give(&self.machine, &self.registry, &self.time, vcpu, to, patience)
    }

    /// Begins to move the home of `shard` from this host to `to`.
    ///
    /// # Errors
    /// [`RelocationError`]; nothing has changed then.
    pub fn give_home(&self, shard: ShardNumber, to: HostId) -> Result<(), RelocationError> {
        self.memory.relocate(shard, to)
    }

    /// Moves the homes of those of `shards` that are here to `to`, and waits until they are gone; how many. Asked again, it goes on where it
    /// stopped.
    ///
    /// # Errors
    /// The first shard that does not move within `patience`, or cannot.
    pub fn give_homes(
        &self,
        shards: impl IntoIterator<Item = ShardNumber>,
        to: HostId,
        patience: Duration,
    ) -> Result<usize, HomeError> {
        let until = Instant::now() + patience;
        let mut given = 0;
        for shard in shards {
            let mut asked = false;
            loop {
                match self.memory.relocate(shard, to) {
                    Ok(()) => asked = true,
                    Err(RelocationError::Shard(ShardError::Elsewhere(_))) => break,
                    Err(RelocationError::Shard(ShardError::Moving(_))) => {}
                    Err(source) => return Err(HomeError::Refused { shard, source }),
                }
                if Instant::now() > until {
                    return Err(HomeError::Late { given, shard, to, patience });
                }
                thread::sleep(LOOK_AGAIN);
            }
            given += usize::from(asked);
        }
        Ok(given)
    }

    /// Brings the pages of `shards`, whose homes are here, that only the host `from` has: for a part of memory that was moved here with all it
    /// is.
    ///
    /// # Errors
    /// [`PullError`]; pages that came are here.
    pub fn pull(
        &self,
        shards: impl IntoIterator<Item = ShardNumber>,
        from: HostId,
        patience: Duration,
    ) -> Result<Pulled, PullError> {
        self.memory.pull(shards, from, patience)
    }

    /// Ends a part whose guest has ended, here and elsewhere.
    pub fn end(self) {
        self.vcpus.close();
        self.machine.stop();
        // Fails when it has ended by itself.
        let _: Result<(), Gone> = self.memory.stop();
        self.mesh.end();
    }
}

fn check(machine: &MachineConfig, hosts: HostSet, hub: HostId, vcpus: &[Placement]) -> Result<(), PartError> {
    if vcpus.len() != usize::from(machine.spec.cpus) {
        return Err(PartError::Placement {
            what: "Number of placed vCPUs",
            found: vcpus.len().to_string(),
            expected: format!("the machine has {}", machine.spec.cpus),
        });
    }
    for host in vcpus.iter().map(|at| at.host).chain([hub]) {
        if !hosts.contains(host) {
            let expected = "all pieces are on hosts of the machine".to_owned();
            return Err(PartError::Placement { what: "Host", found: host.to_string(), expected });
        }
    }
    Ok(())
}

fn region_of((address, pages): (usize, std::ops::Range<u64>)) -> GuestRegion {
    GuestRegion {
        address,
        first: pages.start,
        pages: pages.end - pages.start,
        file_offset: pages.start * vmotion_model::PAGE_SIZE,
    }
}

/// What the node asks the store, on its way to a thread that may wait.
struct Questions(Sender<(ShardNumber, Route)>);

impl ShardRegistry for Questions {
    fn claim(&mut self, shard: ShardNumber, wanted: Route) {
        // Fails only when the part ends.
        let _ = self.0.send((shard, wanted));
    }
}

/// Asks the store for the node, until it is gone.
fn ask(registry: &dyn Registry, control: &NodeControl, asked: &Receiver<(ShardNumber, Route)>) {
    while let Ok((shard, Route { home: host, epoch })) = asked.recv() {
        let placement = loop {
            match registry.claim(Piece::Shard(shard), Placement { host, epoch }) {
                Ok(placement) => break placement,
                Err(error) => tracing::warn!(%error, "a part of memory has no home until the store says who"),
            }
            thread::sleep(ASK_AGAIN);
        };
        if control.word(shard, Route { home: placement.host, epoch: placement.epoch }).is_err() {
            return;
        }
    }
}
