//! What a running node holds: its certificate and key, the authorities it believes, the list of the
//! revoked. Exchanged as a whole when a file changes; what cannot be loaded leaves what was there.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use rustls::RootCertStore;
use rustls::crypto::{CryptoProvider, ring};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{PrivateKeyDer, UnixTime};
use tracing::{info, warn};

use super::certificate::{Certificate, CertificateError, certificates_of_pem};
use super::files::{FileError, IDENTITY_FILE, REVOKED_FILE, ROOTS_FILE, Stamp, read_bounded, read_secret};
use super::identity::Identity;
use super::revoked::{InvalidRevocations, Revocations};
use super::verify::{TlsConfigs, Verifier};

/// What failed to load is tried again this often, even when no file changed.
const RETRY: Duration = Duration::from_secs(10);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Where the certificates of a node are.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CertificateFiles {
    pub certificate: PathBuf,
    /// May be the same file.
    pub key: PathBuf,
    pub roots: PathBuf,
    /// Need not exist.
    pub revoked: PathBuf,
}

impl CertificateFiles {
    /// As `beamlog cert node` writes them.
    #[must_use]
    pub fn in_directory(directory: &Path) -> Self {
        Self {
            certificate: directory.join(IDENTITY_FILE),
            key: directory.join(IDENTITY_FILE),
            roots: directory.join(ROOTS_FILE),
            revoked: directory.join(REVOKED_FILE),
        }
    }

    fn stamps(&self) -> [Option<Stamp>; 4] {
        [&self.certificate, &self.key, &self.roots, &self.revoked].map(|path| Stamp::of(path))
    }
}

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{path}")]
    Certificate { path: PathBuf, source: CertificateError },
    #[error("{path} has no private key")]
    NoKey { path: PathBuf },
    #[error("certificate and key do not belong together, or cannot be used")]
    Key(#[source] rustls::Error),
    #[error("{path} has a certificate that is no authority's: {subject}")]
    NotAuthority { path: PathBuf, subject: String },
    #[error("the certificate is not signed by an authority of {path}")]
    UnknownIssuer { path: PathBuf, source: rustls::Error },
    #[error("the authorities cannot be used")]
    Roots(#[from] rustls::server::VerifierBuilderError),
    #[error("{path}")]
    Revocations { path: PathBuf, source: InvalidRevocations },
    #[error("the new certificate is {new}, this node is {old}: that needs a restart")]
    OtherIdentity { new: String, old: String },
}

/// One moment of all of it.
#[derive(Debug)]
pub struct Loaded {
    pub own: Certificate,
    pub identity: Identity,
    pub roots: Vec<Certificate>,
    pub revocations: Arc<Revocations>,
    /// Grows with each exchange.
    pub generation: u64,
    key: Arc<CertifiedKey>,
    store: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
    verifier: Arc<Verifier>,
}

impl Loaded {
    /// TLS for one protocol.
    ///
    /// # Errors
    /// The provider cannot do TLS 1.3.
    pub fn tls(&self, protocol: &[u8]) -> Result<TlsConfigs, rustls::Error> {
        TlsConfigs::new(Arc::clone(&self.verifier), &self.key, protocol)
    }

    fn read(files: &CertificateFiles, generation: u64) -> Result<Self, LoadError> {
        let provider = Arc::new(ring::default_provider());
        let pem = read_bounded(&files.certificate)?;
        let of_own = |source| LoadError::Certificate { path: files.certificate.clone(), source };
        let chain = certificates_of_pem(&pem).map_err(of_own)?;
        let leaf = chain.first().ok_or_else(|| of_own(CertificateError::Pem))?.clone();
        let own = Certificate::read(&leaf).map_err(of_own)?;
        let identity = own.identity().map_err(of_own)?.clone();

        let key = PrivateKeyDer::from_pem_slice(&read_secret(&files.key)?)
            .map_err(|_error| LoadError::NoKey { path: files.key.clone() })?;
        let intermediates = chain.get(1..).unwrap_or_default().to_vec();
        let key = CertifiedKey::from_der(chain, key, &provider).map_err(LoadError::Key)?;

        let mut store = RootCertStore::empty();
        let mut roots = Vec::new();
        let of_roots = |source| LoadError::Certificate { path: files.roots.clone(), source };
        for der in certificates_of_pem(&read_bounded(&files.roots)?).map_err(of_roots)? {
            let root = Certificate::read(&der).map_err(of_roots)?;
            // A node's own certificate among the roots would let it sign others.
            if !root.is_authority {
                return Err(LoadError::NotAuthority { path: files.roots.clone(), subject: root.subject });
            }
            store.add(der).map_err(|_error| of_roots(CertificateError::Malformed))?;
            roots.push(root);
        }
        let store = Arc::new(store);

        let revocations = match Stamp::of(&files.revoked) {
            None => Revocations::default(),
            Some(_) => Revocations::parse(&read_bounded(&files.revoked)?)
                .map_err(|source| LoadError::Revocations { path: files.revoked.clone(), source })?,
        };
        let revocations = Arc::new(revocations);
        let verifier = Verifier::new(
            &identity.cluster,
            Arc::clone(&store),
            Arc::clone(&revocations),
            Arc::clone(&provider),
        )?;
        let begun = own.not_before.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        match verifier.signed(&leaf, &intermediates, UnixTime::since_unix_epoch(begun)) {
            Ok(()) => {}
            // That it is over, or not yet, is told otherwise.
            Err(error) if is_about_time(&error) => {}
            Err(source) => return Err(LoadError::UnknownIssuer { path: files.roots.clone(), source }),
        }
        Ok(Self {
            own,
            identity,
            roots,
            revocations,
            generation,
            key: Arc::new(key),
            store,
            provider,
            verifier: Arc::new(verifier),
        })
    }

    /// The same with other revocations.
    fn with_revocations(&self, revocations: Revocations, generation: u64) -> Result<Self, LoadError> {
        let revocations = Arc::new(revocations);
        let verifier = Verifier::new(
            &self.identity.cluster,
            Arc::clone(&self.store),
            Arc::clone(&revocations),
            Arc::clone(&self.provider),
        )?;
        Ok(Self {
            own: self.own.clone(),
            identity: self.identity.clone(),
            roots: self.roots.clone(),
            revocations,
            generation,
            key: Arc::clone(&self.key),
            store: Arc::clone(&self.store),
            provider: Arc::clone(&self.provider),
            verifier: Arc::new(verifier),
        })
    }
}

fn is_about_time(error: &rustls::Error) -> bool {
    use rustls::CertificateError::{Expired, ExpiredContext, NotValidYet, NotValidYetContext};
    matches!(
        error,
        rustls::Error::InvalidCertificate(
            Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. }
        )
    )
}

