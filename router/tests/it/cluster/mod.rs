//! Drivers that replicate each other in one thread: a stand-in for Raft with one hand on everything, so that a
//! test says who leads, who hears what and who crashes. It has Raft's rules (quorum, terms, who may be
//! elected, what is truncated) and nothing of its messages.

mod failing;
mod leading;
mod model;
mod rolling;

use std::collections::{BTreeMap, VecDeque};
use std::future::{Future, IntoFuture};
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use beamlog_log::sim_disk::{Crash, SimDisk};
use beamlog_log::{Damage, EntryId, Index, LogEntry, NodeId, SeededRandom, ShardId, Term, Timestamp};
use beamlog_router::api::request::{Answer, PublishOutcome, Request};
use beamlog_router::embed::PlainWire;
use beamlog_router::headers::Builder;
use beamlog_router::replica::{
    Proposal, Replica, ReplicaEntry, ReplicaError, ReplicaState, Replicator, Role,
};
use beamlog_router::{Clocks, PublishTicket, Router, RouterOptions, Stepper, TicketFuture};

/// Time for all nodes, moved by hand.
#[derive(Clone)]
struct ByHand(Arc<Mutex<(Instant, u64)>>);

impl ByHand {
    #[expect(
        clippy::disallowed_methods,
        reason = "an instant cannot be had otherwise; only differences count"
    )]
    fn new() -> Self {
        Self(Arc::new(Mutex::new((Instant::now(), 1_700_000_000_000_000_000))))
    }

    fn pass(&self, time: Duration) {
        let mut at = self.0.lock().unwrap();
        at.0 += time;
        at.1 += u64::try_from(time.as_nanos()).unwrap();
    }
}

impl Clocks for ByHand {
    fn monotonic(&self) -> Instant {
        self.0.lock().unwrap().0
    }

    fn wall(&self) -> u64 {
        self.0.lock().unwrap().1
    }
}

/// What a node's driver said.
enum Event {
    Propose(Proposal),
    Confirm(u64),
    Appended(Result<EntryId, ReplicaError>),
    Committed(Result<EntryId, ReplicaError>),
}

/// A node's driver speaks into the hand.
struct Ear {
    node: usize,
    events: Arc<Mutex<VecDeque<(usize, u64, Event)>>>,
    life: u64,
    roles: Arc<Mutex<Vec<Role>>>,
    damage: Arc<Mutex<Option<Damage>>>,
}

impl Ear {
    fn say(&self, event: Event) {
        self.events.lock().unwrap().push_back((self.node, self.life, event));
    }
}

impl Replicator for Ear {
    fn propose(&self, proposal: Proposal) {
        self.say(Event::Propose(proposal));
    }

    fn confirm_leadership(&self, id: u64) {
        self.say(Event::Confirm(id));
    }

    fn role_changed(&self, role: Role) {
        self.roles.lock().unwrap().push(role);
    }

    fn damaged(&self, damage: &Damage) {
        *self.damage.lock().unwrap() = Some(damage.clone());
    }
}

struct Live {
    router: Router,
    replica: Replica,
    stepper: Stepper,
}

struct Node {
    disk: SimDisk,
    live: Option<Live>,
    life: u64,
    /// Its log as replication sees it: entry `i` at `i - 1`, with what was asked to be appended.
    log: Vec<LogEntry>,
    /// Up to here the driver said that it is durable.
    durable: u64,
    /// The term in which it believes to lead.
    leads: Option<u64>,
    /// What the hand told it is committed.
    told: u64,
    hears: bool,
    hears_commits: bool,
    fails: bool,
    roles: Arc<Mutex<Vec<Role>>>,
    damage: Arc<Mutex<Option<Damage>>>,
    unanswered: Vec<u64>,
}

