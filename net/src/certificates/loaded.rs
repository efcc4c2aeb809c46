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
use super::files::{
    FileError, IDENTITY_FILE, REVOKED_FILE, ROOTS_FILE, Stamp, TOKENS_FILE, read_bounded, read_secret,
};
use super::identity::Identity;
use super::revoked::{InvalidRevocations, Revocations};
use super::tokens::{InvalidToken, InvalidTokens, NoRandomness, Token, Tokens};
use super::verify::{TlsConfigs, Verifier};

/// What failed to load is tried again this often, even when no file changed.
const RETRY: Duration = Duration::from_secs(10);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Where the certificates of a node are.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CertificateFiles {
    pub own: Own,
    pub roots: PathBuf,
    /// Need not exist.
    pub revoked: PathBuf,
}

/// What a node shows of itself.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Own {
    Certificate {
        certificate: PathBuf,
        /// May be the same file.
        key: PathBuf,
        /// Tokens of edges that this node takes as a hub. Need not exist.
        tokens: PathBuf,
    },
    /// Of an edge.
    Token(TokenSource),
}

/// Where a token is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum TokenSource {
    /// One line. Read again when it changes.
    File(PathBuf),
    Value(Token),
}

/// A token for an edge, of the system's randomness.
///
/// # Errors
/// There is none.
///
/// # Panics
/// The identity is not that of an edge.
pub fn new_token(identity: Identity) -> Result<Token, NoRandomness> {
    Token::make(identity, ring::default_provider().secure_random)
}

impl CertificateFiles {
    /// As `beamlog cert node` writes them.
    #[must_use]
    pub fn in_directory(directory: &Path) -> Self {
        Self {
            own: Own::Certificate {
                certificate: directory.join(IDENTITY_FILE),
                key: directory.join(IDENTITY_FILE),
                tokens: directory.join(TOKENS_FILE),
            },
            roots: directory.join(ROOTS_FILE),
            revoked: directory.join(REVOKED_FILE),
        }
    }

    /// Of an edge without a certificate: its token, and who may be its hub. A list of the revoked may lie beside
    /// the authorities.
    #[must_use]
    pub fn with_token(token: TokenSource, roots: PathBuf) -> Self {
        Self { own: Own::Token(token), revoked: roots.with_file_name(REVOKED_FILE), roots }
    }

    fn stamps(&self) -> [Option<Stamp>; 5] {
        let own = match &self.own {
            Own::Certificate { certificate, key, tokens } => {
                [certificate, key, tokens].map(|path| Stamp::of(path))
            }
            Own::Token(TokenSource::File(path)) => [Stamp::of(path), None, None],
            Own::Token(TokenSource::Value(_)) => [None, None, None],
        };
        let [first, second, third] = own;
        [first, second, third, Stamp::of(&self.roots), Stamp::of(&self.revoked)]
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
    #[error("{path}")]
    Tokens { path: PathBuf, source: InvalidTokens },
    #[error("{path}")]
    Token { path: PathBuf, source: InvalidToken },
    #[error("the new certificate is {new}, this node is {old}: that needs a restart")]
    OtherIdentity { new: String, old: String },
}

/// One moment of all of it.
#[derive(Debug)]
pub struct Loaded {
    /// `None`: an edge that has a token.
    pub own: Option<Certificate>,
    pub identity: Identity,
    pub roots: Vec<Certificate>,
    pub revocations: Arc<Revocations>,
    /// Tokens of edges that are taken here.
    pub tokens: Arc<Tokens>,
    /// What is shown where there is no certificate.
    pub token: Option<Token>,
    /// Grows with each exchange.
    pub generation: u64,
    key: Option<Arc<CertifiedKey>>,
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
        TlsConfigs::new(&self.verifier, self.key.as_ref(), protocol)
    }

    /// TLS for one protocol where who dials may have no certificate: what it shows instead comes behind it.
    ///
    /// # Errors
    /// As [`Self::tls`].
    pub fn tls_for_tokens(&self, protocol: &[u8]) -> Result<TlsConfigs, rustls::Error> {
        let verifier = Arc::new(self.verifier.letting_in_nobodies());
        TlsConfigs::new(&verifier, self.key.as_ref(), protocol)
    }