/// How near the end is.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Severity {
    Fine,
    /// Less than 30 days.
    Soon,
    /// Less than 7 days.
    Near,
    /// Less than a day.
    Imminent,
    Expired,
}

/// What metrics and `/healthz` tell.
#[derive(Clone, Debug)]
pub struct CertificateStatus {
    pub identity: Identity,
    pub serial: String,
    pub not_before: SystemTime,
    pub not_after: SystemTime,
    pub roots: Vec<RootStatus>,
    pub revoked: usize,
    pub generation: u64,
    /// Why the files as they lie now are not in use.
    pub reload_error: Option<String>,
}

#[derive(Clone, Debug)]
pub struct RootStatus {
    pub subject: String,
    pub serial: String,
    pub not_after: SystemTime,
}

impl CertificateStatus {
    /// When the first of what this node needs ends: its certificate, or the last of its roots.
    #[must_use]
    pub fn ends(&self) -> SystemTime {
        let roots = self.roots.iter().map(|root| root.not_after).max();
        roots.map_or(self.not_after, |roots| roots.min(self.not_after))
    }

    #[must_use]
    pub fn severity(&self, now: SystemTime) -> Severity {
        match self.ends().duration_since(now) {
            Err(_) | Ok(Duration::ZERO) => Severity::Expired,
            Ok(left) if left < DAY => Severity::Imminent,
            Ok(left) if left < 7 * DAY => Severity::Near,
            Ok(left) if left < 30 * DAY => Severity::Soon,
            Ok(_) => Severity::Fine,
        }
    }
}

/// The certificates in use. Clones share them.
#[derive(Clone, Debug)]
pub struct Certificates(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    files: CertificateFiles,
    current: ArcSwap<Loaded>,
    reload: Mutex<Reload>,
}

#[derive(Debug)]
struct Reload {
    stamps: [Option<Stamp>; 4],
    tried: Instant,
    error: Option<String>,
    /// Of the cluster's replicated state, beside those of the file.
    revoked_by_cluster: Revocations,
}

