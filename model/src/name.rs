//! Names of machines, hosts and datacenters: checked once, at the border, so that a name is always safe as a path
//! component, a URL segment and a certificate's subject.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// Longest accepted name, in bytes: a DNS label.
pub(crate) const NAME_BYTES_MAX: usize = 63;

/// Why a name was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} name {value:?} is not valid: use 1 to 63 letters, digits or '-', starting with a letter or digit")]
pub struct NameError {
    /// What was being named: "machine", "host" or "datacenter".
    pub kind: &'static str,
    /// The value as given.
    pub value: String,
}

fn is_valid(value: &str) -> bool {
    let bytes = value.as_bytes();
    !bytes.is_empty()
        && bytes.len() <= NAME_BYTES_MAX
        && bytes[0].is_ascii_alphanumeric()
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-')
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(value: &str) -> Result<Self, NameError> {
                Self::try_from(value.to_owned())
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(value: String) -> Result<Self, NameError> {
                if is_valid(&value) { Ok(Self(value)) } else { Err(NameError { kind: $kind, value }) }
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
    };
}

name_type!(
    /// A machine's name, unique in one controller.
    MachineName,
    "machine"
);
name_type!(
    /// A host's name; also the last part of its certificate's URI.
    HostName,
    "host"
);
name_type!(
    /// A datacenter's name.
    DatacenterName,
    "datacenter"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_traversal_is_refused() {
        for bad in ["", "../etc", "a/b", ".hidden", "-x", "a b", "ä", &"x".repeat(64)] {
            assert!(bad.parse::<MachineName>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn deserialising_checks_too() {
        assert!(serde_json::from_str::<HostName>("\"h1\"").is_ok());
        let refused = serde_json::from_str::<HostName>("\"h/1\"").unwrap_err().to_string();
        assert!(refused.contains("host name \"h/1\" is not valid"), "{refused}");
    }
}
