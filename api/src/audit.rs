//! The audit log: who did what. Each entry is sealed with the hash of the one before.
//!
//! The seals are checked by whoever reads ([`Chain`]), not by who keeps the log. They show any change of what stands before an entry whose
//! hash the reader knows from elsewhere; who can write the store could write a whole log anew, and only such a hash tells.

use crate::{ControllerClient, client::ClientError, trace::TraceId};
use aws_lc_rs::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};
use std::fmt;

/// What comes before the first entry.
pub const AUDIT_BEGINS: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// What an entry tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case", tag = "event")]
pub enum AuditEvent {
    /// An order was given. Written before it is obeyed; without this nothing is.
    Asked {
        /// `POST`, `PUT`, `PATCH`, `DELETE`.
        method: String,
        /// Of what.
        path: String,
        /// The body, as much of it as an entry holds; empty for what is typed into a console.
        request: String,
    },
    /// The order of the entry `to` was answered. Missing after an `asked` that was cut off by the end of its controller.
    Answered {
        /// Number of the entry of the order.
        to: u64,
        /// HTTP status.
        status: u16,
        /// What went wrong, if anything.
        #[serde(default)]
        message: Option<String>,
    },
    /// Somebody asked for what they may not; once a minute for each of them and each route.
    Denied {
        /// `GET`, ….
        method: String,
        /// Of what.
        path: String,
    },
    /// The controller did something by itself.
    Acted {
        /// In a sentence.
        what: String,
    },
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AuditEntry {
    /// From 1, without gaps.
    pub number: u64,
    /// Milliseconds since the epoch, by the controller's clock.
    pub unix_ms: u64,
    /// Whose certificate: `spiffe://vmotion/admin/bob`.
    pub caller: String,
    /// From where.
    #[serde(default)]
    pub address: Option<String>,
    /// What logs name everything that followed by.
    #[serde(default)]
    pub trace: Option<TraceId>,
    /// What.
    #[serde(flatten)]
    pub event: AuditEvent,
    /// Hash of the entry before.
    pub previous: String,
    /// SHA-256 of all the above as JSON, in this order, in hexadecimal digits.
    pub hash: String,
}

/// What the hash is of.
#[derive(Serialize)]
struct Sealed<'a> {
    number: u64,
    unix_ms: u64,
    caller: &'a str,
    address: Option<&'a str>,
    trace: Option<&'a TraceId>,
    event: &'a AuditEvent,
    previous: &'a str,
}

impl AuditEntry {
    /// The hash that it should have.
    #[must_use]
    pub fn seal(&self) -> String {
        let Self { number, unix_ms, caller, address, trace, event, previous, hash: _ } = self;
        let sealed = Sealed {
            number: *number,
            unix_ms: *unix_ms,
            caller,
            address: address.as_deref(),
            trace: trace.as_ref(),
            event,
            previous,
        };
        // Text and numbers are always JSON.
        let json = serde_json::to_vec(&sealed).unwrap_or_default();
        digest(&SHA256, &json).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// An entry by its number and hash: what to keep elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Seal {
    /// Number; 0 for what comes before the first.
    pub number: u64,
    /// Hash.
    pub hash: String,
}

impl Seal {
    /// Before the first entry.
    #[must_use]
    pub fn beginning() -> Self {
        Self { number: 0, hash: AUDIT_BEGINS.to_owned() }
    }
}

impl fmt::Display for Seal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.number, self.hash)
    }
}

impl std::str::FromStr for Seal {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not NUMBER:HASH, with the 64 digits that vmotion audit --verify printed");
        let (number, hash) = text.split_once(':').ok_or_else(wrong)?;
        let number = number.parse().map_err(|_| wrong())?;
        let is_hash = hash.len() == AUDIT_BEGINS.len() && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
        if is_hash { Ok(Self { number, hash: hash.to_ascii_lowercase() }) } else { Err(wrong()) }
    }
}

/// `GET /v1/audit`: some entries in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AuditPage {
    /// From the number asked for; without one, the last.
    pub entries: Vec<AuditEntry>,
    /// The last entry there is.
    pub last: Seal,
    /// The entry before the first that is kept: older ones are forgotten.
    pub before: Seal,
}

