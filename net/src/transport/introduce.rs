//! The handshake on a connection, from both sides, and which of two connections stays.
//!
//! Both sides may dial. Of two connections within the same pair of processes the one that the lower id dialled
//! stays, of two from the same side the later. A connection from another process with the id of one that
//! still answers is a copy, and refused; from one that does not answer any more, or whose address it has, it is
//! its successor.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quinn::{Connection, RecvStream, SendStream};
use rustls_pki_types::CertificateDer;
use tokio::time::timeout;
use tracing::error;

use super::endpoint::Inner;
use super::session::{Live, Shown, close};
use super::settings::Kind;
use crate::certificates::{Certificate, Identity, Loaded};
use crate::handshake::{self, Hello, MESSAGE_BYTES_MAX, Message, Ours, Reason};
use crate::peer::{Introduction, PeerId, Refusal, Role, Session};

/// How long the reason of a lost stream is waited for.
const REASON_MAX: Duration = Duration::from_secs(1);

/// A handshake that did not end in a session.
#[derive(Debug)]
pub(super) enum Failed {
    /// We said no. With the name in the certificate, if it came that far.
    Refused { reason: Reason, name: String, detail: String },
    /// The other side, or the network.
    Lost(quinn::ConnectionError),
}

impl Failed {
    fn refused(reason: Reason) -> Self {
        Self::Refused { reason, name: String::new(), detail: String::new() }
    }

    fn malformed(error: handshake::Malformed) -> Self {
        Self::Refused { reason: Reason::Malformed, name: String::new(), detail: error.0.to_owned() }
    }
}

impl Inner {
    /// Of who dialled. Closes the connection when it fails.
    pub(super) async fn introduce_to(
        self: &Arc<Self>,
        connection: Connection,
        expected: Option<PeerId>,
    ) -> Result<Arc<Live>, Failed> {
        let result = self.dialled(&connection, expected).await;
        ended(&connection, result).await
    }

    /// Of who was dialled. Closes the connection when it fails.
    pub(super) async fn introduce_by(self: &Arc<Self>, connection: Connection) -> Result<Arc<Live>, Failed> {
        let result = self.accepted(&connection).await;
        ended(&connection, result).await
    }

    async fn dialled(
        self: &Arc<Self>,
        connection: &Connection,
        expected: Option<PeerId>,
    ) -> Result<Arc<Live>, Failed> {
        let dial = self.dials.next();
        let loaded = self.certificates.current();
        let (certificate, identity) = certificate_of(connection)?.ok_or(Failed::refused(Reason::Tls))?;
        // Before the first word: another edge of the same authority must not be shown our token.
        if !self.options.kind.accepts().contains(&identity.role) {
            return Err(Failed::refused(Reason::WrongRole));
        }
        let (mut send, mut recv) = connection.open_bi().await.map_err(Failed::Lost)?;
        write(connection, &mut send, &Message::Hello(self.hello(&loaded, dial))).await?;
        let Message::Welcome(hello) = read(connection, &mut recv).await? else {
            return Err(Failed::refused(Reason::Malformed));
        };
        self.forget_predecessors(&identity, &hello).await;
        let version = self.judge(&loaded, &identity, &hello, expected)?;
        self.admit(&hello)?;
        write(connection, &mut send, &Message::Confirm { version }).await?;
        drop(send.finish());
        self.install(connection, hello, Shown::Certificate(Box::new(certificate)), true, dial).await
    }

    async fn accepted(self: &Arc<Self>, connection: &Connection) -> Result<Arc<Live>, Failed> {
        let loaded = self.certificates.current();
        let certificate = certificate_of(connection)?;
        let (mut send, mut recv) = connection.accept_bi().await.map_err(Failed::Lost)?;
        let Message::Hello(mut hello) = read(connection, &mut recv).await? else {
            return Err(Failed::refused(Reason::Malformed));
        };
        let (shown, identity) = match certificate {
            Some((certificate, identity)) => (Shown::Certificate(Box::new(certificate)), identity),
            None if self.options.kind.takes_tokens() => self.token_of(connection, &loaded, &mut hello)?,
            None => return Err(Failed::refused(Reason::Tls)),
        };
        self.forget_predecessors(&identity, &hello).await;
        let version = self.judge(&loaded, &identity, &hello, None)?;
        self.make_way(connection, &hello).await?;
        self.admit(&hello)?;
        write(connection, &mut send, &Message::Welcome(self.hello(&loaded, 0))).await?;
        drop(send.finish());
        match read(connection, &mut recv).await? {
            Message::Confirm { version: theirs } if theirs == version => {}
            Message::Confirm { .. } | Message::Hello(_) | Message::Welcome(_) => {
                return Err(Failed::refused(Reason::Malformed));
            }
        }
        let dial = hello.dial;
        self.install(connection, hello, shown, false, dial).await
    }

