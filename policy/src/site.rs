//! What the policy looks at: everything that is, that is wanted and that is under way, at one moment. Plain values; whoever asks fills
//! them in, from a live inventory or from a recorded one.

use std::{collections::BTreeMap, sync::Arc};
use vmotion_model::{Accuracy, ByteSize, CpuModel, DatacenterName, HostName, MachineName, PieceName, PolicySpec, Rule};

/// Parts that the time ahead is divided into.
pub const SLOTS: usize = 24;
/// How long each of them is, in s: together a day.
pub const SLOT_S: u64 = 3600;

/// Everything.
#[derive(Debug, Clone, Default)]
pub struct Site {
    /// Hosts; no two have the same name.
    pub hosts: Vec<SiteHost>,
    /// Machines that run, or are to run; no two have the same name.
    pub machines: Vec<SiteMachine>,
    /// What lies between datacenters.
    pub links: Links,
    /// What the operator demands.
    pub rules: Vec<Rule>,
    /// Moves under way: counted as done, their memory at both ends until they are.
    pub under_way: Vec<UnderWay>,
    /// How to act.
    pub policy: PolicySpec,
    /// Moves for balance that were begun in the last hour.
    pub moves_last_hour: u32,
    /// How far forecasts of moves were off before.
    pub accuracy: Accuracy,
}

/// May things be put on a host?
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Duty {
    /// Yes.
    #[default]
    Open,
    /// What is there stays, nothing comes.
    Cordoned,
    /// It is to be empty: within so many ms from now, or as soon as possible.
    Draining(Option<u64>),
    /// Nobody hears it: what is there cannot be moved, nothing comes.
    Gone,
}

/// A host.
#[derive(Debug, Clone)]
pub struct SiteHost {
    /// Its name.
    pub name: HostName,
    /// Where it stands.
    pub datacenter: DatacenterName,
    /// What it fails together with; `None` for nothing.
    pub rack: Option<String>,
    /// Processors that machines may use; may be a fraction.
    pub cpus: f32,
    /// Memory for machines, in bytes.
    pub memory: ByteSize,
    /// Memory that is taken by what is not in the list of machines, in bytes.
    pub memory_other: ByteSize,
    /// Demand on processors of what is not in the list of machines.
    pub cpus_other: f32,
    /// What its network carries in each direction, in bytes/s; 0 when nobody knows.
    pub network_bytes_per_s: f64,
    /// Which processors it has. Hosts with the same share one.
    pub cpu: Arc<CpuModel>,
    /// May things be put there?
    pub duty: Duty,
}

/// A machine.
#[derive(Debug, Clone)]
pub struct SiteMachine {
    /// Its name.
    pub name: MachineName,
    /// Its host; of a machine that spans several, the one with its devices.
    pub host: HostName,
    /// Its pieces, when it spans several hosts: it is moved by them.
    pub pieces: Vec<SitePiece>,
    /// Its memory.
    pub memory: ByteSize,
    /// Its vCPUs.
    pub vcpus: u32,
    /// What it asks of processors.
    pub demand: Demand,
    /// What it does to its memory.
    pub memory_use: MemoryUse,
    /// Why it must not be moved now, and for how many ms from now: moved a moment ago, or put there by an operator.
    pub stays: Option<Stay>,
    /// Hosts it left for balance lately: it does not go back there.
    pub left: Vec<HostName>,
}

impl SiteMachine {
    /// How much of its memory a host has.
    #[must_use]
    pub fn memory_on(&self, host: &HostName) -> ByteSize {
        if self.pieces.is_empty() {
            return if self.host == *host { self.memory } else { ByteSize(0) };
        }
        let slices = || self.pieces.iter().filter(|piece| matches!(piece.name, PieceName::Memory(_)));
        let here = slices().filter(|piece| piece.host == *host).count() as u64;
        ByteSize(self.memory.bytes() / (slices().count().max(1) as u64) * here)
    }
}

/// A piece of a machine, and what it shares.
#[derive(Debug, Clone)]
pub struct SitePiece {
    /// Which.
    pub name: PieceName,
    /// Where it is.
    pub host: HostName,
    /// Waits a second that would be saved with it on the host of that other piece.
    pub shares: Vec<(PieceName, f64)>,
}

/// That a machine is to be left alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stay {
    /// Why, for people: "an operator moved it here 10 min ago".
    pub why: String,
    /// For how long, in ms.
    pub for_ms: u64,
}

/// What a machine asks of processors in the time ahead.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Demand {
    /// Processors that are busy with it in each slot from now.
    pub cpus: [f32; SLOTS],
    /// How far it is off from that, as a standard deviation.
    pub deviation: f32,
    /// For how long it was watched, in s: too short, and nothing is concluded from it.
    pub seen_s: u32,
}

impl Default for Demand {
    fn default() -> Self {
        Self { cpus: [0.0; SLOTS], deviation: 0.0, seen_s: 0 }
    }
}

/// What a machine does to its memory.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct MemoryUse {
    /// Different pages that it writes, each second.
    pub dirty_pages_per_s: f64,
    /// Pages among which it writes.
    pub working_set_pages: f64,
    /// Part of its pages that hold only zeros, from 0 to 1.
    pub zero_share: f64,
    /// Bytes that a page takes on the wire.
    pub bytes_per_page: f64,
}

/// What lies between datacenters. Within one, the networks of hosts decide.
#[derive(Debug, Clone, Default)]
pub struct Links {
    /// By pair, the lesser name first. A pair that is missing is as good as the network of its hosts.
    pub between: BTreeMap<(DatacenterName, DatacenterName), Link>,
}

/// A way from datacenter to datacenter, and back.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Link {
    /// In each direction.
    pub bytes_per_s: f64,
    /// Round trip, in ms.
    pub rtt_ms: f64,
    /// Of a GiB that is sent, in whatever the operator counts; makes moves over it dearer.
    pub price_per_gib: f64,
}

/// A move that has begun.
#[derive(Debug, Clone)]
pub struct UnderWay {
    /// What.
    pub machine: MachineName,
    /// Which piece of it.
    pub piece: Option<PieceName>,
    /// From where.
    pub from: HostName,
    /// Where to.
    pub to: HostName,
    /// When it will be over, in ms from now, as foreseen.
    pub ends_ms: u64,
}
