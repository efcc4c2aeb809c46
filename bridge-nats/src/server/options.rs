//! What a server is started with. Defaults are nats-server's.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::{self, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use thiserror::Error;

use crate::session::ConnectOptions;

/// Options of the endpoint.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Where clients connect. Default 127.0.0.1:4222; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Shown in INFO. Default: the server id.
    pub server_name: Option<String>,
    /// Who may connect. Default everybody.
    pub auth: Auth,
    /// Default none.
    pub tls: Option<TlsOptions>,
    /// Longest headers + payload. Default 1 MiB.
    pub payload_max: usize,
    /// Longest arguments of a verb. Default 4096.
    pub control_line_max: usize,
    /// Default 2 min.
    pub ping_interval: Duration,
    /// Unanswered pings before a connection is stale. Default 2.
    pub ping_max: u32,
    /// Bytes that may wait for one client. Default 64 MiB.
    pub pending_max: usize,
    /// How long a client may take nothing. Default 10 s.
    pub write_deadline: Duration,
    /// How long a client may take to authenticate. Default 2 s.
    pub auth_timeout: Duration,
    /// Default 65,536.
    pub connections_max: usize,
    /// Subscriptions of one client. Default 1,000,000.
    pub subscriptions_max: usize,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 4222)),
            server_name: None,
            auth: Auth::None,
            tls: None,
            payload_max: 1 << 20,
            control_line_max: 4096,
            ping_interval: Duration::from_secs(120),
            ping_max: 2,
            pending_max: 64 << 20,
            write_deadline: Duration::from_secs(10),
            auth_timeout: Duration::from_secs(2),
            connections_max: 65_536,
            subscriptions_max: 1_000_000,
        }
    }
}

/// Who may connect.
#[derive(Clone, Default)]
pub enum Auth {
    #[default]
    None,
    Token(String),
    /// Users and their passwords.
    Users(Vec<(String, String)>),
}

impl std::fmt::Debug for Auth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::Token(_) => f.write_str("Token(…)"),
            Self::Users(users) => f.debug_list().entries(users.iter().map(|(user, _)| user)).finish(),
        }
    }
}

impl Auth {
    pub(crate) fn is_required(&self) -> bool {
        !matches!(self, Self::None)
    }

    pub(crate) fn allows(&self, options: &ConnectOptions) -> bool {
        match self {
            Self::None => true,
            Self::Token(token) => same(token, &options.auth_token.0),
            // All are compared, so that the time tells nothing of which user exists.
            Self::Users(users) => users.iter().fold(false, |allowed, (user, password)| {
                allowed | (same(user, &options.user.0) & same(password, &options.pass.0))
            }),
        }
    }
}

/// Compares in a time that depends on the lengths only.
fn same(secret: &str, given: &str) -> bool {
    let (secret, given) = (secret.as_bytes(), given.as_bytes());
    let differences = secret
        .iter()
        .zip(given)
        .fold(0_u8, |differences, (a, b)| std::hint::black_box(differences | (a ^ b)));
    secret.len() == given.len() && differences == 0
}

/// TLS of the client port.
#[derive(Clone, Debug)]
pub struct TlsOptions {
    pub config: Arc<rustls::ServerConfig>,
    /// The handshake comes before INFO. Default false: INFO, then the client upgrades.
    pub handshake_first: bool,
    /// Whether clients without TLS are turned away. Default true.
    pub required: bool,
    /// Whether clients need a certificate.
    pub verify: bool,
    /// Default 2 s.
    pub timeout: Duration,
}

/// Why certificates or keys cannot be used.
#[derive(Debug, Error)]
pub enum TlsFilesError {
    #[error("reading {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path} is no PEM file of the right kind")]
    Pem { path: PathBuf, source: pem::Error },
    #[error("{path} holds no certificate")]
    NoCertificate { path: PathBuf },
    #[error("certificate and key do not make a TLS configuration")]
    Config(#[source] rustls::Error),
    #[error("{path} holds a certificate authority that cannot be used")]
    ClientAuthority { path: PathBuf, source: rustls::Error },
    #[error("client certificates cannot be verified")]
    Verifier(#[source] rustls::server::VerifierBuilderError),
}

impl TlsOptions {
    /// Reads certificate chain and key, and the authorities that client certificates must come from, if
    /// clients need one.
    ///
    /// # Errors
    /// Which file is at fault, and how.
    pub fn from_files(
        certificate: &Path,
        key: &Path,
        client_ca: Option<&Path>,
    ) -> Result<Self, TlsFilesError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let chain = certificates(certificate)?;
        let key_bytes = read(key)?;
        let key = PrivateKeyDer::from_pem_slice(&key_bytes)
            .map_err(|source| TlsFilesError::Pem { path: key.to_owned(), source })?;
        let builder = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(TlsFilesError::Config)?;
        let builder = match client_ca {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let mut roots = RootCertStore::empty();
                for authority in certificates(path)? {
                    roots
                        .add(authority)
                        .map_err(|source| TlsFilesError::ClientAuthority { path: path.to_owned(), source })?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                    .build()
                    .map_err(TlsFilesError::Verifier)?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let config = builder.with_single_cert(chain, key).map_err(TlsFilesError::Config)?;
        Ok(Self {
            config: Arc::new(config),
            handshake_first: false,
            required: true,
            verify: client_ca.is_some(),
            timeout: Duration::from_secs(2),
        })
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsFilesError> {
    fs::read(path).map_err(|source| TlsFilesError::Read { path: path.to_owned(), source })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsFilesError> {
    let bytes = read(path)?;
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&bytes)
        .collect::<Result<_, _>>()
        .map_err(|source| TlsFilesError::Pem { path: path.to_owned(), source })?;
    if chain.is_empty() {
        return Err(TlsFilesError::NoCertificate { path: path.to_owned() });
    }
    Ok(chain)
}
