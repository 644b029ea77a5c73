//! What became of a move, and what must hold after every one.

use super::{
    guest::{ModelGuest, eventually},
    schedule::Schedule,
    store::Record,
    witness::{Side, Witness},
    world::host,
};
use std::sync::Arc;
use vmotion_migrator::target::TargetOutcome;
use vmotion_model::{MoveOutcome, MoveSummary, Strategy};

/// Offers that are taken back, at most, before a move is given up.
const RENEWALS_MAX: usize = 3;

/// What became of it.
pub(crate) struct Outcome {
    /// Of the source; `None` when it was killed.
    pub(crate) summary: Option<MoveSummary>,
    /// Of the target; `None` when it was killed.
    pub(crate) arrival: Option<TargetOutcome>,
    pub(crate) record: Arc<Record>,
    pub(crate) witness: Arc<Witness>,
    /// Every state entered, in order.
    pub(crate) states: Vec<(Side, &'static str)>,
    guests: [Arc<ModelGuest>; 2],
}

impl Drop for Outcome {
    fn drop(&mut self) {
        // Ends their threads.
        self.guests.iter().for_each(|guest| guest.kill());
    }
}

impl Outcome {
    pub(crate) const fn new(record: Arc<Record>, witness: Arc<Witness>, guests: [Arc<ModelGuest>; 2]) -> Self {
        Self { summary: None, arrival: None, record, witness, states: Vec::new(), guests }
    }

    pub(super) fn kill(&self, side: Side) {
        self.guests[side as usize].kill();
    }

    /// Did the source's driver, or the target's, enter `state`?
    pub(crate) fn entered(&self, side: Side, state: &str) -> bool {
        self.states.iter().any(|(at, name)| (*at, *name) == (side, state))
    }

    /// How the source says it ended.
    pub(crate) fn result(&self) -> &MoveOutcome {
        &self.summary.as_ref().expect("the source lives").outcome
    }

    /// Did it succeed after an offer was taken back?
    pub(crate) fn moved_after_renewal(&self) -> bool {
        self.owner() == Side::Target && self.record.history().len() > 2
    }

    /// Which copy the record names.
    pub(crate) fn owner(&self) -> Side {
        if self.record.read().owner == host(Side::Source) { Side::Source } else { Side::Target }
    }

    /// What must hold after every schedule.
    pub(crate) fn check(&self, schedule: &Schedule) -> Result<(), String> {
        self.check_copies().and_then(|()| self.check_words(schedule)).map_err(|what| {
            let record = self.record.history();
            let outcome = self.summary.as_ref().map(|summary| &summary.outcome);
            format!(
                "{what}; source {outcome:?}, target {:?}, states {:?}, records {record:?}",
                self.arrival, self.states
            )
        })
    }

    /// One copy, where the record says, and right.
    fn check_copies(&self) -> Result<(), String> {
        let (owner, record) = (self.owner(), self.record.read());
        let other = if owner == Side::Source { Side::Target } else { Side::Source };
        let lives = match owner {
            Side::Source => self.summary.is_some(),
            // A target that misses pages for good has said so, and ended.
            Side::Target => matches!(self.arrival, Some(TargetOutcome::Running(_) | TargetOutcome::Discarded(_))),
        };
        if self.witness.saw_both() {
            return Err("two copies ran at once".to_owned());
        }
        if lives {
            // A pause that was asked for just before the end is taken back a moment later.
            if !eventually(|| self.witness.runs(owner)) {
                return Err(format!("the {owner:?} owns the machine, and it does not run there"));
            }
            self.guests[owner as usize].check_all();
        }
        if self.witness.runs(other) {
            return Err(format!("the machine runs at the {other:?}, which does not own it"));
        }
        let wrong = self.witness.complaints();
        if !wrong.is_empty() {
            return Err(format!("the guest found {wrong:?}"));
        }
        let history = self.record.history();
        let first = host(Side::Source);
        let in_order = history.windows(2).all(|pair| pair[1].epoch == pair[0].epoch.next() && pair[0].owner == first);
        if history.len() > 2 + RENEWALS_MAX || !in_order {
            return Err(format!("the record went through {history:?}"));
        }
        if self.summary.is_some() && self.guests[0].is_tracked() {
            return Err("the source is still tracked".to_owned());
        }
        match &self.arrival {
            Some(TargetOutcome::Running(running) | TargetOutcome::Failed { record: running, .. })
                if *running != record =>
            {
                Err(format!("the target says that its record is {running:?}"))
            }
            _ => Ok(()),
        }
    }

    /// What both ends say is true.
    fn check_words(&self, schedule: &Schedule) -> Result<(), String> {
        let owner = self.owner();
        let is_stranded = matches!(self.arrival, Some(TargetOutcome::Failed { .. }));
        if let Some(summary) = &self.summary {
            let said = match summary.outcome {
                MoveOutcome::Moved | MoveOutcome::Stranded { .. } => Side::Target,
                _ => Side::Source,
            };
            if said != owner || summary.epoch != self.record.read().epoch {
                return Err(format!("the source reports {:?}", summary.epoch));
            }
            if is_stranded && !matches!(summary.outcome, MoveOutcome::Stranded { .. }) {
                return Err("the target is stranded, and the source does not say so".to_owned());
            }
            let runs = matches!(self.arrival, Some(TargetOutcome::Running(_)));
            // With the path gone the target's word that it has everything may be lost.
            if runs && matches!(summary.outcome, MoveOutcome::Stranded { .. }) && !schedule.may_strand() {
                return Err("the source says that the guest is lost, and it is not".to_owned());
            }
        }
        let stranded = is_stranded || self.entered(Side::Source, "stranded");
        if stranded && (!schedule.may_strand() || schedule.request.strategy == Strategy::Precopy) {
            return Err("the guest is lost, and nothing was done to processes or path".to_owned());
        }
        if is_stranded && !self.entered(Side::Target, "stranded") {
            return Err("the target failed without having been stranded".to_owned());
        }
        match &self.arrival {
            Some(TargetOutcome::Discarded(reason)) if owner == Side::Target => {
                Err(format!("the target owns the machine and discarded it: {reason}"))
            }
            _ => Ok(()),
        }
    }
}
