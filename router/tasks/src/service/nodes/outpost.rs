//! At each node of a cluster: knows the workers that are connected there, for the node that leads.
//!
//! * It tells the leader who is subscribed to assignment subjects, passes heartbeats on with the connection they
//!   came by, and gives jobs to the very subscription that the leader chose.
//! * Results find the leader by themselves, through the mesh. They are remembered here for a minute and said
//!   again to a leader that is new: one that died may have taken them with it. A result counts once, however
//!   often it is said.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use beamlog_router::Router;
use beamlog_router::interest::{Envelope, Interest, Member, RouteCache, SubscriberKind, SubscriptionKey};
use bytes::Bytes;
use tracing::{debug, error};

use super::super::inbox::{HERE, Inbox, InboxLimits, Incoming, NODES};
use super::super::{ASSIGN_ACK, instant};
use super::words::{self, MEMBERS_MAX, Word};
use crate::engine::settings::subjects;

/// What workers said that is remembered.
const SAID_MAX: usize = 10_000;
const SAID_BYTES_MAX: usize = 16 << 20;
const SAID_FOR: Duration = Duration::from_secs(60);
/// A leader that says nothing for this long is none.
const LEADER_SILENT: Duration = Duration::from_secs(5);
const LIMITS: InboxLimits = InboxLimits { requests_max: 10_000, bytes_max: 16 << 20 };

/// What a node knows of tasks that another node runs.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Seen {
    /// The node that leads, while it is heard.
    pub leader: Option<String>,
    /// 0 none, 1 a warning, 2 overloaded.
    pub pressure: u64,
    pub queued: u64,
}

/// A running outpost. Dropping it stops it without waiting.
#[derive(Debug)]
pub struct Outpost {
    inbox: Arc<Inbox<Post>>,
    interest: Arc<Interest>,
    keys: Vec<SubscriptionKey>,
    seen: Arc<Mutex<Seen>>,
    _thread: JoinHandle<()>,
}

impl Outpost {
    /// # Errors
    /// There is no thread for it.
    pub fn start(router: &Router) -> std::io::Result<Self> {
        let interest = Arc::clone(router.interest());
        let inbox = Arc::new(Inbox::new(LIMITS));
        let seen = Arc::new(Mutex::new(Seen::default()));
        let me = router.node_id().to_string();
        let mine = format!("{}{me}", words::NODE);
        let mut post = Post {
            me,
            interest: Arc::clone(&interest),
            inbox: Arc::clone(&inbox),
            routes: RouteCache::new(),
            term: 0,
            leader: None,
            heard_at: instant(),
            watching: true,
            subjects: BTreeSet::new(),
            members: BTreeMap::new(),
            said: VecDeque::new(),
            said_bytes: 0,
            seen: Arc::clone(&seen),
        };
        let thread = std::thread::Builder::new().name("beamlog-outpost".into()).spawn(move || post.run())?;
        let subscribe = |kind, filter: &str, id| {
            interest
                .subscribe_as(kind, filter.as_bytes(), None, Arc::clone(&inbox) as _, id)
                .expect("constants and a node's id are filters")
        };
        // A peer's kind gets what is said at this node, and never what another node passed on.
        let here = SubscriberKind::Peer { weight: 1 };
        let keys = [subjects::RESULT, ASSIGN_ACK]
            .into_iter()
            .chain(subjects::HEARTBEATS)
            .map(|subject| subscribe(here, subject, HERE))
            .chain([words::NODES, mine.as_str()].map(|s| subscribe(SubscriberKind::Local, s, NODES)))
            .collect();
        Ok(Self { inbox, interest, keys, seen, _thread: thread })
    }

    /// Whether it speaks for the workers of this node: not where the leader is, which sees them itself. When this
    /// returns, it does.
    pub fn watch(&self, watching: bool) {
        let (sender, receiver) = std::sync::mpsc::channel();
        let job = Box::new(move |post: &mut Post| {
            post.watch(watching);
            if sender.send(()).is_err() {
                debug!("nobody waits for the outpost of tasks any more");
            }
        });
        if self.inbox.run(job) && receiver.recv().is_err() {
            error!("the outpost of tasks has ended");
        }
    }