    /// Of who has no certificate: who its token says it is. The token is in the claims, and taken out of them.
    fn token_of(
        &self,
        connection: &Connection,
        loaded: &Loaded,
        hello: &mut Hello,
    ) -> Result<(Shown, Identity), Failed> {
        let token = std::mem::take(&mut hello.claims);
        let from = connection.remote_address().ip();
        // It has proved no name. One that has tokens here is told all the same: it may be the wrong one of an edge.
        let name = if loaded.tokens.knows(&hello.name) { hello.name.clone() } else { String::new() };
        let refused = |reason| Failed::Refused { reason, name, detail: String::new() };
        if !self.guesses.may_try(from) {
            return Err(refused(Reason::Guessing));
        }
        // Also whoever came while tokens were taken, and they are not any more.
        let digest = loaded.tokens.verify(&hello.name, &token);
        let named = Identity::new(&loaded.identity.cluster, Role::Edge, &hello.name);
        match (digest, named) {
            (Some(digest), Ok(identity)) if !loaded.revocations.names(&identity.name) => {
                Ok((Shown::Token(digest), identity))
            }
            _ => {
                self.guesses.was_wrong(from);
                Err(refused(Reason::Token))
            }
        }
    }

    fn hello(&self, loaded: &Loaded, dial: u64) -> Hello {
        let claims = match &loaded.token {
            Some(token) => Bytes::copy_from_slice(token.reveal().as_bytes()),
            None => (self.options.claims)(),
        };
        // Ours to keep: a claim that is cut would be another claim.
        assert!(claims.len() <= handshake::CLAIMS_BYTES_MAX, "claims are within their bound");
        Hello {
            version_lowest: handshake::VERSION_LOWEST,
            version_highest: handshake::VERSION_HIGHEST,
            id: self.options.id,
            incarnation: self.options.incarnation,
            dial,
            role: loaded.identity.role,
            cluster: loaded.identity.cluster.clone(),
            name: loaded.identity.name.clone(),
            advertise: self.options.advertise.clone(),
            claims,
        }
    }

    /// Between an edge and its hub the certificate alone says who somebody is: nobody votes, so that a store
    /// that was emptied or renamed is no danger. The one that answers stays.
    async fn forget_predecessors(&self, certificate: &Identity, hello: &Hello) {
        if self.options.kind == Kind::Nodes || certificate.name != hello.name {
            return;
        }
        let (by_name, by_id) = self.table.known(hello);
        let other_id = by_name.filter(|known| *known != hello.id);
        let other_name = by_id.filter(|known| *known != hello.name).map(|_| hello.id);
        for known in [other_id, other_name].into_iter().flatten() {
            if let Some(live) = self.table.get(known) {
                if live.answers().await {
                    continue;
                }
                live.close(Reason::Replaced, "");
                live.gone().await;
            }
            self.table.forget(known);
        }
    }

    fn judge(
        &self,
        loaded: &Loaded,
        identity: &Identity,
        hello: &Hello,
        expected: Option<PeerId>,
    ) -> Result<u16, Failed> {
        let (known_by_name, known_by_id) = self.table.known(hello);
        let ours = Ours {
            identity: &loaded.identity,
            id: self.options.id,
            accepts: self.options.kind.accepts(),
            expected,
            known_by_name,
            known_by_id: known_by_id.as_deref(),
        };
        handshake::judge(&ours, identity, hello).map_err(Failed::refused)
    }

    fn admit(&self, hello: &Hello) -> Result<(), Failed> {
        let Some(handler) = self.handler.get() else { return Err(Failed::refused(Reason::Busy)) };
        handler.admit(&introduction(hello)).map_err(|Refusal { code, reason }| Failed::Refused {
            reason: Reason::NotAdmitted,
            name: String::new(),
            detail: format!("{reason} ({code})"),
        })
    }

    /// Before welcoming: is there a session that this one may not replace?
    async fn make_way(&self, connection: &Connection, hello: &Hello) -> Result<(), Failed> {
        let Some(existing) = self.table.get(hello.id) else { return Ok(()) };
        let same_process = existing.peer.incarnation == hello.incarnation;
        if same_process && self.preferred(hello.id, false, hello.dial, &existing) {
            return Ok(());
        }
        // Another process has the very socket: who had it before has ended, and is not waited for.
        let took_over = !same_process && existing.connection.remote_address() == connection.remote_address();
        if !took_over && existing.answers().await {
            let reason = if same_process { Reason::AlreadyConnected } else { Reason::IdTaken };
            return Err(Failed::refused(reason));
        }
        existing.close(Reason::Replaced, "");
        existing.gone().await;
        Ok(())
    }

    /// Whether a new connection of the same two processes stays, and the existing one goes.
    fn preferred(&self, peer: PeerId, dialled_by_us: bool, dial: u64, existing: &Live) -> bool {
        if existing.dialled_by_us == dialled_by_us {
            return dial > existing.dial;
        }
        dialled_by_us == (self.options.id < peer)
    }

