//! Changes at given times: a link that gets worse, is cut, comes back.
//!
//! ```text
//! # when                   which way   what
//! at 12s                               cut
//! at 22s                               restore
//! at 30s                   b-to-a      rate=100Mbit loss=1%
//! every 60s from 40s                   cut for 2s
//! ```
//! A timeline has no clock: it is told the time since its start and answers what is due.

mod parse;

pub use parse::{StatementError, TimelineError};

use crate::{direction::Direction, impairments::Impairments, setting::Setting};
use std::{fmt, time::Duration};

/// Changes at given times since the start.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Timeline {
    events: Vec<Event>,
}

#[derive(Debug, Clone, PartialEq)]
struct Event {
    /// `None`: has happened and does not happen again.
    next: Option<Duration>,
    every: Option<Duration>,
    step: Step,
}

/// What changes, and which way.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// `None`: both.
    pub direction: Option<Direction>,
    /// What changes.
    pub change: Change,
}

/// What changes.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// Everything is lost from now on.
    Cut,
    /// Ends a cut; other impairments stay as they are.
    Restore,
    /// New values; others stay as they are.
    Set(Vec<Setting>),
}

impl Step {
    /// Whether it is about this direction.
    #[must_use]
    pub fn affects(&self, direction: Direction) -> bool {
        self.direction.is_none_or(|only| only == direction)
    }
}

impl Change {
    /// Makes it so.
    pub fn apply(&self, to: &mut Impairments) {
        match self {
            Self::Cut => to.cut = true,
            Self::Restore => to.cut = false,
            Self::Set(settings) => settings.iter().for_each(|setting| setting.apply(to)),
        }
    }
}

impl Timeline {
    /// Adds `step` at `time`.
    pub fn at(&mut self, time: Duration, step: Step) {
        self.events.push(Event { next: Some(time), every: None, step });
    }

    /// Adds `step` at `first` and every `period` from then on.
    pub fn every(&mut self, period: Duration, first: Duration, step: Step) {
        self.events.push(Event { next: Some(first), every: Some(period), step });
    }

    /// Nothing will ever change.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.next_due().is_none()
    }

    /// When something changes next.
    #[must_use]
    pub fn next_due(&self) -> Option<Duration> {
        self.events.iter().filter_map(|event| event.next).min()
    }

    /// The next change that is due by `now`, and when it was; of those at the same time, the one that was added first.
    /// To be called until nothing is left.
    pub fn take_due(&mut self, now: Duration) -> Option<(Duration, Step)> {
        let due = self.next_due().filter(|due| *due <= now)?;
        let event = self.events.iter_mut().find(|event| event.next == Some(due))?;
        event.next = event.every.map(|period| due + period);
        Some((due, event.step.clone()))
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.direction {
            Some(direction) => write!(f, "{direction} ")?,
            None => write!(f, "both ")?,
        }
        match &self.change {
            Change::Cut => write!(f, "cut"),
            Change::Restore => write!(f, "restore"),
            Change::Set(settings) => {
                let texts: Vec<String> = settings.iter().map(Setting::to_string).collect();
                f.write_str(&texts.join(" "))
            }
        }
    }
}