    /// What it knows of the leader.
    #[must_use]
    pub fn seen(&self) -> Seen {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Outpost {
    fn drop(&mut self) {
        for key in &self.keys {
            self.interest.unsubscribe(key);
        }
        self.inbox.abandon();
    }
}

/// What a worker said.
struct Told {
    at: Instant,
    connection: u64,
    subject: Bytes,
    headers: Bytes,
    payload: Bytes,
}

impl Told {
    fn weight(&self) -> usize {
        256 + self.headers.len() + self.payload.len()
    }
}

/// What the thread owns.
struct Post {
    me: String,
    interest: Arc<Interest>,
    inbox: Arc<Inbox<Self>>,
    routes: RouteCache,
    term: u64,
    leader: Option<String>,
    heard_at: Instant,
    watching: bool,
    /// Those whose members the leader wants to know.
    subjects: BTreeSet<String>,
    members: BTreeMap<u64, Member>,
    said: VecDeque<Told>,
    said_bytes: usize,
    seen: Arc<Mutex<Seen>>,
}

impl Post {
    fn run(&mut self) {
        loop {
            let taken = self.inbox.take(Some(Duration::from_secs(1)));
            if taken.ending.is_some() {
                self.watch(false);
                return;
            }
            for message in taken.messages {
                match message.subscription {
                    NODES => self.heard(&message),
                    _ => self.said_here(message),
                }
            }
            for subject in taken.changed {
                self.report(&String::from_utf8_lossy(&subject));
            }
            for job in taken.jobs {
                job(self);
            }
            self.forget();
            self.routes.flush();
        }
    }

    fn watch(&mut self, watching: bool) {
        self.watching = watching;
        for subject in std::mem::take(&mut self.subjects) {
            self.interest.unobserve(subject.as_bytes());
        }
        self.members.clear();
    }

    fn heard(&mut self, message: &Incoming) {
        // Of a client here: nothing. Nodes have no connection.
        if message.origin != 0 {
            return;
        }
        let said = match words::decode(&message.payload) {
            Ok(said) => said,
            Err(problem) => {
                debug!(err = %problem, "not understood what a node says of tasks");
                return;
            }
        };
        match said.word {
            Word::Leads { term, node, subjects, pressure, queued } if term >= self.term => {
                let is_new = term > self.term;
                self.term = term;
                self.heard_at = instant();
                *self.seen.lock().unwrap_or_else(PoisonError::into_inner) =
                    Seen { leader: Some(node.clone()), pressure, queued };
                let is_elsewhere = node != self.me;
                self.leader = Some(node);
                if is_elsewhere && self.watching {
                    self.follow(subjects.into_iter().collect());
                }
                if is_new {
                    self.say_again();
                }
            }
            Word::Job { term, task, entry, subject } if term == self.term => {
                self.job(task, entry, &subject, said.headers, said.payload);
            }
            Word::Leads { .. }
            | Word::Job { .. }
            | Word::Members { .. }
            | Word::Said { .. }
            | Word::NotTaken { .. } => {}
        }
    }

    /// The leader wants to know of these.
    fn follow(&mut self, wanted: BTreeSet<String>) {
        for subject in self.subjects.difference(&wanted) {
            self.interest.unobserve(subject.as_bytes());
        }
        for subject in wanted.difference(&self.subjects) {
            let inbox = Arc::clone(&self.inbox);
            self.interest.observe(subject.as_bytes(), Arc::new(move |subject| inbox.changed(subject)));
        }
        self.subjects = wanted;
        // Each time, though nothing changed: it is how the leader knows that this node is there.
        let subjects: Vec<String> = self.subjects.iter().cloned().collect();
        self.members.clear();
        for subject in subjects {
            self.report(&subject);
        }
    }

    fn report(&mut self, subject: &str) {
        if !self.subjects.contains(subject) {
            return;
        }
        let mut members = Vec::new();
        for member in self.interest.members(subject.as_bytes()) {
            let connection = member.subscriber.origin();
            // Only connections: what an embedded program subscribes looks on.
            if connection != 0 && members.len() < MEMBERS_MAX {
                members.push((member.entry, connection, member.queue.is_some()));
                self.members.insert(member.entry, member);
            }
        }
        let (node, subject) = (self.me.clone(), subject.to_owned());
        self.tell(&Word::Members { term: self.term, node, subject, members }, b"", b"");
    }

    fn tell(&mut self, word: &Word, headers: &[u8], payload: &[u8]) {
        let raw = words::encode(word, headers, payload);
        let subject = words::LEADER.as_bytes();
        let envelope = Envelope { subject, reply: b"", headers: b"", payload: &raw, origin: 0 };
        self.interest.route_as_node(&mut self.routes, subject, &envelope);
    }

    fn job(&mut self, task: u64, entry: u64, subject: &str, headers: &[u8], payload: &[u8]) {
        let envelope = Envelope { subject: subject.as_bytes(), reply: b"", headers, payload, origin: 0 };
        let taken = self.members.get(&entry).is_some_and(|member| member.give(&envelope));
        if !taken {
            self.members.remove(&entry);
            let node = self.me.clone();
            self.tell(&Word::NotTaken { term: self.term, node, task, entry }, b"", b"");
        }
    }

    /// A worker of this node says something.
    fn said_here(&mut self, message: Incoming) {
        let is_elsewhere = self.leader.as_ref().is_some_and(|leader| *leader != self.me);
        let Incoming { subject, headers, payload, origin: connection, .. } = message;
        let told = Told { at: instant(), connection, subject, headers, payload };
        if subjects::HEARTBEATS.iter().any(|beat| told.subject == beat.as_bytes()) {
            if is_elsewhere && self.watching {
                self.say(&told);
            }
            return;
        }
        self.said_bytes += told.weight();
        self.said.push_back(told);
    }

    fn forget(&mut self) {
        while self.said.front().is_some_and(|told| {
            self.said.len() > SAID_MAX || self.said_bytes > SAID_BYTES_MAX || told.at.elapsed() > SAID_FOR
        }) {
            if let Some(told) = self.said.pop_front() {
                self.said_bytes -= told.weight();
            }
        }
        if self.leader.is_some() && self.heard_at.elapsed() > LEADER_SILENT {
            self.leader = None;
            *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Seen::default();
        }
    }

    /// To a leader that is new: whether the one before kept it, only the log knows.
    fn say_again(&mut self) {
        let said = std::mem::take(&mut self.said);
        for told in &said {
            self.say(told);
        }
        self.said = said;
    }

    fn say(&mut self, told: &Told) {
        let subject = String::from_utf8_lossy(&told.subject).into_owned();
        let (node, connection) = (self.me.clone(), told.connection);
        let word = Word::Said { term: self.term, node, connection, subject };
        self.tell(&word, &told.headers, &told.payload);
    }
}