    fn read(files: &CertificateFiles, generation: u64) -> Result<Self, LoadError> {
        let provider = Arc::new(ring::default_provider());
        let shown = Shown::read(&files.own, &provider)?;
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
            &shown.identity.cluster,
            Arc::clone(&store),
            Arc::clone(&revocations),
            Arc::clone(&provider),
        )?;
        if let (Some(own), Some(key)) = (&shown.certificate, &shown.key)
            && let Some((leaf, intermediates)) = key.cert.split_first()
        {
            let begun = own.not_before.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            match verifier.signed(leaf, intermediates, UnixTime::since_unix_epoch(begun)) {
                Ok(()) => {}
                // That it is over, or not yet, is told otherwise.
                Err(error) if is_about_time(&error) => {}
                Err(source) => return Err(LoadError::UnknownIssuer { path: files.roots.clone(), source }),
            }
        }
        Ok(Self {
            own: shown.certificate,
            identity: shown.identity,
            roots,
            revocations,
            tokens: Arc::new(shown.tokens),
            token: shown.token,
            generation,
            key: shown.key,
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
            tokens: Arc::clone(&self.tokens),
            token: self.token.clone(),
            generation,
            key: self.key.clone(),
            store: Arc::clone(&self.store),
            provider: Arc::clone(&self.provider),
            verifier: Arc::new(verifier),
        })
    }
}

/// Who this node is, by what it shows.
struct Shown {
    identity: Identity,
    certificate: Option<Certificate>,
    key: Option<Arc<CertifiedKey>>,
    token: Option<Token>,
    tokens: Tokens,
}

impl Shown {
    fn read(own: &Own, provider: &CryptoProvider) -> Result<Self, LoadError> {
        match own {
            Own::Certificate { certificate, key, tokens } => {
                Self::certified(certificate, key, tokens, provider)
            }
            Own::Token(source) => {
                let token = match source {
                    TokenSource::Value(token) => token.clone(),
                    TokenSource::File(path) => {
                        let invalid = |source| LoadError::Token { path: path.clone(), source };
                        let text =
                            String::from_utf8(read_secret(path)?).map_err(|_error| invalid(InvalidToken))?;
                        Token::parse(text.trim_end_matches(['\r', '\n'])).map_err(invalid)?
                    }
                };
                let identity = token.identity().clone();
                let tokens = Tokens::default();
                Ok(Self { identity, certificate: None, key: None, token: Some(token), tokens })
            }
        }
    }

    fn certified(
        certificate: &Path,
        key: &Path,
        tokens: &Path,
        provider: &CryptoProvider,
    ) -> Result<Self, LoadError> {
        let pem = read_bounded(certificate)?;
        let of_own = |source| LoadError::Certificate { path: certificate.to_owned(), source };
        let chain = certificates_of_pem(&pem).map_err(of_own)?;
        let leaf = chain.first().ok_or_else(|| of_own(CertificateError::Pem))?;
        let own = Certificate::read(leaf).map_err(of_own)?;
        let identity = own.identity().map_err(of_own)?.clone();
        let no_key = |_error| LoadError::NoKey { path: key.to_owned() };
        let secret = PrivateKeyDer::from_pem_slice(&read_secret(key)?).map_err(no_key)?;
        let key = CertifiedKey::from_der(chain, secret, provider).map_err(LoadError::Key)?;
        let tokens = match Stamp::of(tokens) {
            None => Tokens::default(),
            Some(_) => Tokens::parse(&read_bounded(tokens)?)
                .map_err(|source| LoadError::Tokens { path: tokens.to_owned(), source })?,
        };
        let (certificate, key) = (Some(own), Some(Arc::new(key)));
        Ok(Self { identity, certificate, key, token: None, tokens })
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
    /// `None`: a token is shown instead, which has no end.
    pub own: Option<OwnStatus>,
    pub roots: Vec<RootStatus>,
    pub revoked: usize,
    pub generation: u64,
    /// Why the files as they lie now are not in use.
    pub reload_error: Option<String>,
}

#[derive(Clone, Debug)]
pub struct OwnStatus {
    pub serial: String,
    pub not_before: SystemTime,
    pub not_after: SystemTime,
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
        let own = self.own.as_ref().map(|own| own.not_after);
        // There is one at least: files without any are not loaded.
        roots.into_iter().chain(own).min().unwrap_or(SystemTime::UNIX_EPOCH)
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
    stamps: [Option<Stamp>; 5],
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
                    serial = new.own.as_ref().map(|own| own.serial.as_str()),
                    roots = new.roots.len(),
                    revoked = new.revocations.len(),
                    edges_with_tokens = new.tokens.edges(),
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
            own: loaded.own.as_ref().map(|own| OwnStatus {
                serial: own.serial.clone(),
                not_before: own.not_before,
                not_after: own.not_after,
            }),
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
