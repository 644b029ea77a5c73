//! What the operator declared, and making it so: links, hosts and rules are kept and looked at; machines that are declared and are not
//! there are created, again and again until they are.
//!
//! The invariant: nothing that runs is changed or ended by a declaration, unless it was to be pruned by name of its model.

use crate::{
    app::{App, lock},
    error::{conflict, invalid},
    machines,
    once::Once,
    records::{MACHINES, MachineRecord, POLICY, SITE, Stored, load, load_all, put},
    site,
    store::{Compare, Outcome, Transaction},
};
use serde::Serialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
use vmotion_api::{Applied, ApplyRequest, CreateRequest, Missing, PolicyChange, SiteView};
use vmotion_model::{
    ApiError, ChangeKind, LinkSpec, MachineDeclaration, MachineName, MachineSpec, PolicySpec, SiteChange, SiteSpec,
};

/// The declared model, with the policy as it is set now.
pub(crate) async fn current(app: &App) -> Result<SiteSpec, ApiError> {
    let stored = load::<SiteSpec>(&*app.store, SITE).await?;
    let spec = stored.map(|stored| stored.value).unwrap_or_default();
    Ok(SiteSpec { policy: Some(policy(app).await?), ..spec })
}

/// How the policy is to act.
pub(crate) async fn policy(app: &App) -> Result<PolicySpec, ApiError> {
    Ok(load::<PolicySpec>(&*app.store, POLICY).await?.map(|stored| stored.value).unwrap_or_default())
}

/// Changes how the policy is to act.
pub(crate) async fn set_policy(app: &App, change: PolicyChange) -> Result<PolicySpec, ApiError> {
    loop {
        let stored = load::<PolicySpec>(&*app.store, POLICY).await?;
        let before = stored.as_ref().map(|stored| stored.value.clone()).unwrap_or_default();
        let policy = changed(before, &change);
        policy.validate().map_err(invalid)?;
        let unchanged = stored.map_or_else(|| Compare::Absent(POLICY.to_owned()), |stored| stored.unchanged());
        let transaction = Transaction::default().when(unchanged).then(put(POLICY, &policy)?);
        if matches!(app.store.commit(transaction).await?, Outcome::Committed(_)) {
            tracing::info!(?policy, "policy set");
            return Ok(policy);
        }
    }
}

fn changed(before: PolicySpec, change: &PolicyChange) -> PolicySpec {
    let PolicyChange { mode, moves_per_hour_max, cpu_percent_content, downtime_ms_max, hold_s, cooldown_s, respect_s } =
        *change;
    PolicySpec {
        mode: mode.unwrap_or(before.mode),
        moves_per_hour_max: moves_per_hour_max.unwrap_or(before.moves_per_hour_max),
        cpu_percent_content: cpu_percent_content.unwrap_or(before.cpu_percent_content),
        downtime_ms_max: downtime_ms_max.unwrap_or(before.downtime_ms_max),
        hold_s: hold_s.unwrap_or(before.hold_s),
        cooldown_s: cooldown_s.unwrap_or(before.cooldown_s),
        respect_s: respect_s.unwrap_or(before.respect_s),
        ..before
    }
}

/// The model, and what of it is not so yet.
pub(crate) async fn view(app: &App) -> Result<SiteView, ApiError> {
    let site = current(app).await?;
    let there = records(app).await?;
    let waits = lock(&app.missing).clone();
    let missing = site.specs().map_err(invalid)?.into_iter().filter(|(spec, _)| !there.contains_key(&spec.name));
    let missing = missing.map(|(spec, _)| Missing { why: waits.get(&spec.name).cloned(), machine: spec.name });
    Ok(SiteView { missing: missing.collect(), site })
}

async fn records(app: &App) -> Result<BTreeMap<MachineName, MachineRecord>, ApiError> {
    let all = load_all::<MachineRecord>(&*app.store, MACHINES).await?;
    Ok(all.into_iter().map(|stored| (stored.value.spec.name.clone(), stored.value)).collect())
}

/// Declares a model, or says what that would change.
pub(crate) async fn apply(app: &Arc<App>, request: ApplyRequest) -> Result<Applied, ApiError> {
    request.site.validate().map_err(invalid)?;
    let _admission = app.admission.lock().await;
    let stored = load::<SiteSpec>(&*app.store, SITE).await?;
    let before = current(app).await?;
    let there = records(app).await?;
    let contradictions = site::contradictions(app, &request.site).await?;
    let changes = difference(&before, &request, &there)?;
    let applied = Applied { changes, contradictions };
    if request.dry_run || !applied.contradictions.is_empty() {
        return Ok(applied);
    }
    let unchanged = stored.as_ref().map_or_else(|| Compare::Absent(SITE.to_owned()), Stored::unchanged);
    let declared = SiteSpec { policy: None, ..request.site.clone() };
    let mut transaction = Transaction::default().when(unchanged).then(put(SITE, &declared)?);
    if let Some(policy) = &request.site.policy {
        transaction = transaction.then(put(POLICY, policy)?);
    }
    if app.store.commit(transaction).await? == Outcome::Refused {
        return Err(conflict("Another model was applied at the same time").with_hint("look at it: vmotion site"));
    }
    tracing::info!(changes = applied.changes.len(), "model applied");
    if request.prune {
        prune(app, no_longer(&before, &request.site)?);
    }
    app.look.notify_one();
    Ok(applied)
}