    /// Makes the connection the session with its peer, or finds that another one stays.
    async fn install(
        self: &Arc<Self>,
        connection: &Connection,
        hello: Hello,
        shown: Shown,
        dialled_by_us: bool,
        dial: u64,
    ) -> Result<Arc<Live>, Failed> {
        let Some(handler) = self.handler.get() else { return Err(Failed::refused(Reason::Busy)) };
        let counts = self.table.remember(hello.id, &hello.name).map_err(Failed::refused)?;
        let session = Session { peer: hello.id, number: self.sessions.next() };
        let peer = introduction(&hello);
        let live = Live::new(session, connection.clone(), peer, shown, dialled_by_us, dial, counts);
        let live = Arc::new(live);
        while let Err(existing) = self.table.insert(&live) {
            let same_process = existing.peer.incarnation == hello.incarnation;
            // Another process was made way for before; if there is one again, the next attempt decides.
            if !same_process || !self.preferred(hello.id, dialled_by_us, dial, &existing) {
                return Err(Failed::refused(Reason::AlreadyConnected));
            }
            existing.close(Reason::Replaced, "");
            existing.gone().await;
        }
        if *self.closing.borrow() {
            self.table.remove(&live);
            return Err(Failed::refused(Reason::Leaving));
        }
        let (inner, running, handler) = (Arc::clone(self), Arc::clone(&live), Arc::clone(handler));
        let tunnels = self.tunnels.get().cloned();
        tokio::spawn(async move {
            // By itself, so that a handler that panics leaves no session behind.
            if let Err(panic) = tokio::spawn(Arc::clone(&running).run(handler, tunnels)).await {
                error!(peer = %running.peer.name, err = %panic, "a session failed");
                running.close(Reason::Reset, "internal");
            }
            inner.table.remove(&running);
            running.ended();
        });
        Ok(live)
    }
}

async fn ended(connection: &Connection, result: Result<Arc<Live>, Failed>) -> Result<Arc<Live>, Failed> {
    match result {
        Ok(live) => Ok(live),
        Err(Failed::Refused { reason, name, detail }) => {
            let name = if name.is_empty() { name_of(connection) } else { name };
            close(connection, reason, &detail);
            Err(Failed::Refused { reason, name, detail })
        }
        // A stream ended; the reason comes with the connection's own end, which may be a packet later.
        Err(Failed::Lost(lost)) => {
            let closed = timeout(REASON_MAX, connection.closed()).await;
            Err(Failed::Lost(closed.unwrap_or(lost)))
        }
    }
}

fn introduction(hello: &Hello) -> Introduction {
    Introduction {
        cluster: hello.cluster.clone(),
        name: hello.name.clone(),
        role: hello.role,
        id: hello.id,
        incarnation: hello.incarnation,
        advertise: hello.advertise.clone(),
        claims: hello.claims.clone(),
    }
}

/// `None`: it showed none, which TLS lets pass only where tokens are taken.
fn certificate_of(connection: &Connection) -> Result<Option<(Certificate, Identity)>, Failed> {
    let chain =
        connection.peer_identity().and_then(|identity| identity.downcast::<Vec<CertificateDer<'_>>>().ok());
    let Some(leaf) = chain.as_ref().and_then(|chain| chain.first()) else { return Ok(None) };
    // TLS let it pass, so it names somebody.
    let certificate = Certificate::read(leaf).map_err(|_error| Failed::refused(Reason::Tls))?;
    let identity = certificate.identity().map_err(|_error| Failed::refused(Reason::Tls))?.clone();
    Ok(Some((certificate, identity)))
}

/// The name in its certificate, if it has shown one.
fn name_of(connection: &Connection) -> String {
    match certificate_of(connection) {
        Ok(Some((_, identity))) => identity.name,
        Ok(None) | Err(_) => String::new(),
    }
}

async fn write(connection: &Connection, send: &mut SendStream, message: &Message) -> Result<(), Failed> {
    let written = send.write_all(&message.encode()).await;
    written.map_err(|_error| lost(connection))
}

async fn read(connection: &Connection, recv: &mut RecvStream) -> Result<Message, Failed> {
    let mut header = [0; handshake::HEADER_BYTES];
    recv.read_exact(&mut header).await.map_err(|_error| lost(connection))?;
    let (kind, length) = Message::header(header).map_err(Failed::malformed)?;
    debug_assert!(length <= MESSAGE_BYTES_MAX);
    let mut body = vec![0; length];
    recv.read_exact(&mut body).await.map_err(|_error| lost(connection))?;
    Message::decode(kind, &body).map_err(Failed::malformed)
}

fn lost(connection: &Connection) -> Failed {
    Failed::Lost(connection.close_reason().unwrap_or(quinn::ConnectionError::LocallyClosed))
}
