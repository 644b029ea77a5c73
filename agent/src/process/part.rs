//! A process that has a part of a machine which spans several hosts.
//!
//! ```text
//! prepared ── Join: talks to the others; the hub loads the kernel, the others stand by ── Run ── Give: pieces go ──▶ the guest ends
//! ```
//! When the guest has ended, here or elsewhere, so does the process, by its exit: its threads may wait for pages that will not come.

mod figures;

use super::{Launch, life::lock};
use figures::RecentFaults;
use std::{
    collections::BTreeMap,
    net::UdpSocket,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tokio::runtime::Handle;
use vmotion_api::{ClaimRequest, Claimed, ControllerClient, PartAddress, PartAnswer, PartMember, PartOrder};
use vmotion_machine::{Machine, MachineConfig, MachineError};
use vmotion_model::{
    ApiError, Epoch, ErrorCode, HostName, MachineName, MemoryLayout, PartFigures, PieceName, error_chain,
    slice_of_shards,
};
use vmotion_spanning::{
    directory::{HostId, HostSet, Route, ShardNumber, shards},
    memory::PullError,
    part::{HomeError, KnownHomes, LeaveError, Left, OtherHost, PartConfig, SpanningPart, StillHere},
    registry::{Piece, Placement, Registry, Unheard},
    vcpus::MoveError,
};
use vmotion_transport::{
    ExpectedPeer, Identity, Principal,
    mesh::{MeshTicket, MeshTuning},
};

/// The number of the host with the devices.
const HUB: u8 = 0;
/// A claim that is not answered by then is asked again; it is idempotent.
const CLAIM_PATIENCE: Duration = Duration::from_secs(2);
/// How long a piece may take to move.
const GIVE_PATIENCE: Duration = Duration::from_secs(15);

/// How long it may take to give pages back, or to forget a host, until it is asked again.
const TURN: Duration = Duration::from_secs(10);

/// What makes a process one with a part.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Share {
    /// All hosts of the machine, as it begins or as this one joins it.
    pub members: Vec<PartMember>,
    /// Slices its memory is divided into; where it begins, the first home of each is the member of that place.
    pub slices: u8,
    /// The secret of its hosts.
    pub ticket: MeshTicket,
    /// Compare the bytes of copies with those of their versions.
    pub audit: bool,
    /// Where each vCPU is, when this host joins a machine that runs.
    pub vcpus: Option<Vec<Claimed>>,
}

/// The hosts of a machine by name, as they come and go.
type Members = Arc<Mutex<BTreeMap<HostName, HostId>>>;

/// The part.
pub(super) struct PartLife {
    part: SpanningPart,
    name: MachineName,
    slices: u8,
    is_hub: bool,
    members: Members,
    recent: RecentFaults,
    /// Pages that were still here when it was last to leave.
    left_behind: AtomicUsize,
    /// Held while an order is carried out: one after the other.
    orders: Mutex<Stage>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Prepared,
    Joined,
    Running,
}

fn refused(message: impl Into<String>) -> ApiError {
    ApiError::new(ErrorCode::Refused, message)
}