/// Declared before, and not any more.
fn no_longer(before: &SiteSpec, after: &SiteSpec) -> Result<Vec<MachineName>, ApiError> {
    let names = |site: &SiteSpec| -> Result<BTreeSet<MachineName>, ApiError> {
        Ok(site.specs().map_err(invalid)?.into_iter().map(|(spec, _)| spec.name).collect())
    };
    Ok(names(before)?.difference(&names(after)?).cloned().collect())
}

fn prune(app: &Arc<App>, machines: Vec<MachineName>) {
    for name in machines {
        let pruned = Arc::clone(app);
        app.spawn(async move {
            let ended = async {
                machines::stop(&pruned, &name).await?;
                machines::remove(&pruned, &name).await
            };
            match ended.await {
                Ok(()) => tracing::info!(machine = %name, "removed: no longer declared"),
                Err(error) => tracing::warn!(machine = %name, %error, "no longer declared, and not removed"),
            }
        });
    }
}

/// Creates declared machines that are not there. One that cannot be is tried again at the next look.
pub(crate) async fn create_missing(app: &Arc<App>) -> Result<(), ApiError> {
    let Some(declared) = load::<SiteSpec>(&*app.store, SITE).await? else { return Ok(()) };
    let there = records(app).await?;
    let specs = declared.value.specs().map_err(invalid)?;
    let missing: Vec<(MachineSpec, &MachineDeclaration)> =
        specs.into_iter().filter(|(spec, _)| !there.contains_key(&spec.name)).collect();
    lock(&app.missing).retain(|name, _| missing.iter().any(|(spec, _)| spec.name == *name));
    for (spec, declaration) in missing {
        let name = spec.name.clone();
        let request = CreateRequest {
            spec,
            on: declaration.on.clone(),
            from: None,
            span: declaration.span.clone(),
            audit: false,
            dry_run: false,
        };
        match machines::create(app, request, Once::without_key()).await {
            Ok(view) => {
                tracing::info!(machine = %name, host = %view.host, "created: declared");
                lock(&app.missing).remove(&name);
            }
            Err(error) => {
                if lock(&app.missing).insert(name.clone(), error.to_string()).is_none() {
                    tracing::warn!(machine = %name, %error, "declared, and cannot be created");
                }
            }
        }
    }
    Ok(())
}

/// What would change, one thing each. Pure.
fn difference(
    before: &SiteSpec,
    request: &ApplyRequest,
    there: &BTreeMap<MachineName, MachineRecord>,
) -> Result<Vec<SiteChange>, ApiError> {
    let after = &request.site;
    let mut changes = Vec::new();
    if let (Some(old), Some(new)) = (&before.policy, &after.policy) {
        changes.extend(changed_thing("policy".to_owned(), Some(old), Some(new)));
    }
    let link = |link: &LinkSpec| format!("link {} - {}", link.between[0], link.between[1]);
    by_name(&before.links, &after.links, link, &mut changes);
    by_name(&before.hosts, &after.hosts, |host| format!("host {}", host.name), &mut changes);
    by_name(&before.rules, &after.rules, |rule| format!("rule {}", rule.name), &mut changes);
    for (spec, declaration) in after.specs().map_err(invalid)? {
        let what = format!("machine {}", spec.name);
        match there.get(&spec.name) {
            None => {
                let on = declaration.on.as_ref().map(|on| format!(" on {on}")).unwrap_or_default();
                let detail = format!("{}, {} vCPUs{on}", spec.memory, spec.cpus);
                changes.push(SiteChange { kind: ChangeKind::Add, what, detail });
            }
            Some(record) if record.spec != spec => {
                let detail = format!(
                    "{}: a machine that is there is not changed; remove it, and it is created anew",
                    fields(&record.spec, &spec)
                );
                changes.push(SiteChange { kind: ChangeKind::Differs, what, detail });
            }
            Some(_) => {}
        }
    }
    for name in no_longer(before, after)?.into_iter().filter(|name| there.contains_key(name)) {
        let (kind, detail) = if request.prune {
            (ChangeKind::Remove, "no longer declared: stopped and removed")
        } else {
            (ChangeKind::Differs, "no longer declared, and left as it is; apply with --prune to remove it")
        };
        changes.push(SiteChange { kind, what: format!("machine {name}"), detail: detail.to_owned() });
    }
    Ok(changes)
}

