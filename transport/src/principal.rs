//! Who a certificate speaks for.
//!
//! Identity is a SPIFFE-style URI in the certificate's subject alternative names, not a DNS name: hosts move between
//! networks, and an address proves nothing. `spiffe://vmotion/host/h1`, `…/controller/c1`, `…/operator/alice`, and for people and
//! scripts also `…/viewer/wall-screen` and `…/admin/bob`, by what they may do ([`Role`]).

use rustls_pki_types::CertificateDer;
use std::{fmt, str::FromStr};
use vmotion_model::{HostName, NameError};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

const TRUST_DOMAIN: &str = "spiffe://vmotion/";

/// The holder of a certificate.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Principal {
    /// A host: its agent and the machine processes it started.
    Host(HostName),
    /// A controller.
    Controller(HostName),
    /// A person or script that only looks.
    Viewer(HostName),
    /// A person or script that gives orders.
    Operator(HostName),
    /// A person or script that also says how things are to be, and reads who did what.
    Admin(HostName),
}

/// What somebody may do; each may do what those before may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// See everything but consoles and the audit log.
    Viewer,
    /// Run machines and move them, empty hosts, use consoles.
    Operator,
    /// Declare the model of the site, set the policy, read the audit log.
    Admin,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        })
    }
}

/// Why a certificate does not name anybody we know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PrincipalError {
    /// Not X.509, or no subject alternative names that can be read.
    #[error("Certificate cannot be read")]
    Unreadable,
    /// No URI of our trust domain.
    #[error("Certificate has no {TRUST_DOMAIN} URI")]
    NoUri,
    /// A URI of our trust domain with an unknown role.
    #[error("Certificate URI {0:?} has an unknown role: expected host, controller, viewer, operator or admin")]
    Role(String),
    /// The name in the URI breaks our rules.
    #[error("Certificate URI holds an invalid name")]
    Name(#[from] NameError),
}

impl Principal {
    /// Reads the one URI of our trust domain from a DER certificate. The chain must have been verified before.
    ///
    /// # Errors
    /// [`PrincipalError`] says what the certificate lacks.
    pub fn of_certificate(certificate: &CertificateDer<'_>) -> Result<Self, PrincipalError> {
        let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| PrincipalError::Unreadable)?;
        let names =
            parsed.subject_alternative_name().map_err(|_| PrincipalError::Unreadable)?.ok_or(PrincipalError::NoUri)?;
        let uri = names.value.general_names.iter().find_map(|name| match name {
            GeneralName::URI(uri) if uri.starts_with(TRUST_DOMAIN) => Some(*uri),
            _ => None,
        });
        uri.ok_or(PrincipalError::NoUri)?.parse()
    }

    /// Its name.
    #[must_use]
    pub const fn name(&self) -> &HostName {
        match self {
            Self::Host(name)
            | Self::Controller(name)
            | Self::Viewer(name)
            | Self::Operator(name)
            | Self::Admin(name) => name,
        }
    }

    /// What it may do; `None` for hosts, which give no orders. Controllers pass on the orders of others, and may do all of it.
    #[must_use]
    pub const fn role(&self) -> Option<Role> {
        match self {
            Self::Host(_) => None,
            Self::Viewer(_) => Some(Role::Viewer),
            Self::Operator(_) => Some(Role::Operator),
            Self::Admin(_) | Self::Controller(_) => Some(Role::Admin),
        }
    }
}

impl FromStr for Principal {
    type Err = PrincipalError;

    fn from_str(uri: &str) -> Result<Self, PrincipalError> {
        let path = uri.strip_prefix(TRUST_DOMAIN).ok_or(PrincipalError::NoUri)?;
        let (role, name) = path.split_once('/').ok_or_else(|| PrincipalError::Role(uri.to_owned()))?;
        match role {
            "host" => Ok(Self::Host(name.parse()?)),
            "controller" => Ok(Self::Controller(name.parse()?)),
            "viewer" => Ok(Self::Viewer(name.parse()?)),
            "operator" => Ok(Self::Operator(name.parse()?)),
            "admin" => Ok(Self::Admin(name.parse()?)),
            _ => Err(PrincipalError::Role(uri.to_owned())),
        }
    }
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let role = match self {
            Self::Host(_) => "host",
            Self::Controller(_) => "controller",
            Self::Viewer(_) => "viewer",
            Self::Operator(_) => "operator",
            Self::Admin(_) => "admin",
        };
        write!(f, "{TRUST_DOMAIN}{role}/{}", self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uri_and_principal_are_inverse() {
        for path in ["host/h1", "controller/c", "viewer/wall", "operator/alice", "admin/bob"] {
            let uri = format!("{TRUST_DOMAIN}{path}");
            assert_eq!(uri.parse::<Principal>().unwrap().to_string(), uri);
        }
    }

    #[test]
    fn each_role_may_what_those_before_it_may_and_hosts_have_none() {
        let role = |path: &str| format!("{TRUST_DOMAIN}{path}").parse::<Principal>().unwrap().role();
        assert!(role("viewer/a") < role("operator/a") && role("operator/a") < role("admin/a"));
        assert_eq!((role("controller/c"), role("host/h1")), (Some(Role::Admin), None));
    }

    #[test]
    fn foreign_uris_are_refused() {
        for uri in ["spiffe://other/host/h1", "spiffe://vmotion/root/x", "spiffe://vmotion/host/a/b", "host/h1", ""] {
            assert!(uri.parse::<Principal>().is_err(), "{uri}");
        }
    }
}
