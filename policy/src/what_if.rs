//! A site as it would be with other hosts and other demand.
//!
//! The one invariant: what is not named is as it was.

use crate::site::{Duty, Site, SiteHost};
use std::collections::BTreeSet;
use thiserror::Error;
use vmotion_model::{AddedHost, ByteSize, Growth, HostName, MoreHosts, Selector, WhatIf};

/// Hosts that may be added at once: as many as a site is planned for.
const ADDED_MAX: usize = 10_000;
/// Most that demand may grow by, in percent.
const GROWTH_MAX: i32 = 10_000;

/// Why something cannot be supposed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum WhatIfError {
    /// Nothing is to be different.
    #[error("Nothing is supposed: name hosts to remove, hosts to add, or machines that grow")]
    Nothing,
    /// There is no such host.
    #[error("{field} names host {host}, and there is no such host")]
    NoHost {
        /// Where it is named: `remove`, `add`.
        field: &'static str,
        /// The name.
        host: HostName,
    },
    /// Too few hosts, or too many.
    #[error("add is of {0} hosts: use 1 to {ADDED_MAX}")]
    Count(usize),
    /// No machine is meant.
    #[error("grow is of {0}, and no machine that runs has such a name")]
    NoMachine(Selector),
    /// Less than nothing, or out of all proportion.
    #[error("grow of {machines} is by {percent} %: use -100 to {GROWTH_MAX}")]
    Percent {
        /// Which machines.
        machines: Selector,
        /// By how much.
        percent: i32,
    },
}

/// A site, and what is different about it.
#[derive(Debug, Clone)]
pub struct Changed {
    /// As it would be.
    pub site: Site,
    /// Hosts that came.
    pub added: Vec<AddedHost>,
    /// Machines that ask for more or less.
    pub grown: usize,
}

/// `site` with everything as `what_if` says. A host that is removed is to be empty as soon as possible.
///
/// # Errors
/// [`WhatIfError`], for the first thing that is not possible.
pub fn suppose(mut site: Site, what_if: &WhatIf) -> Result<Changed, WhatIfError> {
    let WhatIf { remove, add, grow } = what_if;
    if remove.is_empty() && add.is_empty() && grow.is_empty() {
        return Err(WhatIfError::Nothing);
    }
    let added = come(&mut site, add)?;
    go(&mut site, remove)?;
    let grown = ask_for_more(&mut site, grow)?;
    Ok(Changed { site, added, grown })
}

fn come(site: &mut Site, add: &[MoreHosts]) -> Result<Vec<AddedHost>, WhatIfError> {
    let mut taken: BTreeSet<HostName> = site.hosts.iter().map(|host| host.name.clone()).collect();
    let mut names = (1u32..).filter_map(|number| format!("new{number}").parse::<HostName>().ok());
    let mut added = Vec::new();
    for MoreHosts { count, like } in add {
        let model = site.hosts.iter().find(|host| host.name == *like).cloned();
        let model = model.ok_or_else(|| WhatIfError::NoHost { field: "add", host: like.clone() })?;
        let count = usize::from(*count);
        if count == 0 || added.len() + count > ADDED_MAX {
            return Err(WhatIfError::Count(added.len() + count));
        }
        for name in names.by_ref().filter(|name| taken.insert(name.clone())).take(count) {
            added.push(AddedHost { host: name.clone(), like: like.clone() });
            site.hosts.push(empty(name, &model));
        }
    }
    Ok(added)
}

fn empty(name: HostName, like: &SiteHost) -> SiteHost {
    SiteHost { name, memory_other: ByteSize(0), cpus_other: 0.0, duty: Duty::Open, ..like.clone() }
}

fn go(site: &mut Site, remove: &[HostName]) -> Result<(), WhatIfError> {
    for name in remove {
        let host = site.hosts.iter_mut().find(|host| host.name == *name);
        let host = host.ok_or_else(|| WhatIfError::NoHost { field: "remove", host: name.clone() })?;
        // What is on a host that nobody hears cannot be moved away, whatever is supposed.
        if host.duty != Duty::Gone {
            host.duty = Duty::Draining(None);
        }
    }
    Ok(())
}

