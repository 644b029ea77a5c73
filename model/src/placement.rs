//! Where a machine could go, and why: what the policy answers and every API shows.

use crate::HostName;
use serde::{Deserialize, Serialize};

/// What the policy thinks of one host for one machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Judgement {
    /// The host.
    pub host: HostName,
    /// Could it, and how well.
    pub verdict: Verdict,
}

/// Whether a host can take a machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case", tag = "verdict")]
pub enum Verdict {
    /// It can; more is better.
    Fits {
        /// From 0 to 100.
        score: f64,
        /// What the score is made of.
        reasons: Vec<String>,
    },
    /// It cannot.
    Rejected {
        /// Every reason.
        reasons: Vec<String>,
    },
}

/// Where a machine goes, and why there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Placement {
    /// The best host; `None` when none fits.
    pub chosen: Option<HostName>,
    /// Every host that was looked at, best first.
    pub judgements: Vec<Judgement>,
}
