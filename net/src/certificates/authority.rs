//! The authority of a cluster: who has its key decides who is a node.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;

use super::certificate::{Certificate, CertificateError, certificates_of_pem};
use super::identity::{Identity, InvalidIdentity, check_name};

/// Clocks of nodes differ: a certificate counts from this long before it was made.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(300);
/// The subject of an authority is this and the name of its cluster.
const SUBJECT: &str = "beamlog cluster ";

#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    #[error(transparent)]
    Name(#[from] InvalidIdentity),
    #[error("the certificate cannot be made")]
    Generate(#[from] rcgen::Error),
    #[error("the authority's certificate")]
    Certificate(#[from] CertificateError),
    #[error("it is not the certificate of an authority of a cluster")]
    NotAuthority,
    #[error("the validity ends beyond what a certificate can say")]
    Validity,
    #[error("the authority is of cluster {authority}, the certificate of {certificate}")]
    OtherCluster { authority: String, certificate: String },
}

/// A new certificate and its key, as one PEM text.
pub struct Issued {
    pub pem: String,
    pub certificate: Certificate,
}

impl std::fmt::Debug for Issued {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Not the text: it holds the key.
        f.debug_struct("Issued").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

/// Certificate and key of an authority.
pub struct Authority {
    cluster: String,
    issuer: Issuer<'static, KeyPair>,
    certificate: Certificate,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

impl Authority {
    /// Makes an authority, as one PEM text of certificate and key.
    ///
    /// # Errors
    /// The name is none, or the validity has no end that can be written.
    pub fn create(cluster: &str, now: SystemTime, valid: Duration) -> Result<Issued, AuthorityError> {
        check_name(cluster)?;
        let mut parameters = CertificateParams::default();
        validity(&mut parameters, now, valid)?;
        parameters.distinguished_name = DistinguishedName::new();
        parameters.distinguished_name.push(DnType::CommonName, format!("{SUBJECT}{cluster}"));
        // It signs nodes and no further authorities.
        parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate()?;
        issued(&parameters.self_signed(&key)?, &key)
    }

    /// # Errors
    /// The text does not hold an authority's certificate and its key.
    pub fn from_pem(pem: &[u8]) -> Result<Self, AuthorityError> {
        let text = std::str::from_utf8(pem).map_err(|_error| CertificateError::Pem)?;
        let found = certificates_of_pem(pem)?;
        let der: &CertificateDer<'_> = found.first().ok_or(CertificateError::Pem)?;
        let certificate = Certificate::read(der)?;
        let cluster = cluster_of(&certificate).ok_or(AuthorityError::NotAuthority)?.to_owned();
        let issuer = Issuer::from_ca_cert_der(der, KeyPair::from_pem(key_section(text))?)?;
        Ok(Self { cluster, issuer, certificate })
    }

    #[must_use]
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    #[must_use]
    pub fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    /// Issues a certificate with a new key. It ends with the authority's at the latest.
    ///
    /// # Errors
    /// The identity is of another cluster, or the validity has no end that can be written.
    pub fn issue(
        &self,
        identity: &Identity,
        now: SystemTime,
        valid: Duration,
    ) -> Result<Issued, AuthorityError> {
        if identity.cluster != self.cluster {
            return Err(AuthorityError::OtherCluster {
                authority: self.cluster.clone(),
                certificate: identity.cluster.clone(),
            });
        }
        let mut parameters = CertificateParams::default();
        let valid = valid.min(self.certificate.not_after.duration_since(now).unwrap_or_default());
        validity(&mut parameters, now, valid)?;
        parameters.distinguished_name = DistinguishedName::new();
        parameters.distinguished_name.push(DnType::CommonName, identity.name.clone());
        parameters.subject_alt_names = vec![SanType::URI(Ia5String::try_from(identity.to_string())?)];
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        parameters.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        parameters.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        issued(&parameters.signed_by(&key, &self.issuer)?, &key)
    }
}

fn issued(certificate: &rcgen::Certificate, key: &KeyPair) -> Result<Issued, AuthorityError> {
    let pem = format!("{}{}", certificate.pem(), key.serialize_pem());
    Ok(Issued { pem, certificate: Certificate::read(certificate.der())? })
}

/// The cluster that an authority's certificate is for.
fn cluster_of(certificate: &Certificate) -> Option<&str> {
    let cluster = certificate.subject.strip_prefix("CN=")?.strip_prefix(SUBJECT)?;
    (certificate.is_authority && check_name(cluster).is_ok()).then_some(cluster)
}

/// The part of a PEM text from its private key on.
fn key_section(text: &str) -> &str {
    let begin = text.find("-----BEGIN PRIVATE KEY-----").unwrap_or(text.len());
    text.get(begin..).unwrap_or_default()
}

fn validity(
    parameters: &mut CertificateParams,
    now: SystemTime,
    valid: Duration,
) -> Result<(), AuthorityError> {
    let moment = |at: SystemTime| {
        let seconds = at.duration_since(UNIX_EPOCH).ok()?.as_secs();
        OffsetDateTime::from_unix_timestamp(i64::try_from(seconds).ok()?).ok()
    };
    parameters.not_before =
        now.checked_sub(CLOCK_TOLERANCE).and_then(moment).ok_or(AuthorityError::Validity)?;
    parameters.not_after = now.checked_add(valid).and_then(moment).ok_or(AuthorityError::Validity)?;
    Ok(())
}
