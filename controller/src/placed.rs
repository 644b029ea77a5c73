//! Who put a machine where it is, and what follows from that: what a person placed is left there for a while, what the policy moved is not
//! moved again soon, and nothing goes back to where it was an hour ago.

use crate::records::PLACED;
use serde::{Deserialize, Serialize};
use vmotion_api::Operation;
use vmotion_model::{HostName, MachineName, Motive, PolicySpec};
use vmotion_policy::site::Stay;

/// A host that was left for balance is not returned to for so long.
const NO_RETURN_MS: u64 = 3600 * 1000;
/// The longest that a machine stays after having been moved again and again, in s.
const COOLDOWN_S_MAX: u64 = 24 * 3600;
/// Cool-downs double this many times at most before they reach that.
const DOUBLINGS_MAX: u32 = 20;

/// What is remembered about a machine's last moves.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct PlacedRecord {
    /// When it came to where it is, in ms since the epoch.
    pub(crate) unix_ms: u64,
    /// The operator who wanted it; `None` for the policy.
    pub(crate) operator: Option<String>,
    /// Why the policy wanted it.
    #[serde(default)]
    pub(crate) motive: Option<Motive>,
    /// Moves for balance one after the other, without a day of rest between.
    #[serde(default)]
    pub(crate) in_a_row: u32,
    /// Hosts that it left for balance, and when.
    #[serde(default)]
    pub(crate) left: Vec<(HostName, u64)>,
    /// How often a person, or another balancer, has undone what the policy did.
    #[serde(default)]
    pub(crate) undone: u32,
}

pub(crate) fn placed_key(name: &MachineName) -> String {
    format!("{PLACED}{name}")
}

/// The policy's name where people have theirs.
pub(crate) const POLICY_NAME: &str = "policy";

impl PlacedRecord {
    /// After a move that has taken place.
    pub(crate) fn after(before: Option<Self>, operation: &Operation, now_ms: u64) -> Self {
        let before = before.unwrap_or_default();
        let mut left: Vec<(HostName, u64)> =
            before.left.into_iter().filter(|(_, at)| now_ms.saturating_sub(*at) < NO_RETURN_MS).collect();
        let by_policy = operation.asked_by.as_deref() == Some(POLICY_NAME);
        if !by_policy {
            let undoes = before.operator.is_none() && left.iter().any(|(host, _)| *host == operation.target);
            return Self {
                unix_ms: now_ms,
                operator: Some(operation.asked_by.clone().unwrap_or_else(|| "somebody".to_owned())),
                motive: None,
                in_a_row: before.in_a_row,
                undone: before.undone + u32::from(undoes),
                left,
            };
        }
        let for_balance = matches!(operation.motive, Some(Motive::Balance | Motive::Gather));
        if for_balance {
            left.retain(|(host, _)| *host != operation.source);
            left.push((operation.source.clone(), now_ms));
        }
        let rested = now_ms.saturating_sub(before.unix_ms) >= COOLDOWN_S_MAX * 1000;
        let in_a_row = if rested { 0 } else { before.in_a_row };
        Self {
            unix_ms: now_ms,
            operator: None,
            motive: operation.motive,
            in_a_row: in_a_row + u32::from(for_balance),
            left,
            undone: before.undone,
        }
    }

    /// Why it is left alone now, if it is.
    pub(crate) fn stays(&self, policy: &PolicySpec, now_ms: u64) -> Option<Stay> {
        // A clock that was set back makes the past look like the future; nothing stays longer for that than from now on.
        let age_ms = now_ms.saturating_sub(self.unix_ms);
        let (for_s, why) = match &self.operator {
            Some(operator) => {
                // Somebody who undoes what the policy does knows something that it does not: it keeps away longer each time.
                let for_s = doubled(u64::from(policy.respect_s), self.undone);
                (for_s, format!("{operator} put it here {} ago", minutes(age_ms)))
            }
            None if self.in_a_row == 0 => return None,
            None => {
                let for_s = doubled(u64::from(policy.cooldown_s), self.in_a_row - 1).min(COOLDOWN_S_MAX);
                (for_s, format!("it was moved for balance {} ago, {} in a row", minutes(age_ms), self.in_a_row))
            }
        };
        let for_ms = (for_s * 1000).saturating_sub(age_ms);
        (for_ms > 0).then_some(Stay { why, for_ms })
    }

