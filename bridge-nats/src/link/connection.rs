//! One session: one connection of async-nats that is never re-established. Its own reconnecting is turned
//! off, since what it had queued would be sent on the new connection. Credentials are read for each.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::{AuthError, ConnectErrorKind, ConnectOptions, Event};
use thiserror::Error;
use tokio::sync::{broadcast, watch};

use super::hub::{self, Loopback, LoopbackError, NoTunnel, SharedHubs, Urgency};
use super::rules::{Credentials, LinkConfig, LinkKind, LinkTls, Secret};

/// How long connecting to one address may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How often an idle connection is tried; two that are not answered end it.
const PING_INTERVAL: Duration = Duration::from_secs(3);
/// The same to a hub. QUIC tells sooner that a hub is gone, and an answer may stand behind much on a narrow path.
const HUB_PING_INTERVAL: Duration = Duration::from_secs(30);
/// How long an answer of the JetStream API may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Errors of a server that wait for the rules to look at them.
const ERRORS_MAX: usize = 64;
/// Largest file with a secret.
const SECRET_BYTES_MAX: u64 = 64 << 10;

/// Why there is no session. Never holds a secret.
#[derive(Debug, Error)]
pub(crate) enum ConnectError {
    #[error("reading {what}: {source}")]
    Secret { what: String, source: std::io::Error },
    #[error("{0} cannot be used")]
    Unusable(&'static str),
    #[error("not authorized by {server}")]
    Refused { server: String },
    #[error("connecting to {server}: {cause}")]
    Failed { server: String, cause: String },
    #[error("connecting to {server}: {source}")]
    Tunnel { server: String, source: NoTunnel },
    #[error("connecting to {server}: {source}")]
    Hub { server: String, source: LoopbackError },
    #[error("no address")]
    NoAddress,
}

/// One connection. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Session {
    pub(crate) client: async_nats::Client,
    pub(crate) jetstream: async_nats::jetstream::Context,
    /// Of its requests.
    pub(crate) api_prefix: Arc<str>,
    lost: watch::Receiver<bool>,
    told: Arc<Told>,
}

#[derive(Debug)]
struct Told {
    error: Mutex<Option<String>>,
    /// Errors of the server, for the rules that they are about.
    errors: broadcast::Sender<String>,
    /// Messages that found the buffer of their subscription full.
    dropped: AtomicU64,
}

impl Default for Told {
    fn default() -> Self {
        Self { error: Mutex::default(), errors: broadcast::channel(ERRORS_MAX).0, dropped: AtomicU64::new(0) }
    }
}

/// What the server says from now on.
#[derive(Debug)]
pub(crate) struct ServerErrors(broadcast::Receiver<String>);

impl ServerErrors {
    /// The next error that `is_meant` says is about the caller. *Cancel safety*: may be dropped.
    pub(crate) async fn next(&mut self, is_meant: impl Fn(&str) -> bool) -> String {
        loop {
            match self.0.recv().await {
                Ok(error) if is_meant(&error) => return error,
                Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                // The session has ended, which is told elsewhere.
                Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
            }
        }
    }
}

impl Session {
    pub(crate) fn is_lost(&self) -> bool {
        *self.lost.borrow() || self.client.connection_state() != async_nats::connection::State::Connected
    }

    /// Resolves when the connection is gone. *Cancel safety*: may be dropped.
    pub(crate) async fn lost(&self) {
        let mut lost = self.lost.clone();
        loop {
            // The event may have been dropped among many: the state is looked at too.
            let told = tokio::time::timeout(Duration::from_millis(250), lost.wait_for(|lost| *lost)).await;
            if told.is_ok() || self.is_lost() {
                return;
            }
        }
    }

    pub(crate) fn errors(&self) -> ServerErrors {
        ServerErrors(self.told.errors.subscribe())
    }

    /// Messages that this session's subscriptions had no room for, and that were not asked for yet.
    pub(crate) fn take_dropped(&self) -> u64 {
        self.told.dropped.swap(0, Ordering::Relaxed)
    }

    /// What the server or the connection said last.
    pub(crate) fn cause(&self) -> String {
        let told = self.told.error.lock().unwrap_or_else(PoisonError::into_inner);
        told.clone().unwrap_or_else(|| "the connection was lost".to_owned())
    }
}

/// An address without its credentials, and the credentials that were in it.
#[derive(Clone, Debug)]
struct Address {
    url: String,
    user: Option<(String, String)>,
}

fn address(url: &str) -> Address {
    let Some((scheme, rest)) = url.split_once("://") else {
        return Address { url: url.to_owned(), user: None };
    };
    match rest.rsplit_once('@') {
        None => Address { url: url.to_owned(), user: None },
        Some((user, host)) => {
            let (user, password) = user.split_once(':').unwrap_or((user, ""));
            Address { url: format!("{scheme}://{host}"), user: Some((user.to_owned(), password.to_owned())) }
        }
    }
}

