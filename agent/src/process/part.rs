//! A process that has a part of a machine which spans several hosts.
//!
//! ```text
//! prepared ── Join: talks to the others; the hub loads the kernel, the others stand by ── Run ── Give: pieces go ──▶ the guest ends
//! ```
//! When the guest has ended, here or elsewhere, so does the process, by its exit: its threads may wait for pages that will not come.

use super::{Launch, life::lock};
use std::{
    net::UdpSocket,
    sync::{Arc, Mutex},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tokio::runtime::Handle;
use vmotion_api::{ClaimRequest, Claimed, ControllerClient, PartAddress, PartAnswer, PartOrder};
use vmotion_machine::{Machine, MachineConfig, MachineError};
use vmotion_model::{
    ApiError, Epoch, ErrorCode, HostName, MachineName, MemoryLayout, PieceName, error_chain, slice_of_shards,
};
use vmotion_spanning::{
    directory::{HostId, HostSet, Route, ShardNumber, shards},
    part::{KnownHomes, OtherHost, PartConfig, SpanningPart},
    registry::{Piece, Placement, Registry, Unheard},
};
use vmotion_transport::{
    ExpectedPeer, Identity, Principal,
    mesh::{MeshTicket, MeshTuning},
};

/// The host with the devices is the first.
const HUB: usize = 0;
/// A claim that is not answered by then is asked again; it is idempotent.
const CLAIM_PATIENCE: Duration = Duration::from_secs(2);
/// How long a piece may take to move.
const GIVE_PATIENCE: Duration = Duration::from_secs(15);

/// What makes a process one with a part.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Share {
    /// All hosts of the machine; their places are their numbers.
    pub hosts: Vec<HostName>,
    /// Slices its memory is divided into; the first home of each is the host of that number.
    pub slices: u8,
    /// The secret of its hosts.
    pub ticket: MeshTicket,
}

/// The part.
pub(super) struct PartLife {
    part: SpanningPart,
    name: MachineName,
    share: Share,
    me: usize,
    /// Held while an order is carried out: one after the other.
    orders: Mutex<Stage>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Prepared,
    Joined,
    Running,
}

fn host_id(number: usize) -> Option<HostId> {
    u8::try_from(number).ok().and_then(HostId::new)
}

fn refused(message: impl Into<String>) -> ApiError {
    ApiError::new(ErrorCode::Refused, message)
}

impl PartLife {
    /// Builds the part; nothing of the guest is there yet.
    pub(super) fn build(
        launch: &Launch,
        share: &Share,
        machine: MachineConfig,
        identity: &Arc<Identity>,
        socket: UdpSocket,
    ) -> Result<Self, String> {
        let spec = &launch.spec;
        let me = share.hosts.iter().position(|host| *host == launch.host);
        let me = me.ok_or_else(|| format!("Host {} is not among the hosts of {}", launch.host, spec.name))?;
        let ids: Option<Vec<HostId>> = (0..share.hosts.len()).map(host_id).collect();
        let ids = ids.ok_or_else(|| format!("Machine {} names too many hosts", spec.name))?;
        let hub = *ids.first().ok_or_else(|| format!("Machine {} names no hosts", spec.name))?;
        let layout = MemoryLayout::for_ram(spec.memory.bytes()).map_err(|error| error_chain(&error))?;
        let all: Vec<ShardNumber> = shards(&layout).collect();
        let slices = usize::from(share.slices);
        let homes = (0..slices).zip(ids.iter().cycle()).flat_map(|(slice, home)| {
            let range = slice_of_shards(all.len(), slice, slices);
            all[range].iter().map(|shard| (*shard, Route { home: *home, epoch: Epoch::FIRST }))
        });
        let client = ControllerClient::new(&launch.controller, identity).map_err(|error| error_chain(&error))?;
        let registry = ControllerRegistry {
            client,
            runtime: Handle::current(),
            machine: spec.name.clone(),
            hosts: share.hosts.clone(),
        };
        // Which run of this process: no other of this host has begun in the same nanosecond.
        let incarnation = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let part = SpanningPart::start(PartConfig {
            machine,
            me: ids[me],
            hub,
            hosts: ids.iter().fold(HostSet::EMPTY, |hosts, id| hosts.with(*id)),
            lease: Duration::from_millis(launch.peer_timeout_ms),
            // All begin on the hub, from where they are given to their hosts with all they are.
            vcpus: vec![Placement { host: hub, epoch: Epoch::FIRST }; usize::from(spec.cpus)],
            homes: KnownHomes::All(homes.collect()),
            socket,
            identity: Arc::clone(identity),
            incarnation: u64::try_from(incarnation).unwrap_or(u64::MAX),
            ticket: share.ticket.clone(),
            tuning: MeshTuning::default(),
            registry: Arc::new(registry),
        });
        let part = part.map_err(|error| error_chain(&error))?;
        let orders = Mutex::new(Stage::Prepared);
        Ok(Self { part, name: spec.name.clone(), share: share.clone(), me, orders })
    }

