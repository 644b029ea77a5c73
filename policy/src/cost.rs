//! What a move costs: the migrator's own prediction, and what that is worth in the objective.

use crate::{
    objective::worth,
    world::{HostId, PathFacts, SubjectId, World},
};
use std::collections::HashMap;
use vmotion_migrator::{GuestProfile, PathProfile, predict};
use vmotion_model::{MoveRequest, PAGE_SIZE, PieceName};

/// Pages that a move's threads copy each second when nothing else keeps them: 1 GiB/s of guest memory.
pub(crate) const PAGES_PER_S_MAX: f64 = 262_144.0;
/// Before a move's first page and after its last: a process is prepared at the target and the source's ends, in ms.
pub(crate) const AROUND_MS: f64 = 500.0;
/// A vCPU between two parts of a machine: bytes, and ms that it stands still.
const VCPU_BYTES: f64 = 16_384.0;
const VCPU_MS: f64 = 5.0;
/// What an order takes until it is carried out, in ms.
const PIECE_AROUND_MS: f64 = 50.0;

/// What a move comes to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Cost {
    /// From its beginning to its end, in ms.
    pub(crate) takes_ms: f64,
    /// On the wire.
    pub(crate) bytes: f64,
    /// The pause, in ms.
    pub(crate) downtime_ms: f64,
    /// Is the pause longer than the policy allows?
    pub(crate) too_long: bool,
    /// In units of the objective.
    pub(crate) units: f64,
}

/// Costs, kept by what was asked for and the kind of path.
#[derive(Debug, Default)]
pub(crate) struct Costs {
    known: HashMap<(SubjectId, u32), Cost>,
}

impl Costs {
    /// Of a move over what the path carries when nothing else is on it.
    pub(crate) fn of(&mut self, world: &World<'_>, subject: SubjectId, from: HostId, to: HostId) -> Cost {
        let (class, path) = world.path(from, to);
        *self.known.entry((subject, class)).or_insert_with(|| cost(world, subject, &path, path.bytes_per_s))
    }
}

/// Of a move that gets `bytes_per_s` of the path.
pub(crate) fn cost(world: &World<'_>, subject: SubjectId, path: &PathFacts, bytes_per_s: f64) -> Cost {
    let facts = world.of(subject);
    let machine = world.machine(facts.machine);
    let usage = &machine.memory_use;
    let (takes_ms, bytes, downtime_ms, least) = match facts.piece {
        Some(PieceName::Vcpu(_)) => {
            let ms = VCPU_MS + 2.0 * path.rtt_ms;
            (ms + PIECE_AROUND_MS, VCPU_BYTES, ms, worth::PIECE)
        }
        Some(PieceName::Memory(_)) => {
            let page = if usage.bytes_per_page > 0.0 { usage.bytes_per_page } else { PAGE_SIZE as f64 };
            let pages = facts.memory as f64 / PAGE_SIZE as f64 * (1.0 - usage.zero_share.clamp(0.0, 1.0));
            let bytes = pages * page;
            (bytes / bytes_per_s.max(1.0) * 1000.0 + path.rtt_ms + PIECE_AROUND_MS, bytes, 0.0, worth::PIECE)
        }
        None => {
            let guest = GuestProfile {
                memory_bytes: facts.memory,
                zero_share: usage.zero_share,
                bytes_per_page: usage.bytes_per_page,
                dirty_pages_per_s: usage.dirty_pages_per_s,
                working_set_pages: usage.working_set_pages,
                vcpus: machine.vcpus,
            };
            let path = PathProfile { bytes_per_s, rtt_ms: path.rtt_ms, pages_per_s_max: PAGES_PER_S_MAX };
            let request = MoveRequest { downtime_ms_max: world.site.policy.downtime_ms_max, ..MoveRequest::default() };
            let forecast = predict(&guest, &path, &request, &world.site.accuracy);
            let takes_ms = forecast.total_ms.likely + AROUND_MS;
            (takes_ms, forecast.wire_bytes.likely, forecast.downtime_ms.likely, worth::MOVE)
        }
    };
    let gib = bytes / f64::from(1 << 30);
    let units = least
        + worth::GIB * gib
        + worth::SECOND * takes_ms / 1000.0
        + worth::PAUSE_SECOND * downtime_ms / 1000.0
        + worth::PRICE * path.price_per_gib * gib;
    let too_long = downtime_ms > f64::from(world.site.policy.downtime_ms_max);
    Cost { takes_ms, bytes, downtime_ms, too_long, units }
}
