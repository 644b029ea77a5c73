//! What a move is expected to cost, by strategy, and what that was concluded from.

use crate::Strategy;
use serde::{Deserialize, Serialize};

/// A foreseen number and its error band: in eight of ten moves the actual number lies between `low` and `high`.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Expected {
    /// The best guess.
    pub likely: f64,
    /// It will hardly be less.
    pub low: f64,
    /// It will hardly be more.
    pub high: f64,
}

impl Expected {
    /// `likely`, give or take `share` of it.
    #[must_use]
    pub fn within(likely: f64, share: f64) -> Self {
        Self { likely, low: likely / (1.0 + share), high: likely * (1.0 + share) }
    }
}

/// What was measured while the first pages were copied.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Survey {
    /// Time since the move began, in ms.
    pub elapsed_ms: f64,
    /// Pages that still had to be copied once.
    pub pages_left: u64,
    /// Of those, the part that holds only zeros, from 0 to 1.
    pub zero_share: f64,
    /// Page payload bytes on the wire for each page that is not zero.
    pub bytes_per_page: f64,
    /// Pages that are not zero, copied each second.
    pub pages_per_s: f64,
    /// Least round-trip time of the path, in ms.
    pub rtt_ms: f64,
    /// Different pages written by the guest since it was first looked at: (ms, pages).
    pub dirty_curve: Vec<(f64, f64)>,
    /// Pages per second that the guest writes when it has not written them before.
    pub dirty_pages_per_s: f64,
    /// Pages among which it writes, as far as that shows.
    pub working_set_pages: f64,
}

/// What one strategy would come to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Forecast {
    /// Which.
    pub strategy: Strategy,
    /// The whole move, in ms.
    pub total_ms: Expected,
    /// The pause, in ms.
    pub downtime_ms: Expected,
    /// Page payload on the wire, in bytes.
    pub wire_bytes: Expected,
    /// Speed that the guest loses meanwhile, in percent.
    pub slowdown_percent: Expected,
    /// How much of that is the engine's own doing, slowing down what writes, in percent.
    #[serde(default)]
    pub throttle_percent: u8,
    /// Why it does not do what was asked, with the numbers; absent when it does.
    #[serde(default)]
    pub refused: Option<String>,
}

/// The survey, every strategy's forecast, and what follows.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Outlook {
    /// What was measured.
    pub survey: Survey,
    /// What each strategy that was allowed would come to.
    pub forecasts: Vec<Forecast>,
    /// The strategy that was chosen; `None` when what was asked cannot be had.
    #[serde(default)]
    pub chosen: Option<Strategy>,
}

impl Outlook {
    /// What was foreseen of the strategy that was chosen.
    #[must_use]
    pub fn expected(&self) -> Option<&Forecast> {
        self.forecasts.iter().find(|forecast| Some(forecast.strategy) == self.chosen)
    }
}

/// How far forecasts were off in the moves that a controller remembers: medians and bands of |actual - foreseen| / actual.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Accuracy {
    /// Moves that were foreseen and carried through.
    pub moves: u64,
    /// Of the whole move's time.
    pub total: Deviation,
    /// Of the pause.
    pub downtime: Deviation,
    /// Of the bytes on the wire.
    pub wire_bytes: Deviation,
    /// What a pause took besides pages and round trips, in ms: the median of the newest moves. `None`: too few.
    #[serde(default)]
    pub pause_fixed_ms: Option<f64>,
}

/// Relative errors: 0.1 is ten percent.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Deviation {
    /// Half of the moves were off by less.
    pub median: f64,
    /// Eight of ten moves were off by less.
    pub p80: f64,
}

impl Default for Deviation {
    /// What to assume before anything was seen.
    fn default() -> Self {
        Self { median: 0.15, p80: 0.3 }
    }
}

impl Deviation {
    /// Of relative errors, in any order; `None` of none.
    #[must_use]
    pub fn of(mut errors: Vec<f64>) -> Option<Self> {
        errors.sort_by(f64::total_cmp);
        let at = |part: usize| errors.get((errors.len() * part / 100).min(errors.len().saturating_sub(1))).copied();
        Some(Self { median: at(50)?, p80: at(80)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_band_holds_its_guess() {
        let band = Expected::within(100.0, 0.25);
        assert_eq!((band.low, band.likely, band.high), (80.0, 100.0, 125.0));
    }

    #[test]
    fn deviations_are_quantiles() {
        let errors = (0..100).rev().map(f64::from).collect();
        assert_eq!(Deviation::of(errors), Some(Deviation { median: 50.0, p80: 80.0 }));
        assert_eq!(Deviation::of(Vec::new()), None);
    }
}
