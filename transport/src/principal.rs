//! Who a certificate speaks for.
//!
//! Identity is a SPIFFE-style URI in the certificate's subject alternative names, not a DNS name: hosts move between
//! networks, and an address proves nothing. `spiffe://vmotion/host/h1`, `…/controller/c1`, `…/operator/alice`.

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
    /// A person or script that gives orders.
    Operator(HostName),
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
    #[error("Certificate URI {0:?} has an unknown role: expected host, controller or operator")]
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
            Self::Host(name) | Self::Controller(name) | Self::Operator(name) => name,
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
            "operator" => Ok(Self::Operator(name.parse()?)),
            _ => Err(PrincipalError::Role(uri.to_owned())),
        }
    }
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let role = match self {
            Self::Host(_) => "host",
            Self::Controller(_) => "controller",
            Self::Operator(_) => "operator",
        };
        write!(f, "{TRUST_DOMAIN}{role}/{}", self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uri_and_principal_are_inverse() {
        for uri in ["spiffe://vmotion/host/h1", "spiffe://vmotion/controller/c", "spiffe://vmotion/operator/alice"] {
            assert_eq!(uri.parse::<Principal>().unwrap().to_string(), uri);
        }
    }

    #[test]
    fn foreign_uris_are_refused() {
        for uri in ["spiffe://other/host/h1", "spiffe://vmotion/root/x", "spiffe://vmotion/host/a/b", "host/h1", ""] {
            assert!(uri.parse::<Principal>().is_err(), "{uri}");
        }
    }
}