pub(super) struct Cluster {
    nodes: Vec<Node>,
    events: Arc<Mutex<VecDeque<(usize, u64, Event)>>>,
    clock: ByHand,
    term: u64,
    leader: usize,
    committed: u64,
    /// The committed entries as they were when they became that.
    history: Vec<EntryId>,
    /// State at an index, as the first node that had it told it.
    states: BTreeMap<Index, (usize, Vec<Vec<u8>>)>,
    compared: usize,
    options: RouterOptions,
    /// Followers hear of commits only with the next entries.
    pub(super) late_commits: bool,
}

impl Cluster {
    pub(super) fn new(count: usize) -> Self {
        Self::with_options(count, RouterOptions::for_simulation())
    }

    pub(super) fn with_options(count: usize, options: RouterOptions) -> Self {
        let nodes = (0..count).map(|_| Node::new(SimDisk::new())).collect();
        let mut cluster = Self {
            nodes,
            events: Arc::default(),
            clock: ByHand::new(),
            term: 0,
            leader: 0,
            committed: 0,
            history: Vec::new(),
            states: BTreeMap::new(),
            compared: 0,
            options,
            late_commits: false,
        };
        for node in 0..count {
            cluster.start(node);
        }
        cluster
    }

    /// With node 0 leading and everybody caught up.
    pub(super) fn led(count: usize) -> Self {
        let mut cluster = Self::new(count);
        cluster.elect(0);
        cluster.settle();
        cluster
    }

    pub(super) fn start(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        node.life += 1;
        let ear = Ear {
            node: at,
            events: Arc::clone(&self.events),
            life: node.life,
            roles: Arc::clone(&node.roles),
            damage: Arc::clone(&node.damage),
        };
        let (router, replica, stepper) = Router::open_stepped(
            Path::new("/data"),
            Arc::new(node.disk.clone()),
            &self.options,
            Arc::new(PlainWire),
            Arc::new(ear),
            Box::new(self.clock.clone()),
            NodeId([u8::try_from(at + 1).unwrap(); 16]),
        )
        .unwrap();
        node.live = Some(Live { router, replica, stepper });
        let state = self.state(at);
        if let Some(doubt) = &state.doubt {
            // The hand knows that what was never confirmed counted nowhere.
            assert!(doubt.first.0 > self.nodes[at].durable, "what was durable is in doubt");
            self.live(at).replica.settle_tail(None, Box::new(|settled| settled.unwrap()));
            self.step(at);
        }
        let node = &mut self.nodes[at];
        assert!(state.last.index.0 >= node.durable, "node {at} forgot what it said is durable");
        // What was under way may be there or not, and what it was to take the place of.
        let from = state.history_from.index.0;
        node.log.truncate(usize::try_from(from.min(state.last.index.0)).unwrap());
        let entries = self.read(at, from + 1, state.last.index.0 + 1);
        let node = &mut self.nodes[at];
        node.log.extend(entries);
        node.durable = state.last.index.0;
        node.told = state.applied.index.0;
        (node.leads, node.hears) = (None, true);
        for (entry, at) in node.log.iter().zip(1..) {
            assert_eq!(entry.id.index, Index(at));
        }
    }

