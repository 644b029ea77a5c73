//! What the policy would do, and why: the answer of `rebalance`, `host drain`, `what-if` and `why`.

use crate::{HostName, MachineName, PieceName};
use serde::{Deserialize, Serialize};
use std::fmt;

/// A machine, or a piece of one that spans several hosts.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Subject {
    /// The machine.
    pub machine: MachineName,
    /// Which piece of it; `None` for all of it.
    #[serde(default)]
    pub piece: Option<PieceName>,
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.piece {
            Some(piece) => write!(f, "{}/{piece}", self.machine),
            None => write!(f, "{}", self.machine),
        }
    }
}

/// Why something is moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Motive {
    /// Its host is to be empty.
    Evacuate,
    /// A rule is broken where it is.
    Repair,
    /// Its host has too much to do.
    Balance,
    /// It shares pages with what is elsewhere.
    Gather,
    /// Another step needs its place.
    MakeRoom,
    /// It waits here for a place that is taken in a circle.
    Bounce,
    /// It was there before, and an operator wants it back.
    Undo,
}

/// A place that was looked at and not taken.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Rejected {
    /// Where.
    pub host: HostName,
    /// Why not: the rule, or the numbers.
    pub why: String,
}

/// One move of a plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PlannedStep {
    /// Its place in the plan, from 1.
    pub number: u32,
    /// What is moved.
    #[serde(flatten)]
    pub subject: Subject,
    /// From where.
    pub from: HostName,
    /// Where to.
    pub to: HostName,
    /// Why, in one word.
    pub motive: Motive,
    /// Why, in a sentence with its numbers.
    pub reason: String,
    /// How much better everything is after it, in units of the objective: one machine's worth of processors that waited and does not any more.
    pub gain: f64,
    /// What the move costs, in the same units.
    pub cost: f64,
    /// Steps that must be over before this one begins.
    #[serde(default)]
    pub after: Vec<u32>,
    /// Of steps that begin together, because an affinity would be broken between them: the number of the first of them.
    #[serde(default)]
    pub together: Option<u32>,
    /// When it begins, in ms after the plan does.
    pub begins_ms: u64,
    /// How long it takes, in ms, as foreseen.
    pub takes_ms: u64,
    /// Bytes on the wire, as foreseen.
    pub bytes: u64,
    /// The pause, in ms, as foreseen.
    pub downtime_ms: f64,
    /// The best places that were not taken, best first.
    #[serde(default)]
    pub rejected: Vec<Rejected>,
}

/// What should move and does not, and what stands in its way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Blocked {
    /// What.
    #[serde(flatten)]
    pub subject: Subject,
    /// Why it should.
    pub motive: Motive,
    /// Why it does not, with the numbers and what would help.
    pub why: String,
}

/// Rules that cannot all be kept: none of them can be left out and the others still contradict each other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Contradiction {
    /// Their names.
    pub rules: Vec<String>,
    /// The machines in question.
    pub machines: Vec<MachineName>,
    /// In a sentence.
    pub why: String,
}

/// How well everything is.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Standing {
    /// The objective without the cost of moves: 0 when everybody has what they ask for; more is worse.
    pub loss: f64,
    /// Hosts with more demand than makes everybody content.
    pub hosts_overloaded: u32,
    /// Rules that are broken.
    pub rules_broken: u32,
    /// Demand on processors over their number, on the busiest host.
    pub load_max: f64,
    /// The same, on the average host.
    pub load_mean: f64,
}

/// What would be done, in order, and what comes of it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Plan {
    /// Moves, by number. Each may begin once those in its `after` are over.
    pub steps: Vec<PlannedStep>,
    /// What should be done and cannot.
    #[serde(default)]
    pub blocked: Vec<Blocked>,
    /// Rules that contradict each other; the machines in question are left where they are.
    #[serde(default)]
    pub contradictions: Vec<Contradiction>,
    /// As it is, moves under way counted as done.
    pub before: Standing,
    /// As it will be.
    pub after: Standing,
    /// When the last step is over, in ms after the plan begins.
    pub ends_ms: u64,
    /// Was the search ended by its limit, before it found nothing better any more?
    #[serde(default)]
    pub cut_short: bool,
}

/// What a rule says about a place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RuleNote {
    /// Its name.
    pub rule: String,
    /// Would it be kept?
    pub kept: bool,
    /// In a sentence, with the numbers.
    pub why: String,
}

/// A place, as the policy judges it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PlaceNote {
    /// Which.
    pub host: HostName,
    /// Could it be there, everything else being where it is?
    pub possible: bool,
    /// How much better everything would be, in units of the objective, without the cost of the move.
    pub gain: f64,
    /// What the move would cost, in the same units.
    pub cost: f64,
    /// Why not, or what would be, one sentence each.
    pub why: Vec<String>,
}

/// Why something is where it is, or is not somewhere else: the answer of `why`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Explanation {
    /// What was asked about.
    #[serde(flatten)]
    pub subject: Subject,
    /// Where it is.
    pub host: HostName,
    /// Part of the processors it asks for that it gets there, from 0 to 1, over the time ahead.
    pub satisfaction: f64,
    /// What is to be known about it where it is.
    pub here: Vec<String>,
    /// Rules that speak of it, as they are kept now.
    pub rules: Vec<RuleNote>,
    /// Other places: the one that was asked about, or the best.
    pub places: Vec<PlaceNote>,
    /// What the policy would do, and why not anything else.
    pub conclusion: String,
}