    pub(super) const fn machine(&self) -> &Arc<Machine> {
        self.part.machine()
    }

    /// Does what was ordered; blocks.
    pub(super) fn obey(&self, order: PartOrder) -> Result<PartAnswer, ApiError> {
        let begun = Instant::now();
        let mut stage = lock(&self.orders);
        let mut answer = PartAnswer::default();
        match order {
            PartOrder::Join(addresses) => {
                if *stage == Stage::Prepared {
                    self.join(addresses)?;
                    *stage = Stage::Joined;
                }
            }
            PartOrder::Run => match *stage {
                Stage::Prepared => {
                    return Err(refused(format!("This part of {} has not joined the others", self.name)));
                }
                Stage::Joined => {
                    self.machine().resume().map_err(|error| refused(error_chain(&error)))?;
                    *stage = Stage::Running;
                }
                Stage::Running => {}
            },
            PartOrder::Give { piece, to } => answer.pause_ms = self.give(piece, &to)?,
        }
        drop(stage);
        answer.total_ms = begun.elapsed().as_secs_f64() * 1000.0;
        Ok(answer)
    }

    fn join(&self, addresses: Vec<PartAddress>) -> Result<(), ApiError> {
        for PartAddress { host, address } in addresses {
            let id = self.number_of(&host)?;
            let expected = ExpectedPeer::Exactly(Principal::Host(host));
            self.part.connect(OtherHost { id, address, expected });
        }
        let made = if self.me == HUB { self.machine().load() } else { self.machine().stand_by() };
        match made {
            // A join that was cut short has done this.
            Ok(()) | Err(MachineError::WrongState { .. }) => Ok(()),
            Err(error) => Err(refused(error_chain(&error))),
        }
    }

    fn number_of(&self, host: &HostName) -> Result<HostId, ApiError> {
        let number = self.share.hosts.iter().position(|known| known == host).and_then(host_id);
        number.ok_or_else(|| {
            let hosts: Vec<_> = self.share.hosts.iter().map(HostName::as_str).collect();
            refused(format!("Host {host} is none of the hosts of {}: these are {}", self.name, hosts.join(", ")))
        })
    }

    /// Gives a piece away; how long a vCPU stood still, in ms.
    fn give(&self, piece: PieceName, to: &HostName) -> Result<f64, ApiError> {
        let to = self.number_of(to)?;
        match piece {
            PieceName::Vcpu(vcpu) => {
                let given = self.part.give_vcpu(vcpu, to, GIVE_PATIENCE);
                Ok(given.map_err(|error| refused(error_chain(&error)))?.pause.as_secs_f64() * 1000.0)
            }
            PieceName::Memory(slice) if slice < self.share.slices => {
                let all: Vec<ShardNumber> = shards(self.machine().memory().layout()).collect();
                let range = slice_of_shards(all.len(), usize::from(slice), usize::from(self.share.slices));
                let given = self.part.give_homes(all[range].iter().copied(), to, GIVE_PATIENCE);
                given.map_err(|error| refused(error_chain(&error)))?;
                Ok(0.0)
            }
            PieceName::Memory(slice) => Err(refused(format!("Machine {} has no slice of memory {slice}", self.name))),
        }
    }
}

/// Pieces as the controller keeps them, asked by threads that may wait.
struct ControllerRegistry {
    client: ControllerClient,
    runtime: Handle,
    machine: MachineName,
    hosts: Vec<HostName>,
}

impl Registry for ControllerRegistry {
    fn claim(&self, piece: Piece, wanted: Placement) -> Result<Placement, Unheard> {
        let name = match piece {
            Piece::Vcpu(vcpu) => format!("vcpu{vcpu}"),
            Piece::Shard(ShardNumber(shard)) => format!("shard{shard}"),
        };
        let request = ClaimRequest { piece: name, epoch: wanted.epoch };
        let claimed = self.runtime.block_on(self.client.claim(&self.machine, &request, CLAIM_PATIENCE));
        let Claimed { host, epoch } = claimed.map_err(|error| Unheard { piece, reason: error_chain(&error) })?;
        let number = self.hosts.iter().position(|known| *known == host).and_then(host_id);
        let host =
            number.ok_or_else(|| Unheard { piece, reason: format!("it names {host}, which is none of its hosts") })?;
        Ok(Placement { host, epoch })
    }
}