    /// Reads entries out of a driver.
    fn read(&mut self, at: usize, from: u64, to: u64) -> Vec<LogEntry> {
        let told = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&told);
        let done =
            Box::new(move |read: Result<Vec<LogEntry>, ReplicaError>| *sink.lock().unwrap() = read.unwrap());
        self.live(at).replica.read(Index(from), Index(to), usize::MAX, done);
        self.step(at);
        std::mem::take(&mut *told.lock().unwrap())
    }

    /// The router of a node closes in good order.
    pub(super) fn close(&mut self, at: usize) {
        let Live { router, replica, mut stepper } = self.nodes[at].live.take().unwrap();
        router.close().unwrap();
        while !stepper.step().closed {}
        stepper.close().unwrap();
        let refused = Arc::new(Mutex::new(None));
        let sink = Arc::clone(&refused);
        replica.committed(Index(1), Box::new(move |done| *sink.lock().unwrap() = Some(done)));
        assert_eq!(*refused.lock().unwrap(), Some(Err(ReplicaError::Closed)));
        self.nodes[at].leads = None;
    }

    /// An empty store in the place of the one that was there.
    pub(super) fn replace_disk(&mut self, at: usize, disk: SimDisk) {
        self.nodes[at] = Node::new(disk);
    }

    /// What a node's driver appends may fail.
    pub(super) fn fails(&mut self, at: usize) {
        self.nodes[at].fails = true;
    }

    pub(super) fn withhold_commits(&mut self, at: usize, withhold: bool) {
        self.nodes[at].hears_commits = !withhold;
    }

    pub(super) fn crash(&mut self, at: usize, crash: Crash) {
        let node = &mut self.nodes[at];
        node.live = None;
        node.leads = None;
        node.disk.crash(crash);
    }

    pub(super) fn is_up(&self, at: usize) -> bool {
        self.nodes[at].live.is_some()
    }

    fn live(&mut self, at: usize) -> &mut Live {
        self.nodes[at].live.as_mut().unwrap()
    }

    pub(super) fn router(&self, at: usize) -> &Router {
        &self.nodes[at].live.as_ref().unwrap().router
    }

    pub(super) fn disk(&self, at: usize) -> &SimDisk {
        &self.nodes[at].disk
    }

    pub(super) fn replica(&self, at: usize) -> &Replica {
        &self.nodes[at].live.as_ref().unwrap().replica
    }

    pub(super) fn leader(&self) -> usize {
        self.leader
    }

    pub(super) fn roles(&self, at: usize) -> Vec<Role> {
        self.nodes[at].roles.lock().unwrap().clone()
    }

    pub(super) fn damage(&self, at: usize) -> Option<Damage> {
        self.nodes[at].damage.lock().unwrap().clone()
    }

    /// Cuts a node off from the others, or lets it hear them again.
    pub(super) fn hears(&mut self, at: usize, hears: bool) {
        self.nodes[at].hears = hears;
    }

    pub(super) fn state(&mut self, at: usize) -> ReplicaState {
        let told = Arc::new(Mutex::new(None));
        let sink = Arc::clone(&told);
        self.live(at).replica.state(Box::new(move |state| *sink.lock().unwrap() = Some(state)));
        self.step(at);
        let state = told.lock().unwrap().take();
        state.unwrap()
    }

    /// One step of one driver, and what must hold after it.
    pub(super) fn step(&mut self, at: usize) -> bool {
        let stepped = self.live(at).stepper.step();
        if let Some((index, rows)) = self.live(at).stepper.state_rows() {
            let (first, known) = self.states.entry(index).or_insert_with(|| (at, rows.clone()));
            assert!(
                *known == rows,
                "node {at} has another state at {index} than node {first}: {:?}",
                known.iter().zip(&rows).filter(|(a, b)| a != b).collect::<Vec<_>>()
            );
            self.compared += usize::from(*first != at);
        }
        stepped.progress || stepped.next == Some(Duration::ZERO)
    }

    /// May this node be elected: has a quorum that it hears nothing newer than it has?
    pub(super) fn electable(&self, at: usize) -> bool {
        let last = |node: &Node| {
            node.log
                .get(..usize::try_from(node.durable).unwrap())
                .and_then(|log| log.last())
                .map(|entry| (entry.id.term, entry.id.index))
        };
        let own = last(&self.nodes[at]);
        let votes = self.nodes.iter().filter(|node| node.live.is_some() && node.hears && last(node) <= own);
        self.is_up(at) && self.nodes[at].hears && votes.count() > self.nodes.len() / 2
    }

    /// A new term. The old leader does not hear of it yet.
    pub(super) fn elect(&mut self, at: usize) {
        // What it was sent is durable before it asks for votes.
        self.step(at);
        self.hear();
        assert!(self.electable(at), "node {at} lacks what others have");
        self.term += 1;
        self.leader = at;
        let node = &mut self.nodes[at];
        node.leads = Some(self.term);
        let term = Term(self.term);
        self.live(at).replica.become_leader(term);
        self.append_own(at, b"", None);
    }

    /// An entry of replication itself, by the leader.
    pub(super) fn change_membership(&mut self, bytes: &[u8]) {
        self.append_own(self.leader, bytes, None);
    }

    fn append_own(&mut self, at: usize, bytes: &[u8], proposal: Option<Proposal>) {
        let node = &mut self.nodes[at];
        let term = Term(node.leads.unwrap());
        let id = EntryId { index: Index(node.log.len() as u64 + 1), term };
        let (entry, proposal) = match proposal {
            Some(Proposal { id: proposal, timestamp, records, body, term: decided }) => {
                assert_eq!(decided, term, "proposed in another term");
                (LogEntry { id, timestamp, records, body }, Some(proposal))
            }
            None => {
                let now = node.log.last().map_or(Timestamp(1), |last| last.timestamp);
                (LogEntry::of_replication(ShardId(0), id, now, bytes), None)
            }
        };
        self.append(at, vec![ReplicaEntry { entry, proposal }]);
    }

    fn append(&mut self, at: usize, entries: Vec<ReplicaEntry>) {
        let (events, life) = (Arc::clone(&self.events), self.nodes[at].life);
        let node = &mut self.nodes[at];
        node.log.extend(entries.iter().map(|entry| entry.entry.clone()));
        self.live(at).replica.append(
            entries,
            Box::new(move |appended| {
                events.lock().unwrap().push_back((at, life, Event::Appended(appended)));
            }),
        );
    }

    /// Sends a follower what it lacks, and truncates what the leader does not have.
    pub(super) fn replicate(&mut self, to: usize) -> bool {
        let (leader, term) = (self.leader, self.term);
        if to == leader || !self.is_up(to) || !self.nodes[to].hears || !self.nodes[leader].hears {
            return false;
        }
        if !self.is_up(leader) || self.nodes[leader].leads != Some(term) {
            return false;
        }
        let mut did = false;
        if self.nodes[to].leads.take().is_some() {
            // It hears of a newer term.
            self.live(to).replica.step_down();
            for id in std::mem::take(&mut self.nodes[to].unanswered) {
                self.live(to).replica.confirmed(id, false);
            }
            did = true;
        }
        let same = |a: &LogEntry, b: &LogEntry| a.id == b.id;
        let (ours, theirs) = (&self.nodes[leader].log, &self.nodes[to].log);
        let common = ours.iter().zip(theirs).take_while(|(a, b)| same(a, b)).count();
        if common < theirs.len() {
            let common_index = common as u64;
            self.nodes[to].log.truncate(common);
            self.nodes[to].durable = self.nodes[to].durable.min(common_index);
            let truncated = Box::new(|truncated: Result<(), ReplicaError>| truncated.unwrap());
            self.live(to).replica.truncate_after(Index(common_index), truncated);
            did = true;
        }
        let missing: Vec<ReplicaEntry> = self.nodes[leader].log[common..]
            .iter()
            .map(|entry| ReplicaEntry { entry: entry.clone(), proposal: None })
            .collect();
        if !missing.is_empty() {
            self.append(to, missing);
            did = true;
        }
        if self.nodes[to].hears_commits && (!self.late_commits || did) {
            did |= self.tell_commit(to);
        }
        did
    }

    fn tell_commit(&mut self, to: usize) -> bool {
        let up_to = self.committed.min(self.nodes[to].log.len() as u64);
        if self.nodes[to].told >= up_to {
            return false;
        }
        self.nodes[to].told = up_to;
        let (events, life) = (Arc::clone(&self.events), self.nodes[to].life);
        self.live(to).replica.committed(
            Index(up_to),
            Box::new(move |applied| {
                events.lock().unwrap().push_back((to, life, Event::Committed(applied)));
            }),
        );
        true
    }

    /// Counts the durable copies of the leader's term.
    fn count(&mut self) {
        if !self.is_up(self.leader) || self.nodes[self.leader].leads != Some(self.term) {
            return;
        }
        let ours = &self.nodes[self.leader].log;
        let mut matching: Vec<u64> = self
            .nodes
            .iter()
            .map(|node| {
                let durable = node.log.iter().take(usize::try_from(node.durable).unwrap());
                durable.zip(ours).take_while(|(a, b)| a.id == b.id).count() as u64
            })
            .collect();
        matching.sort_unstable();
        let quorum = matching[(matching.len() - 1) / 2];
        if quorum > self.committed && ours[usize::try_from(quorum).unwrap() - 1].id.term == Term(self.term) {
            for entry in &ours[self.history.len()..usize::try_from(quorum).unwrap()] {
                self.history.push(entry.id);
            }
            self.committed = quorum;
        }
        for (entry, id) in ours.iter().zip(&self.history) {
            assert_eq!(entry.id, *id, "what was committed has changed");
        }
        if self.nodes[self.leader].durable >= self.committed.min(self.nodes[self.leader].log.len() as u64) {
            self.tell_commit(self.leader);
        }
    }

    /// Handles what drivers said. Returns whether there was anything.
    pub(super) fn hear(&mut self) -> bool {
        let events: Vec<_> = self.events.lock().unwrap().drain(..).collect();
        let any = !events.is_empty();
        for (at, life, event) in events {
            if self.nodes[at].life != life || !self.is_up(at) {
                continue;
            }
            match event {
                Event::Propose(proposal) => match self.nodes[at].leads {
                    Some(term) if Term(term) == proposal.term => self.append_own(at, b"", Some(proposal)),
                    Some(_) | None => self.live(at).replica.refused(proposal.id),
                },
                Event::Confirm(id) => {
                    let hears = |node: &&Node| node.live.is_some() && node.hears;
                    let quorum = self.nodes.iter().filter(hears).count() > self.nodes.len() / 2;
                    if self.nodes[at].leads != Some(self.term) && self.nodes[at].leads.is_none() {
                        self.live(at).replica.confirmed(id, false);
                    } else if self.nodes[at].leads == Some(self.term) && self.nodes[at].hears && quorum {
                        self.live(at).replica.confirmed(id, true);
                    } else {
                        self.nodes[at].unanswered.push(id);
                    }
                }
                Event::Appended(Ok(id)) => {
                    let node = &mut self.nodes[at];
                    let in_log = node.log.get(usize::try_from(id.index.0).unwrap() - 1);
                    if in_log.is_some_and(|entry| entry.id == id) {
                        node.durable = node.durable.max(id.index.0);
                    }
                }
                Event::Appended(Err(error)) => {
                    assert!(self.nodes[at].fails, "node {at}: {error}");
                    self.nodes[at].leads = None;
                }
                Event::Committed(applied) => {
                    if let Err(error) = applied {
                        assert!(matches!(error, ReplicaError::Damaged(_)), "node {at}: {error}");
                    }
                }
            }
        }
        any
    }

    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether it would be elected, once it has dealt with what it was sent.
    pub(super) fn may_stand(&mut self, at: usize) -> bool {
        if !self.is_up(at) {
            return false;
        }
        self.calm(at);
        self.electable(at)
    }

    /// Until this node has nothing to do.
    pub(super) fn calm(&mut self, at: usize) {
        for _ in 0..100 {
            if !self.step(at) && !self.hear() {
                return;
            }
        }
    }

    pub(super) fn let_pass(&self, time: Duration) {
        self.clock.pass(time);
    }

    /// Something of what is under way, by chance.
    pub(super) fn some_of_a_round(&mut self, random: &mut SeededRandom) {
        let at = random.index(self.nodes.len());
        match random.below(5) {
            0 => {
                self.hear();
            }
            1 => self.count(),
            2 => {
                self.replicate(at);
            }
            _ if self.is_up(at) => {
                self.step(at);
            }
            _ => {}
        }
    }

    /// How many states two or more nodes had.
    pub(super) fn compared(&self) -> usize {
        self.compared
    }

    /// Publishes at the leader, if that captures the subject.
    pub(super) fn try_publish(
        &self,
        subject: &str,
        id: &str,
        payload: &str,
    ) -> Option<Pending<PublishOutcome>> {
        let headers = Builder::new().header("Nats-Msg-Id", id).finish();
        let router = self.router(self.leader);
        router.publish(subject.to_owned(), headers, payload.to_owned()).ok().map(Pending::of)
    }

    /// One round of everything that is under way.
    pub(super) fn round(&mut self) -> bool {
        let mut did = false;
        for at in 0..self.nodes.len() {
            if self.is_up(at) {
                did |= self.step(at);
            }
        }
        did |= self.hear();
        self.count();
        for at in 0..self.nodes.len() {
            did |= self.replicate(at);
        }
        did
    }

    /// Until nothing is under way any more.
    pub(super) fn settle(&mut self) {
        for _ in 0..10_000 {
            if !self.round() && !self.round() {
                return;
            }
        }
        panic!("it does not come to rest");
    }

    pub(super) fn pass(&mut self, time: Duration) {
        self.clock.pass(time);
        self.settle();
    }

    /// Publishes at the leader.
    pub(super) fn begin(&self, subject: &str, id: Option<&str>, payload: &str) -> Pending<PublishOutcome> {
        let headers = id.map(|id| Builder::new().header("Nats-Msg-Id", id).finish()).unwrap_or_default();
        let ticket: PublishTicket =
            self.router(self.leader).publish(subject.to_owned(), headers, payload.to_owned()).unwrap();
        Pending::of(ticket)
    }

    pub(super) fn publish(&mut self, subject: &str, payload: &str) -> PublishOutcome {
        let mut ticket = self.begin(subject, None, payload);
        self.settle();
        ticket.take().expect("the outcome is there")
    }

    pub(super) fn ask(&self, at: usize, request: Request) -> Pending<Answer> {
        Pending::of(self.router(at).request(request).unwrap())
    }

    pub(super) fn request(&mut self, request: Request) -> Answer {
        let mut ticket = self.ask(self.leader, request);
        self.settle();
        ticket.take().expect("the answer is there")
    }
}

impl Node {
    fn new(disk: SimDisk) -> Self {
        Self {
            disk,
            live: None,
            life: 0,
            log: Vec::new(),
            durable: 0,
            leads: None,
            told: 0,
            hears: true,
            hears_commits: true,
            fails: false,
            roles: Arc::default(),
            damage: Arc::default(),
            unanswered: Vec::new(),
        }
    }
}

/// A ticket that is looked at and never waited for.
pub(super) struct Pending<T> {
    future: TicketFuture<T>,
    got: Option<T>,
}

impl<T> Pending<T> {
    fn of(ticket: impl IntoFuture<Output = T, IntoFuture = TicketFuture<T>>) -> Self {
        Self { future: ticket.into_future(), got: None }
    }

    pub(super) fn take(&mut self) -> Option<T> {
        if self.got.is_none()
            && let Poll::Ready(value) =
                Pin::new(&mut self.future).poll(&mut Context::from_waker(Waker::noop()))
        {
            return Some(value);
        }
        self.got.take()
    }

    pub(super) fn is_waiting(&mut self) -> bool {
        if self.got.is_none() {
            self.got = self.take();
        }
        self.got.is_none()
    }
}
