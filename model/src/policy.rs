//! How the policy is to act: what the operator sets with `vmotion policy set` or declares in a site file.

use serde::{Deserialize, Serialize};

/// May the policy act by itself?
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum PolicyMode {
    /// It looks, and answers when it is asked.
    #[default]
    Manual,
    /// It acts within its budgets.
    Auto,
}

/// How the policy is to act.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct PolicySpec {
    /// By itself, or only when asked.
    pub mode: PolicyMode,
    /// Moves for balance that are begun in any hour at most. Evacuations and repairs of rules are not counted.
    pub moves_per_hour_max: u32,
    /// Part of a host's processors, in percent, up to which everybody on it is content.
    pub cpu_percent_content: u8,
    /// The pause that a move for balance may cost, in ms.
    pub downtime_ms_max: u32,
    /// How long demand must have been seen before anything is concluded from it, in s.
    pub hold_s: u32,
    /// A machine that was moved for balance stays for so long, in s; twice as long after each further move, 24 h at most.
    pub cooldown_s: u32,
    /// A machine that an operator moved stays where it was put for so long, in s.
    pub respect_s: u32,
    /// Moves that a host takes part in at a time, at most.
    pub moves_per_host_max: u32,
    /// Part of a link's bandwidth that moves may use, in percent.
    pub link_percent_max: u8,
}

impl Default for PolicySpec {
    fn default() -> Self {
        Self {
            mode: PolicyMode::Manual,
            moves_per_hour_max: 20,
            cpu_percent_content: 80,
            downtime_ms_max: 300,
            hold_s: 300,
            cooldown_s: 3600,
            respect_s: 24 * 3600,
            moves_per_host_max: 8,
            link_percent_max: 80,
        }
    }
}

impl PolicySpec {
    /// Are the numbers such that something can be done by them?
    ///
    /// # Errors
    /// A sentence that names the field, its value and what to do.
    pub fn validate(&self) -> Result<(), String> {
        let percent = |name: &str, value: u8| match value {
            1..=100 => Ok(()),
            _ => Err(format!("{name} {value} is not valid: use 1 to 100")),
        };
        percent("cpu_percent_content", self.cpu_percent_content)?;
        percent("link_percent_max", self.link_percent_max)?;
        if self.moves_per_host_max == 0 {
            return Err("moves_per_host_max 0 is not valid: nothing would ever be moved; use 1 or more".to_owned());
        }
        if self.downtime_ms_max == 0 {
            return Err("downtime_ms_max 0 is not valid: no move is without a pause; use 1 or more".to_owned());
        }
        Ok(())
    }
}
