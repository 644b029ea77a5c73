//! What would be if: hosts that go or come, and machines that ask for more.

use crate::{HostName, NameError, Plan, Selector, Standing};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// What is supposed, in the order of its fields. `POST /v1/what-if`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct WhatIf {
    /// Hosts that are to be empty.
    #[serde(default)]
    pub remove: Vec<HostName>,
    /// Hosts that come, with nothing on them.
    #[serde(default)]
    pub add: Vec<MoreHosts>,
    /// Machines that ask for more of their processors, or for less.
    #[serde(default)]
    pub grow: Vec<Growth>,
}

/// So many hosts like one that is there: `2xh9`, or `h9` for one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct MoreHosts {
    /// How many.
    pub count: u16,
    /// Which host they are like: in its datacenter and its rack too.
    pub like: HostName,
}

impl FromStr for MoreHosts {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        // A name that looks like a number of hosts is taken for one: `1x2xh9` is how to say the other.
        if let Some((count, like)) = text.split_once('x')
            && let Ok(count) = count.parse()
        {
            return Ok(Self { count, like: like.parse()? });
        }
        Ok(Self { count: 1, like: text.parse()? })
    }
}

impl fmt::Display for MoreHosts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.count, self.like)
    }
}

/// Machines that ask for so much more of processors than now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Growth {
    /// Which machines.
    pub machines: Selector,
    /// By how much of what they ask for now, in percent; less than 0 for less.
    pub percent: i32,
}

/// A host that is supposed to come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AddedHost {
    /// What it is called in the plan.
    pub host: HostName,
    /// Which host it is like.
    pub like: HostName,
}

/// What would be. Nothing is done.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Supposed {
    /// How well everything is now.
    pub now: Standing,
    /// Hosts that come.
    pub added: Vec<AddedHost>,
    /// Machines that ask for more, or for less.
    pub grown: u32,
    /// What the policy would do then: its `before` is how it would be if nothing were moved.
    pub plan: Plan,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_counted_as_they_are_written() {
        let more = |text: &str| text.parse::<MoreHosts>().map(|more| more.to_string());
        assert_eq!(more("2xh9"), Ok("2xh9".to_owned()));
        assert_eq!(more("h9"), Ok("1xh9".to_owned()));
        assert_eq!(more("box1"), Ok("1xbox1".to_owned()));
        assert_eq!(more("1x2xh9"), Ok("1x2xh9".to_owned()));
        assert!(more("2x").is_err() && more("").is_err());
    }
}
