//! Who did what, and whether the log of it is whole.

use crate::{
    arguments::{AuditArguments, Global},
    context, output,
};
use anyhow::{Result, bail};
use vmotion_api::{AuditEntry, AuditEvent, AuditPage, Chain, ControllerClient, Seal};
use vmotion_model::{ApiError, ErrorCode};

pub(super) async fn run(arguments: AuditArguments, global: &Global) -> Result<()> {
    let client = context::client(global)?;
    if arguments.verify {
        return verify(&client, arguments.known, global.json).await;
    }
    let AuditPage { last, before, .. } = client.audit(None).await?;
    let kept = last.number - before.number.min(last.number);
    let wanted = if arguments.all { kept } else { arguments.last.min(kept) };
    let mut entries = Vec::new();
    each(&client, last.number - wanted, last.number, |entry| {
        entries.push(entry);
        Ok(())
    })
    .await?;
    let wanted = chosen(&entries, arguments.who.as_deref(), arguments.about.as_deref());
    if global.json {
        return output::json(&wanted);
    }
    output::audit(&wanted);
    Ok(())
}

/// Every entry after one number, up to another.
async fn each(
    client: &ControllerClient,
    after: u64,
    to: u64,
    mut look: impl FnMut(AuditEntry) -> Result<()>,
) -> Result<()> {
    let mut next = after + 1;
    while next <= to {
        let page = client.audit(Some(next)).await?;
        let mut found = page.entries.into_iter().take_while(|entry| entry.number <= to).peekable();
        if found.peek().is_none() {
            bail!("entry {next} of the audit log is missing");
        }
        for entry in found {
            next = entry.number + 1;
            look(entry)?;
        }
    }
    Ok(())
}

/// Those of a caller and about something; with an order also its answer.
fn chosen(entries: &[AuditEntry], who: Option<&str>, about: Option<&str>) -> Vec<AuditEntry> {
    let mut orders = Vec::new();
    let mut chosen = Vec::new();
    for entry in entries {
        let by = who.is_none_or(|who| entry.caller.contains(who));
        let text = match &entry.event {
            AuditEvent::Asked { path, request, .. } => format!("{path} {request}"),
            AuditEvent::Answered { message, .. } => message.clone().unwrap_or_default(),
            AuditEvent::Denied { path, .. } => path.clone(),
            AuditEvent::Acted { what } => what.clone(),
        };
        let answers = matches!(&entry.event, AuditEvent::Answered { to, .. } if orders.contains(to));
        if answers || by && about.is_none_or(|about| text.contains(about)) {
            orders.push(entry.number);
            chosen.push(entry.clone());
        }
    }
    chosen
}

async fn verify(client: &ControllerClient, known: Option<Seal>, json: bool) -> Result<()> {
    let AuditPage { last, before, .. } = client.audit(None).await?;
    let broken = |what: String| {
        ApiError::new(ErrorCode::Refused, format!("The audit log is not whole: {what}"))
            .with_hint("compare it with the controllers' own logs, which name every order by its trace")
    };
    if let Some(known) = &known {
        let gone = known.number < before.number;
        let changed = known.number == before.number && *known != before;
        if gone {
            let message = format!("Entry {} is not kept any more: the oldest is {}", known.number, before.number + 1);
            return Err(ApiError::new(ErrorCode::NotFound, message)
                .with_hint("verify more often, or give a later one")
                .into());
        }
        if changed || known.number > last.number {
            return Err(broken(format!("entry {} was another one, or is not there", known.number)).into());
        }
    }
    let mut chain = Chain::after(before.clone());
    each(client, before.number, last.number, |entry| {
        chain.follow(&entry).map_err(|error| broken(error.to_string()))?;
        let other = known.as_ref().is_some_and(|known| known.number == entry.number && known.hash != entry.hash);
        if other {
            return Err(broken(format!("entry {} was another one", entry.number)).into());
        }
        Ok(())
    })
    .await?;
    if *chain.last() != last {
        return Err(broken(format!("its last entry is {}, and it says {last}", chain.last())).into());
    }
    let verified = last.number - before.number;
    if json {
        return output::json(&serde_json::json!({ "verified": verified, "last": last.to_string() }));
    }
    println!("{verified} entries, from {} to {}: each is as it was written", before.number + 1, last.number);
    println!("last: {last}");
    println!("keep that line elsewhere; with --known it proves later that nothing up to there was changed");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(number: u64, caller: &str, event: AuditEvent) -> AuditEntry {
        let (previous, hash) = (String::new(), String::new());
        AuditEntry { number, unix_ms: 0, caller: caller.into(), address: None, trace: None, event, previous, hash }
    }

    #[test]
    fn an_order_is_shown_with_its_answer() {
        let asked = |path: &str| AuditEvent::Asked { method: "POST".into(), path: path.into(), request: String::new() };
        let entries = [
            entry(1, "admin/bob", asked("/v1/machines/vm1/stop")),
            entry(2, "admin/eve", asked("/v1/machines/vm2/stop")),
            entry(3, "admin/bob", AuditEvent::Answered { to: 1, status: 200, message: None }),
            entry(4, "admin/eve", AuditEvent::Answered { to: 2, status: 404, message: Some("no vm2".into()) }),
        ];
        let numbers = |who, about| chosen(&entries, who, about).iter().map(|entry| entry.number).collect::<Vec<_>>();
        assert_eq!(numbers(Some("bob"), None), [1, 3]);
        assert_eq!(numbers(None, Some("vm2")), [2, 4]);
        assert_eq!(numbers(Some("bob"), Some("vm2")), [0; 0]);
        assert_eq!(numbers(None, None), [1, 2, 3, 4]);
    }
}