/// Where a log is broken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// An entry is missing, or comes twice.
    #[error("entry {wanted} should come next, and there is {found}")]
    Gap {
        /// The number that should be.
        wanted: u64,
        /// The number that is.
        found: u64,
    },
    /// Its content was changed.
    #[error("entry {0} does not have the hash of its content: it was changed")]
    Content(u64),
    /// The one before was changed, hash and all.
    #[error(
        "entry {0} was written after another one than the one that stands before it now: that one was changed or exchanged"
    )]
    Link(u64),
}

/// Entries that follow each other, looked at one by one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    last: Seal,
}

impl Chain {
    /// Goes on after an entry that is trusted.
    #[must_use]
    pub const fn after(trusted: Seal) -> Self {
        Self { last: trusted }
    }

    /// The next entry.
    ///
    /// # Errors
    /// [`Broken`].
    pub fn follow(&mut self, entry: &AuditEntry) -> Result<(), Broken> {
        let wanted = self.last.number.saturating_add(1);
        if entry.number != wanted {
            return Err(Broken::Gap { wanted, found: entry.number });
        }
        if entry.seal() != entry.hash {
            return Err(Broken::Content(entry.number));
        }
        if entry.previous != self.last.hash {
            return Err(Broken::Link(entry.number));
        }
        self.last = Seal { number: entry.number, hash: entry.hash.clone() };
        Ok(())
    }

    /// The last entry that was whole.
    #[must_use]
    pub const fn last(&self) -> &Seal {
        &self.last
    }
}

impl ControllerClient {
    /// Entries of the audit log from `from` on, as many as an answer holds; the last one without.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn audit(&self, from: Option<u64>) -> Result<AuditPage, ClientError> {
        let query = from.map(|from| format!("?from={from}")).unwrap_or_default();
        self.http.get(&format!("/v1/audit{query}")).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(count: u64) -> Vec<AuditEntry> {
        let mut previous = AUDIT_BEGINS.to_owned();
        let entry = |number| {
            let event = AuditEvent::Acted { what: format!("thing {number}") };
            let (caller, before) = ("c1".to_owned(), previous.clone());
            let mut entry = AuditEntry {
                number,
                unix_ms: number,
                caller,
                address: None,
                trace: None,
                event,
                previous: before,
                hash: String::new(),
            };
            entry.hash = entry.seal();
            previous = entry.hash.clone();
            entry
        };
        (1..=count).map(entry).collect()
    }

    fn verify(entries: &[AuditEntry]) -> Result<Seal, Broken> {
        let mut chain = Chain::after(Seal::beginning());
        entries.iter().try_for_each(|entry| chain.follow(entry))?;
        Ok(chain.last().clone())
    }

    #[test]
    fn whatever_is_changed_left_out_or_exchanged_is_named() {
        let whole = entries(9);
        assert_eq!(verify(&whole).unwrap().number, 9);
        let mut changed = whole.clone();
        changed[4].caller = "somebody else".into();
        assert_eq!(verify(&changed), Err(Broken::Content(5)));
        changed[4].hash = changed[4].seal();
        assert_eq!(verify(&changed), Err(Broken::Link(6)));
        let mut missing = whole.clone();
        missing.remove(4);
        assert_eq!(verify(&missing), Err(Broken::Gap { wanted: 5, found: 6 }));
        let mut exchanged = whole;
        exchanged.swap(4, 5);
        assert_eq!(verify(&exchanged), Err(Broken::Gap { wanted: 5, found: 6 }));
    }

    #[test]
    fn entries_keep_their_seal_through_json() {
        for entry in entries(3) {
            let text = serde_json::to_string(&entry).unwrap();
            let read: AuditEntry = serde_json::from_str(&text).unwrap();
            assert_eq!((read.seal(), &read), (entry.hash.clone(), &entry));
        }
    }

    #[test]
    fn a_seal_is_written_as_it_is_read() {
        let seal = Seal { number: 7, hash: entries(1)[0].hash.clone() };
        assert_eq!(seal.to_string().parse(), Ok(seal));
        assert!("7:abc".parse::<Seal>().is_err() && "x".parse::<Seal>().is_err());
    }
}