fn by_name<T: Serialize>(before: &[T], after: &[T], name: impl Fn(&T) -> String, changes: &mut Vec<SiteChange>) {
    let named = |all: &[T]| -> BTreeMap<String, usize> { all.iter().map(&name).zip(0..).collect() };
    let (old, new) = (named(before), named(after));
    let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    for what in names {
        let (old, new) = (old.get(what).map(|at| &before[*at]), new.get(what).map(|at| &after[*at]));
        changes.extend(changed_thing(what.clone(), old, new));
    }
}

fn changed_thing<T: Serialize>(what: String, old: Option<&T>, new: Option<&T>) -> Option<SiteChange> {
    let (kind, detail) = match (old, new) {
        (None, None) => return None,
        (None, Some(new)) => (ChangeKind::Add, json(new)),
        (Some(_), None) => (ChangeKind::Remove, "no longer declared".to_owned()),
        (Some(old), Some(new)) => {
            let fields = fields(old, new);
            if fields.is_empty() {
                return None;
            }
            (ChangeKind::Change, fields)
        }
    };
    Some(SiteChange { kind, what, detail })
}

fn json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

/// Fields that differ: `memory: 536870912 → 1073741824`.
fn fields<T: Serialize>(old: &T, new: &T) -> String {
    let object = |value: &T| match serde_json::to_value(value) {
        Ok(serde_json::Value::Object(fields)) => fields,
        _ => serde_json::Map::new(),
    };
    let (old, new) = (object(old), object(new));
    let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let shown = |value: Option<&serde_json::Value>| value.map_or_else(|| "nothing".to_owned(), ToString::to_string);
    let differing = names.into_iter().filter(|name| old.get(*name) != new.get(*name));
    let told = differing.map(|name| format!("{name}: {} → {}", shown(old.get(name)), shown(new.get(name))));
    told.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::Intent;
    use vmotion_model::{ByteSize, Demand, Domain, HostSpec, Rule};

    fn declaration(name: &str, memory: u64) -> MachineDeclaration {
        MachineDeclaration {
            name: name.parse().unwrap(),
            count: None,
            kernel: "/k".into(),
            initrd: None,
            cmdline: String::new(),
            memory: ByteSize::mib(memory),
            cpus: 1,
            disks: Vec::new(),
            huge_pages: false,
            on: None,
            span: Vec::new(),
        }
    }

    fn told(
        before: &SiteSpec,
        after: SiteSpec,
        prune: bool,
        there: &[MachineDeclaration],
    ) -> Vec<(ChangeKind, String)> {
        let record = |spec: MachineSpec| MachineRecord { spec, intent: Intent::Running, from: None, once: None };
        let there = there.iter().flat_map(|machine| machine.specs().unwrap());
        let there = there.map(|spec| (spec.name.clone(), record(spec))).collect();
        let request = ApplyRequest { site: after, prune, dry_run: true };
        let changes = difference(before, &request, &there).unwrap();
        changes.into_iter().map(|change| (change.kind, format!("{}: {}", change.what, change.detail))).collect()
    }

    #[test]
    fn the_same_model_changes_nothing() {
        let rule = Rule {
            name: "apart".to_owned(),
            machines: vec!["a*".parse().unwrap()],
            demand: Demand::AntiAffinity { across: Domain::Host },
        };
        let site = SiteSpec { machines: vec![declaration("a", 64)], rules: vec![rule], ..SiteSpec::default() };
        assert_eq!(told(&site, site.clone(), false, &[declaration("a", 64)]), []);
    }

    #[test]
    fn what_differs_is_told_by_field_and_a_machine_that_runs_is_left_alone() {
        let host = |rack: &str| HostSpec {
            name: "h1".parse().unwrap(),
            rack: Some(rack.to_owned()),
            cpus: None,
            memory: None,
        };
        let before = SiteSpec {
            hosts: vec![host("r1")],
            machines: vec![declaration("a", 64), declaration("b", 64)],
            ..SiteSpec::default()
        };
        let after = SiteSpec {
            hosts: vec![host("r2")],
            machines: vec![declaration("a", 128), declaration("c", 64)],
            ..SiteSpec::default()
        };
        let there = [declaration("a", 64), declaration("b", 64)];
        let changes = told(&before, after.clone(), false, &there);
        assert_eq!(changes[0], (ChangeKind::Change, r#"host h1: rack: "r1" → "r2""#.to_owned()));
        assert!(changes[1].0 == ChangeKind::Differs && changes[1].1.contains("memory: 67108864 → 134217728"));
        assert!(changes[2].0 == ChangeKind::Add && changes[2].1.starts_with("machine c"));
        assert!(changes[3].0 == ChangeKind::Differs && changes[3].1.contains("--prune"));
        assert_eq!(told(&before, after, true, &there)[3].0, ChangeKind::Remove);
    }

    #[test]
    fn only_what_was_asked_of_the_policy_changes() {
        let before = PolicySpec { hold_s: 7, ..PolicySpec::default() };
        let change = PolicyChange { moves_per_hour_max: Some(4), ..PolicyChange::default() };
        assert_eq!(changed(before.clone(), &change), PolicySpec { moves_per_hour_max: 4, ..before });
    }
}