fn ask_for_more(site: &mut Site, grow: &[Growth]) -> Result<usize, WhatIfError> {
    let mut grown = BTreeSet::new();
    for Growth { machines, percent } in grow {
        if !(-100..=GROWTH_MAX).contains(percent) {
            return Err(WhatIfError::Percent { machines: machines.clone(), percent: *percent });
        }
        #[expect(clippy::cast_precision_loss, reason = "at most 10,000")]
        let factor = 1.0 + *percent as f32 / 100.0;
        let mut meant = site.machines.iter_mut().filter(|machine| machines.selects(&machine.name)).peekable();
        if meant.peek().is_none() {
            return Err(WhatIfError::NoMachine(machines.clone()));
        }
        for machine in meant {
            machine.demand.cpus.iter_mut().for_each(|cpus| *cpus *= factor);
            machine.demand.deviation *= factor;
            grown.insert(machine.name.clone());
        }
    }
    Ok(grown.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Effort, Goal,
        fixtures::{host, machine},
        plan, standing,
    };

    fn site() -> Site {
        let machines = ["web-1", "web-2", "db-1"].into_iter().zip(["h1", "h2", "h1"]);
        Site {
            hosts: vec![host("h1"), host("h2"), host("new2")],
            machines: machines.map(|(name, host)| machine(name, host, 4.0)).collect(),
            ..Site::default()
        }
    }

    fn name(name: &str) -> HostName {
        name.parse().unwrap()
    }

    #[test]
    fn what_is_on_a_host_that_goes_would_go_to_the_one_that_comes_for_it() {
        let mut site = site();
        site.hosts.iter_mut().for_each(|host| host.memory = ByteSize::gib(8));
        site.hosts.pop();
        let before = site.clone();
        let remove = WhatIf { remove: vec![name("h1")], ..WhatIf::default() };
        let alone = suppose(site.clone(), &remove).unwrap();
        let alone = plan(&alone.site, Goal::ALL, Effort::default());
        assert_eq!((alone.steps.len(), alone.blocked.len()), (1, 1), "{alone:?}");

        let replace = WhatIf { add: vec!["1xh1".parse().unwrap()], ..remove };
        let changed = suppose(site, &replace).unwrap();
        assert_eq!(changed.added, [AddedHost { host: name("new1"), like: name("h1") }]);
        let replaced = plan(&changed.site, Goal::ALL, Effort::default());
        assert_eq!((replaced.steps.len(), replaced.blocked.len()), (2, 0), "{replaced:?}");
        assert!(replaced.steps.iter().all(|step| step.from == name("h1") && step.to != name("h1")));
        let unchanged = plan(&before, Goal::ALL, Effort::default());
        assert!(unchanged.steps.is_empty(), "nothing is supposed of what is: {unchanged:?}");
    }

    #[test]
    fn names_of_hosts_that_come_are_nobody_elses() {
        let more = WhatIf { add: vec!["2xh1".parse().unwrap(), "h2".parse().unwrap()], ..WhatIf::default() };
        let added = suppose(site(), &more).unwrap().added;
        let names: Vec<_> = added.iter().map(|added| (added.host.to_string(), added.like.to_string())).collect();
        let named = |host: &str, like: &str| (host.to_owned(), like.to_owned());
        assert_eq!(names, [named("new1", "h1"), named("new3", "h1"), named("new4", "h2")]);
    }

    #[test]
    fn machines_that_grow_ask_for_more_and_others_do_not() {
        let grow = vec![Growth { machines: "web-*".parse().unwrap(), percent: 50 }];
        let changed = suppose(site(), &WhatIf { grow, ..WhatIf::default() }).unwrap();
        let asks: Vec<f32> = changed.site.machines.iter().map(|machine| machine.demand.cpus[0]).collect();
        assert_eq!((changed.grown, asks), (2, vec![6.0, 6.0, 4.0]));
        let (now, then) = (standing(&site()), standing(&changed.site));
        assert!(then.load_mean > now.load_mean, "{now:?} {then:?}");
    }

    #[test]
    fn what_cannot_be_supposed_is_named() {
        let error = |what_if: WhatIf| suppose(site(), &what_if).unwrap_err().to_string();
        assert!(error(WhatIf::default()).starts_with("Nothing is supposed"));
        let gone = vec![name("h7")];
        assert_eq!(
            error(WhatIf { remove: gone, ..WhatIf::default() }),
            "remove names host h7, and there is no such host"
        );
        let more = |text: &str| WhatIf { add: vec![text.parse().unwrap()], ..WhatIf::default() };
        assert_eq!(error(more("2xh7")), "add names host h7, and there is no such host");
        assert_eq!(error(more("0xh1")), "add is of 0 hosts: use 1 to 10000");
        assert_eq!(error(more("20000xh1")), "add is of 20000 hosts: use 1 to 10000");
        let grow = |machines: &str, percent| WhatIf {
            grow: vec![Growth { machines: machines.parse().unwrap(), percent }],
            ..WhatIf::default()
        };
        assert_eq!(error(grow("mail-*", 5)), "grow is of mail-*, and no machine that runs has such a name");
        assert_eq!(error(grow("web-*", -101)), "grow of web-* is by -101 %: use -100 to 10000");
    }
}
