//! The declared model of a site: what an operator writes in `site.toml` and applies. What is not in it is left as it is.

use crate::{
    Backing, Bandwidth, ByteSize, DatacenterName, DiskSpec, HostName, InterruptController, MachineName, MachineSpec,
    PolicySpec, Rule,
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeSet, fmt, path::PathBuf};

/// Machines that one entry may declare by `count`.
const COUNT_MAX: u32 = 10_000;

/// What lies between two datacenters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct LinkSpec {
    /// The two.
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
    pub between: [DatacenterName; 2],
    /// In each direction, such as `10Gbit`.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub bandwidth: Bandwidth,
    /// Round trip, in ms.
    #[serde(default)]
    pub rtt_ms: f64,
    /// Of a GiB that is sent, in whatever is counted; makes moves over it dearer.
    #[serde(default)]
    pub price_per_gib: f64,
}

/// What an operator says about a host. Its agent says the rest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct HostSpec {
    /// Which.
    pub name: HostName,
    /// What it fails together with.
    #[serde(default)]
    pub rack: Option<String>,
    /// Processors that machines may use, where that is less than its agent says.
    #[serde(default)]
    pub cpus: Option<f32>,
    /// Memory that machines may use, where that is less than its agent says.
    #[serde(default)]
    pub memory: Option<ByteSize>,
}

/// A machine that is to be there, or several alike.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct MachineDeclaration {
    /// Its name; with `count`, what their names begin with: `web` and 3 are `web-1`, `web-2` and `web-3`.
    pub name: MachineName,
    /// How many; `None` for one with just this name.
    #[serde(default)]
    pub count: Option<u32>,
    /// PVH ELF or bzImage, on the host.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub kernel: PathBuf,
    /// Initial ramdisk, on the host.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub initrd: Option<PathBuf>,
    /// Kernel command line.
    #[serde(default)]
    pub cmdline: String,
    /// Memory, such as `1G`.
    pub memory: ByteSize,
    /// vCPUs.
    #[serde(default = "MachineDeclaration::one")]
    pub cpus: u8,
    /// Disks.
    #[serde(default)]
    pub disks: Vec<DiskSpec>,
    /// On 2 MiB huge pages.
    #[serde(default)]
    pub huge_pages: bool,
    /// Host or datacenter to begin on; the policy chooses when left out.
    #[serde(default)]
    pub on: Option<String>,
    /// Hosts to spread it over.
    #[serde(default)]
    pub span: Vec<HostName>,
}

impl MachineDeclaration {
    const fn one() -> u8 {
        1
    }

    /// The machines that it declares.
    ///
    /// # Errors
    /// A sentence that names the field, its value and what to do.
    pub fn specs(&self) -> Result<Vec<MachineSpec>, String> {
        let count = self.count.unwrap_or(1);
        if count > COUNT_MAX {
            return Err(format!("machine {}: count {count} is not valid: use {COUNT_MAX} at most", self.name));
        }
        let names: Vec<MachineName> = match self.count {
            None => vec![self.name.clone()],
            Some(count) => {
                let numbered = (1..=count).map(|number| format!("{}-{number}", self.name).parse());
                numbered.collect::<Result<_, _>>().map_err(|error: crate::NameError| error.to_string())?
            }
        };
        let spec = |name: MachineName| {
            let spec = MachineSpec {
                name,
                cpus: self.cpus,
                memory: self.memory,
                kernel: self.kernel.clone(),
                initrd: self.initrd.clone(),
                cmdline: self.cmdline.clone(),
                disks: self.disks.clone(),
                backing: if self.huge_pages { Backing::Huge2m } else { Backing::Memfd },
                dirty_source: crate::DirtySource::Auto,
                interrupts: if self.span.is_empty() { InterruptController::Kernel } else { InterruptController::User },
            };
            spec.validate().map_err(|error| format!("machine {}: {error}", spec.name))?;
            Ok(spec)
        };
        names.into_iter().map(spec).collect()
    }
}

/// Everything that is declared.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct SiteSpec {
    /// How the policy is to act; what it was set to stays when left out.
    pub policy: Option<PolicySpec>,
    /// What lies between datacenters.
    pub links: Vec<LinkSpec>,
    /// What is said about hosts.
    pub hosts: Vec<HostSpec>,
    /// What is demanded of where machines are.
    pub rules: Vec<Rule>,
    /// Machines that are to be there.
    pub machines: Vec<MachineDeclaration>,
}