fn to_refusal(error: &dyn std::error::Error) -> ApiError {
    refused(error_chain(error))
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
        let ids: Option<BTreeMap<HostName, HostId>> =
            share.members.iter().map(|member| Some((member.host.clone(), HostId::new(member.number)?))).collect();
        let ids = ids.ok_or_else(|| format!("Machine {} has a host with a number that is too high", spec.name))?;
        let hub = HostId::new(HUB).ok_or("The host with the devices has no number")?;
        let of = |host: &HostName| {
            ids.get(host).copied().ok_or_else(|| format!("Host {host} is not among the hosts of {}", spec.name))
        };
        let me = of(&launch.host)?;
        let layout = MemoryLayout::for_ram(spec.memory.bytes()).map_err(|error| error_chain(&error))?;
        let (homes, vcpus) = match &share.vcpus {
            None => {
                // All begin on the hub, from where they are given to their hosts with all they are.
                let vcpus = vec![Placement { host: hub, epoch: Epoch::FIRST }; usize::from(spec.cpus)];
                (KnownHomes::All(first_homes(share, &layout)), vcpus)
            }
            Some(at) => {
                let placed = at.iter().map(|Claimed { host, epoch }| Ok(Placement { host: of(host)?, epoch: *epoch }));
                (KnownHomes::AskHub, placed.collect::<Result<_, String>>()?)
            }
        };
        let hosts = ids.values().fold(HostSet::EMPTY, |hosts, id| hosts.with(*id));
        let members = Arc::new(Mutex::new(ids));
        let client = ControllerClient::new(&launch.controller, identity).map_err(|error| error_chain(&error))?;
        let registry = ControllerRegistry {
            client,
            runtime: Handle::current(),
            machine: spec.name.clone(),
            members: Arc::clone(&members),
        };
        // Which run of this process: no other of this host has begun in the same nanosecond.
        let incarnation = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let part = SpanningPart::start(PartConfig {
            machine,
            me,
            hub,
            hosts,
            lease: Duration::from_millis(launch.peer_timeout_ms),
            vcpus,
            homes,
            socket,
            identity: Arc::clone(identity),
            incarnation: u64::try_from(incarnation).unwrap_or(u64::MAX),
            ticket: share.ticket.clone(),
            tuning: MeshTuning::default(),
            registry: Arc::new(registry),
            audit: share.audit,
        });
        let part = part.map_err(|error| error_chain(&error))?;
        let recent = RecentFaults::watch(part.memory()).map_err(|error| format!("No thread can be begun: {error}"))?;
        let orders = Mutex::new(Stage::Prepared);
        let (slices, is_hub) = (share.slices, me == hub);
        let left_behind = AtomicUsize::new(usize::MAX);
        Ok(Self { part, name: spec.name.clone(), slices, is_hub, members, recent, left_behind, orders })
    }

    pub(super) const fn machine(&self) -> &Arc<Machine> {
        self.part.machine()
    }

    /// What the part did lately.
    pub(super) fn figures(&self) -> Result<PartFigures, ApiError> {
        figures::of(&self.part, &self.recent, &lock(&self.members)).map_err(|error| to_refusal(&error))
    }

    /// Does what was ordered; blocks.
    pub(super) fn obey(&self, order: PartOrder) -> Result<PartAnswer, ApiError> {
        let begun = Instant::now();
        let mut stage = lock(&self.orders);
        let mut answer = PartAnswer::default();
        match order {
            PartOrder::Join(addresses) => {
                self.join(addresses)?;
                if *stage == Stage::Prepared {
                    self.fill()?;
                    *stage = Stage::Joined;
                }
            }
            PartOrder::Run => match *stage {
                Stage::Prepared => {
                    return Err(refused(format!("This part of {} has not joined the others", self.name)));
                }
                Stage::Joined => {
                    self.machine().resume().map_err(|error| to_refusal(&error))?;
                    *stage = Stage::Running;
                }
                Stage::Running => {}
            },
            PartOrder::Give { piece, to } => answer = self.give(piece, &to)?,
            PartOrder::Pull { slice, from } => {
                let from = self.number_of(&from)?;
                (answer.pages, answer.more) = match self.part.pull(self.shards_of(slice)?, from, TURN) {
                    Ok(pulled) => (pulled.pages, false),
                    // Some have come, and the rest does when it is asked again.
                    Err(PullError::Late { came, .. }) if came > 0 => (came, true),
                    Err(error) => return Err(to_refusal(&error)),
                };
            }
            PartOrder::Leave => {
                // Who has not joined has nothing, and nobody knows of it.
                let left = if *stage == Stage::Prepared { Ok(Left::default()) } else { self.part.leave(TURN) };
                match left {
                    Ok(left) => answer.pages = left.pages as u64,
                    // What was given back stays so, and the rest goes when it is asked again: as long as there is less each time.
                    Err(LeaveError::Late { what: StillHere::Pages(pages), .. })
                        if pages < self.left_behind.swap(pages, Ordering::Relaxed) =>
                    {
                        answer.more = true;
                    }
                    Err(error) => return Err(to_refusal(&error)),
                }
            }
            PartOrder::Dismiss { host } => {
                // Who is not known has been forgotten.
                if let Ok(id) = self.number_of(&host) {
                    self.part.dismiss(id, TURN).map_err(|error| to_refusal(&error))?;
                    lock(&self.members).remove(&host);
                }
            }
        }
        drop(stage);
        answer.total_ms = begun.elapsed().as_secs_f64() * 1000.0;
        Ok(answer)
    }

    fn join(&self, addresses: Vec<PartAddress>) -> Result<(), ApiError> {
        for PartAddress { number, host, address } in addresses {
            let id = HostId::new(number)
                .ok_or_else(|| refused(format!("Host {host} cannot have number {number} in {}", self.name)))?;
            let mut members = lock(&self.members);
            if let Some((other, _)) = members.iter().find(|(known, taken)| **taken == id && **known != host) {
                return Err(refused(format!("{other} has number {number} in {}, which {host} is to get", self.name)));
            }
            members.insert(host.clone(), id);
            drop(members);
            let expected = ExpectedPeer::Exactly(Principal::Host(host));
            self.part.connect(OtherHost { id, address, expected });
        }
        Ok(())
    }

    fn fill(&self) -> Result<(), ApiError> {
        match if self.is_hub { self.machine().load() } else { self.machine().stand_by() } {
            // A join that was cut short has done this.
            Ok(()) | Err(MachineError::WrongState { .. }) => Ok(()),
            Err(error) => Err(to_refusal(&error)),
        }
    }

    fn number_of(&self, host: &HostName) -> Result<HostId, ApiError> {
        let members = lock(&self.members);
        members.get(host).copied().ok_or_else(|| {
            let hosts: Vec<_> = members.keys().map(HostName::as_str).collect();
            refused(format!("Host {host} is none of the hosts of {}: these are {}", self.name, hosts.join(", ")))
        })
    }

    fn shards_of(&self, slice: u8) -> Result<Vec<ShardNumber>, ApiError> {
        if slice >= self.slices {
            return Err(refused(format!("Machine {} has no slice of memory {slice}", self.name)));
        }
        let all: Vec<ShardNumber> = shards(self.machine().memory().layout()).collect();
        let range = slice_of_shards(all.len(), usize::from(slice), usize::from(self.slices));
        Ok(all[range].to_vec())
    }

    /// Gives a piece away.
    fn give(&self, piece: PieceName, to: &HostName) -> Result<PartAnswer, ApiError> {
        let to = self.number_of(to)?;
        match piece {
            PieceName::Vcpu(vcpu) => {
                let given = self.part.give_vcpu(vcpu, to, GIVE_PATIENCE).map_err(|error| match error {
                    // As it was to be, or about to be.
                    MoveError::There { .. } | MoveError::Moving(_) => {
                        ApiError::new(ErrorCode::Conflict, error_chain(&error))
                    }
                    error => to_refusal(&error),
                })?;
                let pause_ms = given.pause.as_secs_f64() * 1000.0;
                Ok(PartAnswer { pause_ms, pause: Some(given.parts), ..PartAnswer::default() })
            }
            PieceName::Memory(slice) => match self.part.give_homes(self.shards_of(slice)?, to, TURN) {
                Ok(_) => Ok(PartAnswer::default()),
                // Some have gone, and the rest is on its way.
                Err(HomeError::Late { given, .. }) if given > 0 => {
                    Ok(PartAnswer { more: true, ..PartAnswer::default() })
                }
                Err(error) => Err(to_refusal(&error)),
            },
        }
    }
}

/// Where the homes of a machine that begins are: each slice on the member of its place.
fn first_homes(share: &Share, layout: &MemoryLayout) -> Vec<(ShardNumber, Route)> {
    let all: Vec<ShardNumber> = shards(layout).collect();
    let slices = usize::from(share.slices);
    let members = share.members.iter().filter_map(|member| HostId::new(member.number)).cycle();
    let homes = (0..slices).zip(members).flat_map(|(slice, home)| {
        let range = slice_of_shards(all.len(), slice, slices);
        all[range].iter().map(move |shard| (*shard, Route { home, epoch: Epoch::FIRST }))
    });
    homes.collect()
}

/// Pieces as the controller keeps them, asked by threads that may wait.
struct ControllerRegistry {
    client: ControllerClient,
    runtime: Handle,
    machine: MachineName,
    members: Members,
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
        let number = lock(&self.members).get(&host).copied();
        let host =
            number.ok_or_else(|| Unheard { piece, reason: format!("it names {host}, which is none of its hosts") })?;
        Ok(Placement { host, epoch })
    }
}
