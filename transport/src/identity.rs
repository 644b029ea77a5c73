//! An identity directory (`ca.pem`, `cert.pem`, `key.pem`) and the TLS configurations made of it.
//!
//! Both sides are always authenticated. A server certificate is checked against the CA and against the [`Principal`]
//! the caller expects, never against the address that was dialled.

use crate::{
    Principal, PrincipalError,
    pki::{CA_FILE, CERTIFICATE_FILE, KEY_FILE},
};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, RootCertStore, SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature},
    server::{ParsedCertificate, WebPkiClientVerifier},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject};
use std::{
    any::Any,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// Whom a client wants to find at the other end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExpectedPeer {
    /// Exactly this one.
    Exactly(Principal),
    /// Any controller of our CA.
    AnyController,
    /// Any host of our CA.
    AnyHost,
}

impl ExpectedPeer {
    /// Is `found` whom we want?
    #[must_use]
    pub fn accepts(&self, found: &Principal) -> bool {
        match self {
            Self::Exactly(wanted) => wanted == found,
            Self::AnyController => matches!(found, Principal::Controller(_)),
            Self::AnyHost => matches!(found, Principal::Host(_)),
        }
    }

    /// Is what TLS knows of a peer whom we want?
    pub(crate) fn is_shown(&self, identity: Option<Box<dyn Any>>) -> bool {
        principal_shown(identity).is_some_and(|principal| self.accepts(&principal))
    }
}

/// Whom a peer's certificate speaks for; `None` without one that names anybody we know.
pub(crate) fn principal_shown(identity: Option<Box<dyn Any>>) -> Option<Principal> {
    let chain = identity?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    chain.first().and_then(|leaf| Principal::of_certificate(leaf).ok())
}

/// Why an identity cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file cannot be read as PEM.
    #[error("Cannot read {path}: {reason}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// TLS refuses the material.
    #[error("Certificate in {path} cannot be used for TLS: {reason}")]
    Tls {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The certificate names nobody.
    #[error("Certificate in {path} does not name a host, controller or operator")]
    Principal {
        /// The directory.
        path: PathBuf,
        /// What it lacks.
        source: PrincipalError,
    },
}

/// A loaded identity.
#[derive(Debug)]
pub struct Identity {
    directory: PathBuf,
    principal: Principal,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
}

impl Identity {
    /// Loads `directory`.
    ///
    /// # Errors
    /// [`IdentityError`] names the file and what is wrong with it.
    pub fn load(directory: &Path) -> Result<Self, IdentityError> {
        let chain = read_certificates(&directory.join(CERTIFICATE_FILE))?;
        let key_path = directory.join(KEY_FILE);
        let key = PrivateKeyDer::from_pem_file(&key_path).map_err(|error| file_error(&key_path, &error))?;
        let mut roots = RootCertStore::empty();
        let ca_path = directory.join(CA_FILE);
        for certificate in read_certificates(&ca_path)? {
            roots.add(certificate).map_err(|error| file_error(&ca_path, &error))?;
        }
        let principal = Principal::of_certificate(&chain[0])
            .map_err(|source| IdentityError::Principal { path: directory.to_owned(), source })?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        Ok(Self { directory: directory.to_owned(), principal, chain, key, roots: Arc::new(roots), provider })
    }

    /// Whom the certificate speaks for.
    #[must_use]
    pub const fn principal(&self) -> &Principal {
        &self.principal
    }

    /// When its certificate ends; `None` for one that ended before 1970, or cannot be read any more.
    #[must_use]
    pub fn expires(&self) -> Option<SystemTime> {
        let (_, parsed) = X509Certificate::from_der(&self.chain[0]).ok()?;
        let seconds = u64::try_from(parsed.validity().not_after.timestamp()).ok()?;
        SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
    }

    /// Where it was loaded from; a child process loads the same.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// A TLS client that accepts only `expected`, and shows our certificate.
    ///
    /// # Errors
    /// [`IdentityError::Tls`] when key and certificate do not fit each other.
    pub fn client_config(&self, expected: ExpectedPeer) -> Result<rustls::ClientConfig, IdentityError> {
        let verifier = PrincipalVerifier {
            roots: Arc::clone(&self.roots),
            expected,
            algorithms: self.provider.signature_verification_algorithms,
        };
        rustls::ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| self.tls_error(&error))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key())
            .map_err(|error| self.tls_error(&error))
    }

    /// A TLS server that demands a client certificate of our CA. Who may do what is decided above.
    ///
    /// # Errors
    /// [`IdentityError::Tls`] when key and certificate do not fit each other.
    pub fn server_config(&self) -> Result<rustls::ServerConfig, IdentityError> {
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(&self.roots), Arc::clone(&self.provider))
            .build()
            .map_err(|error| self.tls_error(&error))?;
        rustls::ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| self.tls_error(&error))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(self.chain.clone(), self.key.clone_key())
            .map_err(|error| self.tls_error(&error))
    }

    fn tls_error(&self, reason: &dyn std::fmt::Display) -> IdentityError {
        IdentityError::Tls { path: self.directory.clone(), reason: reason.to_string() }
    }
}

fn file_error(path: &Path, reason: &dyn std::fmt::Display) -> IdentityError {
    IdentityError::File { path: path.to_owned(), reason: reason.to_string() }
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let certificates: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(|certificates| certificates.collect())
        .map_err(|error| file_error(path, &error))?;
    if certificates.is_empty() {
        return Err(file_error(path, &"no certificate in it"));
    }
    Ok(certificates)
}

/// Accepts a server by CA and principal.
#[derive(Debug)]
struct PrincipalVerifier {
    roots: Arc<RootCertStore>,
    expected: ExpectedPeer,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for PrincipalVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _dialled: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let certificate = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(&certificate, &self.roots, intermediates, now, self.algorithms.all)?;
        let unwanted = || rustls::Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure);
        let principal = Principal::of_certificate(end_entity).map_err(|_| unwanted())?;
        if !self.expected.accepts(&principal) {
            return Err(rustls::Error::General(format!("the peer is {principal}, not {:?}", self.expected)));
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }

    fn root_hint_subjects(&self) -> Option<&[DistinguishedName]> {
        None
    }
}
