//! Where should everything be, and why?
//!
//! Pure functions from what is to an explained answer: no I/O, no clock, no randomness. [`place`] finds a host for one machine, [`look`]
//! judges the pieces of one that spans several, [`plan`] says what should be where in a whole [`site`], in which order and why, [`why`] and
//! [`why_not`] answer for one machine, [`undo`] brings things back to where they were, [`suppose`] makes the site that would be if, [`contradictions`] names rules that cannot all be kept, and [`simulator`] tries all of it on recorded
//! or generated days. The one invariant: a host is chosen only if nothing forbids it, and the same hosts in any order give the same answer.

#![forbid(unsafe_code)]

mod contradict;
mod cooldown;
mod cost;
mod demand;
mod explain;
mod filter;
mod network;
mod objective;
mod pieces;
mod plan;
mod rules;
mod schedule;
mod score;
mod search;
pub mod simulator;
pub mod site;
mod state;
mod undo;
mod what_if;
mod world;

#[cfg(test)]
mod fixtures;
#[cfg(test)]
mod tests;

use std::{cmp::Ordering, collections::BTreeMap};
use vmotion_model::{ByteSize, CpuModel, DatacenterName, Host, HostName, Judgement, Placement, Verdict};

pub use contradict::contradictions;
pub use cooldown::Cooldown;
pub use demand::History;
pub use explain::{broken_at, why, why_not};
pub use filter::VCPUS_PER_THREAD_MAX;
pub use pieces::{Insight, Picture, Waits, look};
pub use plan::{plan, standing};
pub use search::{Effort, Goal};
pub use undo::{Return, undo};
pub use what_if::{Changed, WhatIfError, suppose};

/// Which hosts are wanted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Wanted {
    /// Any that fits.
    #[default]
    Anywhere,
    /// This one and no other.
    Host(HostName),
    /// Any in this datacenter.
    Datacenter(DatacenterName),
}

/// The host a machine runs on now, when it is to be moved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Current {
    /// Its name; it is never chosen.
    pub host: HostName,
    /// Its processors: whatever they offer, the guest may use.
    pub cpu: CpuModel,
}

/// What runs on a host already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HostLoad {
    /// Machines it owns or is about to receive.
    pub machines: u32,
    /// Their vCPUs.
    pub vcpus: u32,
}

/// A machine that wants a host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PlacementRequest {
    /// Its RAM; never overcommitted.
    pub memory: ByteSize,
    /// Its vCPUs; may be overcommitted, which costs score.
    pub cpus: u32,
    /// Which hosts are wanted.
    pub wanted: Wanted,
    /// Where it runs, when it does.
    pub current: Option<Current>,
    /// What runs where; a host that is missing carries nothing.
    pub load: BTreeMap<HostName, HostLoad>,
}

/// Judges every host for `request` and chooses the best; equal scores are decided by name.
#[must_use]
pub fn place(request: &PlacementRequest, hosts: &[Host]) -> Placement {
    let mut judgements: Vec<Judgement> = hosts.iter().map(|host| judge(request, host)).collect();
    judgements.sort_by(best_first);
    let chosen = judgements.first().filter(|best| matches!(best.verdict, Verdict::Fits { .. }));
    Placement { chosen: chosen.map(|best| best.host.clone()), judgements }
}

/// Why nothing was chosen, host by host, in one line; empty when there are no hosts.
#[must_use]
pub fn explain(placement: &Placement) -> String {
    let host = |judgement: &Judgement| match &judgement.verdict {
        Verdict::Rejected { reasons } | Verdict::Fits { reasons, .. } => {
            format!("{} {}", judgement.host, reasons.join(", "))
        }
    };
    placement.judgements.iter().map(host).collect::<Vec<_>>().join("; ")
}

fn judge(request: &PlacementRequest, host: &Host) -> Judgement {
    let rejections = filter::rejections(request, host);
    let verdict =
        if rejections.is_empty() { score::score(request, host) } else { Verdict::Rejected { reasons: rejections } };
    Judgement { host: host.name.clone(), verdict }
}

fn best_first(a: &Judgement, b: &Judgement) -> Ordering {
    let by_verdict = match (&a.verdict, &b.verdict) {
        (Verdict::Fits { score: a, .. }, Verdict::Fits { score: b, .. }) => b.total_cmp(a),
        (Verdict::Fits { .. }, Verdict::Rejected { .. }) => Ordering::Less,
        (Verdict::Rejected { .. }, Verdict::Fits { .. }) => Ordering::Greater,
        (Verdict::Rejected { .. }, Verdict::Rejected { .. }) => Ordering::Equal,
    };
    by_verdict.then_with(|| a.host.cmp(&b.host))
}
