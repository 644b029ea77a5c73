//! Making certificates: a private CA and one leaf for each host, controller and operator.
//!
//! Deliberately small: an operator with a PKI of their own only needs the URI of [`Principal`] in the certificates it
//! issues, and the same three files.

use crate::Principal;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use rustix::fs::{Mode, OFlags};
use std::{
    io::Write as _,
    path::{Path, PathBuf},
};
use time::{Duration, OffsetDateTime};

/// File names in an identity directory.
pub const CA_FILE: &str = "ca.pem";
/// The certificate chain of the holder.
pub const CERTIFICATE_FILE: &str = "cert.pem";
/// The private key of the holder, mode 0600.
pub const KEY_FILE: &str = "key.pem";
const CA_KEY_FILE: &str = "ca-key.pem";

const CA_DAYS: i64 = 3650;
const LEAF_DAYS: i64 = 825;

/// Why a certificate could not be made.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file could not be read or written.
    #[error("Cannot {action} {path}")]
    File {
        /// "read" or "write".
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file exists; keys are never overwritten.
    #[error("{0} exists and is not overwritten: remove it, or choose another directory")]
    Exists(PathBuf),
    /// The X.509 library refused.
    #[error("Cannot make the certificate")]
    Certificate(#[from] rcgen::Error),
}

/// A certificate authority in a directory: `ca.pem` and `ca-key.pem`.
pub struct Authority {
    directory: PathBuf,
    ca_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Makes a new authority in `directory`.
    ///
    /// # Errors
    /// [`PkiError::Exists`] when there is one already.
    pub fn create(directory: &Path) -> Result<Self, PkiError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "vmotion CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        set_validity(&mut params, CA_DAYS);
        let certificate = params.self_signed(&key)?;
        std::fs::create_dir_all(directory).map_err(|source| file_error("write", directory, source))?;
        write_new(&directory.join(CA_KEY_FILE), &key.serialize_pem(), 0o600)?;
        write_new(&directory.join(CA_FILE), &certificate.pem(), 0o644)?;
        Ok(Self { directory: directory.to_owned(), ca_pem: certificate.pem(), issuer: Issuer::new(params, key) })
    }

    /// Opens the authority in `directory`.
    ///
    /// # Errors
    /// [`PkiError::File`] when a file is missing.
    pub fn open(directory: &Path) -> Result<Self, PkiError> {
        let read = |name: &str| {
            let path = directory.join(name);
            std::fs::read_to_string(&path).map_err(|source| file_error("read", &path, source))
        };
        let ca_pem = read(CA_FILE)?;
        let key = KeyPair::from_pem(&read(CA_KEY_FILE)?)?;
        let issuer = Issuer::from_ca_cert_pem(&ca_pem, key)?;
        Ok(Self { directory: directory.to_owned(), ca_pem, issuer })
    }

    /// Opens the authority in `directory`, or makes it.
    ///
    /// # Errors
    /// As [`Self::open`] and [`Self::create`].
    pub fn open_or_create(directory: &Path) -> Result<Self, PkiError> {
        if directory.join(CA_FILE).exists() { Self::open(directory) } else { Self::create(directory) }
    }

    /// Where the authority lives.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Issues a certificate for `principal` into `directory` as `ca.pem`, `cert.pem`, `key.pem`.
    ///
    /// # Errors
    /// [`PkiError::Exists`] when the directory holds a key already.
    pub fn issue(&self, principal: &Principal, directory: &Path) -> Result<(), PkiError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, principal.name().as_str());
        params.subject_alt_names = vec![
            SanType::URI(principal.to_string().try_into()?),
            SanType::DnsName(principal.name().as_str().to_owned().try_into()?),
        ];
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        set_validity(&mut params, LEAF_DAYS);
        let certificate = params.signed_by(&key, &self.issuer)?;
        std::fs::create_dir_all(directory).map_err(|source| file_error("write", directory, source))?;
        write_new(&directory.join(KEY_FILE), &key.serialize_pem(), 0o600)?;
        write_new(&directory.join(CERTIFICATE_FILE), &certificate.pem(), 0o644)?;
        let ca = directory.join(CA_FILE);
        if !ca.exists() {
            write_new(&ca, &self.ca_pem, 0o644)?;
        }
        Ok(())
    }
}

fn set_validity(params: &mut CertificateParams, days: i64) {
    let now = OffsetDateTime::now_utc();
    // Clocks of hosts differ; an hour of slack keeps a new certificate from being "not yet valid".
    params.not_before = now - Duration::hours(1);
    params.not_after = now + Duration::days(days);
}

fn file_error(action: &'static str, path: &Path, source: std::io::Error) -> PkiError {
    PkiError::File { action, path: path.to_owned(), source }
}

fn write_new(path: &Path, text: &str, mode: u32) -> Result<(), PkiError> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let fd = rustix::fs::open(path, flags, Mode::from_raw_mode(mode)).map_err(|errno| match errno {
        rustix::io::Errno::EXIST => PkiError::Exists(path.to_owned()),
        errno => file_error("write", path, errno.into()),
    })?;
    let mut file = std::fs::File::from(fd);
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(|source| file_error("write", path, source))
}