    /// Hosts that it must not go back to now.
    pub(crate) fn left(&self, now_ms: u64) -> Vec<HostName> {
        let recent = self.left.iter().filter(|(_, at)| now_ms.saturating_sub(*at) < NO_RETURN_MS);
        recent.map(|(host, _)| host.clone()).collect()
    }
}

fn doubled(seconds: u64, times: u32) -> u64 {
    seconds.saturating_mul(1 << times.min(DOUBLINGS_MAX))
}

fn minutes(ms: u64) -> String {
    format!("{} min", ms / 60_000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use vmotion_model::MoveRequest;

    fn moved(by: &str, motive: Option<Motive>, from: &str, to: &str) -> Operation {
        let json = serde_json::json!({
            "id": "m-000001", "machine": "vm", "source": from, "target": to, "request": MoveRequest::default(),
            "created_unix_ms": 0, "asked_by": by, "motive": motive,
        });
        serde_json::from_value(json).unwrap()
    }

    const HOUR: u64 = 3600 * 1000;

    #[test]
    fn what_a_person_placed_stays_for_a_day() {
        let policy = PolicySpec::default();
        let placed = PlacedRecord::after(None, &moved("alice", None, "h1", "h2"), HOUR);
        let stay = placed.stays(&policy, 2 * HOUR).unwrap();
        assert_eq!((stay.why.as_str(), stay.for_ms), ("alice put it here 60 min ago", 23 * HOUR));
        assert_eq!(placed.stays(&policy, 26 * HOUR), None);
    }

    #[test]
    fn moves_for_balance_one_after_the_other_are_followed_by_ever_longer_rests() {
        let policy = PolicySpec::default();
        let balance = Some(Motive::Balance);
        let first = PlacedRecord::after(None, &moved(POLICY_NAME, balance, "h1", "h2"), 0);
        assert_eq!(first.stays(&policy, 0).unwrap().for_ms, HOUR);
        assert_eq!(first.left(HOUR - 1), ["h1".parse().unwrap()]);
        assert!(first.left(HOUR).is_empty());
        let second = PlacedRecord::after(Some(first), &moved(POLICY_NAME, balance, "h2", "h3"), HOUR);
        assert_eq!(second.stays(&policy, HOUR).unwrap().for_ms, 2 * HOUR);
        let rested = PlacedRecord::after(Some(second), &moved(POLICY_NAME, balance, "h3", "h1"), 26 * HOUR);
        assert_eq!(rested.stays(&policy, 26 * HOUR).unwrap().for_ms, HOUR);
    }

    #[test]
    fn an_evacuation_is_no_reason_to_stay_and_undoing_is_respected_longer() {
        let policy = PolicySpec::default();
        let evacuated = PlacedRecord::after(None, &moved(POLICY_NAME, Some(Motive::Evacuate), "h1", "h2"), 0);
        assert_eq!((evacuated.stays(&policy, 0), evacuated.left(0)), (None, vec![]));
        let balanced = PlacedRecord::after(None, &moved(POLICY_NAME, Some(Motive::Balance), "h1", "h2"), 0);
        let undone = PlacedRecord::after(Some(balanced), &moved("other", None, "h2", "h1"), 1000);
        assert_eq!((undone.undone, undone.stays(&policy, 1000).unwrap().for_ms), (1, 48 * HOUR));
    }

    proptest! {
        #[test]
        fn no_clock_makes_a_stay_longer_than_it_can_be(set: u64, now: u64, in_a_row in 0u32..200) {
            let placed = PlacedRecord { unix_ms: set, in_a_row, ..PlacedRecord::default() };
            if let Some(stay) = placed.stays(&PolicySpec::default(), now) {
                prop_assert!(stay.for_ms <= COOLDOWN_S_MAX * 1000);
            }
        }
    }
}
