//! What the operator demands of where machines are, and what a policy may do about it.

use crate::{DatacenterName, HostName, MachineName};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// Machines by name: `vm1`, or with `*` for any number of letters: `web-*`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(try_from = "String", into = "String")]
pub struct Selector(String);

/// Why a selector was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("Machines {0:?} cannot be selected: use a machine's name, with * for any letters, such as web-*")]
pub struct SelectorError(pub String);

impl Selector {
    /// Is this machine one of them?
    #[must_use]
    pub fn selects(&self, machine: &MachineName) -> bool {
        let name = machine.as_str();
        let mut parts = self.0.split('*');
        let first = parts.next().unwrap_or_default();
        let Some(mut rest) = name.strip_prefix(first) else { return false };
        let mut parts: Vec<&str> = parts.collect();
        let Some(last) = parts.pop() else { return rest.is_empty() };
        for part in parts {
            match rest.find(part) {
                Some(at) => rest = &rest[at + part.len()..],
                None => return false,
            }
        }
        rest.ends_with(last)
    }

    /// As it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Selector {
    type Err = SelectorError;

    fn from_str(text: &str) -> Result<Self, SelectorError> {
        let valid = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.*".contains(&byte);
        if text.is_empty() || text.len() > 128 || !text.bytes().all(valid) {
            return Err(SelectorError(text.to_owned()));
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for Selector {
    type Error = SelectorError;

    fn try_from(text: String) -> Result<Self, SelectorError> {
        text.parse()
    }
}

impl From<Selector> for String {
    fn from(selector: Selector) -> Self {
        selector.0
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What fails together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Domain {
    /// A host.
    #[default]
    Host,
    /// A rack; a host without one is a rack of its own.
    Rack,
    /// A datacenter.
    Datacenter,
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Host => "host",
            Self::Rack => "rack",
            Self::Datacenter => "datacenter",
        })
    }
}

/// A demand on where machines are. It holds always, also half-way through a plan; only machines that broke it before may go on
/// doing so until they are moved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Rule {
    /// What people call it; no two have the same.
    pub name: String,
    /// Which machines.
    pub machines: Vec<Selector>,
    /// What is demanded.
    #[serde(flatten)]
    pub demand: Demand,
}

/// What a rule demands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "rule", rename_all = "kebab-case")]
pub enum Demand {
    /// All of them in one domain.
    Affinity {
        /// Of which kind.
        #[serde(default)]
        within: Domain,
    },
    /// No two of them in one domain.
    AntiAffinity {
        /// Of which kind.
        #[serde(default)]
        across: Domain,
    },
    /// Over the domains that may have them: the fullest has at most `skew` more of them than the emptiest.
    Spread {
        /// Of which kind.
        over: Domain,
        /// At least 1.
        #[serde(default = "Demand::one")]
        skew: u32,
    },
    /// On these hosts only.
    Pin {
        /// Which.
        hosts: Vec<HostName>,
    },
    /// In these datacenters only, also on the way.
    Residency {
        /// Which.
        datacenters: Vec<DatacenterName>,
    },
}

impl Demand {
    const fn one() -> u32 {
        1
    }
}

impl Rule {
    /// Is this machine meant?
    #[must_use]
    pub fn selects(&self, machine: &MachineName) -> bool {
        self.machines.iter().any(|selector| selector.selects(machine))
    }

    /// Is the rule one that can be kept at all?
    ///
    /// # Errors
    /// A sentence that names the field, its value and what to do.
    pub fn validate(&self) -> Result<(), String> {
        let name = &self.name;
        if name.is_empty() || name.len() > 64 {
            return Err(format!("rule name {name:?} is not valid: use 1 to 64 characters"));
        }
        if self.machines.is_empty() {
            return Err(format!("rule {name}: machines is empty: name at least one, such as web-*"));
        }
        match &self.demand {
            Demand::Spread { skew: 0, .. } => Err(format!("rule {name}: skew 0 cannot be kept: use 1 or more")),
            Demand::Pin { hosts } if hosts.is_empty() => {
                Err(format!("rule {name}: hosts is empty: name at least one host"))
            }
            Demand::Residency { datacenters } if datacenters.is_empty() => {
                Err(format!("rule {name}: datacenters is empty: name at least one datacenter"))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic in a test is its report")]

    use super::*;

    #[test]
    fn a_star_stands_for_any_letters() {
        for (selector, name, wanted) in [
            ("vm1", "vm1", true),
            ("vm1", "vm10", false),
            ("web-*", "web-1", true),
            ("web-*", "web", false),
            ("*", "anything", true),
            ("*-db", "eu-db", true),
            ("*-db", "eu-db-2", false),
            ("a*b*c", "axxbyyc", true),
            ("a*b*c", "axxc", false),
            ("a*a", "a", false),
        ] {
            let selector: Selector = selector.parse().unwrap();
            assert_eq!(selector.selects(&name.parse().unwrap()), wanted, "{selector} {name}");
        }
        assert!("web 1".parse::<Selector>().is_err());
    }

    #[test]
    fn a_rule_that_cannot_be_kept_is_refused_by_field() {
        let rule = |demand| Rule { name: "r".into(), machines: vec!["a".parse().unwrap()], demand };
        assert!(rule(Demand::Spread { over: Domain::Rack, skew: 0 }).validate().unwrap_err().contains("skew 0"));
        assert!(rule(Demand::Pin { hosts: Vec::new() }).validate().unwrap_err().contains("hosts is empty"));
        assert!(rule(Demand::Affinity { within: Domain::Host }).validate().is_ok());
    }
}