impl SiteSpec {
    /// Can all of it be?
    ///
    /// # Errors
    /// A sentence that names the field, its value and what to do.
    pub fn validate(&self) -> Result<(), String> {
        if let Some(policy) = &self.policy {
            policy.validate().map_err(|error| format!("policy: {error}"))?;
        }
        once("rule", self.rules.iter().map(|rule| &rule.name))?;
        once("host", self.hosts.iter().map(|host| &host.name))?;
        self.rules.iter().try_for_each(Rule::validate)?;
        for LinkSpec { between: [one, other], bandwidth, rtt_ms, price_per_gib } in &self.links {
            if one == other {
                return Err(format!("link between {one} and {other}: name two different datacenters"));
            }
            if bandwidth.0 == 0 || !(0.0..=10_000.0).contains(rtt_ms) || !(0.0..=1e9).contains(price_per_gib) {
                return Err(format!(
                    "link between {one} and {other}: bandwidth, rtt_ms {rtt_ms} or price_per_gib {price_per_gib} is not \
                     valid: use more than 0, 0 to 10000, and 0 or more"
                ));
            }
        }
        for HostSpec { name, cpus, .. } in &self.hosts {
            if let Some(cpus) = cpus.filter(|cpus| !(0.01..=65_536.0).contains(cpus)) {
                return Err(format!("host {name}: cpus {cpus} is not valid: use 0.01 to 65536"));
            }
        }
        once("machine", self.specs()?.iter().map(|(spec, _)| &spec.name))
    }

    /// Every machine that is declared, and by what.
    ///
    /// # Errors
    /// A sentence that names the field, its value and what to do.
    pub fn specs(&self) -> Result<Vec<(MachineSpec, &MachineDeclaration)>, String> {
        let mut all = Vec::new();
        for declaration in &self.machines {
            all.extend(declaration.specs()?.into_iter().map(|spec| (spec, declaration)));
        }
        Ok(all)
    }
}

fn once<T: Ord + fmt::Display>(kind: &str, names: impl Iterator<Item = T>) -> Result<(), String> {
    let mut seen = BTreeSet::new();
    for name in names {
        if seen.contains(&name) {
            return Err(format!("{kind} {name} is declared twice: leave one out, or rename it"));
        }
        seen.insert(name);
    }
    Ok(())
}

/// What applying a model changes, one thing each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SiteChange {
    /// Added, changed, removed, or differs from what can be changed.
    pub kind: ChangeKind,
    /// Of what: `machine web-1`, `rule web-apart`.
    pub what: String,
    /// In a sentence: from what to what.
    pub detail: String,
}

/// What happens to something that is declared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum ChangeKind {
    /// It was not there.
    Add,
    /// It was otherwise.
    Change,
    /// It is not declared any more.
    Remove,
    /// It is otherwise, and stays so: the operator has to do something.
    Differs,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic in a test is its report")]

    use super::*;
    use crate::Demand;

    fn declared(name: &str, count: Option<u32>) -> MachineDeclaration {
        MachineDeclaration {
            name: name.parse().unwrap(),
            count,
            kernel: "/k".into(),
            initrd: None,
            cmdline: String::new(),
            memory: ByteSize::mib(64),
            cpus: 1,
            disks: Vec::new(),
            huge_pages: false,
            on: None,
            span: Vec::new(),
        }
    }

    #[test]
    fn a_count_makes_numbered_machines() {
        let names = |count| -> Vec<String> {
            declared("web", count).specs().unwrap().iter().map(|spec| spec.name.to_string()).collect()
        };
        assert_eq!(names(None), ["web"]);
        assert_eq!(names(Some(2)), ["web-1", "web-2"]);
        assert!(names(Some(0)).is_empty());
    }

    #[test]
    fn what_contradicts_itself_is_refused_by_field() {
        let twice =
            SiteSpec { machines: vec![declared("web", Some(2)), declared("web-2", None)], ..SiteSpec::default() };
        assert!(twice.validate().unwrap_err().contains("machine web-2 is declared twice"));
        let rule = |name: &str| Rule {
            name: name.to_owned(),
            machines: vec!["a".parse().unwrap()],
            demand: Demand::Affinity { within: crate::Domain::Host },
        };
        let rules = SiteSpec { rules: vec![rule("r"), rule("r")], ..SiteSpec::default() };
        assert!(rules.validate().unwrap_err().contains("rule r is declared twice"));
        let dc: DatacenterName = "dc1".parse().unwrap();
        let link = LinkSpec { between: [dc.clone(), dc], bandwidth: Bandwidth(1), rtt_ms: 0.0, price_per_gib: 0.0 };
        assert!(
            SiteSpec { links: vec![link], ..SiteSpec::default() }.validate().unwrap_err().contains("two different")
        );
    }
}
