//! The audit log as a table: an order and its answer are one row.

use super::table;
use std::collections::BTreeMap;
use vmotion_api::{AuditEntry, AuditEvent};

/// Letters of a request that a row shows.
const REQUEST_LETTERS_MAX: usize = 100;

pub(crate) fn audit(entries: &[AuditEntry]) {
    let answers: BTreeMap<u64, &AuditEvent> = entries
        .iter()
        .filter_map(|entry| match &entry.event {
            answer @ AuditEvent::Answered { to, .. } => Some((*to, answer)),
            _ => None,
        })
        .collect();
    let asked = |number| entries.iter().any(|entry| entry.number == number);
    let mut rows = table(&["NUMBER", "WHEN", "WHO", "WHAT", "ANSWER", "TRACE"]);
    for entry in entries {
        let (what, answer) = match &entry.event {
            AuditEvent::Answered { to, .. } if asked(*to) => continue,
            answer @ AuditEvent::Answered { to, .. } => (format!("(entry {to})"), answered(answer)),
            AuditEvent::Asked { method, path, request } if path.ends_with("/console") => {
                (format!("{method} {path} {}", shortened(request)), String::new())
            }
            AuditEvent::Asked { method, path, request } => {
                let answer =
                    answers.get(&entry.number).map_or_else(|| "none here".to_owned(), |answer| answered(answer));
                (format!("{method} {path} {}", shortened(request)), answer)
            }
            AuditEvent::Denied { method, path } => (format!("{method} {path}"), "denied".to_owned()),
            AuditEvent::Acted { what } => (what.clone(), String::new()),
        };
        let trace = entry.trace.as_ref().map(ToString::to_string).unwrap_or_default();
        let who = entry.caller.strip_prefix("spiffe://vmotion/").unwrap_or(&entry.caller);
        rows.add_row([entry.number.to_string(), moment(entry.unix_ms), who.to_owned(), what, answer, trace]);
    }
    println!("{rows}");
}

fn answered(event: &AuditEvent) -> String {
    match event {
        AuditEvent::Answered { status, message: Some(message), .. } => format!("{status}: {message}"),
        AuditEvent::Answered { status: 200, .. } => "done".to_owned(),
        AuditEvent::Answered { status, .. } => status.to_string(),
        _ => String::new(),
    }
}

fn shortened(text: &str) -> String {
    let mut letters = text.chars();
    let short: String = letters.by_ref().take(REQUEST_LETTERS_MAX).collect();
    if letters.next().is_none() { short } else { format!("{short}…") }
}

/// By this machine's clock and time zone.
fn moment(unix_ms: u64) -> String {
    let timestamp = i64::try_from(unix_ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    timestamp.map_or_else(
        || unix_ms.to_string(),
        |timestamp| timestamp.to_zoned(jiff::tz::TimeZone::system()).strftime("%F %T").to_string(),
    )
}
