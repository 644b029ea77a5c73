//! What was moved for balance is left alone for a while, twice as long after each further move, and does not go back where it came from.
//!
//! The one invariant: a machine is never back within the time of one cool-down on a host that it left for balance.

use std::collections::BTreeMap;
use vmotion_model::{HostName, MachineName, PolicySpec};

use crate::site::Stay;

/// Longest cool-down, and how long a move is remembered, in s.
const DAY_S: u64 = 24 * 3600;

/// Moves for balance of the last day.
#[derive(Debug, Clone, Default)]
pub struct Cooldown {
    moves: BTreeMap<MachineName, Vec<(u64, HostName)>>,
}

impl Cooldown {
    /// A machine has left `from` for balance, at `at_s`.
    pub fn moved(&mut self, machine: MachineName, from: HostName, at_s: u64) {
        self.moves.entry(machine).or_default().push((at_s, from));
    }

    /// Forgets what is older than a day.
    pub fn forget(&mut self, now_s: u64) {
        self.moves.values_mut().for_each(|moves| moves.retain(|(at_s, _)| at_s + DAY_S > now_s));
        self.moves.retain(|_, moves| !moves.is_empty());
    }

    /// Why the machine is to be left alone at `now_s`, and for how long.
    #[must_use]
    pub fn stays(&self, machine: &MachineName, policy: &PolicySpec, now_s: u64) -> Option<Stay> {
        let moves = self.moves.get(machine)?;
        let (at_s, _) = moves.last()?;
        let doublings = u32::try_from(moves.len() - 1).unwrap_or(u32::MAX).min(16);
        let until = at_s + (u64::from(policy.cooldown_s) << doublings).min(DAY_S);
        let left = until.checked_sub(now_s).filter(|left| *left > 0)?;
        let why = format!("it was moved for balance {} min ago", now_s.saturating_sub(*at_s) / 60);
        Some(Stay { why, for_ms: left * 1000 })
    }

    /// Hosts that the machine left for balance in the last day.
    #[must_use]
    pub fn left(&self, machine: &MachineName) -> Vec<HostName> {
        let mut hosts: Vec<HostName> =
            self.moves.get(machine).into_iter().flatten().map(|(_, from)| from.clone()).collect();
        hosts.sort_unstable();
        hosts.dedup();
        hosts
    }

    /// Moves for balance in the hour before `now_s`.
    #[must_use]
    pub fn last_hour(&self, now_s: u64) -> u32 {
        let recent = self.moves.values().flatten().filter(|(at_s, _)| at_s + 3600 > now_s);
        crate::world::index(recent.count())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_further_move_is_followed_by_twice_the_rest() {
        let (machine, host): (MachineName, HostName) = ("a".parse().unwrap(), "h1".parse().unwrap());
        let (policy, mut cooldown) = (PolicySpec::default(), Cooldown::default());
        assert_eq!(cooldown.stays(&machine, &policy, 0), None);
        cooldown.moved(machine.clone(), host.clone(), 1000);
        assert_eq!(cooldown.stays(&machine, &policy, 1000).unwrap().for_ms, 3_600_000);
        assert_eq!(cooldown.stays(&machine, &policy, 4600), None);
        cooldown.moved(machine.clone(), "h2".parse().unwrap(), 5000);
        assert_eq!(cooldown.stays(&machine, &policy, 5000).unwrap().for_ms, 7_200_000);
        assert_eq!((cooldown.left(&machine).len(), cooldown.last_hour(5000)), (2, 1));
        cooldown.forget(1000 + DAY_S);
        assert_eq!(cooldown.left(&machine), ["h2".parse().unwrap()]);
    }
}