/// Connects to one of the addresses, in random order.
pub(crate) async fn connect(
    config: &LinkConfig,
    hubs: &SharedHubs,
    urgency: Urgency,
) -> Result<(Session, String), ConnectError> {
    let mut addresses: Vec<Address> = config.urls.iter().map(|url| address(url)).collect();
    if !addresses.is_empty() {
        let first = random() % addresses.len() as u64;
        addresses.rotate_left(usize::try_from(first).unwrap_or(0));
    }
    let mut last = ConnectError::NoAddress;
    for address in addresses {
        match connect_to(config, &address, hubs, urgency).await {
            Ok(session) => return Ok((session, address.url)),
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn connect_to(
    config: &LinkConfig,
    address: &Address,
    hubs: &SharedHubs,
    urgency: Urgency,
) -> Result<Session, ConnectError> {
    let (lose, lost) = watch::channel(false);
    let lose = Arc::new(lose);
    let told = Arc::new(Told::default());
    let (identity, url, tls, ping_interval) = match LinkKind::of_url(&address.url) {
        Some(LinkKind::Beamlog) => {
            let loopback = to_hub(config, address, hubs, urgency, &told).await?;
            // TLS is between this node and the hub, and not on the way to the loopback.
            let url = format!("nats://{}", loopback.address);
            (Identity::Token(loopback.token), url, LinkTls::default(), HUB_PING_INTERVAL)
        }
        Some(LinkKind::Nats) | None => {
            let identity = Identity::read(&config.credentials, address).await?;
            (identity, address.url.clone(), config.tls.clone(), PING_INTERVAL)
        }
    };
    let events = Arc::clone(&told);
    let used = Arc::new(AtomicU64::new(0));
    let mut options = ConnectOptions::with_auth_callback(move |nonce| {
        let (identity, used) = (identity.clone(), Arc::clone(&used));
        async move {
            if used.fetch_add(1, Ordering::Relaxed) > 0 {
                return Err(AuthError::new("a session is one connection"));
            }
            identity.answer(&nonce)
        }
    })
    .name(format!("beamlog link {}", config.name))
    .ignore_discovered_servers()
    .max_reconnects(1)
    .reconnect_delay_callback(|_| Duration::ZERO)
    .connection_timeout(CONNECT_TIMEOUT)
    .ping_interval(ping_interval)
    .request_timeout(Some(REQUEST_TIMEOUT))
    .client_capacity(4096)
    .event_callback(move |event| {
        let (lose, told) = (Arc::clone(&lose), Arc::clone(&events));
        async move {
            match event {
                Event::Disconnected | Event::Closed => {
                    lose.send_replace(true);
                }
                Event::ServerError(error) => {
                    // Nobody may be listening.
                    drop(told.errors.send(error.to_string()));
                    *told.error.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.to_string());
                }
                Event::SlowConsumer(_) => {
                    told.dropped.fetch_add(1, Ordering::Relaxed);
                }
                Event::Connected | Event::LameDuckMode | Event::Draining | Event::ClientError(_) => {}
            }
        }
    });
    if tls.required {
        options = options.require_tls(true);
    }
    if tls.first {
        options = options.tls_first();
    }
    if let Some(file) = tls.ca_file {
        options = options.add_root_certificates(file);
    }
    if let (Some(certificate), Some(key)) = (tls.cert_file, tls.key_file) {
        options = options.add_client_certificate(certificate, key);
    }
    let client = options.connect(url.as_str()).await.map_err(|error| match error.kind() {
        ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication => {
            ConnectError::Refused { server: address.url.clone() }
        }
        ConnectErrorKind::ServerParse
        | ConnectErrorKind::Dns
        | ConnectErrorKind::TimedOut
        | ConnectErrorKind::Tls
        | ConnectErrorKind::Io
        | ConnectErrorKind::MaxReconnects => {
            ConnectError::Failed { server: address.url.clone(), cause: error.to_string() }
        }
    })?;
    let jetstream = match (&config.api_prefix, &config.domain) {
        (Some(prefix), _) => async_nats::jetstream::with_prefix(client.clone(), prefix),
        (None, Some(domain)) => async_nats::jetstream::with_domain(client.clone(), domain),
        (None, None) => async_nats::jetstream::new(client.clone()),
    };
    let api_prefix = match (&config.api_prefix, &config.domain) {
        (Some(prefix), _) => prefix.as_str().into(),
        (None, Some(domain)) => format!("$JS.{domain}.API").into(),
        (None, None) => "$JS.API".into(),
    };
    Ok(Session { client, jetstream, api_prefix, lost, told })
}

/// A tunnel to the hub, and the door to it.
async fn to_hub(
    config: &LinkConfig,
    address: &Address,
    hubs: &SharedHubs,
    urgency: Urgency,
    told: &Arc<Told>,
) -> Result<Loopback, ConnectError> {
    let server = || address.url.clone();
    let unusable = ConnectError::Unusable;
    let hubs = hubs.as_ref().ok_or(unusable("quic:// without a transport"))?;
    let pass = config.pass().ok_or(unusable("quic:// without certificates or token"))?;
    let at = hub::address_of(&address.url).ok_or(unusable("the address of the hub"))?;
    let tunnel = hubs.tunnel(&pass, at, urgency).await;
    let tunnel = tunnel.map_err(|source| ConnectError::Tunnel { server: server(), source })?;
    let told = Arc::clone(told);
    let ended = move |cause: String| {
        // What the client library says first is that a socket on this machine was closed.
        if !cause.is_empty() {
            let text = format!("the session with the hub ended: {cause}");
            *told.error.lock().unwrap_or_else(PoisonError::into_inner) = Some(text);
        }
    };
    Loopback::open(tunnel, ended).await.map_err(|source| ConnectError::Hub { server: server(), source })
}

/// Credentials as they are this time.
#[derive(Clone)]
enum Identity {
    Nobody,
    User { user: String, password: String },
    Token(String),
    Key(Arc<nkeys::KeyPair>),
    Jwt { jwt: String, key: Arc<nkeys::KeyPair> },
}

impl Identity {
    async fn read(credentials: &Credentials, address: &Address) -> Result<Self, ConnectError> {
        Ok(match credentials {
            Credentials::None => match &address.user {
                None => Self::Nobody,
                // As elsewhere: a user alone is a token.
                Some((token, password)) if password.is_empty() => Self::Token(token.clone()),
                Some((user, password)) => Self::User { user: user.clone(), password: password.clone() },
            },
            Credentials::User { user, password } => {
                Self::User { user: user.clone(), password: read_secret("the password", password).await? }
            }
            Credentials::Token(token) => Self::Token(read_secret("the token", token).await?),
            Credentials::NKey(seed) => Self::Key(key_pair(&read_secret("the seed", seed).await?)?),
            Credentials::Creds(creds) => {
                let text = read_secret("the credentials", creds).await?;
                let jwt = section(&text, "NATS USER JWT").ok_or(ConnectError::Unusable("the credentials"))?;
                let seed =
                    section(&text, "USER NKEY SEED").ok_or(ConnectError::Unusable("the credentials"))?;
                Self::Jwt { jwt: jwt.to_owned(), key: key_pair(seed)? }
            }
        })
    }

    fn answer(&self, nonce: &[u8]) -> Result<async_nats::Auth, AuthError> {
        let mut auth = async_nats::Auth::new();
        let sign = |key: &nkeys::KeyPair| {
            key.sign(nonce).map_err(|_without_seed| AuthError::new("the key cannot sign"))
        };
        match self {
            Self::Nobody => {}
            Self::User { user, password } => {
                auth.username = Some(user.clone());
                auth.password = Some(password.clone());
            }
            Self::Token(token) => auth.token = Some(token.clone()),
            Self::Key(key) => {
                auth.nkey = Some(key.public_key());
                auth.signature = Some(sign(key)?);
            }
            Self::Jwt { jwt, key } => {
                auth.jwt = Some(jwt.clone());
                auth.signature = Some(sign(key)?);
            }
        }
        Ok(auth)
    }
}

fn key_pair(seed: &str) -> Result<Arc<nkeys::KeyPair>, ConnectError> {
    nkeys::KeyPair::from_seed(seed).map(Arc::new).map_err(|_invalid| ConnectError::Unusable("the seed"))
}

/// The line behind `-----BEGIN <name>-----`. Not up to the dashes that end it: the text may have dashes too.
fn section<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = text.lines().map(str::trim).skip_while(|line| !line.contains(&format!("BEGIN {name}")));
    lines.next()?;
    lines.find(|line| !line.is_empty()).filter(|line| !line.starts_with("---"))
}

async fn read_secret(what: &str, secret: &Secret) -> Result<String, ConnectError> {
    match secret {
        Secret::Value(value) => Ok(value.clone()),
        Secret::File(path) => {
            let path = path.clone();
            let what = format!("{what} from {}", path.display());
            let read = tokio::task::spawn_blocking(move || {
                let length = std::fs::metadata(&path)?.len();
                if length > SECRET_BYTES_MAX {
                    return Err(std::io::Error::other("the file is too large for a secret"));
                }
                std::fs::read_to_string(&path)
            });
            match read.await {
                Ok(Ok(text)) => Ok(text.trim_end_matches(['\r', '\n']).to_owned()),
                Ok(Err(source)) => Err(ConnectError::Secret { what, source }),
                Err(error) => Err(ConnectError::Secret { what, source: std::io::Error::other(error) }),
            }
        }
    }
}

/// Not for secrets: jitter, and which address is first.
fn random() -> u64 {
    use std::hash::BuildHasher as _;
    static COUNT: AtomicU64 = AtomicU64::new(0);
    foldhash::fast::RandomState::default().hash_one(COUNT.fetch_add(1, Ordering::Relaxed))
}

/// From 0 to 1.
pub(crate) fn random_fraction() -> f64 {
    (random() >> 11) as f64 / (1_u64 << 53) as f64
}
