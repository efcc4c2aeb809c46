//! What a certificate says, read from its bytes. That it may be believed is decided in `verify`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::identity::{Identity, InvalidIdentity};

/// The facts of one certificate.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Certificate {
    /// Lower-case hexadecimal, without leading zeros of the encoding.
    pub serial: String,
    pub subject: String,
    pub issuer: String,
    pub not_before: SystemTime,
    pub not_after: SystemTime,
    pub is_authority: bool,
    /// Of a node, a witness or an edge. An authority has none.
    pub identity: Result<Identity, CertificateError>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum CertificateError {
    #[error("not a certificate")]
    Malformed,
    #[error("not PEM with a certificate")]
    Pem,
    #[error("it must name exactly one URI, and names {count}")]
    Uris { count: usize },
    #[error("its URI names nobody")]
    Identity(#[from] InvalidIdentity),
}

impl Certificate {
    /// # Errors
    /// The bytes are no certificate.
    pub fn read(der: &[u8]) -> Result<Self, CertificateError> {
        let (rest, parsed) = X509Certificate::from_der(der).map_err(|_error| CertificateError::Malformed)?;
        if !rest.is_empty() {
            return Err(CertificateError::Malformed);
        }
        let is_authority = parsed
            .basic_constraints()
            .map_err(|_error| CertificateError::Malformed)?
            .is_some_and(|found| found.value.ca);
        Ok(Self {
            serial: serial(parsed.raw_serial()),
            subject: parsed.subject().to_string(),
            issuer: parsed.issuer().to_string(),
            not_before: time(parsed.validity().not_before.timestamp()),
            not_after: time(parsed.validity().not_after.timestamp()),
            is_authority,
            identity: identity(&parsed),
        })
    }

    /// # Errors
    /// It names nobody.
    pub fn identity(&self) -> Result<&Identity, CertificateError> {
        self.identity.as_ref().map_err(|error| *error)
    }
}

fn identity(parsed: &X509Certificate<'_>) -> Result<Identity, CertificateError> {
    let names = parsed.subject_alternative_name().map_err(|_error| CertificateError::Malformed)?;
    let mut uris = Vec::new();
    for name in names.iter().flat_map(|names| &names.value.general_names) {
        if let GeneralName::URI(uri) = name {
            uris.push(*uri);
        }
    }
    let [uri] = uris[..] else { return Err(CertificateError::Uris { count: uris.len() }) };
    Ok(Identity::parse(uri)?)
}

fn serial(raw: &[u8]) -> String {
    // A leading zero octet only says that the number is positive.
    let digits: &[u8] = match raw {
        [0, rest @ ..] if !rest.is_empty() => rest,
        all => all,
    };
    digits.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn time(seconds: i64) -> SystemTime {
    match u64::try_from(seconds) {
        Ok(after) => UNIX_EPOCH + Duration::from_secs(after),
        // Before 1970: whatever it is, it is over.
        Err(_) => UNIX_EPOCH,
    }
}

/// All certificates of a PEM text; other sections (a key) are passed over.
///
/// # Errors
/// There is none, or one is broken.
pub fn certificates_of_pem(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    found.ok().filter(|found| !found.is_empty()).ok_or(CertificateError::Pem)
}