impl Certificates {
    /// # Errors
    /// They cannot be used as they are.
    pub fn load(files: CertificateFiles) -> Result<Self, LoadError> {
        // Before reading: a change meanwhile is seen the next time.
        let stamps = files.stamps();
        let loaded = Loaded::read(&files, 1)?;
        let reload =
            Reload { stamps, tried: Instant::now(), error: None, revoked_by_cluster: Revocations::default() };
        Ok(Self(Arc::new(Shared {
            files,
            current: ArcSwap::from_pointee(loaded),
            reload: Mutex::new(reload),
        })))
    }

    #[must_use]
    pub fn current(&self) -> Arc<Loaded> {
        self.0.current.load_full()
    }

    /// Looks whether a file changed, and loads what is new. Cheap when nothing did. What cannot be used is
    /// logged once and leaves what was in use.
    pub fn refresh(&self) {
        let mut reload = self.0.reload.lock().unwrap_or_else(PoisonError::into_inner);
        let stamps = self.0.files.stamps();
        let retry = reload.error.is_some() && reload.tried.elapsed() >= RETRY;
        if stamps == reload.stamps && !retry {
            return;
        }
        reload.stamps = stamps;
        reload.tried = Instant::now();
        self.exchange(&mut reload);
    }

    /// Reads the files again, changed or not (SIGHUP).
    ///
    /// # Errors
    /// Why they are not in use now, in words.
    pub fn reload(&self) -> Result<(), String> {
        let mut reload = self.0.reload.lock().unwrap_or_else(PoisonError::into_inner);
        reload.stamps = self.0.files.stamps();
        reload.tried = Instant::now();
        self.exchange(&mut reload);
        reload.error.clone().map_or(Ok(()), Err)
    }

    fn exchange(&self, reload: &mut Reload) {
        let old = self.current();
        match self.read_anew(&old, reload) {
            Ok(new) => {
                info!(
                    node = %new.identity.name,
                    serial = %new.own.serial,
                    roots = new.roots.len(),
                    revoked = new.revocations.len(),
                    "certificates were loaded anew"
                );
                self.0.current.store(Arc::new(new));
                reload.error = None;
            }
            Err(error) => {
                let text = chain(&error);
                if reload.error.as_ref() != Some(&text) {
                    warn!(err = %text, "the certificate files changed and cannot be used; what was loaded stays in use");
                }
                reload.error = Some(text);
            }
        }
    }

    fn read_anew(&self, old: &Loaded, reload: &Reload) -> Result<Loaded, LoadError> {
        let new = Loaded::read(&self.0.files, old.generation + 1)?;
        if new.identity != old.identity {
            return Err(LoadError::OtherIdentity {
                new: new.identity.to_string(),
                old: old.identity.to_string(),
            });
        }
        if reload.revoked_by_cluster.is_empty() {
            return Ok(new);
        }
        let mut all = Revocations::clone(&new.revocations);
        all.extend(&reload.revoked_by_cluster);
        let generation = new.generation;
        new.with_revocations(all, generation)
    }

    /// Sets what the cluster's replicated state revokes, beside the file. Live sessions of those end within a second.
    ///
    /// # Errors
    /// The verifier cannot be made; the old list stays.
    pub fn set_revoked_by_cluster(&self, revoked: Revocations) -> Result<(), LoadError> {
        let mut reload = self.0.reload.lock().unwrap_or_else(PoisonError::into_inner);
        let old = self.current();
        reload.revoked_by_cluster = revoked;
        // From the file again, or entries of the cluster's previous list would stay for ever.
        let new = match self.read_anew(&old, &reload) {
            Ok(new) => new,
            Err(_) => {
                let mut all = Revocations::clone(&old.revocations);
                all.extend(&reload.revoked_by_cluster);
                old.with_revocations(all, old.generation + 1)?
            }
        };
        self.0.current.store(Arc::new(new));
        Ok(())
    }

    #[must_use]
    pub fn status(&self) -> CertificateStatus {
        let error = self.0.reload.lock().unwrap_or_else(PoisonError::into_inner).error.clone();
        let loaded = self.current();
        CertificateStatus {
            identity: loaded.identity.clone(),
            serial: loaded.own.serial.clone(),
            not_before: loaded.own.not_before,
            not_after: loaded.own.not_after,
            roots: loaded
                .roots
                .iter()
                .map(|root| RootStatus {
                    subject: root.subject.clone(),
                    serial: root.serial.clone(),
                    not_after: root.not_after,
                })
                .collect(),
            revoked: loaded.revocations.len(),
            generation: loaded.generation,
            reload_error: error,
        }
    }
}

/// An error and its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        line.push_str(": ");
        line.push_str(&cause.to_string());
        source = cause.source();
    }
    line
}
