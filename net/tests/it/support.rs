//! Nodes for tests: certificates in a temporary directory, a transport on a port of its own, and a handler that
//! remembers what it was told.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use beamlog_net::certificates::{
    Authority, CertificateFiles, Certificates, IDENTITY_FILE, Identity, ROOTS_FILE, write_atomically,
};
use beamlog_net::handshake::Reason;
use beamlog_net::peer::{
    BoxFuture, Introduction, Lane, PeerHandler, PeerId, PeerTransport, Refusal, Role, Session,
};
use beamlog_net::transport::{Kind, PeerAddress, Transport, TransportOptions};
use bytes::Bytes;
use tokio::sync::watch;

pub(crate) const DAY: Duration = Duration::from_secs(24 * 3600);
/// Far more than anything here takes: a test that waits as long has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
pub(crate) const CALL: Duration = Duration::from_secs(30);

/// An authority, and a place for the certificates it issues.
pub(crate) struct Site {
    directory: tempfile::TempDir,
    pub(crate) authority: Authority,
    pub(crate) roots: String,
}

/// The certificate of a PEM text, without its key.
pub(crate) fn public_part(pem: &str) -> String {
    pem.split("-----BEGIN PRIVATE").next().unwrap().to_owned()
}

impl Site {
    pub(crate) fn new(cluster: &str) -> Self {
        let issued = Authority::create(cluster, SystemTime::now(), 365 * DAY).unwrap();
        Self {
            directory: tempfile::tempdir().unwrap(),
            authority: Authority::from_pem(issued.pem.as_bytes()).unwrap(),
            roots: public_part(&issued.pem),
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn write(&self, directory: &Path, name: &str, role: Role, valid: Duration) {
        self.write_as_of(directory, name, role, SystemTime::now(), valid);
    }

    pub(crate) fn write_as_of(
        &self,
        directory: &Path,
        name: &str,
        role: Role,
        at: SystemTime,
        valid: Duration,
    ) {
        let identity = Identity::new(self.authority.cluster(), role, name).unwrap();
        let issued = self.authority.issue(&identity, at, valid).unwrap();
        write_atomically(&directory.join(IDENTITY_FILE), issued.pem.as_bytes()).unwrap();
        write_atomically(&directory.join(ROOTS_FILE), self.roots.as_bytes()).unwrap();
    }

    pub(crate) fn certificates(&self, name: &str, role: Role) -> Certificates {
        let directory = self.path(name);
        self.write(&directory, name, role, 30 * DAY);
        Certificates::load(CertificateFiles::in_directory(&directory)).unwrap()
    }

    pub(crate) fn node(&self, name: &str, id: u64) -> TestNode {
        TestNode::start(options(id), self.certificates(name, Role::Node))
    }
}

pub(crate) fn options(id: u64) -> TransportOptions {
    TransportOptions {
        kind: Kind::Nodes,
        listen: "127.0.0.1:0".parse().unwrap(),
        advertise: String::new(),
        id: PeerId(id),
        incarnation: fastrand::u64(..),
        claims: Arc::new(|| Bytes::from_static(b"claims")),
    }
}

pub(crate) struct TestNode {
    pub(crate) transport: Transport,
    pub(crate) handler: Arc<Recorder>,
    pub(crate) id: PeerId,
}

impl TestNode {
    pub(crate) fn start(options: TransportOptions, certificates: Certificates) -> Self {
        let id = options.id;
        Self::of(Transport::bind(options, certificates).unwrap(), id)
    }

    pub(crate) fn of(transport: Transport, id: PeerId) -> Self {
        let handler = Arc::new(Recorder::default());
        transport.start(Arc::clone(&handler) as Arc<dyn PeerHandler>);
        Self { transport, handler, id }
    }

    pub(crate) fn address(&self) -> String {
        self.transport.local_address().to_string()
    }

    pub(crate) fn entry(&self) -> PeerAddress {
        PeerAddress { id: Some(self.id), addresses: vec![self.address()] }
    }

    pub(crate) async fn connected_with(&self, peer: PeerId) -> Session {
        self.handler
            .until(|seen| seen.connected.iter().rev().find(|s| s.peer == peer && !seen.ended(s)).copied())
            .await
    }

    pub(crate) async fn refused(&self, reason: Reason) {
        wait_for(&format!("a refusal: {reason:?}"), || {
            self.transport.refusals().iter().any(|count| count.reason == reason)
        })
        .await;
    }

    pub(crate) async fn echo(&self, peer: PeerId, lane: Lane, request: &[u8]) -> Bytes {
        self.transport.call(peer, lane, Bytes::copy_from_slice(request), CALL).await.unwrap()
    }

    /// Nobody got in.
    pub(crate) fn saw_nobody(&self) -> bool {
        self.handler.seen().connected.is_empty() && self.transport.peers().is_empty()
    }
}

/// Answers by what it was asked, and remembers.
#[derive(Default)]
pub(crate) struct Recorder {
    seen: Mutex<Seen>,
    changed: watch::Sender<u64>,
    refuses: Mutex<Option<Refusal>>,
}

#[derive(Clone, Default)]
pub(crate) struct Seen {
    pub(crate) connected: Vec<Session>,
    pub(crate) disconnected: Vec<Session>,
    pub(crate) introductions: Vec<Introduction>,
    pub(crate) frames: Vec<(Session, Bytes)>,
}

impl Seen {
    pub(crate) fn ended(&self, session: &Session) -> bool {
        self.disconnected.contains(session)
    }
}

impl Recorder {
    pub(crate) fn refuse(&self, refusal: Option<Refusal>) {
        *self.refuses.lock().unwrap() = refusal;
    }

    pub(crate) fn seen(&self) -> Seen {
        self.seen.lock().unwrap().clone()
    }

    fn note(&self, change: impl FnOnce(&mut Seen)) {
        change(&mut self.seen.lock().unwrap());
        self.changed.send_modify(|count| *count += 1);
    }

    /// Waits until the condition has an answer.
    pub(crate) async fn until<T>(&self, mut condition: impl FnMut(&Seen) -> Option<T>) -> T {
        let mut changes = self.changed.subscribe();
        let wait = async {
            loop {
                changes.borrow_and_update();
                if let Some(found) = condition(&self.seen.lock().unwrap()) {
                    return found;
                }
                changes.changed().await.unwrap();
            }
        };
        patiently("a session to change", wait).await
    }
}

impl PeerHandler for Recorder {
    fn call(&self, _: PeerId, lane: Lane, request: Bytes) -> BoxFuture<'static, Result<Bytes, Refusal>> {
        Box::pin(async move {
            match request.as_ref() {
                b"refuse" => Err(Refusal { code: 77, reason: "as asked".to_owned() }),
                b"never" => std::future::pending().await,
                b"panic" => panic!("as asked"),
                b"largest" => Ok(Bytes::from(vec![7; lane.bytes_max()])),
                b"too large" => Ok(Bytes::from(vec![7; lane.bytes_max() + 1])),
                _ => Ok(request),
            }
        })
    }

    fn received(&self, from: Session, lane: Lane, frame: Bytes) {
        assert_eq!(lane, Lane::Mesh);
        self.note(|seen| {
            assert!(seen.connected.contains(&from) && !seen.ended(&from), "a frame out of its session");
            seen.frames.push((from, frame));
        });
    }

    fn admit(&self, _: &Introduction) -> Result<(), Refusal> {
        self.refuses.lock().unwrap().clone().map_or(Ok(()), Err)
    }

    fn connected(&self, session: Session, peer: &Introduction) {
        self.note(|seen| {
            let open = |other: &&Session| other.peer == session.peer && !seen.ended(other);
            assert_eq!(seen.connected.iter().find(open), None, "one session at a time");
            seen.connected.push(session);
            seen.introductions.push(peer.clone());
        });
    }

    fn disconnected(&self, session: Session) {
        self.note(|seen| {
            assert!(seen.connected.contains(&session) && !seen.ended(&session));
            seen.disconnected.push(session);
        });
    }
}

pub(crate) async fn patiently<T>(what: &str, wait: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("waited too long for {what}"))
}

/// For what nobody tells: looks again and again.
pub(crate) async fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    patiently(what, async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}
